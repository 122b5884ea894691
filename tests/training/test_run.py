"""``python -m uvg_core train`` on a folder of clips, with the embedded model."""

from __future__ import annotations

import json
import os
import shutil
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
from uvg_core.checkpoint.read import open_weights
from uvg_core.cli.main import main
from uvg_core.data import folder as folder_of_clips
from uvg_core.locks import owned
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


def test_a_check_says_what_a_run_would_do_and_does_nothing(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, clips, data=[{"path": str(clips), "repeats": 2}], steps=10)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", str(config), "--check"]) == 1  # a clip is left out
    shown = capsys.readouterr().out
    assert "6 clips, 5 usable, 1 left out" in shown
    assert f"{clips}: 5 x 2 per epoch" in shown
    assert "10 steps of 2 clips: 2 epochs of 10 clips" in shown
    learning = sum(weight.numel() for weight in load_model(EMBEDDED_MODEL).parameters()) * 4 / 1e6
    assert f"gradients {learning:.3g} MB, optimizer {2 * learning:.3g} MB, average {learning:.3g} MB" in shown
    assert f"checkpoints of {4 * learning:.3g} MB; result {learning:.3g} MB" in shown
    assert sorted(tmp_path.rglob("*")) == before
    whole = tmp_path / "whole"
    shutil.copytree(clips, whole, ignore=shutil.ignore_patterns("0.*"))
    assert main(["train", str(write_config(tmp_path, whole, trains="text")), "--check"]) == 0
    assert "trained weights" in capsys.readouterr().out
    further = {"start": str(tmp_path / "gone.safetensors")}
    for trains, said in (("lora", "gone.safetensors: no such file"), ("text", "the LoRA would not be read")):
        assert main(["train", str(write_config(tmp_path, whole, trains=trains, lora=further)), "--check"]) == 1
        assert said in capsys.readouterr().err


def test_a_run_over_several_sources_sizes_and_pictures(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders, a manifest and pictures in one run, of the embedded model's own parts; each step is of one size."""
    image = pytest.importorskip("PIL.Image")
    stills = tmp_path / "stills"
    stills.mkdir()
    for number in range(3):
        image.new("RGB", (64, 64), (90 * number, 20, 60)).save(stills / f"{number}.jpg")
        (stills / f"{number}.txt").write_text("a red circle")
    first = sorted(clips.glob("*.mp4"))[0]
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"path": str(first), "caption": ["red, round", "a red circle"]}) + "\n")
    data = [str(clips), {"path": str(stills), "repeats": 2}, {"path": str(table), "shuffle_tags": True}]
    frames = read_config(EMBEDDED_MODEL).run.frames
    config = write_config(tmp_path, clips, data=data, buckets={"frames": [1, frames]}, steps=4)
    assert main(["train", str(config)]) == 0, capsys.readouterr().err
    entries = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text("utf-8").splitlines()]
    assert len(entries) == 4
    *_, told = read_config(tmp_path / "run" / "model.safetensors").card.values()
    assert told["data"] == f"{clips.name}, stills, table.jsonl"
    capsys.readouterr()
    assert main(["train", str(config), "--check", "--resume"]) == 1
    size = f"{read_config(EMBEDDED_MODEL).run.width}x{read_config(EMBEDDED_MODEL).run.height}"
    assert f"each step uses one): 3 of {size} x 1, 6 of {size} x {frames}" in capsys.readouterr().out


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
        ([], {}, "already contains a run"),
        (["--resume"], {"tokens": {"prompt": [0, 5]}}, "other settings"),
        (["--resume"], {"batch": 1}, "clips per step: 2 -> 1"),
    ):
        assert main(["train", str(write_config(tmp_path, clips, **{"steps": 1, **changes})), *resume]) == 1
        assert words in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def test_data_that_moved_go_on_and_data_that_changed_do_not(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches and runs go by content: a copy elsewhere, of another age, is the same; one other byte is not."""
    cache = str(tmp_path / "cache")
    assert main(["train", str(write_config(tmp_path, clips, steps=1, cache=cache))]) == 0
    moved, model = tmp_path / "moved" / "far", tmp_path / "model.safetensors"
    shutil.copytree(clips, moved)
    shutil.copy(EMBEDDED_MODEL, model)
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    encoded: list[str] = []
    item = folder_of_clips.Survey.item

    def counted(survey: Any, index: int) -> Any:
        encoded.append(survey.name(index))
        return item(survey, index)

    monkeypatch.setattr(folder_of_clips.Survey, "item", counted)
    again = write_config(tmp_path, moved, steps=1, cache=cache, model=str(model))
    assert main(["train", str(again), "--resume"]) == 0, capsys.readouterr().err
    assert encoded == []
    path = moved / "3.mp4"
    stamp, data = path.stat(), bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert main(["train", str(again), "--resume"]) == 1
    assert "data: the clips, their texts" in capsys.readouterr().err
    assert encoded == []  # nor was the cache of the run thrown away


def test_what_earlier_versions_built_and_began_goes_on(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They reckoned by name, size and time."""
    config, survey = write_config(tmp_path, clips, steps=1, cache=str(tmp_path / "cache")), folder_of_clips.Survey
    with monkeypatch.context() as before:
        before.setattr(survey, "key", survey.former_key)
        assert main(["train", str(config)]) == 0
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    del index["former_source"]
    for entry in [index["empty"], *index["shards"]]:
        del entry["same_as"]
    (tmp_path / "cache" / "index.json").write_text(json.dumps(index))
    (tmp_path / "cache" / "contents.json").unlink()
    monkeypatch.setattr(survey, "item", None)
    for _ in range(2):
        assert main(["train", str(config), "--resume"]) == 0, capsys.readouterr().err


def test_a_second_training_in_a_folder_is_refused_while_the_first_is_at_work(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, clips)
    (tmp_path / "run").mkdir()
    with owned(tmp_path / "run", "a training"):
        assert main(["train", str(config)]) == 1
    assert "run: a training is already using this folder" in capsys.readouterr().err


def test_a_trained_file_does_not_say_where_its_data_lay(tmp_path: Path, clips: Path) -> None:
    assert main(["train", str(write_config(tmp_path, clips, steps=1))]) == 0
    metadata = "".join(open_weights(tmp_path / "run" / "model.safetensors").metadata.values())
    assert str(clips) not in metadata
    assert str(tmp_path) not in metadata
    assert clips.name in metadata


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
