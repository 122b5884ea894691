"""What the embedded model has learned, and that every command runs on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_worlds import one_world

from recipes.worlds.detector import read_world
from recipes.worlds.evaluation import Evaluator
from recipes.worlds.grammar import COLOURS
from uvg_core import Ranking, Sampling, inspect_checkpoint
from uvg_core.cli.main import main
from uvg_core.config import RunConfig
from uvg_core.errors import UniViGUError
from uvg_core.media.video import ClipSpec, probe, read_clip, write_video
from uvg_core.media.video.footage import Footage
from uvg_core.pipeline.film import clock
from uvg_core.pipeline.pipeline import EMBEDDED_MODEL, Pipeline
from uvg_core.sampling import Size
from uvg_core.sampling.settings import SIZE

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

CLIPS = 12


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(device="cpu")


@pytest.fixture(scope="module")
def evaluator(pipe: Pipeline) -> Evaluator:
    """Worlds whose combinations training never saw."""
    return Evaluator(pipe, clips=CLIPS)


def test_captions_name_what_is_seen(evaluator: Evaluator) -> None:
    found = evaluator.video_to_text()
    assert found.mean > 0.9, found
    assert found.rate("exact") > 0.6, found


def test_captions_are_drawn_at_the_checkpoints_temperature(pipe: Pipeline, evaluator: Evaluator) -> None:
    clip = evaluator.latents[:1]
    said = [pipe.caption(clip, sampling=Sampling(seed=seed, steps=6)) for seed in range(3)]
    assert said == [pipe.caption(clip, sampling=Sampling(seed=seed, steps=6, temperature=0.0)) for seed in range(3)]


def test_clips_show_what_is_asked_for(evaluator: Evaluator) -> None:
    found = evaluator.text_to_video()
    assert found.mean > 0.88, found
    assert found.rate("alone") > 0.9, found


def test_joint_clips_and_captions_agree(evaluator: Evaluator) -> None:
    agreement, followed = evaluator.joint()
    assert agreement.mean > 0.85, agreement
    assert followed.mean > 0.85, followed


def test_ranking_finds_the_true_caption(evaluator: Evaluator) -> None:
    found = evaluator.ranking()
    assert sum(found) > 0.85 * len(found)


def test_ranking_finds_the_true_colour(pipe: Pipeline) -> None:
    hits = 0
    for seed, colour in enumerate(COLOURS):
        clip = one_world(kind="square", colour=colour, motion="moves up", background="black", seed=seed)
        texts = [f"a large {other} square moves up quickly on a black background" for other in COLOURS]
        scores = pipe.rank(pipe.encode_clip(clip), texts, Ranking(samples=4))
        hits += list(COLOURS)[int(scores.argmax())] == colour
    assert hits >= len(COLOURS) - 1


def test_the_file_is_one_comfyui_all_in_one(pipe: Pipeline) -> None:
    assert EMBEDDED_MODEL.stat().st_size < 30e6
    with safe_open(EMBEDDED_MODEL, "pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
    for needed in (
        "model.diffusion_model.text_head.head.weight", "model.diffusion_model.head.modulation",
        "vae.decoder.middle.0.residual.0.gamma", "text_encoders.umt5xxl.transformer.shared.weight",
        "text_encoders.spiece_model",
    ):  # fmt: skip
        assert needed in keys
    assert '"num_heads"' in metadata["config"]
    assert {"data", "recipe", "seed", "generate", "recall", "refine", "right_percent"} <= set(pipe.config.card)
    assert pipe.config.card["vae_psnr"] >= 32
    assert pipe.config.card["vae_psnr_boxes"] >= 24
    report = str(inspect_checkpoint(EMBEDDED_MODEL))
    assert "uniform" in report
    assert "normalised" in report


def test_demo_leaves_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out), "--device", "cpu"]) == 0
    clips, sheets = ["edited.mp4", "generated.mp4", "joint.mp4"], ["edited.png", "joint.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(["captions.txt", *clips, *sheets])
    for name in clips:
        assert probe(out / name).frames == 9
    text = (out / "captions.txt").read_text("utf-8")
    assert re.search(r"template “a ___ ___ circle moves ___”: a \w+ \w+ circle moves \w+", text)
    before, after = (read_world(read_clip(out / name, ClipSpec(9, 48, 48)).pixels) for name in clips[1::-1])
    assert before is not None
    assert after is not None
    assert (before.shapes[0].colour, after.shapes[0].colour) == ("red", "blue")
    assert "All in" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    """As in ``inspect FILE | head -1``, with a reader that reads nothing at all."""
    command = [sys.executable, "-m", "uvg_core", "inspect", str(EMBEDDED_MODEL)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_caption_command_on_foreign_clips_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another size, rate and length than the model's; one file in the folder is broken."""
    clips = tmp_path / "clips"
    clips.mkdir()
    big = one_world(background="black", side=160, frames=30)
    write_video(clips / "a.mp4", big[:, 20:140], 30)
    (clips / "b.mp4").write_bytes(b"not a video")
    assert main(["caption", str(clips), "--prefix", "uvg, ", "--device", "cpu"]) == 1
    shown = capsys.readouterr()
    assert (clips / "a.txt").read_text("utf-8").startswith("uvg, a ")
    assert not (clips / "b.txt").exists()
    assert "b.mp4" in shown.out
    assert "9 of 30 frames" in shown.err
    before = (clips / "a.txt").stat().st_mtime_ns
    assert main(["caption", str(clips), "--device", "cpu"]) == 1
    assert (clips / "a.txt").stat().st_mtime_ns == before


