"""What the network computes in on a card, and the watch over float16 where a card has nothing better.

The released weights were trained under bfloat16. Float16 is as small but ends at 65,504, and nobody knows that all
activations stay below that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

ALL = (torch.bfloat16, torch.float16, torch.float32)


def inference_dtypes() -> list[torch.dtype]:
    """What core's loaders may choose from, best first: bfloat16 wherever the card computes in it, for files in float16
    too; else what core thinks of float16 and float32 there.

    With ``--fast fp16_accumulation`` float16 is what the user asked for."""
    management = comfy.model_management
    asked = getattr(management, "PRIORITIZE_FP16", False)
    bf16 = management.should_use_bf16(management.get_torch_device())
    return [dtype for dtype in ALL if dtype != torch.float16 or asked or not bf16]


def all_finite(*tensors: Tensor | None) -> bool:
    """Waits for a card on which they lie."""
    checks = [tensor.isfinite().all() for tensor in tensors if tensor is not None]
    return bool(torch.stack(checks).all())


class Float16Watch:
    """Looks at the first step of every run in float16 and, where it is not finite, makes a model compute in float32 for
    the rest of that run, and at once in later runs of the same weights with the same patches.

    Weights stay as they are stored: each layer casts its own as it is called, as in a model for which core has chosen
    another dtype to compute in than to store.
    """

    def __init__(self) -> None:
        self._run: Any = None  # what core hands to every pass of a run
        self._step: Any = None  # and to every pass of its first step
        self._too_wide: set[Any] = set()  # weights with their patches
        self._chosen: tuple[torch.dtype | None] | None = None  # by core, while float32 stands in for it
        self._cast: list[nn.Module] = []  # layers that did not cast before

    def wants(self, model: Any, options: Mapping[str, Any]) -> bool:
        """Whether a pass of ``model`` with these transformer options is to be looked at."""
        run, step = options.get("sample_sigmas"), options.get("sigmas")
        if run is None or run is not self._run:
            self.start(model)
            self._run, self._step = run, step
        return step is self._step and model.get_dtype_inference() == torch.float16

    def start(self, model: Any) -> None:
        """Begin a run, in what the network would compute in by itself or, where that is known to be too small, in
        float32."""
        self._run = self._step = None
        self._undo(model)
        if model.get_dtype_inference() == torch.float16 and self._weights(model) in self._too_wide:
            self._compute_in_float32(model, ())

    def widen(self, model: Any, shape: tuple[int, ...]) -> None:
        """Let ``model`` compute in float32 from here on, with memory for a pass over a batch of this ``shape``."""
        log.warning(
            "Uni-ViGU: the first step is not finite in float16, which is too small for this model; computing it again, "
            "and the steps after it, in float32, which is slower"
        )
        self._too_wide.add(self._weights(model))
        self._compute_in_float32(model, shape)

    @staticmethod
    def _weights(model: Any) -> Any:
        return getattr(model.current_patcher, "patches_uuid", None)

    def _compute_in_float32(self, model: Any, shape: tuple[int, ...]) -> None:
        chosen = (model.manual_cast_dtype,)
        model.manual_cast_dtype = torch.float32
        if model.current_patcher is not None and shape:
            need = model.memory_required(list(shape))
            comfy.model_management.load_models_gpu([model.current_patcher], need, minimum_memory_required=need)
            model.manual_cast_dtype = torch.float32  # where a node had set it, loading set it again
        self._chosen = chosen
        self._cast = [layer for layer in model.diffusion_model.modules() if not getattr(layer, _flag(layer), True)]
        for layer in self._cast:
            setattr(layer, _flag(layer), True)

    def _undo(self, model: Any) -> None:
        if self._chosen is None:
            return
        if model.manual_cast_dtype == torch.float32:  # else a node has set it since
            (model.manual_cast_dtype,) = self._chosen
        for layer in self._cast:
            setattr(layer, _flag(layer), False)
        self._chosen, self._cast = None, []


def _flag(layer: nn.Module) -> str:
    """The attribute by which a layer of core's casts its weights to what it is called with: another one while it lies
    elsewhere, and casts in any case."""
    return "prev_comfy_cast_weights" if hasattr(layer, "prev_comfy_cast_weights") else "comfy_cast_weights"
