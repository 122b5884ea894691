"""Where the network lies in a file, in which layout, and whether it is one of ours: told from the names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ..errors import UniViGUError
from .keys import DERIVED, layout_of, network_prefix, strip_wrappers, to_native
from .quant import is_companion, scaled_weight
from .read import Stored, WeightFile

UNI_VIGU_LAYOUTS = ("native", "release")
WAN_LAYOUTS = ("wan", "diffusers")


@dataclass(frozen=True)
class Network:
    """Where the network lies in a file. Maps lead from native names to the names in the file; a weight that the layout
    does not know keeps its own name, so that the strict check reports it. ``inv_freq`` is the derived rotary buffer of
    the release, ``others`` the tensors outside the network."""

    layout: str
    prefix: str = ""
    names: dict[str, str] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    inv_freq: str | None = None
    others: tuple[str, ...] = ()


def find_network(weights: WeightFile) -> Network:
    """Find the network among a file's tensors; ``layout`` is ``unknown`` when there is none.

    Raises UniViGUError when two tensors claim the same place.
    """
    stripped = {name: strip_wrappers(name) for name in weights.tensors}
    prefix = network_prefix(stripped.values())
    inside = {name: bare[len(prefix) :] for name, bare in stripped.items() if bare.startswith(prefix)}
    layout = layout_of(inside.values())
    if layout == "unknown":
        return Network(layout, others=tuple(weights.tensors))
    names: dict[str, str] = {}
    scales: dict[str, str] = {}
    inv_freq = None
    for name, bare in inside.items():
        if DERIVED.search(bare):
            inv_freq = name if "inv_freq" in bare else inv_freq
            continue
        if is_companion(bare):
            continue
        weight = scaled_weight(bare)
        places = names if weight is None else scales
        native = to_native(weight or bare, layout) or bare
        if native in places:
            raise UniViGUError(
                f"{weights.path}: {places[native]} and {name} both stand for {native}; expected one of them. The file "
                "mixes two models: export it anew"
            )
        places[native] = name
    return Network(layout, prefix, names, scales, inv_freq, tuple(name for name in stripped if name not in inside))


def require_layout(weights: WeightFile, network: Network, layouts: tuple[str, ...]) -> None:
    """Raise UniViGUError unless the file holds a network in one of ``layouts``, with weights that can be read here."""
    uni_vigu_wanted = layouts == UNI_VIGU_LAYOUTS
    if network.layout in layouts:
        require_floats(weights, network)
    elif network.layout in WAN_LAYOUTS:
        raise UniViGUError(
            f"{weights.path}: found a plain Wan base (video only), expected a Uni-ViGU checkpoint. To train from it, "
            "start with init_from_wan; to only generate videos, use it with a Wan workflow"
        )
    elif network.layout in UNI_VIGU_LAYOUTS:
        raise UniViGUError(
            f"{weights.path}: found a Uni-ViGU checkpoint, expected a plain Wan base; load it with load_model"
        )
    else:
        kind = "Uni-ViGU checkpoint" if uni_vigu_wanted else "Wan2.1 base"
        expected = (
            "a network with both streams (native or release names)"
            if uni_vigu_wanted
            else ("Wan2.1 text-to-video (original, ComfyUI's or diffusers' names)")
        )
        raise UniViGUError(
            f"{weights.path}: not a {kind}: found {describe_foreign(weights.tensors)}, expected {expected}. Choose the "
            "diffusion model's file"
        )


def require_floats(weights: WeightFile, network: Network) -> None:
    """Raise UniViGUError when weights are stored as packed integers, i.e. quantised in a format unknown here."""
    for name, stored in network.names.items():
        if not is_floating(weights.tensors[stored]):
            raise UniViGUError(
                f"{weights.path}: {name} is stored as {weights.tensors[stored].dtype}, expected floating point or fp8: "
                "it is quantised in a format that only its own tool reads. Use a bf16, fp16, fp32 or fp8 file"
            )
    for name, stored in network.scales.items():
        if weights.tensors[stored].numel != 1:
            raise UniViGUError(
                f"{weights.path}: the scale of {name} has {weights.tensors[stored].numel} values, expected one per "
                "tensor. Use a bf16 file, or fp8 written by convert"
            )


def is_floating(stored: Stored) -> bool:
    dtype = stored.torch_dtype
    return dtype is not None and dtype.is_floating_point and dtype != getattr(torch, "float8_e8m0fnu", None)


def describe_foreign(names: Iterable[str]) -> str:
    """What a file that holds no network of ours seems to be, with its first names."""
    names = [strip_wrappers(name) for name in names]

    def some(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    if "patch_embedding.weight" in {name.rsplit("diffusion_model.", 1)[-1] for name in names}:
        kind = "a checkpoint of a video model"
    elif some("lora_A.", "lora_B.", "lora_down.", "lora_up.", ".lora.", "lokr_", "hada_w1"):
        kind = "a LoRA"
    elif some("SelfAttention", "shared.weight") or ("token_embedding.weight" in names and some("pos_embedding")):
        kind = "a T5 text encoder"
    elif some("text_model.", "model.embed_tokens.", "visual.transformer."):
        kind = "a text or image encoder"
    elif some("decoder.") and some("encoder.", "conv2.", "post_quant_conv"):
        kind = "a VAE"
    elif some("double_blocks.", "transformer_blocks.", "input_blocks.", "joint_blocks.", "single_blocks."):
        kind = "another diffusion model"
    else:
        kind = "an unknown kind of file"
    return f"{kind} (first names: {', '.join(names[:3]) or 'none'})"
