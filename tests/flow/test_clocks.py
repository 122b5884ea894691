"""Clocks and schedules."""

from __future__ import annotations

import pytest
import torch

from uvg_core import UniViGUError
from uvg_core.flow import time as clock
from uvg_core.flow.schedule import checked_sigmas, shift_sigmas, text_times, video_sigmas


@pytest.mark.parametrize("value", [0.0, 0.125, 0.5, 1.0])
def test_round_trips(value: float) -> None:
    assert clock.tau_from_sigma(clock.sigma_from_tau(value)) == value
    assert clock.sigma_from_model_time(clock.model_time_from_sigma(value)) == value


def test_ends_agree() -> None:
    assert clock.model_time_from_sigma(clock.sigma_from_tau(1.0)) == 0  # data is clean
    assert clock.model_time_from_sigma(clock.sigma_from_tau(0.0)) == 1000


def test_text_clock_is_rounded_on_request() -> None:
    assert clock.text_model_time_from_tau(1 / 3) == 667
    assert clock.text_model_time_from_tau(1 / 3, rounded=False) == pytest.approx(666.6667, abs=1e-3)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 8.0])
def test_schedule_falls_from_noise_to_data(shift: float) -> None:
    sigmas = video_sigmas(7, shift)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())
    # Undoing the shift is shifting by its inverse.
    torch.testing.assert_close(shift_sigmas(sigmas, 1 / shift), torch.linspace(1, 0, 8))


def test_text_times_rise_evenly() -> None:
    assert text_times(4).tolist() == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("bad", [[1.0], [0.2, 0.8], [1.5, 0.0], [1.0, float("nan"), 0.0]])
def test_sigma_lists_that_are_none(bad: list[float]) -> None:
    with pytest.raises(UniViGUError, match="falling from 1"):
        checked_sigmas(bad)


def test_schedule_arguments() -> None:
    with pytest.raises(UniViGUError, match="steps is 0"):
        video_sigmas(0)
    with pytest.raises(UniViGUError, match="shift is -1"):
        video_sigmas(3, -1)
