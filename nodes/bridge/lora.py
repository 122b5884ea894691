"""LoRAs on both halves of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils

from ...uvg_core.checkpoint.keys import to_native
from ...uvg_core.errors import UniViGUError
from .network import network_of, weights_of


@dataclass(frozen=True)
class LoraMatch:
    """What became of a LoRA file: layers it trained, and how many of them the video half and the text half took."""

    layers: int
    video: int
    text: int
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        halves = f"{self.video} of the video half, {self.text} of the text half"
        line = f"matched {self.video + self.text} of {self.layers} layers: {halves}"
        if not self.unmatched:
            return line
        more = f" and {len(self.unmatched) - 3} more" if len(self.unmatched) > 3 else ""
        return f"{line}; not found in this model: {', '.join(self.unmatched[:3])}{more}"


LORA_ENDINGS = (
    ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".lora_A.default.weight",
    ".lora_B.default.weight", ".lora.down.weight", ".lora.up.weight", ".alpha", ".dora_scale", ".diff", ".diff_b",
    ".lokr_w1", ".lokr_w2", ".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b",
)  # fmt: skip


# Of these the last axis is the width of what goes in.
LORA_INPUTS = (".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight", ".lora.down.weight", ".diff")


def apply_lora(model: Any, path: str, video: float, text: float) -> tuple[Any, LoraMatch]:
    """A clone of MODEL with a LoRA on it: strength ``video`` on what plain Wan has, ``text`` on the text half.

    Reads Wan LoRAs in original, ComfyUI's, musubi's and diffusers' names, and our own. Raises UniViGUError for a file
    that is no LoRA, or was made for another width.
    """
    network = network_of(model)
    stored = comfy.utils.load_torch_file(path, safe_load=True)
    weights = comfy.lora_convert.convert_lora({_lora_name(name): tensor for name, tensor in stored.items()})
    layers = {name[: -len(end)] for name in weights for end in LORA_ENDINGS if name.endswith(end)}
    if not layers:
        raise UniViGUError(f"{path}: found no LoRA weights in it; expected pairs such as lora_A and lora_B")
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(weights, places, log_missing=False)
    taken = sorted(name for name in layers if name in places)
    sizes = {f"diffusion_model.{name}": tuple(tensor.shape) for name, tensor in weights_of(network.config).items()}
    at = {name: places[name] if isinstance(places[name], str) else places[name][0] for name in taken}
    for name, place in at.items():
        inputs = next((weights[name + end].shape[-1] for end in LORA_INPUTS if name + end in weights), None)
        if inputs is not None and len(sizes[place]) == 2 and inputs != sizes[place][1]:
            raise UniViGUError(
                f"{path}: this LoRA is for width {inputs} ({name}), this model's is {sizes[place][1]}: it was made for "
                "another size of Wan (1536 is the 1.3B, 5120 the 14B). Choose a LoRA for Wan2.1 1.3B"
            )
    halves: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for place, patch in patches.items():
        halves[is_text_weight(place)][place] = patch
    patched = model.clone()
    patched.add_patches(halves[False], video)
    patched.add_patches(halves[True], text)
    text_layers = sum(is_text_weight(place) for place in at.values())
    match = LoraMatch(len(layers), len(taken) - text_layers, text_layers, tuple(sorted(layers - set(taken))))
    if not patches:
        raise UniViGUError(f"{path}: {match}. It was made for another model; expected a LoRA for Wan2.1 or Uni-ViGU")
    return patched, match


def is_text_weight(name: str) -> bool:
    """Whether a weight belongs to the half that plain Wan does not have."""
    return any(part in name for part in ("ffn_t.", "_embedding_t.", "_projection_t.", "token_embedding", "text_head."))


def _lora_name(name: str) -> str:
    """Names of diffusers' Wan (``transformer.blocks.0.attn1.to_q.lora_A.weight``) in those of ComfyUI."""
    end = next((end for end in LORA_ENDINGS if name.endswith(end)), None)
    if end is None or (".attn" not in name and ".ffn.net" not in name):
        return name
    bare = name[: -len(end)].removeprefix("transformer.").removeprefix("diffusion_model.")
    native = to_native(f"{bare}.weight", "diffusers")
    return name if native is None else f"diffusion_model.{native.removesuffix('.weight')}{end}"
