"""What ``test_cards`` asks: which dtypes core's loader chooses on cards that are not there, and the watch over float16.

The device's properties are pretended; the loader, its questions and the file are real. Weights stay on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import comfy.model_management
import comfy.utils
import torch
from check_made import (
    bridge,
    checkpoint,
    conditioning,
    core,
    distance,
    empty,
    load_embedded,
    model_folder,
    random_network,
    run,
    sampled,
)
from safetensors import safe_open
from worker import pack_module

management = comfy.model_management
QUANTISED_TOO = ("Uni-Flow Sampler", "Joint Sampler", "with a cache")
RELEASED = 3_050_000_000  # parameters of the released network, which the loader weighs against the card
CARDS: dict[str, dict[str, Any]] = {
    "GTX 1080": {"capability": (6, 1), "gigabytes": 8},
    "RTX 2060": {"capability": (7, 5), "gigabytes": 6},
    "RTX 2080": {"capability": (7, 5), "gigabytes": 8},
    "RTX 3060": {"capability": (8, 6), "gigabytes": 12},
    "RTX 3050": {"capability": (8, 6), "gigabytes": 6},
    "RTX 4060": {"capability": (8, 9), "gigabytes": 8},
    "RTX 4090": {"capability": (8, 9), "gigabytes": 24},
    "RTX 5090": {"capability": (12, 0), "gigabytes": 32},
    "RX 7900 (ROCm, gfx1100)": {"capability": (11, 0), "gigabytes": 24, "arch": "gfx1100"},
    "RX 6800 (ROCm, gfx1030)": {"capability": (10, 3), "gigabytes": 16, "arch": "gfx1030"},
    "Apple GPU (MPS)": {"mps": (15, 0)},
    "CPU": {},
}


@contextlib.contextmanager
def pretended(card: str) -> Iterator[None]:
    """Core's questions about the device, answered as on ``card``."""
    facts = CARDS[card]
    with contextlib.ExitStack() as inside:

        def replace(place: Any, name: str, new: Any) -> None:
            inside.enter_context(mock.patch.object(place, name, new))

        loading = pack_module("nodes.comfy.loading")
        one_pass = loading.pass_bytes
        replace(comfy.utils, "calculate_parameters", lambda *args, **kwargs: RELEASED)
        replace(loading, "pass_bytes", lambda _, **sizes: one_pass(core.ModelConfig(), **sizes))
        if "mps" in facts:
            replace(management, "cpu_state", management.CPUState.MPS)
            replace(management, "mac_version", lambda: facts["mps"])
        if "capability" in facts:
            major, minor = facts["capability"]
            size = facts["gigabytes"] * 2**30
            properties = SimpleNamespace(
                major=major, minor=minor, name=card, total_memory=size, gcnArchName=facts.get("arch", "")
            )
            replace(management, "cpu_state", management.CPUState.GPU)
            replace(management, "get_torch_device", lambda: torch.device("cuda", 0))
            replace(management, "get_total_memory", lambda *args, **kwargs: size)
            replace(torch.version, "hip" if "arch" in facts else "cuda", "6.4" if "arch" in facts else "12.8")
            replace(torch.cuda, "get_device_properties", lambda *args: properties)
            replace(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)  # older cards emulate it
        yield


