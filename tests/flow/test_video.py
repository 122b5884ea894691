"""Known velocity fields integrate to known ends."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from uvg_core.flow.continuous import clean_estimate, euler_step, heun_correction, interpolate, velocity_target
from uvg_core.flow.schedule import video_sigmas


def integrate(field, x: torch.Tensor, steps: int, heun: bool) -> torch.Tensor:
    sigmas = video_sigmas(steps, 3.0).double().tolist()
    for here, there in pairwise(sigmas):
        v = field(x, here)
        ahead = euler_step(x, v, here, there)
        x = heun_correction(x, v, field(ahead, there), here, there) if heun else ahead
    return x


def test_straight_paths_are_exact_in_one_step() -> None:
    g = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 3, 16, generator=g, dtype=torch.float64)
    velocity = velocity_target(data, noise)
    for steps in (1, 5):
        torch.testing.assert_close(integrate(lambda x, s: velocity, noise, steps, False), data)
    x = interpolate(data, noise, torch.tensor(0.3))
    torch.testing.assert_close(clean_estimate(x, velocity, 0.3), data)


def test_heun_is_exact_where_the_velocity_is_linear_in_time() -> None:
    start = torch.tensor([2.0], dtype=torch.float64)
    # dx/ds = 3 s: x(0) = x(1) - 3/2.
    torch.testing.assert_close(integrate(lambda x, s: torch.full_like(x, 3 * s), start, 4, True), start - 1.5)


def test_orders_of_convergence() -> None:
    """dx/ds = x: x(0) = x(1) / e. Halving the step halves Euler's error and quarters Heun's."""
    start = torch.ones(1, dtype=torch.float64)

    def error(steps: int, heun: bool) -> float:
        return abs(integrate(lambda x, s: x, start, steps, heun).item() - math.exp(-1))

    assert 1.8 < error(32, False) / error(64, False) < 2.2
    assert 3.6 < error(32, True) / error(64, True) < 4.4
