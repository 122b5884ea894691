"""Captions of real footage by a language model, which a local server stands in for."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_llm import GOOD, Script, answered, failed

from uvg_core.checkpoint import read_config
from uvg_core.cli.main import main
from uvg_core.config import RunConfig
from uvg_core.data.folder import TextLimits, survey
from uvg_core.media.video import write_video
from uvg_core.pipeline.pipeline import EMBEDDED_MODEL
from uvg_core.synthesis.describe import estimated_tokens

pytest.importorskip("httpx")
Image = pytest.importorskip("PIL.Image")

LONG = " ".join(["word"] * 120)


def clip(path: Path, frames: int = 24) -> Path:
    """A clip at 8 fps that gets brighter by 10 with every frame."""
    gray = (10 * torch.arange(frames)).to(torch.uint8)
    write_video(path, gray[:, None, None, None].expand(frames, 32, 48, 3), 8.0)
    return path


def describe(script: Script, *more: object) -> int:
    return main(["describe", *map(str, more), "--endpoint", script.url, "--llm", "seer", "--retries", "0"])


def shades(asked: dict[str, Any]) -> list[float]:
    """How bright the frames are that were shown."""
    parts = asked["messages"][1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    return [sum(picture.convert("L").tobytes()) / (picture.width * picture.height) for picture in pictures]


def words(asked: dict[str, Any]) -> str:
    return asked["messages"][0]["content"] + asked["messages"][1]["content"][0]["text"]


def test_a_folder_gets_captions_of_whole_clips(tmp_path: Path, script: Script) -> None:
    clip(tmp_path / "a.mp4")
    clip(tmp_path / "b.mp4")
    (tmp_path / "b.txt").write_text("mine")
    assert describe(script, tmp_path, "--prefix", "style, ", "--frames-shown", "3") == 0
    assert (tmp_path / "a.txt").read_text("utf-8").strip() == f"style, {GOOD}"
    assert (tmp_path / "b.txt").read_text() == "mine"
    (asked,) = script.asked
    assert shades(asked) == pytest.approx([0, 110, 230], abs=12)  # from the first frame to the last
    assert "The prompt" not in words(asked)
    assert "1 and 128 tokens" in words(asked)
    assert describe(script, tmp_path) == 0
    assert len(script.asked) == 1  # nothing is left to do


def test_detailed_captions_go_beside_the_brief_ones(tmp_path: Path, script: Script) -> None:
    script.usual = answered(LONG)
    clip(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a brief caption")
    assert describe(script, tmp_path, "--kind", "detail") == 0
    assert (tmp_path / "a.detail.txt").read_text("utf-8").strip() == LONG
    assert (tmp_path / "a.txt").read_text() == "a brief caption"
    assert "The prompt: a brief caption" in words(script.asked[0])
    assert "128 and 256 tokens" in words(script.asked[0])


@pytest.mark.parametrize(("name", "text"), [("a.caption", "a brief one"), ("a.json", '{"caption": "a brief one"}')])
def test_other_files_hold_the_brief_caption_too(tmp_path: Path, script: Script, name: str, text: str) -> None:
    script.usual = answered(LONG)
    clip(tmp_path / "a.mp4")
    (tmp_path / name).write_text(text)
    assert describe(script, tmp_path, "--kind", "detail") == 0
    assert "The prompt: a brief one" in words(script.asked[0])


def test_a_clip_that_shares_its_name_is_described_with_its_own_prompt(tmp_path: Path, script: Script) -> None:
    script.usual = answered(LONG)
    for name, text in (("a.mp4", "a.txt"), ("a.mov", "a.mov.txt")):
        clip(tmp_path / "new.mp4").rename(tmp_path / name)
        (tmp_path / text).write_text(f"the prompt of {name}")
    assert describe(script, tmp_path, "--kind", "detail") == 0
    assert "The prompt: the prompt of a.mov" in words(script.asked[0])
    assert "The prompt: the prompt of a.mp4" in words(script.asked[1])


def test_an_answer_that_is_too_short_is_asked_for_again(tmp_path: Path, script: Script) -> None:
    script.answers = [answered("too short"), answered(LONG)]
    clip(tmp_path / "a.mp4")
    assert describe(script, tmp_path, "--kind", "detail") == 0
    assert len(script.asked) == 2


def test_an_endpoint_that_refuses_ends_the_run_and_it_goes_on_later(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate("abc"):  # the answer for a clip that is seen again is known
        clip(tmp_path / f"{name}.mp4", 20 + number)
    script.answers = [answered(GOOD), failed(401, "no")]
    assert describe(script, tmp_path) == 1
    assert len(script.asked) == 2
    assert "1 captions were written and are kept" in capsys.readouterr().err
    assert describe(script, tmp_path) == 0
    assert len(script.asked) == 4
    assert len(list(tmp_path.glob("*.txt"))) == 3


def test_one_clip_without_a_caption_costs_no_other(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate("ab"):
        clip(tmp_path / f"{name}.mp4", 20 + number)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    script.answers = [failed(400, "too many pictures")]
    assert describe(script, tmp_path) == 1
    assert "1 captioned, 0 skipped (already captioned), 2 failed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*.txt")] == ["b.txt"]


def test_windows_of_long_clips_become_a_manifest_to_train_on(tmp_path: Path, script: Script) -> None:
    """Each window is seen alone, a killed run goes on, and training reads what was written."""
    clip(tmp_path / "a.mp4", 20)  # 2.5 s
    clip(tmp_path / "b.mp4", 8)
    script.answers = [answered("the first"), answered("the second"), failed(401, "no")]
    assert describe(script, tmp_path, "--window", "1.125") == 1
    table = tmp_path / "windows.jsonl"
    table.write_bytes(table.read_bytes()[:-1])  # as an editor leaves it
    script.answers = [answered("the third"), answered("all")]
    assert describe(script, tmp_path, "--window", "1.125") == 0
    rows = [json.loads(line) for line in table.read_text("utf-8").splitlines()]
    assert [(row["path"], row["start"], row["end"], row["caption"]) for row in rows] == [
        ("a.mp4", 0, 1.125, "the first"),
        ("a.mp4", 0.688, 1.813, "the second"),
        ("a.mp4", 1.375, 2.5, "the third"),
        ("b.mp4", 0, 1.0, "all"),
    ]
    assert shades(script.asked[1])[0] > shades(script.asked[0])[0] + 40
    run = RunConfig(height=32, width=48, frames=9, fps=8.0, text_length=16, context_length=24)
    found = survey(table, run, lambda text: [*range(len(text.split()) + 1)], limits=TextLimits((0, 9), (0, 9)))
    assert [one.prompt for one in found.usable] == ["the first", "the second", "the third"]
    assert found.cut == ""  # every caption covers its window
    script.usual = answered(LONG)
    table.write_text(table.read_text("utf-8") + "of somebody else\n", encoding="utf-8")
    assert describe(script, tmp_path, "--window", "1.125", "--kind", "detail") == 0
    other, *lines = table.read_text("utf-8").splitlines()
    assert other == "of somebody else"
    details = {row["caption"]: row["detail"] for row in map(json.loads, lines)}
    assert details == dict.fromkeys(("the first", "the second", "the third", "all"), LONG)
    assert "The prompt: the first" in words(script.asked[5])


def test_windows_of_another_length_are_refused_in_words(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    clip(tmp_path / "a.mp4", 20)  # 2.5 s
    assert describe(script, tmp_path, "--window", "1.25") == 0
    clip(tmp_path / "b.mp4", 8)
    table = tmp_path / "windows.jsonl"
    before = table.read_text()
    assert describe(script, tmp_path, "--window", "0.5") == 1
    assert table.read_text().startswith(before)
    assert [json.loads(line)["path"] for line in table.read_text().splitlines()] == ["a.mp4"] * 2 + ["b.mp4"] * 2
    out = capsys.readouterr().out
    assert "1 clip left out, because windows.jsonl describes other windows of them, such as 0 s to 1.25 s: a.mp4" in out
    assert describe(script, tmp_path, "--window", "2.5", "--kind", "detail") == 1
    assert "other windows" in capsys.readouterr().out


def test_after_a_kill_training_reads_each_window_once_and_the_next_run_tidies(tmp_path: Path, script: Script) -> None:
    clip(tmp_path / "a.mp4", 9)
    assert describe(script, tmp_path, "--window", "2") == 0
    table = tmp_path / "windows.jsonl"
    line = table.read_text("utf-8")
    script.usual = answered(LONG)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uvg_core.synthesis.describe._tidy", killed)
        describe(script, tmp_path, "--window", "2", "--kind", "detail")
    assert len(table.read_text("utf-8").splitlines()) == 2
    run = RunConfig(height=32, width=48, frames=9, fps=8.0, text_length=16, context_length=24)
    limits = TextLimits((0, 99), (0, 999))
    found = survey(table, replace(run, text_length=999, context_length=999), lambda text: text.split(), limits=limits)
    assert [(one.prompt, one.detail) for one in found.usable] == [(GOOD, LONG)]
    table.write_text(table.read_text("utf-8") + line + line[:30], encoding="utf-8")
    assert describe(script, tmp_path, "--window", "2", "--kind", "detail") == 0
    (row,) = map(json.loads, table.read_text("utf-8").splitlines())
    assert row["caption"] == GOOD
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".uvg.")) == [".uvg.lock"]


def test_a_checkpoint_counts_its_own_tokens(tmp_path: Path, script: Script) -> None:
    pytest.importorskip("diffusers")
    clip(tmp_path / "a.mp4")
    script.usual = answered("a red circle moves left")
    assert describe(script, tmp_path, "--model", EMBEDDED_MODEL) == 0
    run = read_config(EMBEDDED_MODEL).run
    assert f"between 1 and {min(run.text_length, run.context_length)} tokens" in words(script.asked[0])


def test_where_nothing_is_described_nothing_is_left(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    files = [tmp_path / "gone.mp4", tmp_path / "empty", tmp_path / "bad.mp4", tmp_path / "nowhere" / "gone.mp4"]
    assert describe(script, *files) == 1
    assert capsys.readouterr().err.count("error: ") == 4
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bad.mp4", "empty"]
    clip(tmp_path / "a.mp4")
    assert describe(script, tmp_path / "a.mp4") == 0
    assert len(list((tmp_path / ".answers").iterdir())) == 1
    assert describe(script, tmp_path / "a.mp4", "--cache", tmp_path / "bad.mp4") == 1
    assert "bad.mp4: the folder cannot be made" in capsys.readouterr().err
    assert describe(script, tmp_path / "a.mp4", "--cache", tmp_path / "bad.mp4" / "answers") == 1
    assert f"({tmp_path / 'bad.mp4'} is not a folder); choose another" in capsys.readouterr().err
    assert len(script.asked) == 1


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path / "a.mp4")
    llm, window = ["--endpoint", "http://127.0.0.1:9/v1", "--llm", "seer"], ["--window", "2"]
    for flags, said in (
        ([tmp_path], "pass --endpoint URL and --llm MODEL"),
        ([tmp_path, "--llm", "seer"], "--llm is for captions; name their --endpoint too"),
        ([tmp_path, *llm[:2]], "--endpoint needs --llm MODEL"),
        ([tmp_path, *llm, "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set; put the endpoint's key there"),
        ([tmp_path, *llm, "--height", "40"], "argument --height: 40 is not a multiple of 16; the nearest is 32 or 48"),
        ([tmp_path / "a.mp4", *llm, *window], "a.mp4: --window writes a manifest into a folder"),
        ([tmp_path, *llm, *window, "--prefix", "mystyle, "], "--prefix does not apply to --window"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["describe", *map(str, flags)])
        usage, _, error = capsys.readouterr().err.partition("error: ")
        assert usage.startswith("usage: ")
        assert said in error


def test_tokens_are_estimated_in_any_language() -> None:
    assert estimated_tokens("one two three") == 5
    assert estimated_tokens("一个红色的球") == 7


# --- which part of a clip is seen, and how ----------------------------------------------------------------------------


def sides(asked: dict[str, Any]) -> tuple[int, int]:
    """Width and height of the frames that were shown."""
    url = asked["messages"][1]["content"][1]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size


def test_only_the_part_asked_for_is_described(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    film = clip(tmp_path / "a.mp4")  # 3 s
    assert describe(script, film, "--start", "1", "--seconds", "1", "--frames-shown", "3") == 0
    assert shades(script.asked[0]) == pytest.approx([80, 110, 150], abs=12)
    assert "lasts 1.0 seconds; 3 of its frames" in words(script.asked[0])
    assert describe(script, film, "--fps", "4", "--frames-shown", "4") == 0
    assert shades(script.asked[1]) == pytest.approx([0, 20, 40, 60], abs=12)
    assert "lasts 1.0 seconds; 4 of its frames" in words(script.asked[1])
    assert describe(script, film, "--fps", "2") == 0  # as many as the clip has at that rate
    assert "lasts 3.0 seconds; 6 of its frames" in words(script.asked[2])
    assert describe(script, film, "--start", "9") == 1
    assert "no frames in the part from 9 s; the clip is 3 s long" in capsys.readouterr().err


def test_frames_are_fitted_to_a_size(tmp_path: Path, script: Script) -> None:
    film = clip(tmp_path / "a.mp4")  # 48x32
    assert describe(script, film, "--start", "1", "--height", "64", "--width", "64", "--frames-shown", "1") == 0
    assert (sides(script.asked[0]), shades(script.asked[0])) == ((64, 64), [pytest.approx(80, abs=12)])
    square = ["--start", "1", "--height", "64", "--width", "64", "--frames-shown", "1", "--frame-side", "32"]
    assert describe(script, film, *square, "--fit", "pad", "--background", "white") == 0
    assert sides(script.asked[1]) == (32, 32)
    assert shades(script.asked[1]) == [pytest.approx((2 * 80 + 255) / 3, abs=12)]


@pytest.mark.parametrize("flags", [["--fit", "crop"], ["--crop", "top"], ["--height", "64"]])
def test_a_size_is_needed_to_fit_frames_to(
    flags: list[str], tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        describe(script, clip(tmp_path / "a.mp4"), *flags)
    assert "pass --height and --width, or --model" in capsys.readouterr().err


def test_a_checkpoint_says_what_frames_are_fitted_to(tmp_path: Path, script: Script) -> None:
    pytest.importorskip("diffusers")
    film = clip(tmp_path / "a.mp4")  # 48x32
    script.usual = answered("a red circle moves left")
    assert describe(script, film, "--model", EMBEDDED_MODEL) == 0
    assert describe(script, film, "--model", EMBEDDED_MODEL, "--fit", "crop") == 0
    assert list(map(sides, script.asked)) == [(48, 32), (48, 48)]


def test_windows_cover_the_part_asked_for(tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path / "a.mp4")  # 3 s
    part = ["--window", "1", "--start", "0.5", "--seconds", "2"]
    assert describe(script, tmp_path, *part) == 0
    table = tmp_path / "windows.jsonl"
    rows = [json.loads(line) for line in table.read_text("utf-8").splitlines()]
    assert rows == [
        {"path": "a.mp4", "start": 0.5, "end": 1.5, "caption": GOOD},
        {"path": "a.mp4", "start": 1.5, "end": 2.5, "caption": GOOD},
    ]
    assert describe(script, tmp_path, *part) == 0
    assert len(script.asked) == 2  # all is there
    assert describe(script, tmp_path, "--window", "1") == 1  # another part is not taken for this one
    assert "describes other windows of them, such as 0.5 s to 1.5 s: a.mp4" in capsys.readouterr().out
    assert len(script.asked) == 2


def test_windows_that_were_read_in_another_way_are_not_taken_for_these(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    clip(tmp_path / "a.mp4", 8)
    padded = ["--window", "1", "--height", "64", "--width", "64", "--fit", "pad"]
    assert describe(script, tmp_path, *padded) == 0
    table = tmp_path / "windows.jsonl"
    (row,) = map(json.loads, table.read_text("utf-8").splitlines())
    assert row["read"] == {"fit": "pad", "size": [64, 64]}
    script.usual = answered(LONG)
    assert describe(script, tmp_path, *padded, "--kind", "detail") == 0
    asked = len(script.asked)
    for other in (["--window", "1"], [*padded, "--background", "white"]):
        assert describe(script, tmp_path, *other, "--kind", "detail") == 1
        assert "such as 0 s to 1 s with fit pad, size [64, 64]: a.mp4" in capsys.readouterr().out
    assert len(script.asked) == asked
    assert len(table.read_text("utf-8").splitlines()) == 1


def test_windows_are_seen_to_their_ends(tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path / "a.mp4")
    with pytest.raises(SystemExit, match="2"):
        describe(script, tmp_path, "--window", "3", "--fps", "4", "--frames-shown", "8")
    assert "8 frames at 4 fps show 2 s of each window of 3 s; raise --frames-shown" in capsys.readouterr().err
    assert describe(script, tmp_path, "--window", "3", "--fps", "4", "--frames-shown", "12") == 0
    assert len(shades(script.asked[0])) == 12


def test_what_an_earlier_version_left_when_it_was_killed_goes(tmp_path: Path, script: Script) -> None:
    """It noted nothing: a line goes where a later one of its window says all of it, too."""
    clip(tmp_path / "a.mp4", 8)
    window = {"path": "a.mp4", "start": 0.0, "end": 1.0}
    lines = [{**window, "caption": "a"}, {**window, "caption": "mine"}, {**window, "caption": "a", "detail": "b"}]
    table = tmp_path / "windows.jsonl"
    table.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + b"in Latin-1: \xe4\n")
    assert describe(script, tmp_path, "--window", "1", "--kind", "detail") == 0
    assert script.asked == []
    *rows, other = table.read_bytes().splitlines()
    assert list(map(json.loads, rows)) == lines[1:]
    assert other == b"in Latin-1: \xe4"