def files() -> dict[str, str]:
    """The same small network in every kind of file."""
    original = checkpoint("dtypes_fp32", torch.float32, num_layers=1)
    made = {"fp32": original}
    for dtype in ("bf16", "fp16", "fp8"):
        made[f"{dtype}"] = str(model_folder() / f"dtypes_{dtype}.safetensors")
        core.convert(original, made[dtype], dtype=dtype)
    stored = comfy.utils.load_torch_file(made["fp8"])
    with safe_open(made["fp8"], "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "_quantization_metadata"}
    old = {name.replace("weight_scale", "scale_weight"): tensor for name, tensor in stored.items()}
    made["scaled fp8"] = str(model_folder() / "dtypes_scaled.safetensors")
    comfy.utils.save_torch_file({**old, "scaled_fp8": torch.zeros(2)}, made["scaled fp8"], metadata=metadata)
    return made


def dtypes(
    cards: list[str] | None = None, kinds: list[str] | None = None, weight_dtypes: list[str] | None = None
) -> dict[str, list[str]]:
    """``card | file | weight_dtype`` -> what the matrices of a block are stored in, and what is computed in."""
    found = {}
    made = files()
    for card in cards or list(CARDS):
        for kind in kinds or list(made):
            path = made[kind]
            for weight_dtype in weight_dtypes or list(pack_module("nodes.comfy.loading").WEIGHT_DTYPES):
                with pretended(card):
                    model = bridge.load_network(path, weight_dtype, None)
                layer = model.model.diffusion_model.blocks[0].ffn[0]
                weight = layer.weight
                # A quantised tensor says what it stands for; what lies in memory is its data.
                stored = getattr(weight, "_qdata", weight).dtype
                names = [str(d).removeprefix("torch.") for d in (stored, model.model.get_dtype_inference())]
                found[f"{card} | {kind} | {weight_dtype}"] = names
    return found


# The watch over float16. Queries are normalised after their projection: however large they are changes nothing, but in
# numbers that end at 65,504.


def too_wide(words: int, quantised: bool) -> str:
    """A network, the same in float32 and not finite in float16, as a file."""
    network = random_network(vocab_size=words)
    layer = network.blocks[1].self_attn.q
    with torch.inference_mode(False), torch.no_grad():
        factor = 6e4 / float(layer.weight.abs().max())
        layer.weight *= factor
        layer.bias *= factor
    path = model_folder() / f"too_wide_{quantised}.safetensors"
    core.save_model(network, path, dtype=torch.float32, run=core.RunConfig(text_length=6))
    if quantised:
        core.convert(path, path.with_stem("too_wide_fp8"), dtype="fp8")
    return str(path.with_stem("too_wide_fp8") if quantised else path)


@contextlib.contextmanager
def computing_in_float16() -> Iterator[None]:
    """The CPU as a card that knows float16 and no bfloat16."""
    choose = mock.patch.object(management, "unet_manual_cast", lambda stored, *args: None if stored else torch.float16)
    with choose:
        yield


@contextlib.contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """What is said by the watch, which dtypes the passes had, and for how much memory was asked within runs."""
    found: dict[str, Any] = {"said": [], "passes": [], "memory": []}
    precision = pack_module("nodes.comfy.precision")
    network = pack_module("nodes.comfy.network").HostedNetwork
    real_forward, real_load = network.forward, management.load_models_gpu

    def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        found["passes"].append(str((x if isinstance(x, torch.Tensor) else x[0]).dtype).removeprefix("torch."))
        return real_forward(self, x, *args, **kwargs)

    def load(models: Any, memory_required: float = 0, **kwargs: Any) -> Any:
        if getattr(models[0].model, "current_patcher", None) is not None:
            found["memory"].append(memory_required)
        return real_load(models, memory_required, **kwargs)

    with (
        mock.patch.object(network, "forward", forward),
        mock.patch.object(management, "load_models_gpu", load),
        mock.patch.object(precision.log, "warning", lambda text, *args: found["said"].append(text)),
    ):
        yield found


def jobs(clip: Any, vae: Any, folder: str) -> dict[str, Any]:
    """Everything that runs the network, as functions of the MODEL."""
    latent = {"samples": torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(4))}
    both = {"positive": conditioning(2), "negative": conditioning(3), "latent": empty(), "seed": 1, "shift": 3.0}
    video = {"steps": 3, "guidance": 4.0, "sampler": "euler", "scheduler": "uniform", "denoise": 1.0, **both}
    words = {"length": 6, "steps": 3, "seed": 0, "temperature": 1.0, "top_p": 1.0, "stop_when_stable": 0}

    def caption(model: Any, **changes: Any) -> Any:
        given = {"clip": clip, "latent": latent, "text_update": "bridge", **words, **changes}
        return run("VideoToTextDenoise", model=model, **given)[0].tokens

    def joint(model: Any) -> Any:
        latent, text, _ = run("JointSampler", model=model, text_length=6, steps=3, guidance=4.0, **both)
        return torch.cat([latent["samples"].flatten(), text.tokens.flatten()])

    def rank(model: Any) -> Any:
        return run(
            "UniViGURankCaptions", model=model, clip=clip, latent=latent, texts="a red\na blue", samples=2, seed=0
        )[1]

    def captions(model: Any) -> Any:
        size = {"width": 32, "height": 32, "frames": 5, "fps": 0.0}
        return run("UniViGUCaptionFolder", model=model, clip=clip, vae=vae, folder=folder, subfolders=False,
            overwrite=True, prefix="", template="", text_update="bridge", **size, **words)[0]  # fmt: skip

    return {
        "Uni-Flow Sampler": lambda m: run("UniFlowSampler", model=m, **video)[0]["samples"],
        "with heun": lambda m: run("UniFlowSampler", model=m, **{**video, "sampler": "heun"})[0]["samples"],
        "KSampler": lambda m: sampled(m, both["positive"], both["negative"], empty()),
        "Joint Sampler": joint,
        "Video-to-Text": caption,
        "with a cache": lambda m: caption(m, video_cache="static"),
        "Rank Captions": rank,
        "Caption Folder": captions,
    }


def overflow(folder: str, quantised: bool) -> dict[str, Any]:
    """Every job in a float16 that is too small, beside the same weights in float32 from the start."""
    _, clip, vae = load_embedded()
    path = too_wide(bridge.tokenizer_of(clip).size, quantised)
    widget = "default" if quantised else "fp16"
    right = bridge.load_network(path, widget, None)
    found: dict[str, Any] = {}
    for job, act in jobs(clip, vae, folder).items():
        if quantised and job not in QUANTISED_TOO:
            continue
        expected = act(right)
        with computing_in_float16():
            model = bridge.load_network(path, widget, None)
        assert model.model.get_dtype_inference() == torch.float16
        with watched() as seen:
            got = act(model)
            first = {key: list(value) for key, value in seen.items()}
            again = act(model)
        found[job] = {
            "equal": near(got, expected) and near(again, expected),
            "said": len(first["said"]),
            "passes": [first["passes"].count("float16"), first["passes"].count("float32")],
            "asked for memory": len(first["memory"]),
            "said again": len(seen["said"]) - len(first["said"]),
            "again in float16": seen["passes"].count("float16") - first["passes"].count("float16"),
        }
    return found


