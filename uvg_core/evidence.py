"""Which latent space, text states and clock a network was trained with, told by its own losses on a few real clips.

Every combination meets the same clips, noise and times (common random numbers), so that differences are paired. An
error is told as a share of what a predictor makes that knows nothing but the clips' mean and variance per channel, at
that noise and in that space: 1 is no knowledge. Only so can two spaces of different spread be compared.

Legend: K clips, N noisy views of a clip, C channels, F H W latent, S rows and E width of the prompt condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .codec.latents import to_latent_space
from .config import LATENT_SPACES, TEXT_STATES
from .flow.time import model_time_from_sigma
from .flow.video import interpolate, velocity_target

# Noise shares of the views.
SIGMAS = (0.3, 0.5, 0.7, 0.85, 0.95)
KNOWS = 0.9  # a trained network's error, as a share of the statistics' alone, is below this
# What a difference between two choices must be at least, in logarithms of the error, and in its own standard errors.
LEAST = {"latent space": 0.03, "text states": 0.01, "time rounding": 0.003}
LEAST_T = 4.0
# The null condition of a file is the encoder's "" where it is this near, relative to its size.
SAME_STATES = 0.1

Predict = Callable[..., Any]


@dataclass(frozen=True)
class Sample:
    """A clip as the VAE sees it, ``raw`` ``[1,C,F,H,W]``, and its caption's token ids."""

    name: str
    raw: Tensor
    ids: Sequence[int]


@dataclass(frozen=True)
class Choice:
    """One question and its answer.

    ``best`` is what the losses favour, by ``gain`` (the other one's error over its own, minus 1); ``t`` is the mean
    difference of a clip in standard errors, ``agree`` of ``clips`` clips favour it too. ``sure`` says whether that
    suffices; ``why`` says it in words.
    """

    question: str
    best: str
    other: str
    gain: float
    t: float
    agree: int
    clips: int
    sure: bool
    why: str

    def __str__(self) -> str:
        if self.sure:
            return f"{self.question}: {self.best} ({self.why})"
        return f"{self.question}: cannot tell ({self.why})"


def errors(
    predict: Predict,
    samples: Sequence[Sample],
    states: Mapping[str, Tensor],
    *,
    spaces: Sequence[str] = LATENT_SPACES,
    content: Callable[[Tensor], Tensor] = lambda ids: ids,
    sigmas: Sequence[float] = SIGMAS,
    seed: int = 0,
    watch: Callable[[int, int], object] | None = None,
) -> dict[tuple[str, str], Tensor]:
    """Relative errors ``[K,N]`` of the velocity, by (latent space, text states).

    ``predict``: the network's call. ``states``: prompt conditions ``[K,S,E]`` by text states. ``content`` makes of
    token ids ``[1,L]`` what the text stream takes. ``watch``: ``(done, total)`` after every pass.
    """
    found = {(space, kind): torch.zeros(len(samples), len(sigmas)) for space in spaces for kind in states}
    known = {space: _spread([to_latent_space(one.raw, space) for one in samples]) for space in spaces}
    done, total = 0, len(found) * len(samples) * len(sigmas)
    for k, one in enumerate(samples):
        text = content(torch.tensor([list(one.ids)], device=one.raw.device))
        clock_text = torch.zeros(1, device=one.raw.device)
        for n, sigma in enumerate(sigmas):
            generator = torch.Generator().manual_seed(seed * 100_003 + k * 101 + n)
            noise = torch.randn(one.raw.shape, generator=generator).to(one.raw)
            share = torch.full((1,), sigma, device=one.raw.device)
            for space in spaces:
                data = to_latent_space(one.raw, space)
                video = interpolate(data, noise, share.view(1, 1, 1, 1, 1))
                target = velocity_target(data, noise)
                least = known[space] / ((1 - sigma) ** 2 * known[space] + sigma**2)
                for kind, context in states.items():
                    velocity = predict(
                        video,
                        text,
                        model_time_from_sigma(share),
                        clock_text,
                        context[k : k + 1],
                        want_logits=False,
                    ).velocity
                    error = (velocity.float() - target).square().mean()
                    found[space, kind][k, n] = float(error / least.mean())
                    done += 1
                    if watch is not None:
                        watch(done, total)
    return found


def _spread(latents: Sequence[Tensor]) -> Tensor:
    """Variance ``[C]`` over all clips."""
    rows = torch.cat([latent[0].float().flatten(1) for latent in latents], 1)
    return rows.var(1)
