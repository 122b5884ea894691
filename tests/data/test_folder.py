"""Surveying a data folder: what is usable, what is left out and why, and what the report says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from refusals import closed_folder

from uvg_core.config import RunConfig
from uvg_core.data import left_out as reasons
from uvg_core.data.folder import Survey, TextLimits, survey
from uvg_core.data.settings import Data
from uvg_core.errors import UniViGUError
from uvg_core.media.video import write_video

RUN = RunConfig(height=32, width=48, frames=9, fps=8.0, text_length=16, context_length=24)
LIMITS = TextLimits(prompt=(3, 6), detail=(5, 10))


def tokens(text: str) -> list[int]:
    """A token a word, and the end."""
    return [*range(2, 2 + len(text.split())), 1]


def words(count: int) -> str:
    return " ".join(["word"] * count)


def add(
    folder: Path, name: str, prompt: str | None = "a red ball", detail: str | None = None, *, frames=9, fps=8.0
) -> Path:
    clip = folder / name
    clip.parent.mkdir(parents=True, exist_ok=True)
    gray = torch.linspace(20, 220, frames).to(torch.uint8)
    write_video(clip, gray[:, None, None, None].expand(frames, 32, 32, 3), fps)
    if prompt is not None:
        clip.with_suffix(".txt").write_text(prompt, encoding="utf-8")
    if detail is not None:
        clip.with_suffix(".detail.txt").write_text(detail, encoding="utf-8")
    return clip


def look(folder: Path, windows: str = "whole", **options) -> Survey:
    return survey(Data(str(folder), windows=windows), RUN, tokens, limits=LIMITS, **options)


def test_usable_pairs_in_order(tmp_path: Path) -> None:
    add(tmp_path, "sub/b.mp4", "  ein roter Ball\n", words(7))
    add(tmp_path, "a.mp4", "a red ball")
    found = look(tmp_path)
    assert [(pair.name, pair.prompt, pair.detail) for pair in found.usable] == [
        ("a.mp4", "a red ball", None),
        ("sub/b.mp4", "ein roter Ball", words(7)),
    ]
    assert str(found) == f"{tmp_path}: 2 clips, 2 usable, 0 left out"
    assert [pair.name for pair in look(tmp_path, recursive=False).usable] == ["a.mp4"]


def test_each_reason_is_counted(tmp_path: Path) -> None:
    good = add(tmp_path, "good.mp4", detail=words(6))
    add(tmp_path, "bare.mp4", None)
    add(tmp_path, "blank.mp4", " \n")
    add(tmp_path, "long.mp4", words(6))
    add(tmp_path, "brief.mp4", words(1))
    add(tmp_path, "short.mp4", frames=8, detail=words(6))
    add(tmp_path, "plain.mp4")
    add(tmp_path, "wordy.mp4", detail=words(10))
    odd = add(tmp_path, "odd.mp4").with_suffix(".txt")
    odd.write_bytes(bytes(range(128, 256)) + b"\0")
    add(tmp_path, "torn.mp4", detail=words(6)).write_bytes(good.read_bytes()[:200])
    found = look(tmp_path, need_detail=True)
    assert [pair.name for pair in found.usable] == ["good.mp4"]
    assert {one.name: (one.reason, one.found) for one in found.left_out if one.name != "torn.mp4"} == {
        "bare.mp4": (reasons.NO_CAPTION, ""),
        "blank.mp4": (reasons.EMPTY_CAPTION, ""),
        "long.mp4": (f"{reasons.PROMPT_LENGTH} (3-6)", "7 tokens"),
        "brief.mp4": (f"{reasons.PROMPT_LENGTH} (3-6)", "2 tokens"),
        "short.mp4": (f"{reasons.TOO_SHORT} for 9 frames at 8 fps", "1.00 s"),
        "plain.mp4": (reasons.NO_DETAIL, ""),
        "wordy.mp4": (f"{reasons.DETAIL_LENGTH} (5-10)", "11 tokens"),
        "odd.mp4": (reasons.BAD_TEXT, f"{odd}: is not text; expected a text file, best in UTF-8"),
    }
    torn = next(one for one in found.left_out if one.name == "torn.mp4")
    assert torn.reason == reasons.UNREADABLE
    assert "torn.mp4" in torn.found
    lines = str(found).splitlines()
    assert lines[0].endswith("10 clips, 1 usable, 9 left out")
    assert "  2 with a prompt outside the token limits (3-6): brief.mp4 (2 tokens), long.mp4 (7 tokens)" in lines
    assert lines[lines.index("  1 unreadable: torn.mp4") + 1] == f"    {torn.found}"
    assert "  1 too short for 9 frames at 8 fps: short.mp4 (1.00 s)" in lines


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_captions_come_in_the_encodings_of_this_world(tmp_path: Path, encoding: str) -> None:
    add(tmp_path, "a.mp4").with_suffix(".txt").write_bytes("ein brauner Bär".encode(encoding))
    assert look(tmp_path).usable[0].prompt == "ein brauner Bär"


def test_a_subfolder_that_may_not_be_entered_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, "good.mp4")
    closed_folder(tmp_path, monkeypatch)
    assert [(one.name, one.reason) for one in look(tmp_path).left_out] == [("closed/", reasons.UNREADABLE)]


def test_a_pipe_in_the_place_of_a_caption_blocks_nothing(tmp_path: Path) -> None:
    add(tmp_path, "good.mp4")
    os.mkfifo(add(tmp_path, "pipe.mp4", None).with_suffix(".txt"))
    found = look(tmp_path)
    assert [(one.name, one.reason) for one in found.left_out] == [("pipe.mp4", reasons.BAD_TEXT)]


def test_details_are_optional_in_the_first_stage(tmp_path: Path) -> None:
    add(tmp_path, "plain.mp4")
    add(tmp_path, "wordy.mp4", detail=words(10))
    add(tmp_path, "whole.mp4", detail=words(9))
    found = look(tmp_path)
    assert {pair.name: pair.detail for pair in found.usable} == {
        "plain.mp4": None,
        "wordy.mp4": None,
        "whole.mp4": words(9),
    }
    assert [one.name for one in found.unused_details] == ["wordy.mp4"]
    lines = str(found).splitlines()
    assert lines[-2:] == [
        "used without their detailed captions:",
        "  1 with a detailed caption outside the token limits (5-10): wordy.mp4 (11 tokens)",
    ]


def test_many_files_of_one_reason_are_not_all_named(tmp_path: Path) -> None:
    add(tmp_path, "good.mp4")
    for letter in "abcde":
        (tmp_path / f"{letter}.mp4").touch()
    assert "  5 without a caption: a.mp4, b.mp4, c.mp4 and 2 more" in str(look(tmp_path)).splitlines()


def test_retiming_is_said(tmp_path: Path) -> None:
    add(tmp_path, "own.mp4")
    assert look(tmp_path).retimed == ""
    add(tmp_path, "film.mp4", fps=24.0, frames=48)
    add(tmp_path, "screen.mp4", fps=30.0, frames=36)
    found = look(tmp_path)
    assert found.retimed == "2 of 3 clips are retimed from 24, 30 fps to 8 fps"
    assert found.retimed in str(found).splitlines()
    spread = "1 of 3 clips longer than 1.12 s: their frames are spread over all that the caption covers, up to 1.78"
    assert any(line.startswith(spread) for line in str(found).splitlines())
    found = look(tmp_path, windows="first")
    first = "1 of 3 clips longer than 1.12 s: only their beginning is used, although captions may describe more"
    assert first in str(found).splitlines()
    film = found.item(found.usable.index(next(p for p in found.usable if p.name == "film.mp4")))
    assert film.pixels.shape == (9, 32, 48, 3)
    shades = film.pixels.float().mean((1, 2, 3))
    expected = torch.linspace(20, 220, 48)[::3][:9]  # every third of 24 makes 8 a second
    torch.testing.assert_close(shades, expected, atol=3, rtol=0)


def test_nothing_usable_is_an_error_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(UniViGUError, match="found no videos here"):
        look(tmp_path)
    add(tmp_path, "a.mp4", None)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    (tmp_path / "b.txt").write_text("a red ball")
    with pytest.raises(
        UniViGUError, match=r"none of 2 clips .*\n  1 without a caption: a\.mp4\n  1 unreadable: b\.mp4"
    ):
        look(tmp_path)
    with pytest.raises(UniViGUError, match=r"gone: no such file or folder; expected a folder of clips"):
        look(tmp_path / "gone")


def test_limits() -> None:
    assert TextLimits.of(RunConfig()) == TextLimits((0, 128), (128, 256))
    assert TextLimits.of(RUN) == TextLimits((0, 16), (0, 16))
    with pytest.raises(UniViGUError, match="limits of the detail are 9 to 5"):
        TextLimits(detail=(9, 5))


def test_limits_stay_within_the_model(tmp_path: Path) -> None:
    add(tmp_path, "a.mp4", words(15), words(16))
    add(tmp_path, "b.mp4", words(16))
    found = survey(tmp_path, RUN, tokens, limits=TextLimits((0, 99), (0, 99)))
    assert [(pair.name, pair.detail) for pair in found.usable] == [("a.mp4", None)]
    assert [(one.name, one.found) for one in found.left_out] == [("b.mp4", "17 tokens")]
    with pytest.raises(
        UniViGUError, match="detailed captions must have at least 128 tokens, but this model reads at most 16"
    ):
        survey(tmp_path, RUN, tokens, limits=TextLimits())
