"""Training inside ComfyUI: both stages, core's nodes for LoRAs and losses, cancelling, checkpoints, and mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from in_comfyui_host import Inside

from recipes.worlds.drawing import render
from recipes.worlds.grammar import DIGITS, random_world
from uvg_core import read_config
from uvg_core.media.video import write_video

ROOT = Path(__file__).parents[2]
RUN = read_config(ROOT / "models" / "uvg_tiny.safetensors").run
CLIPS = 6


@pytest.fixture(autouse=True)
def packages(inside: Inside) -> None:
    missing = inside.call("training", "missing_packages")
    if missing:
        pytest.skip(f"not installed beside ComfyUI: {missing}")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Little worlds at the embedded model's own size and rate, with both texts."""
    path = tmp_path_factory.mktemp("worlds")
    generator = torch.Generator().manual_seed(1)
    written = 0
    while written < CLIPS:
        world = random_world(generator)
        if world.shapes[0].kind in DIGITS:  # their handwriting comes with another package
            continue
        clip = path / f"clip_{written}.mp4"
        write_video(clip, render(world, generator, side=RUN.height, frames=RUN.frames), RUN.fps)
        clip.with_suffix(".txt").write_text(world.brief, encoding="utf-8")
        clip.with_suffix(".detail.txt").write_text(world.caption, encoding="utf-8")
        written += 1
    return path


@pytest.fixture
def folder(worlds: Path, tmp_path: Path) -> str:
    """A copy of them, to change as a test likes."""
    return str(shutil.copytree(worlds, tmp_path / "training_clips"))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_both_stages_as_loras_through_core_s_nodes(inside: Inside, folder: str) -> None:
    found = inside.call("training", "both_stages", folder=folder)
    for losses in (found["loss"], found["second loss"]):
        assert len(losses) == 16
        assert mean(losses[-5:]) < 0.9 * mean(losses[:5])
    assert (found["steps"], found["file"]) == (16, "")
    assert [shape[0] for shape in found["samples"]] == [1, 1]
    assert any(text.startswith("16/16 loss ") and "\n0:00 left, says: " in text for text in found["texts"])
    assert found["changed"] == []
    assert not found["training mode left"]
    layers = found["report"].split(":")[1].split()[1]
    assert f"matched {layers} of {layers} layers" in found["report"]
    assert found["same as loaded"] == 0.0
    assert found["learnt"] > 0.0
    assert found["refined"] > 0.0
    assert found["graph"]


@pytest.mark.parametrize("trains", ["lora", "text"])
def test_cancelled_it_keeps_what_it_has_learnt(inside: Inside, folder: str, trains: str) -> None:
    found = inside.call("training", "cancelled", folder=folder, trains=trains)
    assert found["outcome"] == "interrupted"
    assert found["steps"] == 3
    assert found["files"] == 1
    assert found["last"].startswith("What was learnt in ")
    assert f"cut/{trains}_00001_.safetensors" in found["last"].replace("\\", "/")
    assert found["report"] is True or "matched" in found["report"]
    assert [text.replace("\\", "/") for text in found["left"]] == [found["last"].replace("\\", "/")]
    [words] = found["after"]
    assert words.splitlines()[0].startswith("2/2 loss ")
    assert ("saved output/checkpoints/" in words.replace("\\", "/")) == (trains == "text")
    assert found["left in temp"] == []


def test_checkpoints_of_the_text_half_and_of_everything(inside: Inside, folder: str) -> None:
    found = inside.call("training", "checkpoints", folder=folder)
    assert found["where"] == ["checkpoints", "diffusion_models"]
    assert found["changed"] > 0
    assert found["of the video half"] == []
    assert found["vae"] == 0.0
    assert found["lora"][0] == found["samples"][0] == "ExecutionBlocker"
    assert "there is no LoRA" in found["lora"][1]
    assert found["samples"][1] is None
    assert found["all"] > found["changed"]
    assert found["MODEL"] == []


def test_what_learns_is_a_copy_with_the_loras_in_it(inside: Inside) -> None:
    found = inside.call("training", "on_a_lora")
    assert found["with it"] <= 1e-6
    assert found["others"] == 0.0
    assert found["MODEL"] == 0
    assert found["can learn"]


def test_the_same_seed_gives_the_same_lora(inside: Inside, folder: str) -> None:
    again, other = inside.call("training", "same_seed", folder=folder)
    assert again == 0.0
    assert other > 0.0


def test_lists_of_core_s_loaders_and_videos_of_all_kinds(inside: Inside, folder: str) -> None:
    found = inside.call("training", "clips_of_all_kinds", folder=folder)
    cut, (last, middle) = found.pop("cut"), found.pop("all of it is seen")
    assert last < 1 < middle  # there and back: it ends as it began
    assert set(found.values()) == {1}
    assert f"{CLIPS} of {CLIPS} clips cannot be trained on" in cut
    assert "too short" in cut


