"""A release checkpoint beside a Wan2.1 folder in diffusers layout, at toy size: every command runs on them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import random_network
from tiny_wan import SIZE, make_files
from tiny_worlds import one_world

from uvg_core import ModelConfig
from uvg_core.checkpoint import Overrides
from uvg_core.checkpoint.keys import from_native
from uvg_core.cli.main import main
from uvg_core.media.vae import LatentCodec
from uvg_core.media.video import probe, write_video
from uvg_core.pipeline import components
from uvg_core.pipeline.component_files import Places
from uvg_core.pipeline.components import Components
from uvg_core.pipeline.pipeline import Pipeline, Sampling, Size

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from uvg_core.training.start import is_text_half


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_files(tmp_path_factory.mktemp("release"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "in.mp4"
    write_video(path, one_world(), 8)
    return path


def test_generate(files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "clip.mp4"
    assert main(["generate", "a red circle", *files, *SIZE, "--steps", "2", "-o", str(out), "--fps", "16"]) == 0
    info = probe(out)
    assert (info.frames, info.fps) == (5, 16)
    assert info.width / info.height == 48 / 32
    assert caplog.text.count("uni-vigu.pth: ignored 2 things beside the weights: args (argparse.Namespace)") == 1


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
    assert main(["check", *files, *SIZE]) == 0
    assert capsys.readouterr().out.count("ok  ") >= 4


def test_parts_are_never_on_the_device_together(
    files: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While a part works, every other part that was ever loaded is elsewhere - whoever still holds it."""
    loaded: list[torch.nn.Module] = []
    order: list[str] = []
    moves: dict[int, str] = {}
    load, using, move = Components._load, Components.using, torch.nn.Module.to

    def watched_load(self: Components, part: str) -> torch.nn.Module:
        loaded.append(load(self, part))
        return loaded[-1]

    def watched_to(self: torch.nn.Module, *args: object, **kwargs: object) -> torch.nn.Module:
        if args and isinstance(args[0], (torch.device, str)):
            moves[id(self)] = "device" if isinstance(args[0], torch.device) else str(args[0])
        return move(self, *args, **kwargs)

    @contextmanager
    def watched_using(self: Components, part: str) -> Iterator[torch.nn.Module]:
        with using(self, part) as module:
            order.append(part)
            assert [other for other in loaded if moves.get(id(other)) == "device"] == [module]
            yield module

    monkeypatch.setattr(Components, "_load", watched_load)
    monkeypatch.setattr(Components, "using", watched_using)
    monkeypatch.setattr(torch.nn.Module, "to", watched_to)
    monkeypatch.setattr(components, "LARGE_BYTES", 0)
    out = str(tmp_path / "clip.mp4")
    assert main(["joint", "a red circle", *files, *SIZE, "--steps", "1", "--length", "4", "-o", out]) == 0
    assert order == ["encoder", "network", "vae"]
    encoder = loaded[0]
    assert all(p.is_meta for p in encoder.parameters())  # the largest part is let go


def test_a_folder_loads_every_part_once(files: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loads: list[str] = []
    load = Components._load
    monkeypatch.setattr(Components, "_load", lambda self, part: loads.append(part) or load(self, part))
    monkeypatch.setattr(components, "LARGE_BYTES", 0)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, one_world(), 8)
    command = ["caption", str(tmp_path), *files, *SIZE, "--steps", "1", "--length", "4", "--hint", "a clip"]
    assert main(command) == 0
    assert sorted(loads) == ["encoder", "network", "vae"]


