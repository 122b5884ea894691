"""THE clock. Nothing else in the project converts times.

Three ways of telling the time of a stream; each conversion is one function here.

* ``sigma``: share of noise, 1 (pure noise) -> 0 (clean). Wan, ComfyUI and our samplers count this way. The network
  predicts the velocity d x / d sigma = noise - data.
* ``tau``: path time of the paper and of flow matching, 0 (noise) -> 1 (data); tau = 1 - sigma. The paper's velocity
  d x / d tau = data - noise is minus the network's.
* ``model time``: what the network is told, 1000 * sigma; 0 is clean. A stream that is held clean has model time 0.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

MODEL_TIME_NOISE = 1000.0

T = TypeVar("T", float, Tensor)


def sigma_from_tau(tau: T) -> T:
    """Share of noise at path time tau in [0, 1]."""
    return 1 - tau


def tau_from_sigma(sigma: T) -> T:
    """Path time at noise share sigma in [0, 1]."""
    return 1 - sigma


def model_time_from_sigma(sigma: T) -> T:
    """The network's time, 0..1000, at noise share sigma in [0, 1]."""
    return MODEL_TIME_NOISE * sigma


def sigma_from_model_time(time: T) -> T:
    """Noise share at the network's time in 0..1000."""
    return time / MODEL_TIME_NOISE


def text_model_time_from_tau(tau: float, rounded: bool = True) -> float:
    """The text stream's model time at path time tau: 1000 (1 - tau), rounded as in the release's training.

    The release does not round in joint runs, where text shares the video's clock.
    """
    time = MODEL_TIME_NOISE * sigma_from_tau(tau)
    return float(round(time)) if rounded else time
