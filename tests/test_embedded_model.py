"""What the embedded model has learned, and that every command runs on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from uvg_core import inspect_checkpoint, joint, text_to_video, video_to_text
from uvg_core.cli import main
from uvg_core.codec.video_file import probe, read_clip, write_video
from uvg_core.pipeline import EMBEDDED_MODEL, Pipeline
from uvg_core.training.worlds import BACKGROUNDS, COLOURS, World, all_worlds, read_colours, render

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

CLIPS = 24


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(device="cpu")


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    """Three worlds of every colour, picked at random."""
    everything = list(all_worlds())
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(11)).tolist()
    shuffled = [everything[i] for i in order]
    chosen = [w for colour in COLOURS for w in [w for w in shuffled if w.colour == colour][: CLIPS // len(COLOURS)]]
    assert {world.background for world in chosen} == set(BACKGROUNDS)
    return chosen


def right(found: Sequence[tuple[str, str]], worlds: Sequence[World]) -> tuple[int, int]:
    colours = sum(a == w.colour for (a, _), w in zip(found, worlds, strict=True))
    return colours, sum(b == w.background for (_, b), w in zip(found, worlds, strict=True))


def test_the_reader_reads_rendered_clips(worlds: list[World]) -> None:
    g = torch.Generator().manual_seed(3)
    assert right([read_colours(render(world, generator=g)) for world in worlds], worlds) == (CLIPS, CLIPS)


def test_captions_name_colour_and_background(pipe: Pipeline, worlds: list[World]) -> None:
    g = torch.Generator().manual_seed(1234)
    latents = torch.cat([pipe.encode_clip(render(world, generator=g)) for world in worlds])
    run = pipe.config.run
    with pipe.network() as network:
        ids = video_to_text(network, video=latents, length=run.text_length, steps=run.text_steps, seed=5)
    words = [pipe.tokenizer.text(row).split() for row in ids]
    found = [
        (next((w for w in text if w in COLOURS), ""), next((w for w in text if w in BACKGROUNDS), "")) for text in words
    ]
    colours, backgrounds = right(found, worlds)
    assert colours > CLIPS / 2, found
    assert backgrounds > CLIPS / 2, found


def test_clips_show_the_prompts_colour_and_background(pipe: Pipeline, worlds: list[World]) -> None:
    prompts = [world.caption for world in worlds]
    run = pipe.config.run
    tokens, mask = pipe.tokenizer.stream(prompts, run.text_length)
    noise = torch.cat([pipe.noise(seed=seed) for seed in range(CLIPS)])
    context, null = pipe.conditions(prompts), pipe.conditions([""])
    with pipe.network() as network:
        latents = text_to_video(
            network, noise=noise, text=tokens, text_mask=mask, context=context, null_context=null,
            steps=run.steps, shift=run.shift, guidance_scale=run.guidance_scale,
        )  # fmt: skip
    found = [read_colours(clip) for clip in pipe.decode_clips(latents.split(1))]
    colours, backgrounds = right(found, worlds)
    assert colours > CLIPS / 2, found
    assert backgrounds > CLIPS / 2, found


def test_joint_clips_and_captions_agree(pipe: Pipeline, worlds: list[World]) -> None:
    """From the empty prompt both streams are free: what is written is what is shown, more often than chance."""
    run = pipe.config.run
    noise = torch.cat([pipe.noise(seed=100 + seed) for seed in range(CLIPS)])
    context = pipe.conditions([world.brief for world in worlds])
    with pipe.network() as network:
        result = joint(
            network, noise=noise, context=context, null_context=pipe.conditions([""]), length=run.text_length,
            steps=run.steps, shift=run.shift, guidance_scale=run.guidance_scale,
        )  # fmt: skip
    shown = [read_colours(clip)[1] for clip in pipe.decode_clips(result.video.split(1))]
    written = [next((w for w in pipe.tokenizer.text(row).split() if w in BACKGROUNDS), "") for row in result.text]
    assert sum(a == b for a, b in zip(shown, written, strict=True)) > CLIPS / 2, list(zip(shown, written, strict=True))


def test_ranking_finds_the_true_colour(pipe: Pipeline, worlds: list[World]) -> None:
    g = torch.Generator().manual_seed(77)
    hits = 0
    for world in worlds[:8]:
        texts = [world.caption.replace(world.colour, colour) for colour in COLOURS]
        scores = pipe.rank(pipe.encode_clip(render(world, generator=g)), texts, samples=4)
        hits += list(COLOURS)[int(scores.argmax())] == world.colour
    assert hits > 4


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
    report = str(inspect_checkpoint(EMBEDDED_MODEL))
    assert "uniform" in report
    assert "normalised" in report


def test_demo_leaves_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out), "--device", "cpu"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["captions.txt", "generated.mp4", "joint.mp4", "joint.png"]
    for name in ("generated.mp4", "joint.mp4"):
        assert probe(out / name).frames == 9
    text = (out / "captions.txt").read_text("utf-8")
    assert re.search(r"template “a ___ ___ circle moves ___”: a \w+ \w+ circle moves \w+", text)
    assert "All in" in capsys.readouterr().err


def test_caption_command_on_foreign_clips_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another size, rate and length than the model's; one file in the folder is broken."""
    world = World("circle", "red", "large", "left", "black")
    clips = tmp_path / "clips"
    clips.mkdir()
    big = render(world, side=160, frames=30)
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
    first = read_clip(out, frames=9, height=48, width=48).pixels
    assert main([*command, "--scale", "1", "--device", "cpu"]) == 0
    assert torch.equal(read_clip(out, frames=9, height=48, width=48).pixels, first)
