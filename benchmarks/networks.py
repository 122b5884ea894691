"""Networks with random weights, in memory and as files, and the passes that captions are made of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Job
from torch import Tensor

from uvg_core.checkpoint.convert import packed
from uvg_core.checkpoint.quant import METADATA_KEY, quantisation_metadata
from uvg_core.checkpoint.read import Stored
from uvg_core.checkpoint.write import Pending, write_safetensors
from uvg_core.config import CheckpointConfig, ModelConfig
from uvg_core.model import PassOptions, UniViGU, VideoCache


def meta_network(config: ModelConfig) -> UniViGU:
    """A network in bfloat16 without values, for use only."""
    return UniViGU(config, device="meta", dtype=torch.bfloat16).eval().requires_grad_(False)


def random_network(config: ModelConfig, device: torch.device) -> UniViGU:
    model = meta_network(config).to_empty(device=device)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.constant_(weight, float(name.endswith("weight")))
        else:
            torch.nn.init.normal_(weight, std=0.02)
    return model


def random_weight(shape: torch.Size) -> Tensor:
    """bfloat16 noise: a short pattern repeated, since drawing 3 billion numbers would take minutes."""
    numel = shape.numel()
    pattern = (torch.randn(min(numel, 2**20)) * 0.02).bfloat16()
    repeated = pattern.repeat(-(-numel // pattern.numel()))
    return repeated[:numel].clone().reshape(shape)  # torch.save would write all that a view is of


def write_random(path: Path, config: ModelConfig, dtype: str) -> None:
    """A native file in ``bf16`` or ``fp8``."""
    pending: dict[str, Pending] = {}
    layers = []
    for name, weight in meta_network(config).state_dict().items():
        stored = Stored.like(weight.shape, torch.bfloat16)
        entries = packed(name, stored, partial(random_weight, weight.shape), dtype)
        pending |= entries
        if len(entries) > 1:  # the matrix and its scale
            layers.append(name.removesuffix(".weight"))
    metadata = {"config": CheckpointConfig(config).to_json(), "format": "pt"}
    if layers:
        metadata[METADATA_KEY] = quantisation_metadata(layers)
    write_safetensors(path, pending, metadata)


def caption_passes(
    model: UniViGU, video: Tensor, text: Tensor, context: Tensor, caches: Mapping[str, VideoCache]
) -> dict[str, Job]:
    """``full``, and for each cache ``fill, NAME`` and, once that ran, ``text, NAME``: the text beside a kept clip."""
    clean = torch.zeros(1, device=video.device)

    @torch.no_grad()
    def run(cache: VideoCache | None = None) -> Any:
        options = PassOptions(want_velocity=False, cache=cache)
        return model(video, text, clean, clean + 500, context, options=options)

    def fill(cache: VideoCache) -> None:
        cache.clear()
        run(cache)

    jobs: dict[str, Job] = {"full": run}
    for name, cache in caches.items():
        jobs |= {f"fill, {name}": partial(fill, cache), f"text, {name}": partial(run, cache)}
    return jobs
