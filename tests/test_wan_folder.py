"""A release checkpoint beside a Wan2.1 folder in diffusers layout, at toy size: every command runs on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import random_network

from uvg_core import ModelConfig
from uvg_core.checkpoint.keys import from_native
from uvg_core.cli import main
from uvg_core.codec.text import build_encoder
from uvg_core.codec.video_file import probe, write_video
from uvg_core.pipeline import Pipeline
from uvg_core.training.tokenizer import train_tokenizer
from uvg_core.training.worlds import World, render

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from uvg_core.training.vae import initialise, small_wan_vae

SIZES = {"d_model": 20, "num_heads": 2, "d_kv": 10, "d_ff": 24, "num_layers": 2, "relative_attention_num_buckets": 8}
SIZE = ["--height", "32", "--width", "48", "--frames", "5"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments that point at the checkpoint and its Wan folder."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("release")
    config = ModelConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1, text_dim=20, vocab_size=400)
    weights = random_network(config).state_dict()
    names = {name: from_native(name, "release") for name in weights}
    assert None not in names.values()
    released = {f"_fsdp_wrapped_module.{names[name]}": weight for name, weight in weights.items()}
    torch.save({"model": released, "step": 7}, root / "uni-vigu.pth")

    wan = root / "wan"
    (wan / "tokenizer").mkdir(parents=True)
    (wan / "tokenizer" / "spiece.model").write_bytes(train_tokenizer())
    vae = small_wan_vae(4)
    initialise(vae)
    vae.save_pretrained(wan / "vae")
    encoder = build_encoder({**SIZES, "vocab_size": 400}).state_dict()
    encoder.pop("encoder.embed_tokens.weight", None)
    (wan / "text_encoder").mkdir()
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(encoder)}
    for shard in set(shards.values()):
        save_file({n: encoder[n].contiguous() for n in encoder if shards[n] == shard}, wan / "text_encoder" / shard)
    (wan / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return ["--model", str(root / "uni-vigu.pth"), "--wan", str(wan), "--device", "cpu"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "in.mp4"
    write_video(path, render(World("circle", "red", "large", "left", "navy")), 8)
    return path


def test_generate(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    assert main(["generate", "a red circle", *files, *SIZE, "--steps", "2", "-o", str(out), "--fps", "16"]) == 0
    info = probe(out)
    assert (info.frames, info.fps) == (5, 16)
    assert info.width / info.height == 48 / 32


def test_caption_is_the_same_every_time(files: list[str], clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def caption(*more: str) -> tuple[str, str]:
        assert main(["caption", str(clip), *files, *SIZE, "--steps", "3", "--length", "12", *more]) == 0
        return capsys.readouterr()

    first, again = caption(), caption()
    assert first.out == again.out
    assert "in.mp4: 5 of 9 frames" in first.err
    assert caption("--seed", "1").out != first.out
    assert caption("--hint", "a red circle").out
    assert caption("--template", "a red ___ moves ___").out.startswith("a red")


def test_joint(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = tmp_path / "both.mp4", tmp_path / "both.png"
    arguments = ["--steps", "3", "--length", "6", "-o", str(out), "--sheet", str(sheet), "--text-update", "release"]
    assert main(["joint", "a red circle", *files, *SIZE, *arguments]) == 0
    assert out.with_suffix(".txt").read_text("utf-8") == capsys.readouterr().out
    assert probe(out).frames == 5
    assert sheet.stat().st_size > 1000


def test_rank(files: list[str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = tmp_path / "texts.txt"
    more.write_text("a green square\n\na blue triangle\n")
    assert main(["rank", str(clip), "a red circle", "--texts-file", str(more), *files, *SIZE, "--samples", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert sum(float(line.split("%")[0]) for line in lines) == pytest.approx(100, abs=0.2)


def test_check(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", *files, *SIZE])
    assert capsys.readouterr().out.count("ok  ") >= 4


def test_parts_are_never_on_the_device_together(
    files: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there: list[str] = []
    order: list[str] = []
    using = Pipeline._using

    @contextmanager
    def watched(self: Pipeline, part: str) -> Iterator[torch.nn.Module]:
        assert there == []
        there.append(part)
        order.append(part)
        with using(self, part) as module:
            yield module
        there.remove(part)

    monkeypatch.setattr(Pipeline, "_using", watched)
    out = str(tmp_path / "clip.mp4")
    assert main(["joint", "a red circle", *files, *SIZE, "--steps", "1", "--length", "4", "-o", out]) == 0
    assert order == ["encoder", "network", "vae"]


def test_latent_space_and_text_states_reach_the_result(files: list[str]) -> None:
    pipe = Pipeline(Path(files[1]), wan=Path(files[3]), device="cpu")
    assert pipe.config.model.latent_space == "raw"  # what the release's script does
    other = Pipeline(Path(files[1]), wan=Path(files[3]), device="cpu", latent_space="normalised", text_states="release")
    pixels = render(World("circle", "red", "large", "left", "navy"))
    assert not torch.equal(pipe.encode_clip(pixels), other.encode_clip(pixels))
    assert not torch.equal(pipe.conditions(["a red circle"]), other.conditions(["a red circle"]))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "  "], "the prompt is empty"),
        (["generate", "red " * 600], "601 tokens and this model reads 512"),
        (["generate", "red", *SIZE, "--height", "50"], "off the model's grid"),
        (["generate", "red", *SIZE, "--steps", "0"], "steps is 0"),
        (["generate", "red", *SIZE, "-o", "nowhere/clip.mp4"], "nowhere"),
        (["caption", "missing.mp4"], "missing.mp4"),
        (["rank", "missing.mp4"], "no text to rank"),
        (["rank", "missing.mp4", " "], "missing.mp4"),
    ],
)
def test_bad_input_is_one_message(
    files: list[str], command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = [] if "--steps" in command or command[0] != "generate" else ["--steps", "1"]
    assert main([*command, *files, *extra]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_folder_that_is_not_wan(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "red", *files[:2], "--wan", str(tmp_path), *SIZE]) == 1
    assert "vae, text_encoder, tokenizer not found" in capsys.readouterr().err
    assert main(["generate", "red", *files[:2], *SIZE]) == 1
    assert "pass --wan DIR" in capsys.readouterr().err
