"""Tiny networks that the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
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


@pytest.fixture(scope="session")
def network() -> UniViGU:
    return random_network()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """A batch of two for the tiny network."""
    g = torch.Generator().manual_seed(1)
    return {
        "video": torch.randn(2, 16, 2, 4, 6, generator=g),
        "text": torch.randint(31, (2, 5), generator=g),
        "time_video": torch.tensor([300.0, 800.0]),
        "time_text": torch.tensor([0.0, 512.0]),
        "context": torch.randn(2, 7, 20, generator=g),
    }
