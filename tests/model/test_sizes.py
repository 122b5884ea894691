"""What a pass is said to need is what it needs."""

from __future__ import annotations

import pytest
import torch
from tensors_alive import Alive
from tiny_networks import random_network

from uvg_core.config import ModelConfig
from uvg_core.model import sdpa_attention
from uvg_core.model.sizes import pass_bytes, video_tokens

WIDE = ModelConfig(dim=256, ffn_dim=1536, num_heads=2, num_layers=2, text_dim=20, freq_dim=32, vocab_size=5000)


def test_latents_off_the_grid_are_padded() -> None:
    assert video_tokens((2, 4, 6), WIDE) == 12
    assert video_tokens((2, 3, 5), WIDE) == 12


@pytest.mark.parametrize(("rows", "frames", "text"), [(1, 4, 16), (1, 8, 64), (2, 4, 16), (1, 1, 200), (2, 1, 200)])
def test_the_peak_is_what_was_said(rows: int, frames: int, text: int) -> None:
    model = random_network(WIDE)
    model.attention = sdpa_attention
    given = {
        "video": torch.randn(rows, 16, frames, 16, 16),
        "text": torch.randint(5000, (rows, text)),
        "time_video": torch.full((rows,), 500.0),
        "time_text": torch.full((rows,), 500.0),
        "context": torch.randn(rows, 7, 20),
    }
    with torch.no_grad(), Alive() as alive:
        model(**given)
    said = pass_bytes(WIDE, rows=rows, video=64 * frames, text=text, itemsize=4)
    assert alive.peak <= 1.05 * said
    assert said <= 1.2 * alive.peak
