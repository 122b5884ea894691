"""Tiny networks that the tests share."""

from __future__ import annotations

from pathlib import Path

import torch

from uvg_core import ModelConfig, UniViGU

GOLDEN = Path(__file__).parent / "golden"
TINY = ModelConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=20, freq_dim=32, vocab_size=31)


def random_network(config: ModelConfig = TINY, seed: int = 0) -> UniViGU:
    """A network with every weight random, so that no part is silent."""
    generator = torch.Generator().manual_seed(seed)
    model = UniViGU(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        if "norm" in name and name.endswith("weight"):
            parameter += 1
    return model
