"""Filling in a template with blanks, also where a blank takes several tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..codec.text import Tokenizer, blanks
from ..errors import UniViGUError
from ..model import UniViGU
from .likelihood import caption_likelihood
from .modes import video_to_text

MAX_COMBINATIONS = 16


def blank_widths(count: int, open_end: bool, longest: int) -> list[tuple[int, ...]]:
    """Token counts to try for each blank, short ones first; the blank at the end is open and has none."""
    inner = count - open_end
    options = sorted(product(range(1, longest + 1), repeat=inner), key=sum)[:MAX_COMBINATIONS]
    return [(*widths, 0) if open_end else widths for widths in options]


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
    callback: Callable[..., object] | None = None,
    **options: Any,
) -> Tensor:
    """Fill the blanks (``___``) of a template for one clip; returns ids ``[1,L]``.

    A blank is one to ``longest_blank`` tokens; the last one, at the end, is as long as the text stream. Every width is
    filled in by ``video_to_text`` (``options`` go there) and the widths are ranked by ``caption_likelihood``.
    Raises UniViGUError when there is no blank or the template does not fit the length.
    """
    count, open_end = blanks(template)
    if not count:
        raise UniViGUError(
            f"the template {template!r} has no blank; mark each with underscores, e.g. 'a red ___ moves ___'"
        )
    candidates: list[Tensor] = []
    problem: UniViGUError | None = None
    for widths in blank_widths(count, open_end, longest_blank):
        try:
            fixed = tokenizer.template(template, widths, length)
        except UniViGUError as error:  # this width does not fit; a shorter one may
            problem = error
            continue
        candidates.append(
            video_to_text(model, video=video, length=length, fixed=fixed, seed=seed, callback=callback, **options)[0]
        )
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
    )
    return candidates[int(scores.argmax())][None]