def check_in_float16() -> dict[str, Any]:
    """The losses of Check Uni-ViGU in a float16 that is too small, twice, beside those in float32."""
    path = too_wide(7, False)
    evidence = pack_module("uvg_core.pipeline.evidence")
    g = torch.Generator().manual_seed(0)
    sizes = bridge.config_of(bridge.load_network(path, "fp32", None))
    told = {kind: torch.randn(1, 7, sizes.text_dim, generator=g) for kind in pack_module("uvg_core.config").TEXT_STATES}
    raw, ids = torch.randn(1, 16, 2, 4, 6, generator=g), [3, 4, 1]
    samples = [evidence.Sample("clip", raw, ids, told, told) for _ in range(3)]

    def losses(model: Any) -> Any:
        check = SimpleNamespace(model=model, null=None, progress=lambda *_: None)
        return bridge.NodeCheck.weigh(check, samples, draws=1, at_once=8)

    with computing_in_float16():
        small = bridge.load_network(path, "fp16", None)
    with watched() as seen:
        found = [repr(losses(small)) for _ in range(2)]
    return {"same": found[0] == found[1], "finite": "nan" not in found[0], "said": len(seen["said"])}


def near(a: Any, b: Any) -> bool:
    """Numbers but for the rounding of biases, which are loaded in float16 there; words and texts in full."""
    if isinstance(a, torch.Tensor) and a.is_floating_point():
        return distance(a, b) <= 1e-3
    return same(a, b)


def same(a: Any, b: Any) -> bool:
    both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return torch.equal(a, b) if both else bool(a is b or a == b)


def squeezed() -> dict[str, Any]:
    """A file in two bytes a number on cards of several sizes, beside what ``convert`` makes of it."""
    made, loading = files(), pack_module("nodes.comfy.loading")
    said: dict[str, int] = {}

    def loaded(card: str, choice: str = "default") -> Any:
        lines: list[str] = []
        with pretended(card), mock.patch.object(loading.log, "warning", lambda text, *args: lines.append(text)):
            model = bridge.load_network(made["bf16"], choice, None)
        said[card if choice == "default" else f"{card}, {choice}"] = len(lines)
        return model

    small = loaded("RTX 4060")
    loaded("RTX 4060", "bf16")
    loaded("RTX 3060")
    loaded("CPU")
    core.convert(made["bf16"], model_folder() / "squeezed.safetensors", dtype="fp8")
    with pretended("RTX 4060"):
        converted = bridge.load_network(str(model_folder() / "squeezed.safetensors"), "default", None)
    one, other = small.model.state_dict(), converted.model.state_dict()
    differ = [name for name in one.keys() | other.keys() if not same(one.get(name), other.get(name))]
    lines: list[str] = []
    saving = pack_module("nodes.comfy.saving")
    small.load_device = torch.device("cpu")
    with mock.patch.object(saving.log, "warning", lambda text, *args: lines.append(text)):
        bridge.save_checkpoint(model_folder() / "saved.safetensors", small, None, None)
    return {
        "not as convert": differ,
        "said": said,
        "saved as loaded": "".join(lines),
    }


def float16_stays() -> dict[str, Any]:
    """Runs in float16 of a network that it is large enough for, and of one that it is not with a patch on it."""
    precision = pack_module("nodes.comfy.precision")
    path = checkpoint("fits_float16", torch.float16)
    looks: list[int] = []
    real = precision.Float16Watch.wants

    def wants(*args: Any) -> bool:
        looks.append(real(*args))
        return bool(looks[-1])

    with computing_in_float16():
        model = bridge.load_network(path, "fp16", None)
    found: dict[str, Any] = {}
    with watched() as seen, mock.patch.object(precision.Float16Watch, "wants", wants):
        sampled(model, conditioning(2), conditioning(3), empty())
        found |= {"looks": sum(looks), "passes": list(seen["passes"]), "passes of the first step": 1}
        seen["passes"].clear()
        name = "diffusion_model.blocks.1.self_attn.q.weight"
        weight = model.model.diffusion_model.blocks[1].self_attn.q.weight
        large = model.clone()
        large.add_patches({name: ("diff", (weight.float() * 6e4 / weight.float().abs().max(),))})
        for patched, steps in ((large, 2), (model, 1)):
            sampled(patched, conditioning(2), conditioning(3), empty(), steps=steps)
    return {**found, "after another model's float32": list(seen["passes"])}