def test_a_folder_becomes_lists(inside: Inside, folder: str) -> None:
    path = Path(folder)
    write_video(path / "new.mp4", torch.zeros(RUN.frames, 48, 48, 3, dtype=torch.uint8), RUN.fps)
    (path / "sub").mkdir()
    shutil.move(path / "clip_1.mp4", path / "sub" / "clip_1.mp4")
    shutil.move(path / "clip_1.txt", path / "sub" / "clip_1.txt")
    (path / "broken.mp4").write_bytes(b"no video")
    (path / "broken.txt").write_text("a red circle")
    found = inside.call("training", "loaded", folder=folder)
    names = ["clip_0.mp4", *(f"clip_{n}.mp4" for n in range(2, CLIPS)), "clip_1.mp4"]
    assert found["names"] == names
    assert found["prompts"][-1] == (path / "sub" / "clip_1.txt").read_text(encoding="utf-8")
    assert found["details"][-1] == ""
    assert all(found["details"][:-1])
    report = found["report"]
    assert f"{CLIPS + 2} clips, {CLIPS} usable, 2 left out" in report
    assert "1 without a caption: new.mp4" in report
    assert "1 unreadable: broken.mp4" in report
    details, report = found["with details"]
    assert len(details) == CLIPS - 1
    assert "3 without a detailed caption: broken.mp4, new.mp4, sub/clip_1.mp4" in report
    assert found["noticed"]


def test_a_part_of_each_clip_in_another_shape(inside: Inside, folder: str) -> None:
    found = inside.call("training", "parts_and_shapes", folder=folder)
    assert found["trimmed"] == [[0.5, 1.25]] * CLIPS
    cropped, padded = found["notes"][:CLIPS], found["notes"][CLIPS:]
    assert all("the part from 0.5 s of 2.2 s" in note for note in found["notes"]), found["notes"]
    assert all("padded" not in note for note in cropped)
    assert all(note.endswith("padded to 96x48") for note in padded)
    assert all(corner > 250 for corner in found["corners"][CLIPS:])  # white bars
    assert f"{CLIPS} usable" in found["report"]
    assert "too short for 9 frames" in found["too late"]


# Each mistake, and words that its message must hold: what was found, what to change.
MESSAGES: dict[str, tuple[str, ...]] = {
    "no caption": (f"2 of {CLIPS} clips", "2 without a caption: clip_0.mp4, clip_1.mp4", "Load Training Clips"),
    "no details": (f"{CLIPS} of {CLIPS} clips", "without a detailed caption"),
    "one detail is missing": (f"1 of {CLIPS} clips", "1 without a detailed caption: clip_0.mp4"),
    "a list of another length": (f"{CLIPS} videos and 3 prompts", "one loader"),
    "unreadable": ("1 unreadable: broken.mp4", "Expected a whole video file"),
    "gone": ("1 unreadable: gone.mp4", "no such file"),
    "too short": ("1 too short", "short.mp4"),
    "too long a text": ("outside the token limits", "61 tokens"),
    "off the grid": ("8 frames of 48x48 are off the model's grid", "4n+1 frames"),
    "a prefix that leads out": ("../../out", "expected a name"),
    "text in the stage generate": ("trains nothing",),
    "a CLIP of another model": ("knows 31 tokens",),
    "without accelerate": ("accelerate", "pip install"),
    "without peft": ("peft", "pip install"),
    "little room": ("are free", "all_in_one"),
    "no folder": ("write the path",),
    "a folder without clips": ("no videos",),
    "nothing usable": ("none of 2 clips", "2 without a caption"),
}


def test_wrong_use_is_answered_with_what_to_change(inside: Inside, folder: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "broken.mp4").write_bytes(b"no video")
    write_video(broken / "short.mp4", torch.zeros(2, 48, 48, 3, dtype=torch.uint8), RUN.fps)
    found = inside.call("training", "wrong_use", folder=folder, broken=str(broken))
    assert found.keys() == MESSAGES.keys()
    for name, words in MESSAGES.items():
        assert found[name].startswith(("UniViGUError: ", "SettingError: ")), (name, found[name])
        for word in words:
            assert word in found[name], (name, found[name])


def test_what_breaks_off_loses_nothing(inside: Inside, folder: str) -> None:
    found: dict[str, Any] = inside.call("training", "breaks_off", folder=folder)
    assert "the loss is not a number, for these clips: clip_3.mp4" in found["not a number"]
    assert "--resume" not in found["not a number"]
    assert f"What was learnt in {found['step']} of 40 steps is in " in found["not a number"]
    assert "poisoned_00001_.safetensors" in found["not a number"]
    assert found["finite"]
    assert found["elsewhere"]


def test_a_lora_does_not_say_how_it_was_trained_where_metadata_are_off(inside: Inside) -> None:
    assert inside.call("training", "facts_of_a_lora") == [{"uvg_training": "{}"}, {}]


@pytest.mark.slow  # trainings
def test_many_runs_leave_nothing_behind(inside: Inside, folder: str) -> None:
    found = inside.call("training", "growth", folder=folder)
    assert found["after"] == found["before"]
