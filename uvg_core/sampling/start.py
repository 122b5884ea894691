"""The streams that a run begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UniViGUError
from ..flow.discrete import MixturePath, sent, source_tokens
from ..flow.embedding import normalised_rows
from ..flow.schedule import checked_sigmas, video_sigmas
from .denoiser import Denoiser
from .settings import SAMPLING, Sampling
from .streams import Kept, TextStream, VideoStream
from .text_updates import EmbeddingEuler, JumpProcess, TextUpdate

# Added to seeds: a caller who draws the video's noise from the same seed must not get the same numbers for the text.
TEXT_SEEDS = 0x7E87_57EA_0000
Fixed = Tensor | Mapping[int, int]
Schedule = Tensor | Sequence[float]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per row for the text. The CPU's numbers are the same whatever device the network runs on."""
    return [torch.Generator().manual_seed((seed + TEXT_SEEDS) % 2**63) for seed in seeds]


def require_ids(config: ModelConfig, tokens: Tensor) -> None:
    """Raise UniViGUError for ids that are not in the vocabulary. Waits for a card on which they lie."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < config.token_rows:
        raise UniViGUError(
            f"token ids run from {int(tokens.min())} to {int(tokens.max())}; this checkpoint has "
            f"{config.token_rows} rows: the tokenizer belongs to another model"
        )


def as_text_content(network: Any, tokens: Tensor) -> Tensor:
    """What a network (or ``Denoiser``) takes for clean tokens ``[B,L]`` of its vocabulary (``require_ids``): the ids,
    or rows of E with the embedding flow."""
    return normalised_rows(network.embed(tokens)) if network.config.text_flow == "embedding" else tokens


def noisy_video(
    denoise: Denoiser,
    noise: Tensor,
    settings: Sampling,
    sigmas: Schedule | None,
    kept: tuple[Tensor, Tensor] | None = None,
) -> VideoStream:
    """The video stream at pure noise ``[B,C,F,H,W]``, with the release's schedule or ``sigmas``.

    ``kept``: a clean latent, and a mask that is 0 where it is kept and 1 where it forms anew (see ``Kept``). Raises
    UniViGUError where these do not fit the noise."""
    assert settings.steps is not None
    assert settings.shift is not None
    schedule = video_sigmas(settings.steps, settings.shift) if sigmas is None else checked_sigmas(sigmas)
    times = tuple(schedule.tolist())
    if kept is None:
        return VideoStream(noise, times)
    clean, free = kept
    require_mask(clean, free, noise)
    if bool((free == 1).all()):
        return VideoStream(noise, times)
    held = Kept(clean, free, None if denoise.config.held_parts == "clean" else noise)
    return VideoStream(held.put_into(noise, times[0]), times, held)


def require_mask(clean: Tensor, free: Tensor, like: Tensor) -> None:
    """Raise UniViGUError for a clip or a mask of what may change that do not fit the run."""
    sides = zip(reversed(free.shape), reversed(like.shape), strict=False)
    if clean.shape != like.shape or free.ndim > like.ndim or not all(side in (1, whole) for side, whole in sides):
        raise UniViGUError(
            f"the clip to keep is {list(clean.shape)} and its mask {list(free.shape)}; expected the shape of the "
            f"noise, {list(like.shape)}"
        )
    if not bool(((free >= 0) & (free <= 1)).all()):
        raise UniViGUError("the mask of what is kept holds numbers below 0 or above 1; expected 0 (kept) to 1 (formed)")


def clean_text(denoise: Denoiser, tokens: Tensor | None, mask: Tensor | None, like: Tensor) -> TextStream:
    """The text stream held clean; None is an empty stream, which makes the network plain Wan."""
    rows = like.shape[0]
    if tokens is None:
        tokens = torch.zeros(1, 0, dtype=torch.long)
    require_ids(denoise.config, tokens)  # before they go to a card
    content = as_text_content(denoise, sent(tokens, like.device).expand(rows, -1))
    # A mask that hides nothing only keeps attention from its fastest kernels.
    mask = None if mask is None or bool(mask.all()) else sent(mask, like.device).expand(rows, -1)
    return TextStream(content, mask=mask)


def noisy_text(
    denoise: Denoiser,
    settings: Sampling,
    taus: Tensor,
    like: Tensor,
    *,
    fixed: Fixed | None = None,
    seeds: Sequence[int] | None = None,
    rounded: bool,
) -> TextStream:
    """The text stream at pure noise, with the flow's own kind of step.

    ``like`` ``[B,...]`` gives rows and device. Row b draws from ``settings.seed`` + b, or from ``seeds``. ``fixed``:
    ``{position: id}``, or ids ``[L]`` / ``[B,L]`` with -1 where the model may choose. ``rounded``: see ``TextStream``.
    Raises UniViGUError for settings that the flow does not have, and what does not fit the batch or the vocabulary."""
    config, rows, length = denoise.config, like.shape[0], settings.text_length
    assert length is not None
    draws = generators([settings.seed + row for row in range(rows)] if seeds is None else seeds)
    if len(draws) != rows:
        raise UniViGUError(f"found {len(draws)} seeds for a batch of {rows}; expected one number, or one per row")
    pinned = anchor = None
    if fixed is not None:
        ids = _fixed_ids(fixed, rows, length)
        require_ids(config, ids.clamp(min=0))
        pinned = sent(ids >= 0, like.device)
        anchor = as_text_content(denoise, sent(ids.clamp(min=0), like.device))
    noise = torch.cat([text_noise(config, length, generator) for generator in draws])
    update = _update(denoise, settings, draws, pinned)
    content = sent(noise, like.device)
    return TextStream(content, tuple(taus.tolist()), update=update, pinned=pinned, anchor=anchor, rounded=rounded)


def text_noise(config: ModelConfig, length: int, generator: torch.Generator) -> Tensor:
    """Pure noise of the text flow for one row: source tokens ``[1,L]`` or vectors ``[1,L,D]``."""
    if config.text_flow == "embedding":
        return torch.randn(1, length, config.dim, generator=generator)
    vocabulary, mask = config.vocab_size, mask_token(config)
    return source_tokens((1, length), vocab_size=vocabulary, mask_token=mask, generator=generator)


def mask_token(config: ModelConfig) -> int | None:
    """The id that noise is made of and no word is, None where there is none."""
    return config.mask_token if config.source == "mask" else None


def _update(denoise: Denoiser, settings: Sampling, draws: list[torch.Generator], pinned: Tensor | None) -> TextUpdate:
    """The rule of the checkpoint's flow. Raises UniViGUError for settings that the flow does not have."""
    config, usual = denoise.config, SAMPLING.resolved()
    if config.text_flow == "embedding":
        names = ("temperature", "top_p", "text_update", "stop_when_stable", "stop_when_sure")
        if any(getattr(settings, name) != getattr(usual, name) for name in names):
            raise UniViGUError(
                "temperature, top_p, stop_when_stable and text_update belong to the discrete text flow, as does "
                "stop_when_sure; this checkpoint has the embedding flow: leave them at their defaults"
            )
        return EmbeddingEuler(denoise.embed, config.token_rows)
    assert settings.temperature is not None
    can_stop = settings.text_update != "release"  # which ends with a pass of its own
    return JumpProcess(
        path=MixturePath(config.kappa_exponent),
        generators=draws,
        rule=settings.text_update,
        temperature=settings.temperature,
        top_p=settings.top_p,
        forbidden=mask_token(config),
        stop_when_stable=settings.stop_when_stable if can_stop else 0,
        stop_when_sure=settings.stop_when_sure or 0.0 if can_stop else 0.0,
        pinned=pinned,
    )


def _fixed_ids(fixed: Fixed, rows: int, length: int) -> Tensor:
    """Pinned ids ``[B,L]``, -1 where free."""
    if not isinstance(fixed, Mapping):
        ids = torch.as_tensor(fixed, dtype=torch.long)
        if ids.shape not in ((length,), (1, length), (rows, length)):
            raise UniViGUError(
                f"fixed has shape {list(ids.shape)}; expected [{length}] or [{rows}, {length}] ids, "
                "-1 where the model may choose"
            )
        return ids.expand(rows, length)
    ids = torch.full((length,), -1, dtype=torch.long)
    for position, token in fixed.items():
        if not 0 <= position < length:
            raise UniViGUError(f"fixed pins position {position}; the text has positions 0 to {length - 1}")
        ids[position] = token
    return ids.expand(rows, length)
