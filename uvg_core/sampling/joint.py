"""Both at once: video and text noisy, on one shared clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..flow.schedule import checked_taus
from ..flow.time import tau_from_sigma
from .denoiser import Denoiser
from .loop import Callback, run
from .settings import SAMPLING, Sampling
from .start import Fixed, Schedule, noisy_text, noisy_video


class JointResult(NamedTuple):
    """``video`` ``[B,C,F,H,W]`` latent, ``text`` ``[B,L]`` token ids."""

    video: Tensor
    text: Tensor


def joint(
    denoise: Denoiser,
    noise: Tensor,
    settings: Sampling = SAMPLING,
    *,
    fixed: Fixed | None = None,
    seeds: Sequence[int] | None = None,
    sigmas: Schedule | None = None,
    callback: Callback | None = None,
) -> JointResult:
    """Generate a clip and its caption at once (text path time = 1 - sigma).

    Arguments as in ``text_to_video`` and ``video_to_text``; ``settings.text_update`` is ``bridge`` (the exact jump
    process), ``euler``, or ``release`` (its redraw rule with the closing pass at time 0). ``seeds``: one a row for the
    text, in the place of ``settings.seed`` + row.
    """
    settings = settings.resolved()
    video = noisy_video(noise, settings, sigmas)
    assert video.sigmas is not None
    taus = checked_taus(tau_from_sigma(torch.tensor(video.sigmas, dtype=torch.float64)))
    text = noisy_text(denoise, settings, taus, noise, fixed=fixed, seeds=seeds, rounded=False)
    moved, written = run(video, text, denoise, solver=settings.solver, callback=callback)
    return JointResult(moved.latent, written.words())
