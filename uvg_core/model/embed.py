"""Inputs of the network: time features, and where the streams' tokens come from."""

from __future__ import annotations

import torch
from torch import Tensor

PERIOD = 10000.0


def time_features(time_B: Tensor, dim: int) -> Tensor:
    """Sinusoidal features ``[B,dim]`` of times 0..1000, float32, cosines before sines (as Wan2.1)."""
    half = dim // 2
    time_B = time_B.float()
    frequency = torch.pow(PERIOD, -torch.arange(half, device=time_B.device).to(time_B).div(half))
    angle = torch.outer(time_B, frequency)
    return torch.cat([angle.cos(), angle.sin()], 1)
