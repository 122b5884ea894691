"""Adaptive layer-norm modulation as named values (DiT, arXiv 2212.09748, in Wan's tabular form)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Modulation(NamedTuple):
    """Shift, scale and gate of one sub-layer, each ``[B,1,D]``."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def apply(self, x_BND: Tensor) -> Tensor:
        """x * (1 + scale) + shift, for the normalised input of the sub-layer."""
        return torch.addcmul(self.shift, x_BND, 1 + self.scale)

    def add(self, residual_BND: Tensor, y_BND: Tensor) -> Tensor:
        """residual + gate * y, for the output of the sub-layer."""
        return torch.addcmul(residual_BND, y_BND, self.gate)


Modulate = Callable[[nn.LayerNorm, Tensor, Modulation], Tensor]


def modulate(norm: nn.LayerNorm, x_BND: Tensor, modulation: Modulation) -> Tensor:
    """norm(x) * (1 + scale) + shift: the input of a sub-layer."""
    normed: Tensor = norm(x_BND)
    return modulation.apply(normed)


def block_modulation(table: Tensor, e_B6D: Tensor) -> tuple[Modulation, Modulation]:
    """The block's table ``[1,6,D]`` plus a stream's six vectors: (attention, feed-forward)."""
    parts = (table.to(e_B6D) + e_B6D).chunk(6, dim=1)
    return Modulation(*parts[:3]), Modulation(*parts[3:])


def head_modulation(table: Tensor, e_BD: Tensor, x_BND: Tensor) -> Tensor:
    """Shift and scale of an output head from its table ``[1,2,D]`` and the stream's time vector."""
    shift, scale = (table.to(e_BD) + e_BD[:, None]).chunk(2, dim=1)
    return torch.addcmul(shift, x_BND, 1 + scale)
