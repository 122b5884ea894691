"""Schedules: plain lists of numbers, noise first. Any list of your own can be passed to the samplers instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UniViGUError


def shift_sigmas(sigma: Tensor, shift: float) -> Tensor:
    """Spend more steps at high noise: s * sigma / (1 + (s - 1) * sigma) (SD3, arXiv 2403.03206, section 5.3.2)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def video_sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """The release's schedule: ``steps + 1`` sigmas in [0, 1], float32, from 1 to 0, shifted.

    Raises UniViGUError for fewer than one step or a shift that is not positive."""
    if steps < 1:
        raise UniViGUError(f"steps is {steps}; expected at least 1")
    if not shift > 0:
        raise UniViGUError(f"shift is {shift}; expected a number above 0 (1 is no shift, 3 the default)")
    return shift_sigmas(torch.linspace(1, 0, steps + 1), shift)


def text_times(steps: int) -> Tensor:
    """Path times of the text, ``steps + 1`` values in [0, 1], float64, from 0 (noise) to 1 (words), evenly."""
    if steps < 1:
        raise UniViGUError(f"steps is {steps}; expected at least 1")
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def checked_sigmas(sigmas: Tensor | Sequence[float]) -> Tensor:
    """A sigma list from outside: at least two values in [0, 1], never rising. Raises UniViGUError otherwise."""
    values = torch.as_tensor(sigmas, dtype=torch.float32).flatten().cpu()
    falling = bool((values.diff() <= 0).all())
    if len(values) < 2 or not bool(((values >= 0) & (values <= 1)).all()) or not falling:
        shown = ", ".join(f"{v:g}" for v in values[:6].tolist())
        raise UniViGUError(
            f"sigmas are [{shown}{', ...' if len(values) > 6 else ''}]; expected at least two values "
            "falling from 1 (noise) to 0 (clean), e.g. [1, 0.75, 0.5, 0.25, 0]"
        )
    return values
