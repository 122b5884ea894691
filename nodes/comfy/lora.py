"""LoRAs on both halves of the network, as patches of ComfyUI's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...uvg_core.checkpoint.lora import Lora, LoraChoice, with_students
from .network import network_of, run_facts

PREFIX = "diffusion_model."


class PatchAdapter(WeightAdapterBase):
    """A ``Patch`` among ComfyUI's: one formula for every kind of LoRA, here and on the command line.

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


def apply_lora(model: Any, path: str, video: float, text: float) -> tuple[Any, str]:
    """A clone of MODEL with a LoRA on it: strength ``video`` on what plain Wan has, ``text`` on the text half; and a
    line that says what was taken. The recipe of a distilled one takes the place of the model's.

    Reads what the command line reads. Raises UniViGUError for a file that is no LoRA, or does not fit."""
    lora = Lora(LoraChoice(Path(path), video, text), network_of(model).config)
    patched = model.clone()
    for name, patches in lora.patches.items():
        for patch in patches if lora.changes(name) else ():
            tensors = lora.tensors(patch)
            adapter = PatchAdapter(set(), (patch, tuple(tensors), *tensors.values()))
            if not patched.add_patches({PREFIX + name: adapter}, lora.strength(name)):
                raise AssertionError(f"{name} is not among the weights of the model")
    run = run_facts(patched)
    if (recipe := with_students(run, [lora])) != run:
        patched.add_object_patch("run_facts", recipe)
    return patched, lora.says
