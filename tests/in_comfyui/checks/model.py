"""What ``test_model`` asks: our network as one of ComfyUI's models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import comfy.model_management
import comfy.quant_ops
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import torch
from check_made import (
    bridge,
    checkpoint,
    conditioning,
    core,
    distance,
    empty,
    inputs,
    load_embedded,
    message,
    model_folder,
    plain_wan,
    random_network,
    run,
    sampled,
    video_half,
)
from safetensors import safe_open
from worker import node_class, pack_module

KITCHEN = ("apply_rope1", "apply_rope1_", "apply_rope_split_half1", "apply_rope_split_half1_")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def loaded_by_core(path: str, **options: Any) -> Any:
    return comfy.sd.load_diffusion_model(path, model_options=options)


def applied(model: Any, **changes: Any) -> torch.Tensor:
    """One call of the model with a plain Wan's arguments."""
    given = {**inputs(), **changes}
    comfy.model_management.load_models_gpu([model])
    return model.model.apply_model(given["x"], given["t"], c_crossattn=given["context"])


def parity_with_wan() -> dict[str, float]:
    """Our MODEL with an empty text stream against core's Wan on the same weights."""
    found = {}
    for name, dtype in DTYPES.items():
        path = checkpoint(f"parity_{name}", dtype)
        ours, wan = loaded_by_core(path), plain_wan(path)
        assert type(wan.model).__name__ == "WAN21", type(wan.model)
        found[f"apply_{name}"] = distance(applied(ours), applied(wan))
        odd = torch.randn(2, 16, 2, 5, 7, generator=torch.Generator().manual_seed(5))
        found[f"odd_size_{name}"] = distance(applied(ours, x=odd), applied(wan, x=odd))
        positive, negative = conditioning(2), conditioning(3)
        found[f"sampled_{name}"] = distance(
            sampled(bridge.with_shift(ours, 3.0), positive, negative, empty()),
            sampled(wan, positive, negative, empty()),
        )
    return found


def fused_kernels() -> dict[str, float]:
    """What stands in for the network's own on CUDA, here by the same package's plain code."""
    g = torch.Generator().manual_seed(4)
    x, parts = torch.randn(2, 7, 64, generator=g), torch.randn(3, 2, 1, 64, generator=g)
    hosted, rope = pack_module("nodes.comfy.network"), pack_module("uvg_core.model.rope")
    modulation = hosted.Modulation(*parts)
    norm = torch.nn.LayerNorm(64, 1e-6, elementwise_affine=False)
    found = {"modulate": distance(hosted._fused_modulate(norm, x, modulation), hosted.modulate(norm, x, modulation))}
    angles = {"interleaved": (0, rope.video_angles((1, 1, 7), 32)), "half": (7, rope.text_angles(7, 32))}
    kernels = {name: getattr(comfy.quant_ops.ck, name) for name in KITCHEN}
    without = {name: kernel for name, kernel in kernels.items() if not name.endswith("_")}
    for pairs, (text, angle) in angles.items():
        expected = rope.rotate(x, rope.rotations(angle), text, 2)
        made = []
        for known in (kernels, without, {}):  # an older comfy-kitchen lacks those that write over what they are given
            room = torch.zeros(2, 9, 64)
            room[:, 1:8] = x
            with mock.patch.object(comfy.quant_ops, "ck", SimpleNamespace(**known)):
                made.append(hosted._rotate(room[:, 1:8], rope.matrices(angle), text, 2))
            in_place = made[-1].data_ptr() == room[:, 1:8].data_ptr()
            assert in_place == (known is kernels)
            assert not room[:, ::8].any()
        found[pairs] = max(distance(turned, expected) for turned in made)
        found[f"{pairs}, in place or not"] = distance(made[0], made[1])
    return found


def parity_in_fp8() -> dict[str, float]:
    path = checkpoint("parity_fp8", torch.float32)
    dtypes = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    return {
        name: distance(applied(loaded_by_core(path, dtype=dtype)), applied(plain_wan(path, dtype=dtype)))
        for name, dtype in dtypes.items()
    }


def golden(path: str) -> dict[str, float]:
    """The recorded numbers of the released network, through our loader and ComfyUI's operations."""
    model = bridge.load_network(path, "default", None)
    comfy.model_management.load_models_gpu([model])
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("model.")}  # noqa: SIM118
    given = {key.removeprefix("input."): value for key, value in tensors.items() if key.startswith("input.")}
    options = core.model.PassOptions(want_logits=slice(None))
    stream = bridge.TextInput(given["text"], given["time_text"], given.get("text_mask"), options)
    network = model.model.diffusion_model
    velocity = network(given["video"], given["time_video"], given["context"], {}, sampler_text=stream)
    return {
        "velocity": distance(velocity, tensors["output.velocity"]),
        "logits": distance(stream.logits[0], tensors["output.logits"]),
        "layers": type(network.blocks[0].ffn_t[0]).__module__,
    }


