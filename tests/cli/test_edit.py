"""``edit``: words in, a clip out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from uvg_core.cli.main import main
from uvg_core.media.video import probe
from uvg_core.pipeline.pipeline import EMBEDDED_MODEL

CLIP = Path(__file__).parents[2] / "samples" / "uvg_sample.mp4"
CAPTION = "a large red circle moves right quickly on a navy background"
FEW = ["--steps", "1", "--device", "cpu", "-q"]


def test_a_clip_changes_with_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet, report = (tmp_path / name for name in ("e.mp4", "e.png", "e.json"))
    command = [
        "edit",
        str(CLIP),
        "--from",
        CAPTION,
        "--change",
        "red=blue",
        "--change",
        "quickly=slowly",
        "-o",
        str(out),
    ]
    assert main([*command, "--sheet", str(sheet), "--json", str(report), "--best-of", "2", *FEW]) == 0
    new = "a large blue circle moves right slowly on a navy background"
    assert capsys.readouterr().out == f"from: {CAPTION}\nto:   {new}\n"
    before, after = probe(CLIP), probe(out)
    assert (after.width, after.height) == (before.width, before.height)
    assert (after.fps, after.frames) == (4.0, 9)  # the model's; 17 frames at 8 a second are more than it takes
    assert after.duration == pytest.approx(before.duration, abs=0.2)
    assert sheet.stat().st_size > 0
    found = json.loads(report.read_text("utf-8"))
    assert (found["from"], found["to"], found["steps"], found["best_of"]) == (CAPTION, new, 1, 2)
    assert found["seed"] in (0, 1)
    assert Path(found["model"]) == EMBEDDED_MODEL
    assert (found["loras"], found["mask"], found["strength"]) == ([], None, 0.95)


def test_the_best_of_several_edits_is_one_of_a_whole_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["edit", str(CLIP), "--from", CAPTION, "--change", "red=blue", "-o", str(tmp_path / "e.mp4")]
    assert main([*command, "--frames", "5", "--best-of", "2", *FEW]) == 1
    assert "this one is edited in 2 parts; choose a part with --seconds 1.25" in capsys.readouterr().err


def test_a_dry_run_says_the_models_caption_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["edit", str(CLIP), "--change", "navy=beige", "--dry-run", *FEW]) == 0
    assert capsys.readouterr().out == f"from: {CAPTION}\nto:   {CAPTION.replace('navy', 'beige')}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ([], 2, "pass --change OLD=NEW or --to CAPTION"),
        (["--change", "a=b", "--to", "c"], 2, "and not both"),
        (["--change", "="], 2, "expected old words"),
        (["--from", " ", "--to", "c"], 2, "--from is empty"),
        (["--from", CAPTION, "--to", CAPTION], 1, "the caption that the clip already has"),
        (["--from", CAPTION, "--change", "green=blue"], 1, "'green' does not occur in the caption; expected words"),
        (["--to", "x", "-o", str(CLIP)], 2, "uvg_sample.mp4"),
    ],
)
def test_words_that_do_not_fit_are_refused(
    flags: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with nullcontext() if code == 1 else pytest.raises(SystemExit, match=str(code)):
        assert main(["edit", str(CLIP), *flags, *FEW]) == code
    assert words in capsys.readouterr().err
