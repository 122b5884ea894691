"""Captions of a film: the forms they are written in, and that a stopped run goes on."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from uvg_core.cli.main import main
from uvg_core.errors import UniViGUError
from uvg_core.media.video import write_video
from uvg_core.media.video.shots import Cutting, Shot
from uvg_core.pipeline import film as module
from uvg_core.pipeline.film import Line, as_lines_srt, as_vtt, caption_film, read_ahead, write_lines

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
    assert cues[0][:2] == (f"01:01:01{point}500", f"01:01:02{point}250")
    assert len(cues) == len(LINES)
    assert text.count("-->") == len(LINES)


def test_ten_thousand_shots(tmp_path: Path, film: Path) -> None:
    out = tmp_path / "out.csv"
    lines = caption_film(film, stand_in(10_000), words, together=16)
    write_lines(out, lines, film)
    assert len(out.read_text("utf-8").splitlines()) == 10_001
    assert lines[-1] == Line(9999, 10_000, "shot 9999")


def test_parts_of_several_sizes_are_captioned_by_size_and_stay_in_order() -> None:
    def read(_: float) -> Iterator[Shot]:
        return (Shot(n, n + 1, torch.zeros(1 + 4 * (n % 2), 2, 2, 3)) for n in range(7))

    asked: list[list[float]] = []

    def noted(parts: Sequence[Shot]) -> list[str]:
        asked.append([part.start for part in parts])
        return words(parts)

    lines = caption_film("film.mp4", read, noted, together=4)
    assert [(line.start, line.caption) for line in lines] == [(n, f"shot {n}") for n in range(7)]
    assert asked == [[0, 2], [1, 3], [4, 6], [5]]


def test_where_memory_does_not_suffice_fewer_are_captioned_at_once() -> None:
    def narrow(parts: Sequence[Shot]) -> list[str]:
        if len(parts) > 2:
            raise torch.OutOfMemoryError("too many")
        return words(parts)

    lines = caption_film("film.mp4", stand_in(10), narrow, together=8)
    assert [line.caption for line in lines] == [f"shot {n}" for n in range(10)]


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
    lines = caption_film(film, stand_in(8), noted, together=2, out=out, facts={"model": "one"})
    assert asked == [4, 5, 6, 7]
    assert [line.caption for line in lines] == [f"shot {n}" for n in range(8)]
    assert out.read_text() == as_lines_srt(lines)
    assert not journal.exists()


@pytest.mark.parametrize(("facts", "content"), [({"model": "other"}, b"a film"), ({"model": "one"}, b"other film")])
def test_another_model_or_film_starts_anew(tmp_path: Path, film: Path, facts: dict[str, Any], content: bytes) -> None:
    out, asked, notes = tmp_path / "out.vtt", list[float](), list[str]()

    def killed(parts: Sequence[Shot]) -> list[str]:
        if asked:
            raise KeyboardInterrupt
        asked.append(parts[0].start)
        return ["of the earlier run"]

    with pytest.raises(KeyboardInterrupt):
        caption_film(film, stand_in(3), killed, out=out, facts={"model": "one"})
    film.write_bytes(content)
    lines = caption_film(film, stand_in(3), words, out=out, facts=facts, note=notes.append)
    assert [line.caption for line in lines] == ["shot 0", "shot 1", "shot 2"]
    assert "starts anew" in notes[0]
    assert list(tmp_path.iterdir()) == [film, out]


def test_two_runs_do_not_write_one_file(tmp_path: Path, film: Path) -> None:
    out = tmp_path / "out.srt"

    def another(parts: Sequence[Shot]) -> list[str]:
        code = (
            "import sys; from pathlib import Path; from uvg_core.pipeline.film import caption_film; "
            "caption_film(sys.argv[1], lambda _: iter(()), list, out=Path(sys.argv[2]))"
        )
        run = subprocess.run([sys.executable, "-c", code, film, out], capture_output=True, text=True, check=False)
        assert "is being written by another run" in run.stderr
        return words(parts)

    assert len(caption_film(film, stand_in(1), another, out=out)) == 1


def test_what_is_no_journal_is_left_alone(tmp_path: Path, film: Path) -> None:
    foreign = tmp_path / "out.srt.part"
    foreign.write_text("a half-finished download\n")
    with pytest.raises(UniViGUError, match="is not a journal"):
        caption_film(film, stand_in(1), words, out=tmp_path / "out.srt")
    assert foreign.read_text() == "a half-finished download\n"


def test_another_suffix_is_refused(tmp_path: Path, film: Path) -> None:
    with pytest.raises(UniViGUError, match=r"\.srt, \.vtt"):
        caption_film(film, stand_in(1), words, out=tmp_path / "out.doc")


def test_the_next_parts_are_read_while_some_are_captioned(monkeypatch: pytest.MonkeyPatch) -> None:
    is_read, read = threading.Event(), list[int]()

    def counted(*_: object, **__: object) -> Iterator[Shot]:
        for shot in stand_in(40)(0.0):
            read.append(int(shot.start))
            if len(read) == 4:
                is_read.set()
            yield shot

    def describe(parts: Sequence[Shot]) -> list[str]:
        assert is_read.wait(30)
        assert len(read) <= parts[-1].end + 4  # and no further
        return words(parts)

    monkeypatch.setattr(module, "shots", counted)
    parts = read_ahead("film.mp4", Cutting(shots=True), None, ahead=3)  # type: ignore[arg-type]
    assert len(caption_film("film.mp4", lambda _: parts, describe)) == 40


def coloured(path: Path, *shots: tuple[int, ...]) -> Path:
    """A film whose shots, of two seconds each, are of these colours."""
    ramp = torch.linspace(0.5, 1, 48)[None, None, :, None]
    pixels = [torch.tensor(colour).expand(24, 48, 48, 3) * ramp for colour in shots]
    write_video(path, torch.cat(pixels).to(torch.uint8), 12)
    return path


def test_the_command_writes_chapters_and_lines_and_leaves_what_a_folder_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scenedetect", reason="shots are found with PySceneDetect")
    path = coloured(tmp_path / "film.mp4", (220, 40, 40), (40, 60, 220))
    few = ["--steps", "1", "--device", "cpu", "-q"]
    out = tmp_path / "made" / "out.mp4"
    out.parent.mkdir()
    assert main(["caption", str(path), "--shots", "-o", str(out), *few]) == 0
    with av.open(str(out)) as container:
        chapters = [(one["start"], one["end"], one["metadata"]["title"]) for one in container.chapters()]
    capsys.readouterr()
    assert main(["caption", str(path), "--every", "2", *few]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [times for times, _ in lines] == ["00:00:00.000 --> 00:00:02.000", "00:00:02.000 --> 00:00:04.000"]
    assert chapters == [(0, 2000, lines[0][1]), (2000, 4000, lines[1][1])]
    (tmp_path / "film.srt").write_text("by hand")
    assert main(["caption", str(tmp_path), "--every", "2", *few]) == 0
    assert (tmp_path / "film.srt").read_text() == "by hand"
    assert (out.parent / "out.srt").read_text().count("-->") == 2


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["film.mp4", "--every", "0"], 2, "--every"),
        (["film.mp4", "--every", "2", "--shots"], 2, "choose one"),
        (["film.mp4", "--shots", "-o", "out.doc"], 2, ".srt"),
        (["film.mp4", "-o", "out.srt"], 2, "add --shots"),
        (["film.mp4", "--every", "2", "--existing", "append"], 2, "--existing does not go with"),
        (["film.mp4", "--every", "2", "-o", "none/out.srt"], 1, "folder none does not exist"),
        (["film.mp4", "--every", "2", "-o", "out.mkv"], 1, "must end in .mp4"),
        (["film.mp4", "--every", "2", "-o", "film.mp4"], 2, "being read"),
        (["text.mp4", "--every", "2", "-o", "out.srt"], 1, "cannot be opened as a video"),
        (["none.mp4", "--every", "2", "-o", "out.srt"], 1, "none.mp4: no such file"),
        (["sub", "--every", "2"], 1, "no videos in this folder"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_left(
    flags: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    coloured(Path("film.mp4"), (220, 40, 40))
    Path("text.mp4").write_text("no film")
    Path("sub").mkdir()
    before = sorted(tmp_path.iterdir())
    with nullcontext() if code == 1 else pytest.raises(SystemExit, match=str(code)):
        assert main(["caption", *flags, "--device", "cpu", "-q"]) == code
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