def test_decoding_falls_back_to_tiles(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(files[1], Places(wan=files[3]), device="cpu")
    pixels = one_world()[:5]
    latent = pipe.encode_clip(pixels)
    whole = pipe.decode_clips([latent])[0]
    decode = LatentCodec.decode

    def short_of_memory(self: LatentCodec, latent: torch.Tensor) -> torch.Tensor:
        if not self.vae.use_tiling:
            raise torch.OutOfMemoryError("out of memory")
        return decode(self, latent)

    monkeypatch.setattr(LatentCodec, "decode", short_of_memory)
    assert torch.equal(pipe.decode_clips([latent])[0], whole)  # one tile holds this clip


def test_latent_space_and_text_states_reach_the_result(files: list[str]) -> None:
    pipe = Pipeline(files[1], Places(wan=files[3]), device="cpu")
    assert pipe.config.model.latent_space == "raw"  # what the release's script does
    stated = Overrides(latent_space="normalised", text_states="release")
    other = Pipeline(files[1], Places(wan=files[3]), device="cpu", overrides=stated)
    pixels = one_world()
    assert not torch.equal(pipe.encode_clip(pixels), other.encode_clip(pixels))
    assert not torch.equal(pipe.conditions(["a red circle"]), other.conditions(["a red circle"]))


def test_a_file_says_how_its_prompts_are_read(files: list[str], tmp_path: Path) -> None:
    stated = tmp_path / "stated.safetensors"
    assert main(["convert", files[1], str(stated), "--text-states", "release", "--end-of-text", "skip"]) == 0
    wan = {"places": Places(wan=files[3]), "device": "cpu"}
    assert Pipeline(files[1], **wan).components.text_states == "umT5"
    pipe = Pipeline(stated, **wan)
    assert pipe.components.text_states == "release"
    assert pipe.tokenizer.text([1, *pipe.tokenizer.ids("red")]) == "red"
    assert Pipeline(stated, overrides=Overrides(text_states="umT5"), **wan).components.text_states == "umT5"


def test_guidance_leads_away_from_a_file(files: list[str], tmp_path: Path) -> None:
    """One that holds the empty prompt changes nothing, another does, and a negative prompt comes before both."""
    empty = Pipeline(files[1], Places(wan=files[3]), device="cpu").conditions([""])
    torch.save(empty, tmp_path / "same.pt")
    torch.save({"context": 3 * torch.randn(9, 20)}, tmp_path / "other.pt")

    def made(file: str, negative: str = "") -> torch.Tensor:
        null = tmp_path / file if file else None
        pipe = Pipeline(files[1], Places(wan=files[3]), device="cpu", null_embedding=null)
        return pipe.generate("red", negative=negative, size=Size(32, 48, 5), sampling=Sampling(steps=1))

    plain = made("")
    assert int((made("same.pt").int() - plain.int()).abs().max()) <= 1  # some CPUs add up a batch of prompts otherwise
    assert not torch.equal(made("other.pt"), plain)
    assert torch.equal(made("other.pt", "blue"), made("", "blue"))


def test_null_conditions_on_the_command_line(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    null = tmp_path / "null.pt"
    torch.save(torch.zeros(4, 20), null)
    wanted = ["--null-embedding", str(null)]
    joint = ["joint", "a red circle", *files, *SIZE, "--steps", "1", "--length", "4", "-o", str(tmp_path / "both.mp4")]
    assert main([*joint, *wanted]) == 0
    torch.save(torch.zeros(4, 21), null)
    for command in (["generate", "red"], ["joint", "red"], ["check"]):
        assert main([*command, *files, *wanted]) == 1
        assert "null.pt: found a tensor [4, 21]; expected one tensor [rows, 20]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "  "], "the prompt is empty"),
        (["generate", "red " * 600], "601 tokens and this model reads 512"),
        (["generate", "red", *SIZE, "-o", "nowhere/clip.mp4"], "nowhere"),
        (["caption", "missing.mp4"], "missing.mp4"),
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


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "red", "--steps", "0"], "0 is out of range; expected between 1"),
        (["generate", "red", "--guidance", "nan"], "'nan' is not a number"),
        (["generate", "red", "--shift", "inf"], "'inf' is not a number"),
        (["generate", "red", "--fps", "0"], "out of range"),
        (["generate", "red", "--scale", "-3"], "out of range"),
        (["generate", "red", "-o", "clip.avi"], "does not end in .mp4"),
        (["generate", "red", "--seed", "99999999999999999999999"], "out of range"),
        (["joint", "red", "--sheet", "a.psd"], "does not end in .png"),
        (["caption", ""], "the path is empty"),
        (["caption", "a.mp4", "--top-p", "0"], "out of range"),
        (["caption", "a.mp4", "--steps", "two"], "'two' is not a whole number"),
        (["rank", "a.mp4", "x", "--samples", "0"], "out of range"),
        (["convert", "a.pth", "b.ckpt"], "does not end in .safetensors"),
        (["rank", "missing.mp4"], "no texts to rank"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_usage_is_checked_before_any_work(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    usage, _, error = capsys.readouterr().err.partition("error: ")
    assert usage.startswith("usage:")
    assert message in error


@pytest.mark.parametrize("device", ["cuda:77", "nonsense"])
def test_devices_that_are_not_here(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red circle", "--device", device]) == 1
    assert "found here: cpu" in capsys.readouterr().err


def test_one_bad_clip_does_not_end_the_others(
    files: list[str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["caption", str(tmp_path / "none.mp4"), str(empty), str(clip), *files, *SIZE, "--steps", "1"]
    assert main([*command, "--length", "4"]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{clip}\t")
    assert shown.err.count("error: ") == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vae/diffusion_pytorch_model.safetensors", b"garbage"),
        ("text_encoder/model.safetensors.index.json", b"{oops"),
        ("text_encoder/model.safetensors.index.json", b"{}"),
        ("tokenizer/spiece.model", b"garbage"),
    ],
)
def test_damaged_wan_folders(
    files: list[str], tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "wan"
    shutil.copytree(files[3], broken)
    (broken / name).write_bytes(content)
    assert main(["generate", "red", *files[:2], "--wan", str(broken), *SIZE, "--steps", "1"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert str(broken) in shown


def test_a_folder_that_is_not_wan(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "red", *files[:2], "--wan", str(tmp_path), *SIZE]) == 1
    assert "vae, text_encoder, tokenizer not found" in capsys.readouterr().err
    assert main(["generate", "red", *files[:2], *SIZE]) == 1
    assert "pass --wan DIR" in capsys.readouterr().err


def test_training_starts_from_a_wan_base_and_from_the_release(files: list[str], tmp_path: Path) -> None:
    """Stage 1 from the base's video half; stage 2 from what it wrote; a LoRA from the release's own file."""
    pytest.importorskip("accelerate")
    pytest.importorskip("peft")
    import yaml

    from uvg_core.checkpoint import load_model, read_config
    from uvg_core.checkpoint.read import open_weights

    release, wan = files[1], files[3]
    config = ModelConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1, text_dim=20, vocab_size=400)
    torch.manual_seed(0)
    base = {n: w.contiguous() for n, w in random_network(config).state_dict().items() if not is_text_half(n)}
    (tmp_path / "base").mkdir()
    save_file(
        {from_native(n, "diffusers"): w for n, w in base.items()},
        tmp_path / "base" / "diffusion_pytorch_model.safetensors",
    )
    clips = tmp_path / "clips"
    clips.mkdir()
    write_video(clips / "a.mp4", one_world(), 8)
    (clips / "a.txt").write_text("a red circle", encoding="utf-8")
    (clips / "a.detail.txt").write_text("a large red circle moves left", encoding="utf-8")

    def train(name: str, **entries: object) -> Path:
        settings = {"wan": wan, "data": str(clips), "out": str(tmp_path / name), "steps": 2, "batch": 1}
        settings |= {"clip": {"height": 32, "width": 48, "frames": 5, "fps": 8.0, "text_length": 16}, "device": "cpu"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**settings, **entries}), encoding="utf-8")
        assert main(["train", str(tmp_path / f"{name}.yaml")]) == 0
        return tmp_path / name

    recall = train("recall", stage="recall", model=str(tmp_path / "base")) / "model.safetensors"
    assert read_config(recall).run.frames == 5
    assert load_model(recall).config.vocab_size == read_config(recall).model.vocab_size > 300
    text_alone = train("text", stage="recall", trains="text", model=str(tmp_path / "base")) / "model.safetensors"
    kept = load_model(text_alone).state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in base.items())
    refined = train("refine", stage="refine", model=str(recall), clip={}) / "model.safetensors"
    assert read_config(refined).run.text_length == 16
    lora = train("lora", stage="recall", trains="lora", model=release) / "lora.safetensors"
    assert any(name.endswith("ffn_t.0.lora_A.weight") for name in open_weights(lora).tensors)
