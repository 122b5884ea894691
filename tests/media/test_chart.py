"""Rankings as pictures: longer bars for larger shares, the best one marked. Curves: points where their numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

pytest.importorskip("PIL")

from uvg_core.errors import UniViGUError
from uvg_core.media.chart import ROW, Curve, Panel, draw_curves, draw_ranking
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


def test_curves_lie_where_their_numbers_say() -> None:
    first = Curve("a & b", [(1, 0.5, 0.4, 0.6), (10, 0.75, 0.7, 0.8), (100, 1.0, 1.0, 1.0)])
    other = Curve("c", [(10, 0.5, 0.5, 0.5)])
    panels = [Panel("one", "passes", [first, other]), Panel("two", "seconds", [other])]
    root = ElementTree.fromstring(draw_curves(panels, "<Title>"))
    assert {"<Title>", "a & b", "c", "one", "two", "passes", "seconds", "50", "100"} <= set(root.itertext())
    svg = "{http://www.w3.org/2000/svg}"
    line, single, beside = root.iter(f"{svg}polyline")
    (x1, y1), (x2, y2), (x3, y3) = (map(float, point.split(",")) for point in line.get("points", "").split())
    assert x3 - x2 == pytest.approx(x2 - x1, abs=0.2)  # ten times as much is as far, wherever
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert float(single.get("points", "").split(",")[1]) == pytest.approx(y1, abs=0.1)
    assert single.get("stroke") == beside.get("stroke") != line.get("stroke")


def test_nothing_to_draw() -> None:
    with pytest.raises(UniViGUError, match="there is nothing to draw"):
        draw_curves([Panel("one", "passes", [])], "Title")
