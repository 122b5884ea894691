"""Editing a clip by its words: FlowEdit (arXiv 2412.08629), which needs no inversion.

The edited clip z begins as the clip x. At every noise share the clip is noised and the edited clip is set off by as
much, so that both see the same noise:

    x_t = (1 - sigma) x + sigma eps,   z_t = z + x_t - x,   dz = (v(z_t, new words) - v(x_t, old words)) dsigma

What both words agree on cancels out, and z stays at x there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..flow.continuous import interpolate
from ..flow.discrete import sent
from ..flow.schedule import shift_sigmas
from ..model import PassOptions
from .denoiser import Denoiser
from .finite import FiniteCheck
from .loop import Callback, State, latent_not_finite
from .settings import EDITING, SAMPLING, Editing, Sampling
from .start import clean_text, generators, require_mask
from .streams import TextStream, VideoStream


class Worded(NamedTuple):
    """One side of an edit: the network with the condition and guidance of its words, and their token ids ``[B,L]`` for
    the text stream, None for an empty stream (plain Wan); ``mask`` ``[B,L]``: true for real tokens; ``window``: how
    many latent frames the network takes at once, 0 for all of them."""

    denoise: Denoiser
    text: Tensor | None = None
    mask: Tensor | None = None
    window: int = 0

    def velocity(self, latent: Tensor, sigmas: tuple[float, ...], text: TextStream, step: int) -> Tensor:
        """Where these words lead from a latent with as much noise as ``step`` has. Windows are faded into each other:
        at every step, so that they stay together."""
        found, shares = torch.zeros_like(latent), latent.new_zeros(latent.shape[2], 1, 1)
        for window in windows_of(latent.shape[2], self.window):
            video = VideoStream(latent[:, :, window], sigmas)
            part = self.denoise(video, text, step, PassOptions(want_logits=False)).velocity
            assert part is not None
            if part.shape == latent.shape:
                return part
            place = torch.arange(1, part.shape[2] + 1, device=latent.device)
            share = torch.minimum(place, place.flip(0)).to(latent.dtype)[:, None, None]
            found[:, :, window] += part * share
            shares[window] += share
        return found / shares


def windows_of(frames: int, window: int) -> list[slice]:
    """Latent frames as a network takes them that has room for ``window``, 0 for all: windows that overlap by at least a
    quarter, spread evenly."""
    if not 0 < window < frames:
        return [slice(0, frames)]
    left = frames - window
    count = math.ceil(left / max(1, window - max(1, window // 4)))
    starts = [round(number * left / count) for number in range(count + 1)]
    return [slice(start, start + window) for start in starts]


@torch.no_grad()
def edit(
    clip: Tensor,
    old: Worded,
    new: Worded,
    settings: Sampling = SAMPLING,
    editing: Editing = EDITING,
    *,
    free: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Change a clip as its words change.

    Args:
        clip: clean latent ``[B,C,F,H,W]``. old, new: what describes it, and what shall.
        settings: steps, shift and seed (row b draws its noise from seed + b); None is the released model's recipe.
            Guidance is the denoisers'.
        editing: strength, the share of the schedule that is run (0 gives the clip), and noise draws a step.
        free: a mask that fits the latent, 0 where the clip is kept as it is and 1 where it may change.
        callback: see ``sampling/loop.py``; when it returns False, what has changed so far is given.

    Returns the latent ``[B,C,F,H,W]``. Raises UniViGUError for inputs that do not fit the model or are not finite.
    """
    settings = settings.resolved()
    if settings.solver != "euler":
        raise UniViGUError(f"solver is {settings.solver}; edits know only euler")
    if free is not None:
        require_mask(clip, free, clip)
    sigmas, noise = (
        edit_sigmas(settings, editing.strength),
        generators([settings.seed + row for row in range(len(clip))]),
    )
    streams = clean_text(old.denoise, old.text, old.mask, clip), clean_text(new.denoise, new.text, new.mask, clip)
    edited, finite, steps = clip, FiniteCheck(), len(sigmas) - 1
    finite.add(clip.isfinite().all(), latent_not_finite("before the first step"))
    for step in range(steps):
        apart = torch.zeros_like(clip)
        for _ in range(editing.draws):
            eps = torch.cat([torch.randn(1, *clip.shape[1:], generator=generator) for generator in noise])
            noised = interpolate(clip, sent(eps, clip.device).to(clip.dtype), torch.tensor(sigmas[step]))
            there = new.velocity(noised + (edited - clip), sigmas, streams[1], step)
            apart += there - old.velocity(noised, sigmas, streams[0], step)
        change = apart * ((sigmas[step + 1] - sigmas[step]) / editing.draws)
        edited = edited + (change if free is None else change * free)
        finite.add(edited.isfinite().all(), latent_not_finite(f"after step {step + 1} of {steps}"))
        state = State(step + 1, steps, edited, edited, streams[1], sigmas[step + 1], 1.0)
        if callback is not None and callback(step + 1, state) is False:
            break
    finite.close()
    return edited


def edit_sigmas(settings: Sampling, strength: float) -> tuple[float, ...]:
    """The noise shares of an edit: all its steps in the last ``strength`` of the schedule; none for a strength of 0."""
    assert settings.steps is not None
    assert settings.shift is not None
    if strength == 0:
        return (0.0,)
    return tuple(shift_sigmas(torch.linspace(strength, 0, settings.steps + 1), settings.shift).tolist())
