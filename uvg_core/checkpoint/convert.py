"""From any layout to native safetensors, holding about one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..io import require_others
from .build import merged_weight
from .detect import Checkpoint, open_checkpoint
from .facts import Overrides
from .fit import open_network
from .lora import Lora, LoraChoice, open_loras, with_students
from .quant import FP8, FP8_DTYPES, METADATA_KEY, is_quantised_in_fp8, quantisation_metadata, quantise, quantised_layers
from .read import Stored
from .write import ALL_IN_ONE_PREFIX, Pending, Progress, carried_over, write_safetensors

OVERFLOW = ("refuse", "bf16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": FP8}
_SCALE = Stored.like((), torch.float32)


def convert(
    path: str | Path,
    target: str | Path,
    /,
    *,
    dtype: str | None = None,
    on_progress: Progress | None = None,
    overrides: Overrides | None = None,
    loras: Sequence[str | Path | LoraChoice | Lora] = (),
    overflow: str = "refuse",
) -> list[Lora]:
    """Write a Uni-ViGU checkpoint of any readable layout as native safetensors.

    Args:
        path, target: from, to (``*.safetensors``).
        dtype: ``bf16``, ``fp16``, ``fp32``, or ``fp8``: the blocks' matrices in e4m3 with one scale each, as ComfyUI
            reads it, the rest in bf16. None keeps every tensor as it is stored.
        on_progress: called with (bytes written, bytes in all) after each tensor; raising in it cancels cleanly.
        overrides: as for ``load_model``; written into the metadata.
        loras: as for ``load_model``; weights are rounded, or quantised, after merging.
        overflow: of a weight with numbers that do not fit into fp16: ``refuse``, or keep it in ``bf16`` (every weight
            is then read twice).

    The other parts of an all-in-one file (VAE, text encoder) are carried over unchanged, step and optimizer are not.
    The target appears whole or not at all. Returns the LoRAs, which say what was merged. Raises UniViGUError as
    ``load_model`` does, and when it cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UniViGUError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}, or None to keep what is stored")
    opened = open_checkpoint(path)
    require_others(target, [opened.path])
    checkpoint, config = open_network(opened, overrides)
    merged = open_loras(loras, config.model)
    require_others(target, [lora.path for lora in merged])
    config = replace(config, run=with_students(config.run, merged))
    weights = checkpoint.weights

    all_in_one = checkpoint.prefix == ALL_IN_ONE_PREFIX
    prefix = ALL_IN_ONE_PREFIX if all_in_one else ""
    pending: dict[str, Pending] = {}
    layers: list[str] = []
    for name in checkpoint.names:
        entries = _entries(checkpoint, name, dtype, [lora for lora in merged if lora.changes(name)], overflow)
        pending |= {prefix + entry: value for entry, value in entries.items()}
        layers += [prefix + name.removesuffix(".weight")] * (len(entries) > 1)
    others: dict[str, object] = {}
    if all_in_one:  # elsewhere, what lies beside the network is no part of a model
        pending |= carried_over(weights, checkpoint.others)
        quantised = quantised_layers(weights.metadata)
        others = {layer: entry for layer, entry in quantised.items() if f"{layer}.weight" in checkpoint.others}

    metadata = {**weights.metadata, "config": config.to_json(), "format": "pt"}
    metadata.pop(METADATA_KEY, None)
    if layers or others:
        metadata[METADATA_KEY] = quantisation_metadata(layers, others)
    write_safetensors(target, pending, metadata, on_progress)
    return merged


def _entries(
    checkpoint: Checkpoint, name: str, dtype: str | None, loras: Sequence[Lora], overflow: str
) -> dict[str, Pending]:
    """What one weight becomes: itself, or two tensors, eight-bit numbers and their scale; native names."""
    stored = checkpoint.stored(name)
    kept = stored.torch_dtype
    assert kept is not None  # require_floats let floating point through only
    if kept == FP8 and is_quantised_in_fp8(name) and name in checkpoint.scales:
        dtype = dtype or "fp8"
        if dtype == "fp8" and not loras:  # once is enough: rounding anew would only lose
            read_scale = partial(checkpoint.weights.read, checkpoint.scales[name])
            return {
                name: Pending(stored, partial(checkpoint.weights.read, checkpoint.names[name])),
                _scale_name(name): Pending(_SCALE, lambda: read_scale().float().reshape(())),
            }
    # Without a scale, eight bits are too coarse for what a LoRA adds.
    if name in checkpoint.scales or (loras and kept in FP8_DTYPES):
        kept = torch.bfloat16
    read = partial(merged_weight, checkpoint, name, loras)
    if overflow == "bf16" and DTYPES.get(dtype or "", kept) == torch.float16 and _overflows(read(), torch.float16):
        dtype = "bf16"
    return packed(name, Stored.like(stored.shape, kept), read, dtype)


def packed(name: str, like: Stored, read: Callable[[], Tensor], dtype: str | None) -> dict[str, Pending]:
    """What one weight of the network becomes in a file of ``dtype``, see ``convert``; None keeps what ``like`` says."""
    if dtype == "fp8" and is_quantised_in_fp8(name):
        return eight_bits(name, like, read)
    wanted = torch.bfloat16 if dtype == "fp8" else DTYPES.get(dtype or "", like.torch_dtype)
    assert wanted is not None
    return {name: Pending(Stored.like(like.shape, wanted), lambda: _finite(name, read(), wanted))}


def eight_bits(name: str, like: Stored, read: Callable[[], Tensor]) -> dict[str, Pending]:
    """A weight as two tensors: eight-bit numbers and their scale."""
    made: list[Tensor] = []

    def numbers() -> Tensor:
        quantised, factor = quantise(_finite(name, read()))
        made.append(factor)
        return quantised

    return {name: Pending(Stored.like(like.shape, FP8), numbers), _scale_name(name): Pending(_SCALE, made.pop)}


def _scale_name(name: str) -> str:
    return name.removesuffix(".weight") + ".weight_scale"


def _finite(name: str, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A weight in ``dtype``. Raises UniViGUError where it is not finite, or cannot be in ``dtype``."""
    made = weight if dtype is None else weight.to(dtype)
    if made.dtype in FP8_DTYPES or not made.numel():
        return made
    if all(bool(end.isfinite()) for end in made.aminmax()):  # a mask would be half as large as the largest weight
        return made
    if _overflows(weight, made.dtype):
        largest = float(weight.float().abs().max())
        raise UniViGUError(
            f"{name}: its largest number, {largest:.3g}, does not fit into {made.dtype}; choose bf16 or fp32 (convert "
            "--overflow bf16 keeps such weights alone in bf16)"
        )
    raise UniViGUError(
        f"{name}: holds values that are not numbers: the file is damaged, its training has diverged, or a LoRA is far "
        "too strong. Download it again, or choose a lower strength"
    )


def _overflows(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight is finite, and no longer so in ``dtype``."""
    return bool(weight.float().isfinite().all()) and not bool(weight.to(dtype).isfinite().all())