def golden_run(path: str) -> dict[str, Any]:
    """The recorded text-to-video run with guidance, through the stock sampling code and our schedule."""
    model = bridge.load_network(path, "default", "raw")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("model.")}  # noqa: SIM118
        settings = json.loads(file.metadata()["sampling"])
    tokens = {bridge.TEXT_TOKENS: tensors["input.text"], bridge.TEXT_MASK: tensors["input.text_mask"]}
    positive = [[tensors["input.context"], tokens]]
    negative = bridge.with_tokens_of(positive, [[tensors["input.null_context"], {}]])
    sigmas = pack_module("uvg_core.flow.schedule").video_sigmas(settings["steps"], settings["shift"])
    shifted = bridge.with_shift(model, settings["shift"])
    out = comfy.samplers.sample(
        shifted,
        tensors["input.noise"],
        positive,
        negative,
        settings["cfg_scale"],
        shifted.load_device,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        model_options=shifted.model_options,
        latent_image=torch.zeros_like(tensors["input.noise"]),
        seed=0,
    )
    return {"latent": distance(out, tensors["output.latent"])}


def every_file() -> dict[str, Any]:
    """The same network in every kind of file, through core's loader and ours; distance to the float32 original."""
    original = checkpoint("kinds", torch.float32)
    folder = model_folder()
    reference = random_network()
    given = inputs()
    expected = reference(
        given["x"],
        None,
        1000 * given["t"],
        1000 * given["t"],
        given["context"],
        options=core.model.PassOptions(want_logits=False),
    ).velocity
    expected = given["x"] - given["t"].view(-1, 1, 1, 1, 1) * expected

    files = {"native fp32": original}
    for dtype in ("bf16", "fp16", "fp8"):
        files[f"native {dtype}"] = str(folder / f"kinds_{dtype}.safetensors")
        core.convert(original, files[f"native {dtype}"], dtype=dtype)
    from_native = pack_module("uvg_core.checkpoint.keys").from_native
    tensors = comfy.utils.load_torch_file(original)
    released = {f"_fsdp_wrapped_module.{from_native(name, 'release')}": tensor for name, tensor in tensors.items()}
    frequencies = pack_module("uvg_core.model.rope").frequencies
    released["rotary_emb_text.inv_freq"] = frequencies(32).float()  # tells the size of a head
    files["release .pth"] = str(folder / "kinds_release.pth")
    left = {"step": 1, "args": argparse.Namespace(out=folder), "optimizer": {"state": {}}, "best": argparse.Namespace}
    torch.save({"model": released, **left}, files["release .pth"])
    found: dict[str, Any] = {}
    for kind, path in files.items():
        model = bridge.load_network(path, "default", None)
        found[f"ours: {kind}"] = [type(model.model).__name__, distance(applied(model), expected)]
        found[f"reloaded: {kind}"] = _reloads(model)
        if kind != "release .pth":  # which core does not know
            model = loaded_by_core(path)
            found[f"core: {kind}"] = [type(model.model).__name__, distance(applied(model), expected)]
    return found


def _reloads(model: Any) -> bool:
    """Whether ComfyUI's factory for other devices gives the same network."""
    factory, arguments, *_ = model.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    return all(torch.equal(a, b) for a, b in zip(again.model.parameters(), model.model.parameters(), strict=True))


