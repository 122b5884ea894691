"""The files that ComfyUI's users have, at toy size, beside a release checkpoint; and what does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_card import fake_card, missing
from safetensors.torch import load_file, save_file
from tiny_wan import SIZE, make_files
from tiny_worlds import one_world
from torch import Tensor, nn

from recipes.worlds.tokenizer import train_tokenizer
from uvg_core import Ranking, UniViGUError
from uvg_core.checkpoint.quant import dequantise, quantise
from uvg_core.checkpoint.read import read_part
from uvg_core.checkpoint.vae_keys import vae_to_original
from uvg_core.cli.main import main
from uvg_core.config import RunConfig
from uvg_core.media.text_encoder import StoredLinear, TextEncoder, build_encoder, load_encoder, move_encoder
from uvg_core.media.tokenizer import Tokenizer
from uvg_core.media.vae import LatentCodec
from uvg_core.media.video import ClipSpec, read_clip
from uvg_core.pipeline import components
from uvg_core.pipeline import pipeline as pipes
from uvg_core.pipeline.component_files import Places
from uvg_core.pipeline.components import Components, OutOfMemory
from uvg_core.pipeline.pipeline import Pipeline, Sampling, Size

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

SMALL = Size(32, 48, 5)
QUICK = Sampling(steps=1, guidance_scale=1.0, text_length=4)
TO_ORIGINAL = (
    ("encoder.block.", "blocks."),
    ("encoder.final_layer_norm", "norm"),
    ("shared", "token_embedding"),
    ("layer.0.layer_norm", "norm1"),
    ("layer.1.layer_norm", "norm2"),
    ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
    ("layer.0.SelfAttention", "attn"),
    ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
    ("layer.1.DenseReluDense.wo", "ffn.fc2"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_files(folder)
    return folder


@pytest.fixture(scope="module")
def wan(root: Path) -> dict[str, Tensor]:
    """The text encoder's weights, in Hugging Face's naming."""
    return read_part(root / "wan" / "text_encoder", "")


@pytest.fixture(scope="module")
def spiece(root: Path) -> Tensor:
    return torch.frombuffer(bytearray((root / "wan" / "tokenizer" / "spiece.model").read_bytes()), dtype=torch.uint8)


def original(name: str) -> str:
    for hugging_face, ours in TO_ORIGINAL:
        name = name.replace(hugging_face, ours)
    return name


def in_fp8(weights: dict[str, Tensor], scale_name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights as ComfyUI stores them in fp8, and the same values in float32."""
    stored, values = {}, {}
    for name, weight in weights.items():
        if weight.ndim != 2 or "relative" in name or name == "shared.weight":
            stored[name] = values[name] = weight
            continue
        stored[name], scale = quantise(weight)
        layer = name.removesuffix(".weight")
        stored[f"{layer}.{scale_name}"] = scale
        values[name] = dequantise(stored[name], scale)
        if scale_name == "weight_scale":
            stored[f"{layer}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        else:
            stored["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    return stored, values


@pytest.fixture(scope="module")
def comfyui(root: Path, wan: dict[str, Tensor], spiece: Tensor) -> Path:
    """A ComfyUI folder: the encoder in fp8 and in fp16, the VAE with original names, and files of other kinds."""
    models = root / "ComfyUI" / "models"
    for name in ("text_encoders/wan", "clip", "vae", "uni_vigu", "diffusion_models"):
        (models / name).mkdir(parents=True)
    fp8, _ = in_fp8({**wan, "shared.weight": wan["shared.weight"].half()}, "scale_weight")
    save_file(
        {**fp8, "spiece_model": spiece}, models / "text_encoders" / "wan" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    )
    save_file(
        {**{n: w.half() for n, w in wan.items()}, "spiece_model": spiece}, models / "clip" / "umt5_xxl_fp16.safetensors"
    )
    plain = {n: w for n, w in wan.items() if not ("relative" in n and ".block.1." in n)}
    save_file({**plain, "spiece_model": spiece}, models / "text_encoders" / "a_plain_t5.safetensors")
    (models / "text_encoders" / "a_broken.safetensors").write_bytes(b"oops")
    vae = load_file(root / "wan" / "vae" / "diffusion_pytorch_model.safetensors")
    named = {vae_to_original(n): w.contiguous() for n, w in vae.items()}
    save_file(named, models / "vae" / "wan_2.1_vae.safetensors")
    wide = {**named, "conv2.weight": torch.zeros(48, 48, 1, 1, 1)}
    save_file(wide, models / "vae" / "a_wan2.2_vae.safetensors")
    return root / "ComfyUI"


def folder_with(root: Path, place: Path, encoder: dict[str, Tensor]) -> Path:
    """The Wan folder in diffusers layout, with other weights in its text encoder."""
    (place / "text_encoder").mkdir(parents=True)
    save_file(encoder, place / "text_encoder" / "model.safetensors")
    for name in ("vae", "tokenizer"):
        (place / name).symlink_to(root / "wan" / name)
    return place


def same(one: Pipeline, other: Pipeline) -> None:
    """Conditions and latents of both are the same, bit for bit."""
    prompts = ["a red circle moves left", ""]
    assert one.conditions(prompts).abs().max() > 0.01
    assert torch.equal(one.conditions(prompts), other.conditions(prompts))
    pixels = one_world()[:5]
    assert torch.equal(one.encode_clip(pixels), other.encode_clip(pixels))
    assert one.tokenizer.ids("a red circle") == other.tokenizer.ids("a red circle")


@pytest.mark.parametrize("layout", ["fp16", "scale_weight", "weight_scale", "original bf16", "original fp8"])
def test_single_files_are_the_diffusers_folder(
    layout: str, root: Path, comfyui: Path, wan: dict[str, Tensor], spiece: Tensor, tmp_path: Path
) -> None:
    release, file, tokenizer = root / "uni-vigu.pth", tmp_path / "encoder.safetensors", None
    if layout in ("scale_weight", "weight_scale"):
        stored, values = in_fp8(wan, layout)
        save_file({**stored, "spiece_model": spiece}, file)
    elif layout == "fp16":
        values = {name: weight.half().float() for name, weight in wan.items()}
        save_file({**{name: weight.half() for name, weight in wan.items()}, "spiece_model": spiece}, file)
    elif layout == "original bf16":
        values = {name: weight.bfloat16().float() for name, weight in wan.items()}
        file, tokenizer = file.with_suffix(".pth"), root / "wan" / "tokenizer"
        torch.save({original(name): weight.bfloat16() for name, weight in wan.items()}, file)
    else:  # without scales
        values = {name: weight.to(torch.float8_e4m3fn).float() for name, weight in wan.items()}
        tokenizer = root / "wan" / "tokenizer" / "spiece.model"
        save_file({original(name): weight.to(torch.float8_e4m3fn) for name, weight in wan.items()}, file)
    files = {
        "text_encoder": file,
        "vae": comfyui / "models" / "vae" / "wan_2.1_vae.safetensors",
        "tokenizer": tokenizer,
    }
    reference = Pipeline(release, Places(wan=folder_with(root, tmp_path / "wan", values)), device="cpu")
    same(Pipeline(release, Places(**files), device="cpu"), reference)


def test_one_file_may_stand_in_for_a_part_of_the_folder(root: Path, comfyui: Path) -> None:
    encoder = comfyui / "models" / "clip" / "umt5_xxl_fp16.safetensors"
    mixed = Components(root / "uni-vigu.pth", Places(root / "wan", text_encoder=encoder), device="cpu").files
    assert (mixed.encoder.path, mixed.vae.path) == (encoder, root / "wan" / "vae")
    # Wan's own folder, and the embedded model, which carries all it needs.
    own = root / "Wan2.1-T2V-1.3B"
    (own / "google" / "umt5-xxl").mkdir(parents=True)
    (own / "google" / "umt5-xxl" / "spiece.model").symlink_to(root / "wan" / "tokenizer" / "spiece.model")
    (own / "Wan2.1_VAE.pth").symlink_to(comfyui / "models" / "vae" / "wan_2.1_vae.safetensors")
    (own / "models_t5_umt5-xxl-enc-bf16.pth").symlink_to(encoder)
    assert Components(root / "uni-vigu.pth", Places(wan=own), device="cpu").files.vae.path == own / "Wan2.1_VAE.pth"
    embedded = Components(pipes.EMBEDDED_MODEL, Places(comfyui=comfyui), device="cpu").files
    assert embedded.vae.path == pipes.EMBEDDED_MODEL


def test_a_comfyui_folder_is_enough(
    root: Path, comfyui: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    place = comfyui / "models" / "uni_vigu"
    command = ["generate", "a red circle", "--comfyui", str(comfyui), *SIZE, "--steps", "1", "--device", "cpu"]
    command += ["-o", str(tmp_path / "clip.mp4")]
    assert main(command) == 1
    assert "no Uni-ViGU checkpoint" in capsys.readouterr().err
    (place / "uni-vigu.pth").symlink_to(root / "uni-vigu.pth")
    assert main(command) == 0
    assert (tmp_path / "clip.mp4").stat().st_size > 0
    assert f"network: {place / 'uni-vigu.pth'}" in capsys.readouterr().err
    assert "umt5_xxl_fp8_e4m3fn_scaled.safetensors (also found: umt5_xxl_fp16.safetensors;" in caplog.text
    assert "a_plain_t5" not in caplog.text
    assert "wan2.2" not in caplog.text
    (place / "other.pth").write_bytes((root / "uni-vigu.pth").read_bytes())
    assert main(command) == 1
    assert "several Uni-ViGU checkpoints" in capsys.readouterr().err
    assert main([*command, "--model", "other.pth"]) == 0
    (place / "other.pth").unlink()
    # A second folder that extra_model_paths.yaml leads to, and the folder "models" itself.
    (tmp_path / "extra_model_paths.yaml").write_text(
        f"shared:\n    base_path: {comfyui}\n    vae: models/vae/\n    text_encoders: |\n        models/text_encoders\n"
        "        models/clip/\n"
    )
    for folder in (tmp_path, comfyui / "models"):
        found = Components(root / "uni-vigu.pth", Places(comfyui=folder), device="cpu").files
        assert found.encoder.path.name == "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
        assert found.tokenizer.path == found.encoder.path


def test_what_is_missing_is_said_with_its_address(
    root: Path, comfyui: Path, tmp_path: Path, spiece: Tensor, wan: dict[str, Tensor]
) -> None:
    def refused(**named: Path) -> str:
        with pytest.raises(UniViGUError) as error:
            Components(root / "uni-vigu.pth", Places(**named), device="cpu")
        return str(error.value)

    said = refused()
    for words in (
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors (6.7 GB) from https://",
        "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/vae/wan_2.1_vae.safetensors",
        "254 MB",
        "into models/text_encoders",
    ):
        assert words in said
    vae, text = comfyui / "models" / "vae", comfyui / "models" / "text_encoders"
    without = refused(text_encoder=text / "wan" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    assert "does not contain a VAE;" in without
    assert "umt5_xxl" not in without
    assert "expected a Wan 2.1 VAE" in refused(vae=vae / "a_wan2.2_vae.safetensors")
    assert "expected a umT5 text encoder" in refused(text_encoder=text / "a_plain_t5.safetensors")
    assert "not a ComfyUI folder" in refused(comfyui=tmp_path)
    assert "spiece.model" in refused(tokenizer=tmp_path)
    save_file({name: torch.cat([weight, weight], -1) for name, weight in wan.items()}, tmp_path / "wide.safetensors")
    files = {"text_encoder": tmp_path / "wide.safetensors", "vae": vae / "wan_2.1_vae.safetensors"}
    assert "does not contain a tokenizer" in refused(**files)
    assert "is 40 wide" in refused(**files, tokenizer=root / "wan" / "tokenizer")


def test_the_embedding_is_one_tensor_and_fp8_stays_fp8(wan: dict[str, Tensor]) -> None:
    count = sum(weight.numel() for weight in wan.values())
    for encoder in (load_encoder(wan), load_encoder({n: w.bfloat16() for n, w in wan.items()})):
        for moved in (encoder, encoder.to(torch.float16), encoder.double()):
            shared, tokens = moved.get_submodule("shared"), moved.get_submodule("encoder.embed_tokens")
            assert next(shared.parameters()).data_ptr() == next(tokens.parameters()).data_ptr()
            assert sum(p.numel() for p in moved.parameters()) == count
    stored, values = in_fp8(wan, "weight_scale")
    encoder = load_encoder(stored).double()
    layer = encoder.get_submodule("encoder.block.0.layer.1.DenseReluDense.wo")
    assert isinstance(layer, StoredLinear)
    assert next(layer.parameters()).element_size() == 1
    x = torch.randn(3, 24)
    want = x @ values["encoder.block.0.layer.1.DenseReluDense.wo.weight"].T
    torch.testing.assert_close(layer(x), want)
    packed = {**stored, "encoder.block.0.layer.0.SelfAttention.q.weight_scale": torch.ones(20)}
    with pytest.raises(UniViGUError, match="quantised in a way that is not read here"):
        load_encoder(packed)


def test_dtypes_of_cards(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the table of cards: what a large network computes in where the card has bfloat16 and where not."""
    made = Components(root / "uni-vigu.pth", Places(root / "wan"), device="cpu")
    made.device = torch.device("cuda")
    assert made.network_dtype == torch.float32  # small
    monkeypatch.setattr(components, "LARGE_BYTES", 0)
    for capability, dtype in (((6, 1), torch.float16), ((7, 5), torch.float16), ((8, 6), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert made.network_dtype == dtype
        assert made.float16_unasked == (dtype == torch.float16)
    made.dtype = torch.float16
    assert not made.float16_unasked


def test_float16_that_overflows_is_computed_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = torch.load(root / "uni-vigu.pth", weights_only=False)
    large = next(name for name in released["model"] if name.endswith("video_head.proj_out.bias"))
    released["model"][large] = torch.full_like(released["model"][large], 1e5)  # float16 ends at 65504
    torch.save(released, tmp_path / "large.pth")
    asked = Pipeline(tmp_path / "large.pth", Places(root / "wan"), device="cpu", dtype=torch.float32)
    want = asked.generate("a red circle", size=SMALL, sampling=QUICK)
    monkeypatch.setattr(
        Components, "network_dtype", property(lambda self: torch.float16 if self.dtype is None else self.dtype)
    )
    pipe = Pipeline(tmp_path / "large.pth", Places(root / "wan"), device="cpu")
    assert torch.equal(pipe.generate("a red circle", size=SMALL, sampling=QUICK), want)
    assert caplog.text.count("not finite in float16") == 1
    pipe.generate("a red circle", size=SMALL, sampling=QUICK)
    assert caplog.text.count("not finite in float16") == 1  # it stays in float32


def failing(name: str, when: Callable[[LatentCodec], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    work = getattr(LatentCodec, name)

    def short_of_memory(self: LatentCodec, given: Tensor) -> Tensor:
        if when(self):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return work(self, given)

    monkeypatch.setattr(LatentCodec, name, short_of_memory)


def test_encoding_falls_back_to_tiles(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(root / "uni-vigu.pth", Places(root / "wan"), device="cpu")
    pixels = one_world()[:5]
    whole = pipe.encode_clip(pixels)
    with monkeypatch.context() as patched:
        failing("encode", lambda codec: not codec.vae.use_tiling, patched)
        assert torch.equal(pipe.encode_clip(pixels), whole)  # one tile holds this clip
        failing("encode", lambda codec: True, patched)
        with pytest.raises(OutOfMemory, match=r"for the VAE on cpu \(CUDA out of memory.*\); use a smaller --height"):
            pipe.encode_clip(pixels)
    # Ahead of time, by what it would take.
    tiled: list[bool] = []
    failing("encode", lambda codec: bool(tiled.append(codec.vae.use_tiling)), monkeypatch)
    for free in (1e6, 1e9, 0.0):  # 0: not known
        monkeypatch.setattr(pipes, "free_bytes", lambda _, free=free: free)
        pipe.encode_clip(pixels)
    assert tiled == [True, False, False]


@pytest.mark.parametrize("command", ["generate", "joint"])
def test_a_clip_that_cannot_be_decoded_is_kept(
    command: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--model", str(root / "uni-vigu.pth"), "--wan", str(root / "wan"), "--device", "cpu"]
    out, whole = tmp_path / "clip.mp4", tmp_path / "whole.mp4"
    run = [command, "a red circle", *files, *SIZE, "--steps", "1", *(["--length", "4"] if command == "joint" else [])]
    assert main([*run, "-o", str(whole)]) == 0
    with monkeypatch.context() as patched:
        failing("decode", lambda codec: True, patched)
        assert main([*run, "-o", str(out)]) == 1
    said = capsys.readouterr().err
    kept = tmp_path / "clip.latent.safetensors"
    assert f'generate --from-latent "{kept}" -o "{out}"' in said
    assert said.splitlines()[-1].startswith("error: out of memory for the VAE on cpu")
    assert not out.exists()
    if command == "joint":
        assert out.with_suffix(".txt").read_text() == whole.with_suffix(".txt").read_text()
    assert main(["generate", "--from-latent", str(kept), "-o", str(out), *files]) == 0
    first, second = (read_clip(path, ClipSpec(5, 64, 96)).pixels for path in (whole, out))
    assert torch.equal(first, second)
    assert main(["generate", "--from-latent", str(kept), "-o", str(out)]) == 1
    assert "pass --model uni-vigu.pth" in capsys.readouterr().err
    kept.unlink()
    kept.mkdir()  # where not even the latent can be kept, the first error stands, and the caption is written
    out.with_suffix(".txt").unlink(missing_ok=True)
    with monkeypatch.context() as patched:
        failing("decode", lambda codec: True, patched)
        assert main([*run, "-o", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"error: {kept}: this is a folder" in said
    assert said.splitlines()[-1].startswith("error: out of memory for the VAE on cpu")
    assert out.with_suffix(".txt").exists() == (command == "joint")


def test_the_text_encoder_goes_to_the_cpu_when_the_card_is_full(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = Pipeline(root / "uni-vigu.pth", Places(root / "wan"), device="cpu")
    want = Pipeline(root / "uni-vigu.pth", Places(root / "wan"), device="cpu").conditions(["a red circle"])
    pipe.components.encoder_device = torch.device("cuda")

    def placed(self: Components, encoder: torch.nn.Module) -> torch.nn.Module:
        if self.encoder_device.type == "cuda":
            raise torch.OutOfMemoryError("no room")
        return encoder

    monkeypatch.setattr(Components, "_placed", placed)
    assert torch.equal(pipe.conditions(["a red circle"]), want)
    assert "reading it on the CPU" in caplog.text


def test_ranking_stays_within_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = Pipeline(root / "uni-vigu.pth", Places(root / "wan"), device="cpu")
    latent, texts = pipe.encode_clip(one_world()[:5]), ["red", "a blue circle", "green", "a red square"]
    want = pipe.rank(latent, texts, Ranking(samples=1))
    rows: list[int] = []
    likelihood = pipes.caption_likelihood

    def watched(denoise: Any, video: Tensor, tokens: Tensor, ranking: Ranking, **options: Any) -> Tensor:
        assert ranking.batch is not None
        rows.append(ranking.batch)
        if ranking.batch > limit:
            raise torch.OutOfMemoryError("no room")
        return likelihood(denoise, video, tokens, ranking, **options)

    monkeypatch.setattr(pipes, "caption_likelihood", watched)
    limit = 1
    torch.testing.assert_close(pipe.rank(latent, texts, Ranking(samples=1)), want)
    assert rows == [4, 2, 1]
    assert "1 at a time" in caplog.text
    limit = 8
    one = pipes.pass_bytes(pipe.config.model, rows=1, video=24, text=pipe.config.run.text_length, itemsize=4, logits=1)
    for free, expected in ((3.5 * one, 3), (0.0, 1)):
        rows.clear()
        monkeypatch.setattr(pipes, "free_memory", lambda _, free=free: free)
        torch.testing.assert_close(pipe.rank(latent, texts, Ranking(samples=1)), want)
        assert rows == [expected]


def moved(self: nn.Module, device: Any, *_: Any, **__: Any) -> nn.Module:
    """``Module.to``, which does not take fake tensors."""
    for module in self.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.detach().to(device), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return self


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_every_job_on_a_card(root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """From files to results on a small card of before Ampere, without a tensor on the wrong device."""
    transformers, diffusers = pytest.importorskip("transformers"), pytest.importorskip("diffusers")
    for kind in (nn.Module, transformers.PreTrainedModel, diffusers.ModelMixin):
        monkeypatch.setattr(kind, "to", moved)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(components, "LARGE_BYTES", 0)
    with fake_card(1.05e9):  # too small for any encoder beside what must stay free
        pipe = Pipeline(root / "uni-vigu.pth", Places(root / "wan"), device="cuda:0")
        assert pipe.components.network_dtype == torch.float16
        assert pipe.generate("a red circle", size=SMALL, sampling=QUICK).shape == (5, 32, 48, 3)
        latent = pipe.encode_clip(one_world()[:5])
        assert latent.device.type == "cuda"
        pipe.caption(latent, hint="red", sampling=QUICK)
        assert len(pipe.joint("a red circle", size=SMALL, sampling=QUICK, record=1)[2]) == 1
        assert pipe.rank(latent, ["red", "a blue circle"], Ranking(samples=1)).shape == (2,)
    assert caplog.text.count("stays in main memory") == 1


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_the_text_encoder_on_a_card() -> None:
    """umT5-XXL, six layers of its 24 and a small vocabulary: what it holds there, and what it takes while it works."""
    sizes = {"d_model": 4096, "num_heads": 64, "d_kv": 64, "d_ff": 10240, "num_layers": 6, "vocab_size": 512}
    with torch.device("meta"):
        weights = build_encoder({**sizes, "relative_attention_num_buckets": 32}).state_dict()
    matrices = 6 * (4 * 4096**2 + 3 * 4096 * 10240) + 512 * 4096  # the embedding is there once
    tokenizer = Tokenizer(train_tokenizer(), RunConfig(context_length=512))
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        stored = {name: torch.empty(w.shape, dtype=dtype) for name, w in weights.items() if "embed_tokens" not in name}
        encoder = load_encoder(stored)
        with fake_card() as card, torch.no_grad():
            read = TextEncoder(move_encoder(encoder, torch.device("cuda:0")), tokenizer, "release")
            assert card.now < 1e6  # norms and position biases
            assert read(["a red circle", ""]).device.type == "cuda"
            assert card.peak < components.SPARE_BYTES
            card.begin()
            read = TextEncoder(card.takes(encoder), tokenizer, "release")
            assert card.now - card.base == pytest.approx(matrices * dtype.itemsize, rel=0.01)
            held = card.now
            read(["a red circle", ""])
            assert card.peak - held < components.SPARE_BYTES
