"""Captions of a film: the forms they are written in, and that a stopped run goes on."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from uvg_core.errors import UniViGUError
from uvg_core.media.video.shots import Shot
from uvg_core.pipeline.film import Line, as_lines_srt, as_vtt, caption_film, write_lines

HARD = ['a "red", circle', "two\nlines --> and more", "<b> & ; |", ""]
LINES = [Line(3661.5 + n, 3662.25 + n, text) for n, text in enumerate(HARD)]


def stand_in(count: int) -> Any:
    """So many parts of a second each."""

    def read(done: float) -> Iterator[Shot]:
        return (Shot(n, n + 1, torch.full((1, 2, 2, 3), n % 256)) for n in range(count) if n + 1 > done)

    return read


def words(parts: Sequence[Shot]) -> list[str]:
    return [f"shot {part.start:g}" for part in parts]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"a film")
    return path


def test_each_form_gives_back_what_was_written(tmp_path: Path, film: Path) -> None:
    for suffix in ("json", "csv"):
        write_lines(tmp_path / f"out.{suffix}", LINES, film)
    rows = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert [Line(**row) for row in rows] == LINES
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [Line(float(row["start"]), float(row["end"]), row["caption"]) for row in table] == LINES


@pytest.mark.parametrize(("text", "point"), [(as_lines_srt(LINES), ","), (as_vtt(LINES), ".")])
def test_subtitles_have_one_cue_for_each_part(text: str, point: str) -> None:
    cues = re.findall(r"(\S+) --> (\S+)\n((?:.+\n)+)", text)
    assert [cue[:2] for cue in cues][0] == (f"01:01:01{point}500", f"01:01:02{point}250")
    assert len(cues) == len(LINES)
    assert text.count("-->") == len(LINES)


def test_ten_thousand_shots(tmp_path: Path, film: Path) -> None:
    out = tmp_path / "out.csv"
    lines = caption_film(film, stand_in(10_000), words, together=16)
    write_lines(out, lines, film)
    assert len(out.read_text("utf-8").splitlines()) == 10_001
    assert lines[-1] == Line(9999, 10_000, "shot 9999")


def test_a_run_that_was_killed_goes_on_and_captions_nothing_twice(tmp_path: Path, film: Path) -> None:
    out, asked = tmp_path / "out.srt", list[float]()

    def killed(parts: Sequence[Shot]) -> list[str]:
        if parts[0].start >= 4:
            raise KeyboardInterrupt
        return words(parts)

    def noted(parts: Sequence[Shot]) -> list[str]:
        asked.extend(part.start for part in parts)
        return words(parts)

    with pytest.raises(KeyboardInterrupt):
        caption_film(film, stand_in(8), killed, together=2, out=out, facts={"model": "one"})
    journal = tmp_path / "out.srt.part"
    assert journal.exists()
    assert not out.exists()
    journal.write_text(journal.read_text() + '{"start": 4, "en')  # what a kill may leave
    with pytest.raises(UniViGUError, match="another model"):
        caption_film(film, stand_in(8), noted, out=out, facts={"model": "other"})
    lines = caption_film(film, stand_in(8), noted, together=2, out=out, facts={"model": "one"})
    assert asked == [4, 5, 6, 7]
    assert [line.caption for line in lines] == [f"shot {n}" for n in range(8)]
    assert out.read_text() == as_lines_srt(lines)
    assert not journal.exists()


def test_another_suffix_is_refused(tmp_path: Path, film: Path) -> None:
    with pytest.raises(UniViGUError, match=r"\.srt, \.vtt"):
        caption_film(film, stand_in(1), words, out=tmp_path / "out.doc")