def all_in_one() -> dict[str, Any]:
    """The embedded file through ours, core's Load Checkpoint, and core's Load Diffusion Model."""
    path = bridge.file_path("checkpoint", bridge.EMBEDDED)
    model, clip, vae = load_embedded()
    stock, stock_clip, stock_vae, _ = comfy.sd.load_checkpoint_guess_config(path)
    only = loaded_by_core(path)
    prompt = "a large red circle moves right quickly on a navy background"
    words = clip.encode_from_tokens(clip.tokenize(prompt))
    stock_words = stock_clip.encode_from_tokens(stock_clip.tokenize(prompt))
    pixels = torch.rand(9, 48, 48, 3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 16, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    given = {"x": x, "t": torch.tensor([0.5]), "context": words}
    return {
        "names": [type(m.model).__name__ for m in (model, stock, only)],
        "rows": [words.shape[1], stock_words.shape[1]],
        "words": distance(words, stock_words[:, : words.shape[1]]),
        "vae": distance(vae.encode(pixels), stock_vae.encode(pixels)),
        "stock": distance(applied(model, **given), applied(stock, **given)),
        "only": distance(applied(model, **given), applied(only, **given)),
        "first in the list": bridge.file_names("checkpoint")[0],
        "run": [bridge.run_facts(m).text_length for m in (model, stock, only, clip, stock_clip)],
    }


def plain_wan_stays_plain() -> list[str]:
    """A Wan file without a text half is core's own, and our loader says what it is."""
    weights, metadata = video_half(checkpoint("wan_only", torch.float32))
    target = model_folder() / "plain_wan.safetensors"
    comfy.utils.save_torch_file(weights, str(target), metadata=metadata)
    wan = loaded_by_core(str(target))
    try:
        bridge.load_network(str(target), "default", None)
        message = "loaded"
    except Exception as error:
        message = str(error)
    return [type(wan.model).__name__, type(wan.model.diffusion_model).__name__, message]


def incomplete() -> list[str]:
    """A file with a hole in it is an error with core's loader too, not noise; fp8 files as well."""
    path = checkpoint("whole", torch.float32)
    quantised = str(model_folder() / "whole_fp8.safetensors")
    core.convert(path, quantised, dtype="fp8")
    messages = []
    for file in (path, quantised):
        tensors = comfy.utils.load_torch_file(file)
        for name in [name for name in tensors if name.startswith("blocks.1.ffn_t.0.")]:
            tensors.pop(name)
        try:
            comfy.sd.load_diffusion_model_state_dict(tensors, metadata=safe_open(file, "pt").metadata())
            messages.append("loaded")
        except Exception as error:
            messages.append(str(error))
    return messages


def latent_spaces() -> dict[str, Any]:
    """Raw and normalised checkpoints: what goes in and out, and that previews agree."""
    normalised = bridge.load_network(checkpoint("space", torch.float32), "default", None)
    raw = bridge.load_network(checkpoint("space_raw", torch.float32, latent_space="raw"), "default", None)
    chosen = bridge.load_network(checkpoint("space", torch.float32), "default", "raw")
    latent = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    inside = normalised.model.process_latent_in(latent)
    pictures = []
    for model, x in ((normalised, inside), (raw, latent)):
        previewer = latent_preview.Latent2RGBPreviewer(
            model.model.latent_format.latent_rgb_factors, model.model.latent_format.latent_rgb_factors_bias
        )
        pictures.append(list(previewer.decode_latent_to_preview(x).tobytes()))
    return {
        "raw": distance(raw.model.process_latent_in(latent), latent),
        "chosen": distance(chosen.model.process_latent_in(latent), latent),
        "moved": distance(inside, latent),
        "back": distance(normalised.model.process_latent_out(inside), latent),
        "previews": max(abs(a - b) for a, b in zip(*pictures, strict=True)),
    }


def empty_text_is_wan() -> float:
    """CLIP Text Encode (no text stream) through Uni-Flow Sampler is plain Wan."""
    path = checkpoint("t2v", torch.float32)
    ours, wan = bridge.load_network(path, "default", None), plain_wan(path)
    positive, negative = conditioning(2), conditioning(3)
    (out,) = run(
        "UniFlowSampler",
        model=ours,
        positive=positive,
        negative=negative,
        latent=empty(),
        seed=3,
        steps=4,
        guidance=4.0,
        shift=3.0,
        sampler="euler",
        scheduler="simple",
        denoise=1.0,
    )
    return distance(out["samples"], sampled(wan, positive, negative, empty()))


def saved_by_core() -> dict[str, Any]:
    """Core's Save Model and Save Checkpoint: what our loader, core's and ``uvg_core`` find in their files."""
    odd = {"latent_space": "raw", "num_heads": 4, "text_flow": "discrete", "source": "mask"}
    facts = {"text_length": 7, "fps": 5.0, "text_states": "release", "width": 96}
    given = bridge.load_network(checkpoint("for_core", torch.float32, facts, **odd), "default", None)
    tiny, clip, vae = load_embedded()
    home = Path(folder_paths.get_output_directory())

    def save(node: str, name: str, **parts: Any) -> str:
        saver = node_class(node)()
        getattr(saver, saver.FUNCTION)(filename_prefix=name, **parts)
        return str(next(home.glob(f"{name}_*.safetensors")))

    def facts_of(model: Any) -> list[Any]:
        return [json.loads(core.CheckpointConfig(bridge.config_of(model), bridge.run_facts(model)).to_json())]

    found: dict[str, Any] = {"wanted": facts_of(given), "wanted tiny": facts_of(tiny)}
    one = save("ModelSave", "by_core", model=given)
    whole = save("CheckpointSave", "whole_by_core", model=tiny, clip=clip, vae=vae)
    for name, path, source in (("one", one, given), ("whole", whole, tiny)):
        ours, theirs = bridge.load_network(path, "default", None), loaded_by_core(path)
        config = core.read_config(path)
        found[name] = [
            facts_of(ours),
            facts_of(theirs),
            [json.loads(core.CheckpointConfig(config.model, config.run).to_json())],
        ]
        state = source.model.diffusion_model.state_dict()
        found[f"{name} weights"] = max(
            distance(state[key].float(), tensor)
            for key, tensor in core.load_model(path, dtype=torch.float32).state_dict().items()
        )
    stock, stock_clip, _, _ = comfy.sd.load_checkpoint_guess_config(whole)
    found["stock"] = [facts_of(stock), bridge.run_facts(stock_clip).text_length]
    lying = comfy.utils.load_torch_file(one)
    key = next(name for name in lying if name.endswith("uni_vigu.config"))
    for kind, value in (("no json", torch.tensor([1, 2], dtype=torch.uint8)), ("numbers", torch.ones(3))):
        path = str(model_folder() / f"lying_{kind.replace(' ', '_')}.safetensors")
        comfy.utils.save_torch_file({**lying, key: value}, path)
        found[kind] = message(lambda path=path: bridge.load_network(path, "default", None))
    return found
