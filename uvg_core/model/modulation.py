"""Adaptive layer-norm modulation as named values (DiT, arXiv 2212.09748, in Wan's tabular form)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Modulation:
    """Shift, scale and gate of one sub-layer, each ``[B,1,D]``; ``factor`` is 1 + scale where it is known already."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    factor: Tensor | None = None

    def apply(self, x_BND: Tensor, out: Tensor | None = None) -> Tensor:
        """x * (1 + scale) + shift, for the normalised input of the sub-layer; written over ``out`` where given."""
        factor = 1 + self.scale if self.factor is None else self.factor
        if out is None:
            return torch.addcmul(self.shift, x_BND, factor)
        return torch.addcmul(self.shift, x_BND, factor, out=out)

    def add(self, residual_BND: Tensor, y_BND: Tensor) -> Tensor:
        """residual + gate * y, for the output of the sub-layer."""
        return torch.addcmul(residual_BND, y_BND, self.gate)

    def add_(self, residual_BND: Tensor, y_BND: Tensor) -> Tensor:
        """``add``, to the bit, written over the residual."""
        return residual_BND.addcmul_(y_BND, self.gate)


Modulate = Callable[[nn.LayerNorm, Tensor, Modulation], Tensor]


def modulate(norm: nn.LayerNorm, x_BND: Tensor, modulation: Modulation) -> Tensor:
    """norm(x) * (1 + scale) + shift: the input of a sub-layer."""
    normed: Tensor = norm(x_BND)
    return modulation.apply(normed)


Pair = tuple[Modulation, Modulation]


def block_modulations(table: Tensor, e_2B6D: Tensor, factors: bool) -> tuple[Pair, Pair]:
    """The block's table ``[1,6,D]`` plus each stream's six vectors: (attention, feed-forward) of the video, and of the
    text. ``factors``: with 1 + scale, of all four at once."""
    parts = table.to(e_2B6D) + e_2B6D
    scales = 1 + parts[:, :, 1::3] if factors else None

    def of(stream: int, sub_layer: int) -> Modulation:
        shift, scale, gate = parts[stream, :, 3 * sub_layer : 3 * sub_layer + 3].unsqueeze(2).unbind(1)
        return Modulation(shift, scale, gate, None if scales is None else scales[stream, :, sub_layer, None])

    return (of(0, 0), of(0, 1)), (of(1, 0), of(1, 1))


def head_modulation(table: Tensor, e_BD: Tensor, x_BND: Tensor) -> Tensor:
    """Shift and scale of an output head from its table ``[1,2,D]`` and the stream's time vector."""
    shift, scale = (table.to(e_BD) + e_BD[:, None]).chunk(2, dim=1)
    return torch.addcmul(shift, x_BND, 1 + scale)
