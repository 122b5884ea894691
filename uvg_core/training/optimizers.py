"""Optimizers and the course of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UniViGUError
from .config import Optimizer


def rate_at(optimizer: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step ``step`` (counted from 0) as a fraction of the peak: a linear climb, then a cosine."""
    if step < optimizer.warmup:
        return (step + 1) / (optimizer.warmup + 1)
    done = (step - optimizer.warmup) / max(1, (optimizer.horizon or steps) - optimizer.warmup)
    return optimizer.final + (1 - optimizer.final) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))


def make_optimizers(weights: Mapping[str, nn.Parameter], wanted: Optimizer) -> list[torch.optim.Optimizer]:
    """One optimizer, or two with Muon. Each group's ``peak_lr`` is its peak learning rate.

    Weight decay holds for matrices only. Muon (momentum, orthogonalised; https://kellerjordan.github.io/posts/muon)
    takes the matrices inside the blocks, AdamW everything else."""
    if not weights:
        raise UniViGUError("nothing learns: the chosen stage and `trains` leave no weight to train")
    muon: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, weight in weights.items():
        if wanted.kind == "muon" and name.startswith("blocks.") and weight.ndim == 2:
            muon.append(weight)
        elif weight.ndim > 1 and not name.endswith("modulation"):  # whose tables are vectors side by side
            matrices.append(weight)
        else:
            vectors.append(weight)
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": decay, "peak_lr": wanted.rate}
        for params, decay in ((matrices, wanted.weight_decay), (vectors, 0.0))
        if params
    ]
    made: list[torch.optim.Optimizer] = []
    if groups and wanted.kind == "adamw8bit":
        require_bitsandbytes()
        import bitsandbytes

        made.append(bitsandbytes.optim.AdamW8bit(groups, lr=wanted.rate, betas=wanted.betas))
    elif groups:
        made.append(torch.optim.AdamW(groups, lr=wanted.rate, betas=wanted.betas, fused=True))
    if muon:
        params = {"params": muon, "peak_lr": wanted.muon_rate}
        made.append(torch.optim.Muon([params], lr=wanted.muon_rate, weight_decay=wanted.weight_decay))
    return made


def require_bitsandbytes() -> None:
    """Raise UniViGUError where bitsandbytes is not installed."""
    try:
        import bitsandbytes  # noqa: F401 (whether it imports is the question)
    except ImportError:
        raise UniViGUError(
            "optimizer.kind is adamw8bit, which needs a GPU and bitsandbytes: pip install it, or use adamw"
        ) from None
