"""Adaptive layer-norm modulation as named values (DiT, arXiv 2212.09748, in Wan's tabular form)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Modulation(NamedTuple):
    """Shift, scale and gate of one sub-layer, each ``[B,1,D]``; ``factor`` is 1 + scale where it is known already."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    factor: Tensor | None = None

    def apply(self, x_BND: Tensor, out: Tensor | None = None) -> Tensor:
        """x * (1 + scale) + shift, for the normalised input of the sub-layer; written to ``out`` where given."""
        return torch.addcmul(self.shift, x_BND, 1 + self.scale if self.factor is None else self.factor, out=out)


Modulate = Callable[[nn.LayerNorm, Tensor, Modulation], Tensor]
Pair = tuple[Modulation, Modulation]


def modulate(norm: nn.LayerNorm, x_BND: Tensor, modulation: Modulation) -> Tensor:
    """norm(x) * (1 + scale) + shift: the input of a sub-layer."""
    return modulation.apply(norm(x_BND))


def block_modulations(table: Tensor, time_2B6D: Tensor, factors: bool) -> tuple[Pair, Pair]:
    """Of attention (video, text) and of the feed-forward layers (video, text), from the block's table ``[1,6,D]`` and
    each stream's six time vectors. ``factors``: with 1 + scale, computed at once for all four."""
    parts = table.to(time_2B6D) + time_2B6D
    scales = 1 + parts[:, :, 1::3] if factors else None

    def of(stream: int, layer: int) -> Modulation:
        shift, scale, gate = parts[stream, :, 3 * layer : 3 * layer + 3].unsqueeze(2).unbind(1)
        return Modulation(shift, scale, gate, None if scales is None else scales[stream, :, layer, None])

    return (of(0, 0), of(1, 0)), (of(0, 1), of(1, 1))


class Head(nn.Module):
    """An output head: a norm, shift and scale by the stream's time, a linear layer to ``width`` outputs per token."""

    def __init__(self, norm: nn.Module, dim: int, width: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.norm = norm
        self.head = operations.Linear(dim, width, **factory)
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim, **factory))

    def forward(self, x_BND: Tensor, time_BD: Tensor) -> Tensor:
        shift, scale = (self.modulation.to(time_BD) + time_BD[:, None]).chunk(2, dim=1)
        out: Tensor = self.head(torch.addcmul(shift, self.norm(x_BND), 1 + scale))
        return out
