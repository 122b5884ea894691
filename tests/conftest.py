"""Fixtures that all tests share."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import random_network

from uvg_core import UniViGU


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
