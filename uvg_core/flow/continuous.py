"""The continuous flow (flow matching, arXiv 2210.02747; paper section "Uni-flow").

x at noise share sigma is (1 - sigma) * data + sigma * noise; the velocity is d x / d sigma = noise - data, which is
what the network predicts. The embedding flow of the text uses the same functions.
"""

from __future__ import annotations

from torch import Tensor


def interpolate(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The path's point; ``sigma`` must broadcast against the data."""
    return (1 - sigma) * data + sigma * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """What the network is trained to predict."""
    return noise - data


def clean_estimate(x: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """The data that the velocity points at: x - sigma * velocity."""
    return x - sigma * velocity


def euler_step(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """First order: x + v * (sigma_next - sigma), in the dtype of x."""
    return x + velocity * (sigma_next - sigma)


def heun_correction(x: Tensor, velocity: Tensor, velocity_next: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Second order (Heun, arXiv 2206.00364, algorithm 1): the mean of the velocities at both ends."""
    return x + 0.5 * (velocity + velocity_next) * (sigma_next - sigma)
