"""From any layout to native safetensors, holding about one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..io import require_others
from .build import read_native
from .config import log_frequencies, whole_config
from .detect import UNI_VIGU_LAYOUTS, Network, find_network, require_layout
from .fit import compare, require_fit
from .lora import Lora, LoraChoice, open_loras
from .quant import FP8, FP8_DTYPES, METADATA_KEY, is_quantised_in_fp8, quantisation_metadata, quantise, quantised_layers
from .read import Stored, WeightFile, open_weights
from .write import ALL_IN_ONE_PREFIX, Pending, Progress, write_safetensors

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": FP8}


def convert(
    path: str | Path,
    target: str | Path,
    /,
    *,
    dtype: str | None = None,
    on_progress: Progress | None = None,
    text_flow: str | None = None,
    source: str | None = None,
    latent_space: str | None = None,
    num_heads: int | None = None,
    time_rounding: str | None = None,
    run: Mapping[str, Any] | None = None,
    loras: Sequence[str | Path | LoraChoice | Lora] = (),
) -> list[Lora]:
    """Write a Uni-ViGU checkpoint of any readable layout as native safetensors.

    Args:
        path, target: from, to (``*.safetensors``).
        dtype: ``bf16``, ``fp16``, ``fp32``, or ``fp8``: the blocks' matrices in e4m3 with one scale each, as ComfyUI
            reads it, the rest in bf16. None keeps every tensor as it is stored.
        on_progress: called with (bytes written, bytes in all) after each tensor; raising in it cancels cleanly.
        text_flow, source, latent_space, num_heads, time_rounding: as for ``load_model``; written into the metadata.
        run: entries of ``RunConfig`` to write in place of the file's, e.g. ``{"text_states": "release"}``.
        loras: as for ``load_model``; weights are rounded, or quantised, after merging.

    The other parts of an all-in-one file (VAE, text encoder) are carried over unchanged, step and optimizer are not.
    The target appears whole or not at all. Returns the LoRAs, which say what was merged. Raises UniViGUError as
    ``load_model`` does, and when it cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UniViGUError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}, or None to keep what is stored")
    weights = open_weights(path)
    require_others(target, [weights.path])
    network = find_network(weights)
    require_layout(weights, network, UNI_VIGU_LAYOUTS)
    stated = whole_config(
        weights,
        network,
        run,
        text_flow=text_flow,
        source=source,
        latent_space=latent_space,
        num_heads=num_heads,
        time_rounding=time_rounding,
    )
    require_fit(weights, network, compare(weights, network, stated.model))
    weights.log_ignored()
    log_frequencies(weights, network, stated.model)
    merged = open_loras(loras, stated.model)
    require_others(target, [lora.path for lora in merged])

    all_in_one = network.prefix == ALL_IN_ONE_PREFIX
    prefix = ALL_IN_ONE_PREFIX if all_in_one else ""
    pending: dict[str, Pending] = {}
    layers: list[str] = []
    for name in network.names:
        entries = _entries(weights, network, name, dtype, [lora for lora in merged if lora.changes(name)])
        pending |= {prefix + entry: value for entry, value in entries.items()}
        if len(entries) > 1:
            layers.append(prefix + name.removesuffix(".weight"))
    if all_in_one:  # elsewhere, what lies beside the network is no part of a model
        for name in network.others:
            pending[name] = Pending(weights.tensors[name], partial(weights.read, name))

    metadata = {**weights.metadata, "config": stated.to_json(), "format": "pt"}
    metadata.pop(METADATA_KEY, None)
    others = {n: entry for n, entry in quantised_layers(weights.metadata).items() if f"{n}.weight" in network.others}
    if layers or (all_in_one and others):
        metadata[METADATA_KEY] = quantisation_metadata(layers, others if all_in_one else None)
    write_safetensors(target, pending, metadata, on_progress)
    return merged


def _entries(
    weights: WeightFile, network: Network, name: str, dtype: str | None, loras: Sequence[Lora]
) -> dict[str, Pending]:
    """What one weight becomes: itself, or two tensors, eight-bit numbers and their scale; native names."""
    stored = weights.tensors[network.names[name]]
    scale_name = name.removesuffix(".weight") + ".weight_scale"
    scale = Stored.like((), torch.float32)

    kept = stored.torch_dtype == FP8 and is_quantised_in_fp8(name) and name in network.scales
    if kept and dtype is None and loras:
        dtype = "fp8"
    if kept and dtype in (None, "fp8") and not loras:  # once is enough: rounding anew would only lose
        return {
            name: Pending(stored, partial(weights.read, network.names[name])),
            scale_name: Pending(scale, lambda: weights.read(network.scales[name]).float().reshape(())),
        }
    kept_dtype = torch.bfloat16 if name in network.scales else stored.torch_dtype
    assert kept_dtype is not None  # require_floats let floating point through only
    if loras and kept_dtype in FP8_DTYPES:  # without a scale, eight bits are too coarse for what a LoRA adds
        kept_dtype = torch.bfloat16
    read = partial(read_native, weights, network, name, loras)
    return packed(name, Stored.like(stored.shape, kept_dtype), read, dtype)


def packed(name: str, like: Stored, read: Callable[[], Tensor], dtype: str | None) -> dict[str, Pending]:
    """What one weight of the network becomes in a file of ``dtype``, see ``convert``; None keeps what ``like`` says."""
    if dtype == "fp8" and is_quantised_in_fp8(name):
        made: list[Tensor] = []

        def numbers() -> Tensor:
            quantised, factor = quantise(_finite(name, read()))
            made.append(factor)
            return quantised

        scale_name = name.removesuffix(".weight") + ".weight_scale"
        scale = Pending(Stored.like((), torch.float32), made.pop)
        return {name: Pending(Stored.like(like.shape, FP8), numbers), scale_name: scale}
    wanted = torch.bfloat16 if dtype == "fp8" else DTYPES.get(dtype or "", like.torch_dtype)
    assert wanted is not None
    return {name: Pending(Stored.like(like.shape, wanted), lambda: _finite(name, read(), wanted))}


def _finite(name: str, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A weight in ``dtype``. Raises UniViGUError where it is not finite, or cannot be in ``dtype``."""
    made = weight if dtype is None else weight.to(dtype)
    if made.dtype in FP8_DTYPES or not made.numel():
        return made
    if all(bool(end.isfinite()) for end in made.aminmax()):  # a mask would be half as large as the largest weight
        return made
    if bool(weight.float().isfinite().all()):
        largest = float(weight.float().abs().max())
        raise UniViGUError(f"{name}: its largest number, {largest:.3g}, does not fit into {dtype}; choose bf16 or fp32")
    raise UniViGUError(
        f"{name}: holds values that are not numbers: the file is damaged, its training has diverged, or a LoRA is far "
        "too strong. Download it again, or choose a lower strength"
    )
