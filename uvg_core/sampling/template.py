"""Filling in a template with blanks, also where a blank takes several tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..media.tokenizer import Tokenizer, blanks
from ..model import UniViGU
from .jobs import video_to_text
from .loop import State
from .rank import caption_likelihood
from .video_cache import CachePolicy

MAX_COMBINATIONS = 16


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
    model: UniViGU,
    tokenizer: Tokenizer,
    template: str,
    *,
    video: Tensor,
    length: int,
    longest_blank: int = 2,
    samples: int = 8,
    seed: int = 0,
    batch: int | None = None,
    video_cache: str = "auto",
    callback: Callable[..., object] | None = None,
    **options: Any,
) -> Tensor:
    """Fill the blanks (``___``) of a template for one clip; returns ids ``[1,L]``.

    A blank is one to ``longest_blank`` tokens; the last one, at the end, is as long as the text stream. Up to
    ``MAX_COMBINATIONS`` widths, short ones first, are filled in by ``video_to_text`` (``options`` go there) and ranked
    by ``caption_likelihood``, ``batch`` at a time; where ``video_cache`` is static all of them share what is kept of
    the clip. When the callback returns False, what there is by then is ranked no further: the first filled text is
    returned.
    Raises UniViGUError when there is no blank or the template does not fit the length.
    """
    count, open_end = blanks(template)
    if not count:
        raise UniViGUError(
            f"the template {template!r} has no blank; mark each with underscores, e.g. 'a red ___ moves ___'"
        )
    stopped = False

    def watch(step: int, state: State) -> object:
        nonlocal stopped
        answer = callback(step, state) if callback is not None else None
        stopped = stopped or answer is False
        return answer

    policy = CachePolicy.of(video_cache, model.config)
    shared = policy.cache(model) if policy.kept and not policy.refresh else None
    kept: dict[str, Any] = {"video_cache": video_cache, "cache": shared}
    candidates: list[Tensor] = []
    problem: UniViGUError | None = None
    for widths in blank_widths(count, open_end, longest_blank):
        try:
            fixed = tokenizer.template(template, widths, length)
        except UniViGUError as error:  # this width does not fit; a shorter one may
            problem = error
            continue
        candidates.append(
            video_to_text(model, video=video, length=length, fixed=fixed, seed=seed, callback=watch, **kept, **options)[
                0
            ]
        )
        if stopped:
            return candidates[0][None]
    if not candidates:
        assert problem is not None
        raise problem
    if len(candidates) == 1:
        return candidates[0][None]
    scores = caption_likelihood(
        model,
        video=video,
        texts=torch.stack(candidates),
        samples=samples,
        seed=seed,
        context=options.get("context"),
        pad_token=tokenizer.run.pad_token,
        batch=batch,
        video_cache="static" if shared is not None else "off",
        cache=shared,
    )
    return candidates[int(scores.argmax())][None]
