"""Output heads: a velocity for the video, logits (or a velocity in embedding space) for the text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """A norm, shift and scale by the stream's time, and a linear layer to ``width`` outputs per token."""

    def __init__(self, norm: nn.Module, dim: int, width: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.norm = norm
        self.head = operations.Linear(dim, width, **factory)
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim, **factory))

    def forward(self, x_BND: Tensor, time_BD: Tensor) -> Tensor:
        shift, scale = (self.modulation.to(time_BD) + time_BD[:, None]).chunk(2, dim=1)
        out: Tensor = self.head(torch.addcmul(shift, self.norm(x_BND), 1 + scale))
        return out
