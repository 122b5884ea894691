"""Output heads: a velocity for the video, logits (or a velocity in embedding space) for the text."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .modulation import head_modulation

TEXT_NORM_EPS = 1e-5


class VideoHead(nn.Module):
    """LayerNorm without affine, shift and scale, linear to one patch of velocity per token."""

    def __init__(self, config: ModelConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.norm = operations.LayerNorm(config.dim, config.eps, elementwise_affine=False, **factory)
        self.head = operations.Linear(config.dim, config.out_dim * math.prod(config.patch_size), **factory)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim, **factory))

    def forward(self, x_BVD: Tensor, e_BD: Tensor) -> Tensor:
        return self.head(head_modulation(self.modulation, e_BD, self.norm(x_BVD)))


class TextHead(nn.Module):
    """LayerNorm with weight and without bias, shift and scale, linear to the vocabulary (or back to D)."""

    def __init__(self, config: ModelConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.norm = operations.LayerNorm(config.dim, TEXT_NORM_EPS, elementwise_affine=True, bias=False, **factory)
        self.head = operations.Linear(config.dim, config.text_out_dim, **factory)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim, **factory))

    def forward(self, x_BTD: Tensor, e_BD: Tensor) -> Tensor:
        return self.head(head_modulation(self.modulation, e_BD, self.norm(x_BTD)))
