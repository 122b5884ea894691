"""The three jobs: which streams are noisy, and which is held clean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..flow.schedule import checked_taus, text_times
from ..flow.time import tau_from_sigma
from ..model import VideoCache
from .cache_policy import CachePolicy
from .denoiser import Denoiser
from .loop import Callback, run
from .settings import SAMPLING, Sampling
from .start import Fixed, Schedule, clean_text, noisy_text, noisy_video
from .streams import VideoStream


class JointResult(NamedTuple):
    """``video`` ``[B,C,F,H,W]`` latent, ``text`` ``[B,L]`` token ids."""

    video: Tensor
    text: Tensor


def text_to_video(
    denoise: Denoiser,
    noise: Tensor,
    settings: Sampling = SAMPLING,
    *,
    text: Tensor | None = None,
    text_mask: Tensor | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
    sigmas: Schedule | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Generate a latent from a prompt: video noisy, text held clean.

    Args:
        denoise: the network with the prompt's condition and guidance, e.g. ``GuidedDenoiser``.
        noise: ``[B,C,F,H,W]``, standard normal.
        settings: steps, shift and solver; None is the released model's recipe.
        text: the prompt's token ids ``[B,L]``, or None for an empty text stream (plain Wan). text_mask: ``[B,L]``.
        kept: the clean latent of a clip and a mask, 0 where the clip is kept as it is and 1 where it forms anew, such
            as all frames but the first.
        sigmas: any falling list from 1 to 0 in the place of steps and shift.
        callback: see ``sampling/loop.py``.

    Returns the latent ``[B,C,F,H,W]``. Raises UniViGUError for inputs that do not fit the model or are not finite.
    """
    video = noisy_video(denoise, noise, settings.resolved(), sigmas, kept)
    held = clean_text(denoise, text, text_mask, noise)
    return run(video, held, denoise, solver=settings.solver, callback=callback)[0].latent


def video_to_text(
    denoise: Denoiser,
    video: Tensor,
    settings: Sampling = SAMPLING,
    *,
    fixed: Fixed | None = None,
    seeds: Sequence[int] | None = None,
    cache: VideoCache | None = None,
    taus: Schedule | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Describe a clip: video held clean, text noisy.

    Args:
        denoise: the network, with the condition of a hint or without any.
        video: clean latent ``[B,C,F,H,W]``.
        settings: steps, seed (row b uses seed + b), temperature, top_p, text_update (``bridge`` or ``euler``),
            text_length, video_cache and stop_when_stable; None is the released model's recipe.
        fixed: ``{position: id}``, or ids ``[L]`` / ``[B,L]`` with -1 where the model may choose.
        seeds: one a row, in the place of ``settings.seed`` + row.
        cache: of this clip and condition, for several runs to share where the policy is static.
        taus: a list rising from 0 to 1 in the place of even steps. callback: see ``sampling/loop.py``.

    Returns token ids ``[B,L]``. Raises UniViGUError for settings and inputs that do not fit the model.
    """
    settings = settings.resolved(captions=True)
    policy = CachePolicy.of(settings.video_cache, denoise.config)
    if settings.text_update == "release":
        raise UniViGUError(
            "text update is 'release', which is a rule for joint runs; use 'euler' for what the release does in "
            "video-to-text"
        )
    assert settings.steps is not None
    times = text_times(settings.steps) if taus is None else checked_taus(taus)
    text = noisy_text(denoise, settings, times, video, fixed=fixed, seeds=seeds, rounded=True)
    kept, refresh = policy.cache(denoise, cache), policy.refresh
    return run(VideoStream(video), text, denoise, cache=kept, refresh=refresh, callback=callback)[1].words()


def joint(
    denoise: Denoiser,
    noise: Tensor,
    settings: Sampling = SAMPLING,
    *,
    fixed: Fixed | None = None,
    seeds: Sequence[int] | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
    sigmas: Schedule | None = None,
    callback: Callback | None = None,
) -> JointResult:
    """Generate a clip and its caption at once: both noisy, on one clock (text path time = 1 - sigma).

    Arguments as in ``text_to_video`` and ``video_to_text``; ``settings.text_update`` is ``bridge`` (the exact jump
    process), ``euler``, or ``release`` (its redraw rule with the closing pass at time 0). ``seeds``: one a row for the
    text, in the place of ``settings.seed`` + row.
    """
    settings = settings.resolved()
    video = noisy_video(denoise, noise, settings, sigmas, kept)
    taus = checked_taus(tau_from_sigma(torch.tensor(video.sigmas, dtype=torch.float64)))
    text = noisy_text(denoise, settings, taus, noise, fixed=fixed, seeds=seeds, rounded=False)
    moved, written = run(video, text, denoise, solver=settings.solver, callback=callback)
    return JointResult(moved.latent, written.words())
