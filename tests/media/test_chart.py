"""Rankings as pictures: longer bars for larger shares, the best one marked."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL")

from uvg_core.errors import UniViGUError
from uvg_core.media.chart import ROW, draw_ranking
from uvg_core.media.sheet import ACCENT, MUTED


def test_the_best_text_leads_and_has_the_longest_bar() -> None:
    picture = draw_ranking(["a small dog", "a cat " * 60, "a bird"], [-9.0, -2.0, -4.0], [0.1, 0.6, 0.3], "Title")
    bars = [picture.crop((0, 88 + n * ROW + 35, picture.width, 88 + n * ROW + 38)) for n in range(3)]
    colours = [{colour: count for count, colour in bar.getcolors()} for bar in bars]
    marked, second, third = (found.get(ACCENT, 0) + found.get(MUTED, 0) for found in colours)
    assert marked / second == pytest.approx(2, rel=0.05)
    assert second / third == pytest.approx(3, rel=0.05)
    assert ACCENT in colours[0]
    assert ACCENT not in colours[1]


def test_lists_that_do_not_fit() -> None:
    with pytest.raises(UniViGUError, match="found 2 texts, 1 scores"):
        draw_ranking(["a", "b"], [0.0], [1.0])
    with pytest.raises(UniViGUError, match="found 0 texts"):
        draw_ranking([], [], [])
