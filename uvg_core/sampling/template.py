"""Filling in a template with blanks, also where a blank takes several tokens: beside a clip, or with one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..media.tokenizer import Tokenizer, blanks, require_blank
from .cache_policy import CachePolicy
from .denoiser import Denoiser
from .jobs import JointResult, joint, video_to_text
from .loop import Callback, State
from .rank import caption_likelihood
from .settings import FEW_DRAWS, SAMPLING, Ranking, Sampling

MAX_COMBINATIONS = 16
MAX_JOINT = 4  # each of which is a clip of its own


def blank_widths(count: int, open_end: bool, longest: int) -> list[tuple[int, ...]]:
    """Token counts to try for each blank, short ones first, at most ``MAX_COMBINATIONS``; the blank at the end is open
    and has none."""
    inner = count - open_end
    found: list[tuple[int, ...]] = []
    for extra in range(inner * (longest - 1) + 1):
        for widths in _shared_out(extra, inner, longest - 1):
            found.append((*widths, 0) if open_end else widths)
            if len(found) == MAX_COMBINATIONS:
                return found
    return found


def _shared_out(extra: int, blanks: int, most: int) -> Iterator[tuple[int, ...]]:
    """Ways to give ``extra`` tokens to blanks of one token each, none of them more than ``most``."""
    if blanks == 0:
        if extra == 0:
            yield ()
        return
    for here in range(min(extra, most) + 1):
        if extra - here <= most * (blanks - 1):
            for rest in _shared_out(extra - here, blanks - 1, most):
                yield (1 + here, *rest)


def fill_template(
    denoise: Denoiser,
    tokenizer: Tokenizer,
    template: str,
    video: Tensor,
    settings: Sampling = SAMPLING,
    *,
    longest_blank: int = 2,
    ranking: Ranking = FEW_DRAWS,
    callback: Callback | None = None,
) -> Tensor:
    """Fill the blanks (``___``) of a template for one clip; returns ids ``[1,L]``.

    A blank is one to ``longest_blank`` tokens; the last one, at the end, is as long as the text stream. Up to
    ``MAX_COMBINATIONS`` widths, short ones first, are filled in by ``video_to_text`` with ``settings`` and ranked by
    ``caption_likelihood`` with the samples and batch of ``ranking``; where ``video_cache`` is static all of them share
    what is kept of the clip. When the callback returns False, what there is by then is ranked no further: the first
    filled text is returned.
    Raises UniViGUError when there is no blank or the template does not fit the length.
    """
    settings = settings.resolved(captions=True)
    policy = CachePolicy.of(settings.video_cache, denoise.config)
    shared = policy.cache(denoise) if policy.once else None
    stopped = False

    def watch(step: int, state: State) -> object:
        nonlocal stopped
        answer = callback(step, state) if callback is not None else None
        stopped = stopped or answer is False
        return answer

    candidates: list[Tensor] = []
    for fixed in _pinned(tokenizer, template, longest_blank, settings.text_length or 0):
        candidates.append(video_to_text(denoise, video, settings, fixed=fixed, cache=shared, callback=watch)[0])
        if stopped:
            break
    if stopped or len(candidates) == 1:
        return candidates[0][None]
    ranking = replace(ranking, seed=settings.seed, video_cache="off" if shared is None else "static")
    scores = caption_likelihood(denoise, video, torch.stack(candidates), ranking, cache=shared)
    return candidates[int(scores.argmax())][None]


def joint_template(
    denoise: Denoiser,
    tokenizer: Tokenizer,
    template: str,
    noise: Tensor,
    settings: Sampling = SAMPLING,
    *,
    kept: tuple[Tensor, Tensor] | None = None,
    longest_blank: int = 2,
    callback: Callback | None = None,
) -> tuple[JointResult, int]:
    """``joint`` with the words of a template, and its blanks filled in; noise ``[1,C,F,H,W]``.

    Up to ``MAX_JOINT`` widths of the blanks, short ones first, are tried, each in a run of its own from the same noise.
    Returns the one whose text is the likeliest beside its own clip, and which of the runs it was, from 0. When the
    callback returns False, no other run is begun, and the last one is returned.
    Raises UniViGUError when there is no blank or the template does not fit the length, and as ``joint``.
    """
    settings, found, stopped = settings.resolved(), list[JointResult](), False

    def watch(step: int, state: State) -> object:
        nonlocal stopped
        answer = callback(step, state) if callback is not None else None
        stopped = stopped or answer is False
        return answer

    widths = _pinned(tokenizer, template, longest_blank, settings.text_length or 0)[:MAX_JOINT]
    for fixed in widths:
        found.append(joint(denoise, noise, settings, fixed=fixed, kept=kept, callback=watch))
        if stopped or len(widths) == 1:
            return found[-1], len(found) - 1
    ranking = replace(FEW_DRAWS, seed=settings.seed)
    scores = [float(caption_likelihood(denoise, one.video, one.text, ranking)) for one in found]
    best = max(range(len(found)), key=lambda run: scores[run])
    return found[best], best


def _pinned(tokenizer: Tokenizer, template: str, longest_blank: int, length: int) -> list[Tensor]:
    """Pinned ids ``[L]`` of the template for every choice of widths that fits, at least one."""
    require_blank(template)
    count, open_end = blanks(template)
    found: list[Tensor] = []
    problem: UniViGUError | None = None
    for widths in blank_widths(count, open_end, longest_blank):
        try:
            found.append(tokenizer.template(template, widths, length))
        except UniViGUError as error:  # this width does not fit; a shorter one may
            problem = error
    if problem is not None and not found:
        raise problem
    return found
