"""``python -m uvg_core train`` on a folder of clips, with the embedded model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from recipes.worlds.drawing import render
from recipes.worlds.grammar import random_world
from uvg_core.checkpoint import load_model, read_config
from uvg_core.cli.main import main
from uvg_core.media.video import write_video
from uvg_core.pipeline.pipeline import EMBEDDED_MODEL, Pipeline
from uvg_core.training import checkpoints

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips at twice the model's rate, one of them without a caption."""
    folder, run = tmp_path_factory.mktemp("clips"), read_config(EMBEDDED_MODEL).run
    generator = torch.Generator().manual_seed(1)
    for index in range(6):
        world = random_world(generator)
        pixels = render(world, generator, side=run.height, frames=2 * run.frames)
        write_video(folder / f"{index}.mp4", pixels, 2 * run.fps)
        if index:
            (folder / f"{index}.txt").write_text(world.brief, encoding="utf-8")
            detail = f"a {world.shapes[0].size} {world.brief[2:]} on a {world.background} background"
            (folder / f"{index}.detail.txt").write_text(detail, encoding="utf-8")
    return folder


def write_config(folder: Path, clips: Path, **changes: Any) -> Path:
    values = {
        "stage": "recall", "model": str(EMBEDDED_MODEL), "data": str(clips), "out": str(folder / "run"),
        "cache": str(clips.parent / "cache"), "steps": 3, "batch": 2, "device": "cpu",
        "keep": {"checkpoint_every": 1, "log_every": 1},
    }  # fmt: skip
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
    return path


def test_a_folder_of_clips_trains_and_the_result_runs(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, clips, keep={"sample_every": 3, "log_every": 1})
    assert main(["train", str(config)]) == 0
    shown = "".join(capsys.readouterr())
    run = read_config(EMBEDDED_MODEL).run
    assert "1 of 6" in shown or "without a caption" in shown or "no caption" in shown
    assert f"{run.fps:g} fps" in shown
    assert "step 3/3" in shown
    made = tmp_path / "run" / "model.safetensors"
    assert read_config(made).run == run
    before, after = read_config(EMBEDDED_MODEL).card, read_config(made).card
    assert {name: after[name] for name in before} == before  # earlier runs are still told of
    (entry,) = set(after) - set(before)
    assert entry.startswith("recall")
    assert after[entry]["clips"] == 5
    pipe = Pipeline(made, device="cpu")  # VAE, text encoder and tokenizer came along
    assert pipe.generate("a red circle", size=pipes_size(), sampling=few_steps()).shape[0] == run.frames
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2
    assert main(["train", str(config)]) == 1  # a run is there already
    assert "--resume" in "".join(capsys.readouterr())


def pipes_size() -> Any:
    from uvg_core.pipeline.pipeline import Size

    return Size()


def few_steps() -> Any:
    from uvg_core.pipeline.pipeline import Sampling

    return Sampling(steps=2)


def test_refine_of_the_text_half_alone(tmp_path: Path, clips: Path) -> None:
    config = write_config(tmp_path, clips, stage="refine", trains="text")
    assert main(["train", str(config)]) == 0
    before = load_model(EMBEDDED_MODEL, dtype=torch.float32)
    after = load_model(tmp_path / "run" / "model.safetensors")
    assert torch.equal(before.blocks[0].ffn[0].weight, after.blocks[0].ffn[0].weight)
    assert not torch.equal(before.blocks[0].ffn_t[0].weight, after.blocks[0].ffn_t[0].weight)


def test_a_termination_keeps_what_was_learnt(tmp_path: Path, clips: Path) -> None:
    config = write_config(tmp_path, clips, steps=100_000, keep={"checkpoint_every": 0, "log_every": 1})
    command = [sys.executable, "-m", "uvg_core", "train", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    losses = tmp_path / "run" / "losses.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if losses.exists() and losses.read_text("utf-8").count("\n") >= 2:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    last = checkpoints.newest(tmp_path / "run")
    assert last is not None, shown
    steps = [json.loads(line)["step"] for line in losses.read_text("utf-8").splitlines()]
    assert checkpoints.read(last)["step"] == steps[-1] == len(steps)
    assert load_model(tmp_path / "run" / "model.safetensors").config.vocab_size


def test_a_run_that_is_refused_leaves_the_cache_of_another(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(write_config(tmp_path, clips, steps=1))]) == 0
    cache = clips.parent / "cache"
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    capsys.readouterr()
    for resume, changes, words in (
        ([], {}, "a run is here already"),
        (["--resume"], {"tokens": {"prompt": [0, 5]}}, "other settings"),
        (["--resume"], {"batch": 1}, "clips a step: 2 -> 1"),
    ):
        assert main(["train", str(write_config(tmp_path, clips, **{"steps": 1, **changes})), *resume]) == 1
        assert words in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def test_bad_settings_are_one_message(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changes, words in (
        ({"setps": 3}, "did you mean steps"),
        ({"data": str(tmp_path / "nowhere")}, "nowhere"),
        ({"data": "worlds:5", "clip": {"frames": 5}}, "little worlds"),
        ({"model": str(tmp_path / "no.safetensors")}, "no.safetensors"),
    ):
        assert main(["train", str(write_config(tmp_path, clips, **changes))]) == 1
        assert words in "".join(capsys.readouterr())
    os.makedirs(tmp_path / "empty")
    assert main(["train", str(write_config(tmp_path, clips, data=str(tmp_path / "empty")))]) == 1
    assert "found no videos" in "".join(capsys.readouterr())