def test_generate_command_writes_what_is_asked(tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    command = ["generate", "a blue square on a gray background", "-o", str(out), "--steps", "3", "--seed", "4"]
    assert main([*command, "--scale", "1", "--device", "cpu"]) == 0
    assert (probe(out).width, probe(out).height) == (48, 48)
    first = read_clip(out, ClipSpec(9, 48, 48)).pixels
    assert main([*command, "--scale", "1", "--device", "cpu"]) == 0
    assert torch.equal(read_clip(out, ClipSpec(9, 48, 48)).pixels, first)


def test_a_lora_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same clip with the LoRA put on as with the LoRA merged; the bare one at strength 0."""
    with safe_open(EMBEDDED_MODEL, "pt") as file:
        weight = file.get_slice("model.diffusion_model.blocks.0.self_attn.q.weight").get_shape()
    generator = torch.Generator().manual_seed(0)
    layer = "transformer.blocks.0.attn1.to_q"
    down, up = torch.randn(4, weight[1], generator=generator), torch.randn(weight[0], 4, generator=generator)
    lora, merged = tmp_path / "style.safetensors", tmp_path / "merged.safetensors"
    save_file({f"{layer}.lora_A.weight": down * 0.3, f"{layer}.lora_B.weight": up * 0.3}, lora)

    def clip(*arguments: str) -> torch.Tensor:
        out = tmp_path / "clip.mp4"
        command = ["generate", "a blue square on a gray background", "-o", str(out), "--steps", "2", "--scale", "1"]
        assert main([*command, "--device", "cpu", *arguments]) == 0
        return read_clip(out, ClipSpec(9, 48, 48)).pixels

    bare, off = clip(), clip("--lora", f"{lora}:0:1")
    assert torch.equal(bare, off)
    assert "the video half is off (strength 0)" in capsys.readouterr().err
    changed = clip("--lora", f"{lora}:0.5", "--lora", f"{lora}:0.5:0")
    line = "style.safetensors: matched 1 of 1 layers: 1 of the video half, 0 of the text half\n"
    assert capsys.readouterr().err.count(line) == 2
    assert not torch.equal(changed, bare)
    assert main(["convert", str(EMBEDDED_MODEL), str(merged), "--dtype", "fp32", "--lora", str(lora)]) == 0
    assert line in capsys.readouterr().err
    apart = (clip("--model", str(merged)).float() - changed.float()).abs().mean()
    assert apart < 0.1 * (bare.float() - changed.float()).abs().mean()
    assert main(["generate", "x", "--lora", str(tmp_path / "none.safetensors"), "--device", "cpu"]) == 1
    assert "none.safetensors: no such file" in capsys.readouterr().err


def test_a_clip_is_read_as_the_settings_say(pipe: Pipeline, tmp_path: Path) -> None:
    pixels = torch.zeros(24, 96, 48, 3, dtype=torch.uint8)
    pixels[:12, :48], pixels[12:, :48] = 60, 200
    write_video(tmp_path / "portrait.mp4", pixels, 8)

    def note(size: Size = SIZE, **how: Any) -> str:
        return pipe.latent_of(tmp_path / "portrait.mp4", size, Footage(**how))[1]

    assert note().endswith("48x96, cropped to 48x48")
    assert note(fit="pad").endswith("48x96 resized to 24x48, padded to 48x48")
    assert note(Size(width=48, height=48)).endswith("48x96, cropped to 48x48")
    assert note(Size(width=64, height=32), fit="stretch").endswith("48x96 stretched to 64x32")
    assert "retimed from 8 to 4 fps" in note(fps=4.0)
    assert "the part from 1.5 s of 3.0 s" in note(start=1.5, seconds=1.0)
    late = pipe.latent_of(tmp_path / "portrait.mp4", SIZE, Footage(start=1.5, fit="crop", crop="top"))[0]
    pixels[:12] = pixels[12:]
    write_video(tmp_path / "late.mp4", pixels, 8)
    same = pipe.latent_of(tmp_path / "late.mp4", SIZE, Footage(fit="crop", crop="top"))[0]
    assert (late - same).abs().mean() < 0.05
    for wrong in ({"background": "mauve"}, {"fit": "zoom"}, {"start": -1.0}, {"seconds": 0.0}):
        with pytest.raises(UniViGUError, match=f"{next(iter(wrong))} is .*; expected"):
            Footage(**wrong)


def test_where_a_checkpoint_takes_other_sizes_a_clip_keeps_its_shape() -> None:
    released = RunConfig()
    portrait = SIZE.spec(released, Footage()).suited(1920, 1080)
    assert (portrait.height, portrait.width, portrait.fit) == (832, 480, "crop")
    chosen = Size(width=832, height=480).spec(released, Footage()).suited(1920, 1080)
    assert (chosen.height, chosen.width, chosen.fit) == (480, 832, "crop")
    asked = SIZE.spec(released, Footage(fit="crop", crop="smart")).suited(1920, 1080)
    assert (asked.height, asked.width, asked.crop) == (480, 832, "smart")


def test_find_names_the_shots_of_a_film_as_its_captions_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scenedetect", reason="shots are found with PySceneDetect")
    samples = Path(__file__).parents[1] / "samples"
    (folder := tmp_path / "films").mkdir()
    film = shutil.copy(samples / "uvg_film.mp4", folder)
    clip = shutil.copy(samples / "uvg_sample_clips" / "blue_star.mp4", folder)
    cpu = ["--device", "cpu", "-q"]
    assert main(["caption", str(film), "--shots", *cpu]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 4
    report = tmp_path / "found.json"
    for number, (times, text) in enumerate(lines, 1):
        assert main(["find", str(folder), text, "--shots", "--top", "2", "--json", str(report), *cpu]) == 0
        found = capsys.readouterr().out.splitlines()
        assert f"{film}\t{times}" in found
        hits = {one["shot"]: one for one in json.loads(report.read_text())["found"] if one["clip"] == str(film)}
        assert f"{clock(hits[number]['start'])} --> {clock(hits[number]['end'])}" == times
        assert "blue star" not in text or str(clip) in found
