"""Eight-bit weights: e4m3 with one scale per tensor, in the layout that ComfyUI's QUANTIZATION.md describes.

``X.weight`` is float8_e4m3fn, ``X.weight_scale`` a float32 scalar, and the metadata entry ``_quantization_metadata``
names the layers X as they are called in the file, prefix included. Value = stored number times scale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

METADATA_KEY = "_quantization_metadata"
FORMAT = "float8_e4m3fn"
FP8 = torch.float8_e4m3fn
FP8_DTYPES = {FP8, torch.float8_e5m2}
_LARGEST = torch.finfo(FP8).max
# The matrices that make up nearly all of a block. Embeddings, heads, clocks and norms are small or sensitive.
_QUANTISED = re.compile(r"^blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.[02]|ffn_t\.[02])\.weight$")
# Beside a quantised weight: its scale (this format's name, and the one before it) and what only ComfyUI's loader uses.
_SCALE = re.compile(r"^(?P<layer>.+)\.(?:weight_scale|scale_weight)$")
_COMPANION = re.compile(r"(?:^|\.)(?:input_scale|scale_input|comfy_quant|scaled_fp8)$")


def is_quantised_in_fp8(name: str) -> bool:
    """Whether an fp8 file stores this native weight in eight bits."""
    return _QUANTISED.match(name) is not None


def scaled_weight(name: str) -> str | None:
    """The weight that a scale belongs to; None when ``name`` is no scale."""
    match = _SCALE.match(name)
    return match and f"{match['layer']}.weight"


def is_companion(name: str) -> bool:
    """Whether a tensor only tells ComfyUI's loader how to treat its layer; the weights can be read without it."""
    return _COMPANION.search(name) is not None


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(weight / scale in e4m3, scale as a float32 scalar); the largest magnitude lands on e4m3's largest, 448."""
    weight = weight.float()
    largest = weight.abs().max() if weight.numel() else weight.new_zeros(())
    scale = torch.where(largest > 0, largest / _LARGEST, torch.ones_like(largest))
    return (weight / scale).clamp(-_LARGEST, _LARGEST).to(FP8), scale


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """Float32 values of a scaled weight."""
    return weight.float() * scale.float().reshape(())


def quantisation_metadata(layers: Iterable[str], others: Mapping[str, object] | None = None) -> str:
    """The metadata entry for ``layers`` (full names in the file), besides ``others`` that are kept from elsewhere.

    ``full_precision_matrix_mult``: without calibrated input scales ComfyUI would round activations to e4m3 at scale 1;
    with the flag it multiplies in the compute dtype, and only storage is eight bits.
    """
    entry = {"format": FORMAT, "full_precision_matrix_mult": True}
    return json.dumps({"format_version": "1.0", "layers": {**(others or {}), **dict.fromkeys(layers, entry)}})


def quantised_layers(metadata: Mapping[str, str]) -> dict[str, object]:
    """``layers`` of a file's quantisation metadata; empty where there is none or it is not readable."""
    try:
        layers = json.loads(metadata.get(METADATA_KEY, "{}")).get("layers", {})
    except (ValueError, AttributeError):
        return {}
    return layers if isinstance(layers, dict) else {}
