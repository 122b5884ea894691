"""``evaluate cycle``: a clip, its caption and the clip drawn from that, as a sheet, a table and a report."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from uvg_core.cli.main import main
from uvg_core.pipeline.cycle import clip_gain, confidence, distances, mean_of, words_kept
from uvg_core.pipeline.pipeline import Pipeline

pytest.importorskip("sklearn")
pytest.importorskip("diffusers")

from tiny_worlds import one_world

from recipes.worlds import measure
from recipes.worlds.answers import area

CLIP = Path(__file__).parents[2] / "samples" / "uvg_sample.mp4"
FEW = ["--steps", "2", "--device", "cpu", "-q"]


def test_words_and_latents_that_are_alike() -> None:
    assert words_kept("a red circle", "a red circle") == 1
    assert words_kept("a a red circle", "a red ring") == pytest.approx(4 / 7)
    assert words_kept("a", "") == 0
    first = torch.zeros(2, 16, 3, 6, 6)
    assert distances(first, torch.stack([first[0], first[1] + 2])) == [0, 2]
    rows: list[dict[str, Any]] = [
        {"clip": "a", "seed": 3, "kept": True, "x": 1.0},
        {"clip": "b", "kept": False, "x": 2.0},
    ]
    assert mean_of(rows) == {"kept": 0.5, "x": 1.5}


def test_the_detector_says_what_a_caption_lost() -> None:
    pixels = one_world(kind="square", colour="red", motion="moves up")
    caption = "a large red square moves up quickly on a navy background"
    other = one_world(kind="square", colour="blue", motion="moves up", seed=3)
    assert all(measure.survived(caption, pixels, one_world(kind="square", motion="moves up", seed=1)).values())
    found = measure.survived(caption, pixels, other)
    assert [name for name, same in found.items() if not same] == ["kept_colour", "kept_all"]
    assert measure.survived(caption.replace("square", "ring"), pixels, pixels)["caption_right"] is False
    assert measure.survived(caption, torch.zeros_like(pixels), pixels) == {}


def test_words_that_fit_explain_a_clip_best() -> None:
    pipe = Pipeline(device="cpu")
    latent = pipe.encode_clip(one_world(kind="square", colour="red", motion="moves up"))
    caption = "a large red square moves up quickly on a navy background"
    texts = [caption, caption.replace("red", "blue"), caption.replace("navy", "beige")]
    tokens, _ = pipe.tokenizer.stream(texts, pipe.config.run.text_length)
    with pipe.components.network() as network:
        conditions = pipe.conditions(texts), pipe.conditions([""])
        first, *others = clip_gain(network, latent.expand(3, -1, -1, -1, -1), conditions, tokens, 0)
    assert first > max(0, *others)
    assert confidence(-0.01, first) > confidence(-0.01, others[0])
    assert confidence(-0.01, first) > confidence(-1.0, first)


def test_areas_under_the_curve() -> None:
    right = "1" * 200 + "0" * 200
    steps = [float(place) for place in range(400, 0, -1)]
    assert area(steps, right) == (1, 1, 1)
    assert area([0.0] * 400, right)[0] == 0.5
    drawn = torch.randn(400, generator=torch.Generator().manual_seed(0))
    drawn[:200] += 1
    _, low, high = area(drawn.tolist(), right)
    assert low < 0.76 < high  # of two normal distributions one standard deviation apart
    assert high - low < 0.11


def test_a_clip_gives_a_sheet_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert main(["evaluate", "cycle", str(CLIP), "-o", str(out), *FEW]) == 0
    said = capsys.readouterr().out
    assert "caption: a large red circle moves right quickly on a navy background\n" in said
    assert "caption right: yes\n" in said
    assert Image.open(out).size[1] > 300  # two rows
    report = json.loads(Path(f"{out}.evaluate.json").read_text())
    (row,) = report["rows"]
    assert row["log_likelihood"] > -1
    assert row["clip_gain"] > 0
    assert 0 < row["latent_distance"] < 3
    assert str(tmp_path) not in json.dumps(report)


def test_a_folder_resumed_in_shards_equals_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a", "b"):
        shutil.copy(CLIP, clips / f"{name}.mp4")
    (clips / "bad.mp4").write_bytes(b"no clip")
    command = ["evaluate", "cycle", str(clips), *FEW]
    one, parts = tmp_path / "one", tmp_path / "parts"
    assert main([*command, "-o", str(one)]) == 1
    assert "2 made, 0 already there, 1 failed" in capsys.readouterr().out
    (clips / "bad.mp4").unlink()
    for shard in ("2/2", "1/2"):
        assert main([*command, "-o", str(parts), "--shard", shard]) == 0
    assert (parts / "evaluate.csv").read_text() == (one / "evaluate.csv").read_text()
    capsys.readouterr()
    monkeypatch.setattr(Pipeline, "generate", None)  # nothing is drawn again
    assert main([*command, "-o", str(one)]) == 0
    said = capsys.readouterr().out
    assert "0 made, 2 already there" in said
    assert "means over 2 clips\n  words_kept: " in said
    rows = list(csv.DictReader((one / "evaluate.csv").read_text().splitlines()))
    assert [row["clip"] for row in rows] == ["a.mp4", "b.mp4"]
    assert rows[0]["seed"] != rows[1]["seed"]
    assert {path.name for path in one.glob("*.png")} == {"a.mp4.png", "b.mp4.png"}
    assert main([*command, "-o", str(one), "--dry-run"]) == 0
    assert "2 clips: 2 compared, 0 to compare" in capsys.readouterr().out


def test_a_model_of_other_clips_is_compared_by_its_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = Pipeline.__init__

    def without_card(self: Pipeline, *args: Any, **how: Any) -> None:
        pipeline(self, *args, **how)
        self.config.card.clear()

    monkeypatch.setattr(Pipeline, "__init__", without_card)
    assert main(["evaluate", "cycle", str(CLIP), "-o", str(tmp_path / "s.png"), *FEW]) == 0
    said = capsys.readouterr().out
    assert "words kept: " in said
    assert "caption right" not in said


def test_without_the_detectors_packages_a_clip_still_goes_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    out = tmp_path / "sheet.png"
    assert main(["evaluate", "cycle", str(CLIP), "-o", str(out), "--steps", "2", "--device", "cpu"]) == 0
    assert "without the detector of little worlds, which needs scipy" in capsys.readouterr().err
    (row,) = json.loads(out.with_name("sheet.png.evaluate.json").read_text("utf-8"))["rows"]
    assert "caption_right" not in row
    assert "words_kept" in row
