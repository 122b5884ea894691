"""LoRAs on both halves of the network, as patches of ComfyUI's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy.weight_adapter import GLoRAAdapter, LoHaAdapter, LoKrAdapter, LoRAAdapter, WeightAdapterBase
from torch import Tensor

from ...uvg_core.checkpoint.keys import is_text_half
from ...uvg_core.checkpoint.lora import Lora, LoraChoice, LoraMatch
from ...uvg_core.checkpoint.lora_patch import Patch, is_old_glora
from .network import network_of, weights_of

PREFIX = "diffusion_model."


class OwnAdapter(WeightAdapterBase):
    """A patch that core's adapters compute otherwise, or not at all: peft's DoRA and Tucker cores.

    ``weights`` is the patch, the roles of its tensors, and these: core moves what it finds in there, and makes the
    adapter anew."""

    name = "uni_vigu"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        patch, roles, *tensors = self.weights
        changed = patch.apply(weight.to(intermediate_dtype), dict(zip(roles, tensors, strict=True)), strength)
        weight += function((changed - weight).to(weight.dtype))
        return weight


def apply_lora(model: Any, path: str, video: float, text: float) -> tuple[Any, LoraMatch]:
    """A clone of MODEL with a LoRA on it: strength ``video`` on what plain Wan has, ``text`` on the text half; and what
    was taken.

    Reads what the command line reads. Raises UniViGUError for a file that is no LoRA, or does not fit."""
    network = network_of(model)
    lora = Lora(LoraChoice(Path(path), video, text), network.config)
    shapes = {name: weight.shape for name, weight in weights_of(network.config).items()}
    patched = model.clone()
    for name, patches in lora.patches.items():
        for patch in patches if lora.changes(name) else ():
            form = _form(patch, lora.tensors(patch), shapes[name])
            if not patched.add_patches({PREFIX + name: form}, lora.strength(name)):
                raise AssertionError(f"{name} is not among the weights of the model")
    return patched, lora.match


def _form(patch: Patch, t: dict[str, Tensor], weight: torch.Size) -> Any:
    """A patch for a weight of that shape in core's own form, so that all of core that knows LoRAs knows this one."""
    if patch.kind == "set":
        return "set", (t["set_weight"],)
    if patch.kind == "diff":
        return "diff", (t["diff"] if patch.scale == 1 else t["diff"].float() * patch.scale,)
    dora = t.get("dora_scale")
    if dora is not None and dora.ndim == 1:
        dora = dora[:, None]
    halves = [t.get(f"lokr_{factor}") for factor in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b")]
    w1_b, w2_b = halves[3], halves[5]
    rank = w2_b if w2_b is not None else w1_b  # whichever core divides alpha by
    beyond_core = (
        "magnitude" in t
        or t.keys() & {"mid", "hada_t1", "lokr_t2"}
        or (len(weight) > 2 and (patch.kind != "pair" or dora is not None))
        or (patch.kind == "lokr" and rank is None and patch.scale != 1)
    )
    if beyond_core:
        return OwnAdapter(set(), (patch, tuple(t), *t.values()))
    if patch.kind == "pair":
        return LoRAAdapter(set(), (t["up"], t["down"], patch.scale * len(t["down"]), None, dora, None))
    if patch.kind == "loha":
        a1, b1, a2, b2 = (t[f"hada_{factor}"] for factor in ("w1_a", "w1_b", "w2_a", "w2_b"))
        return LoHaAdapter(set(), (a1, b1, patch.scale * len(b1), a2, b2, None, None, dora))
    if patch.kind == "lokr":
        alpha = None if rank is None else patch.scale * len(rank)
        return LoKrAdapter(set(), (*halves[:2], alpha, *halves[2:], None, dora))
    factors = {role: t[role] for role in ("a1", "a2", "b1", "b2")}
    old = is_old_glora({role: factor.shape for role, factor in factors.items()}, weight)
    return GLoRAAdapter(set(), (*factors.values(), patch.scale * len(t["a1" if old else "a2"]), dora))


def is_text_weight(name: str) -> bool:
    """Whether a weight, by its name in a model or a file, belongs to the half that plain Wan does not have."""
    return is_text_half(name.rpartition(PREFIX)[2])
