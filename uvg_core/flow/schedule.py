"""Schedules: plain lists of numbers, noise first. Any list of your own can be passed to the samplers instead."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UniViGUError


def shift_sigmas(sigma: Tensor, shift: float) -> Tensor:
    """Spend more steps at high noise: s * sigma / (1 + (s - 1) * sigma) (SD3, arXiv 2403.03206, section 5.3.2)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigmas(sigma: Tensor, shift: float) -> Tensor:
    """What ``shift_sigmas`` was given: sigma / (s - (s - 1) * sigma)."""
    return sigma / (shift - (shift - 1) * sigma)


def video_sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """The release's schedule: ``steps + 1`` sigmas in [0, 1], float32, from 1 to 0, shifted.

    Raises UniViGUError for fewer than one step or a shift that is not positive."""
    if steps < 1:
        raise UniViGUError(f"steps is {steps}; expected at least 1")
    if not 0 < shift < math.inf:
        raise UniViGUError(f"shift is {shift}; expected a number above 0 (1 is no shift, 3 the default)")
    return shift_sigmas(torch.linspace(1, 0, steps + 1), shift)


def text_times(steps: int) -> Tensor:
    """Path times of a text that forms alone: ``steps + 1`` values in [0, 1], float64, from 0 (noise) to 1 (words),
    evenly. In a joint run the text follows the video's clock instead, at 1 - sigma."""
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def checked_sigmas(sigmas: Tensor | Sequence[float]) -> Tensor:
    """A sigma list from outside: at least two values in [0, 1], never rising. Raises UniViGUError otherwise.

    It may begin below 1 (a video that is refined) and end above 0 (a run that is cut short)."""
    return _checked("sigmas", sigmas, -1, "falling from 1 (noise) to 0 (clean), e.g. [1, 0.75, 0.5, 0.25, 0]").float()


def checked_taus(taus: Tensor | Sequence[float]) -> Tensor:
    """A list of path times from outside: from 0 to 1, never falling. Raises UniViGUError otherwise."""
    values = _checked("taus", taus, 1, "rising from 0 (noise) to 1 (words), e.g. [0, 0.25, 0.5, 0.75, 1]")
    if values[0] != 0 or values[-1] != 1:
        raise UniViGUError(
            f"taus run from {float(values[0]):g} to {float(values[-1]):g}; expected 0 (noise) to 1 (words): words that "
            "are only half formed cannot be read"
        )
    return values


def _checked(name: str, given: Tensor | Sequence[float], direction: int, expected: str) -> Tensor:
    values = torch.as_tensor(given, dtype=torch.float64).flatten().cpu()
    ordered = bool((values.diff() * direction >= 0).all())
    if len(values) < 2 or not bool(((values >= 0) & (values <= 1)).all()) or not ordered:
        shown = ", ".join(f"{v:g}" for v in values[:6].tolist())
        raise UniViGUError(
            f"{name} are [{shown}{', ...' if len(values) > 6 else ''}]; expected at least two values {expected}"
        )
    return values
