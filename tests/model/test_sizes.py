"""What a pass is said to need is what it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensors_alive import Alive
from tiny_networks import random_network

from uvg_core.config import ModelConfig
from uvg_core.model import PassOptions, sdpa_attention
from uvg_core.model.memory import pass_bytes, video_tokens

WIDE = ModelConfig(dim=256, ffn_dim=1536, num_heads=2, num_layers=2, text_dim=20, freq_dim=32, vocab_size=5000)


def test_latents_off_the_grid_are_padded() -> None:
    assert video_tokens((2, 4, 6), WIDE) == 12
    assert video_tokens((2, 3, 5), WIDE) == 12


JOBS: dict[str, tuple[bool, bool | slice]] = {
    "joint": (True, True),
    "joint, the last row of guidance": (True, slice(-1, None)),
    "text to video": (True, False),
    "video to text": (False, True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("job", list(JOBS))
@pytest.mark.parametrize(("rows", "frames", "text"), [(1, 4, 16), (1, 8, 64), (2, 4, 16), (1, 1, 200), (2, 1, 200)])
def test_the_peak_is_what_was_said(
    rows: int, frames: int, text: int, job: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rms_norm(x: torch.Tensor, shape: Any, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return torch.native_layer_norm(x, shape, weight, None, eps)[0]

    monkeypatch.setattr(torch.nn.functional, "rms_norm", rms_norm)  # one kernel as on cards; a CPU goes by float32
    model = random_network(WIDE).to(dtype)
    model.attention = sdpa_attention
    velocity, logits = JOBS[job]
    given = {
        "video": torch.randn(rows, 16, frames, 16, 16, dtype=dtype),
        "text": torch.randint(5000, (rows, text)),
        "time_video": torch.full((rows,), 500.0),
        "time_text": torch.full((rows,), 500.0),
        "context": torch.randn(rows, 7, 20, dtype=dtype),
    }
    with torch.no_grad(), Alive() as alive:
        model(**given, options=PassOptions(want_velocity=velocity, want_logits=logits))
    heard = len(range(rows)[logits]) if isinstance(logits, slice) else rows * logits
    counts = {"rows": rows, "video": 64 * frames, "text": text, "logits": heard}
    said = pass_bytes(WIDE, **counts, itemsize=dtype.itemsize, velocity=velocity)
    assert alive.peak <= 1.2 * said
    assert said <= 1.2 * alive.peak
