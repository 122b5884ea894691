"""The three jobs. Each builds two streams and hands them to the one loop.

Legend: B batch, C channels, F H W latent frames, height, width, L text tokens, S rows of the condition, E its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UniViGUError
from ..flow.discrete import MixturePath, sent, source_tokens
from ..flow.embedding import normalised_rows
from ..flow.schedule import checked_sigmas, checked_taus, text_times, video_sigmas
from ..flow.time import tau_from_sigma
from ..model import UniViGU, VideoCache
from .denoiser import Predictor
from .guidance import guided_steps
from .loop import Callback, run
from .streams import TextStream, TextUpdate, VideoStream
from .text_updates import EmbeddingEuler, JumpProcess, ReleaseRedraw
from .video_cache import CachePolicy

TEXT_UPDATES = ("bridge", "euler", "release")
GUIDANCE_SCALE = 5.0  # the release's
# Added to seeds: a caller who draws the video's noise from the same seed must not get the same numbers for the text.
TEXT_STREAM = 0x7E87_57EA_0000
Fixed = Tensor | Mapping[int, int]


class JointResult(NamedTuple):
    """``video`` ``[B,C,F,H,W]`` latent, ``text`` ``[B,L]`` token ids."""

    video: Tensor
    text: Tensor


def generators(seed: int | Sequence[int], rows: int) -> list[torch.Generator]:
    """One CPU generator per row for the text: ``seed``, ``seed + 1``, ... or the given seeds. The CPU's numbers are the
    same whatever device the network runs on."""
    seeds = [seed + row for row in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise UniViGUError(f"found {len(seeds)} seeds for a batch of {rows}; expected one number, or one per row")
    return [torch.Generator().manual_seed((s + TEXT_STREAM) % 2**63) for s in seeds]


def zero_context(model: UniViGU, like: Tensor) -> Tensor:
    """The release's condition without any prompt. It uses 512 rows of zeros; equal rows make cross-attention average
    the same value, so one row says the same."""
    return torch.zeros(1, 1, model.config.text_dim, device=like.device, dtype=like.dtype)


def as_text_content(model: UniViGU, tokens: Tensor, *, checked: bool = False) -> Tensor:
    """What the network takes for clean tokens ``[B,L]``: the ids, or rows of E with the embedding flow.

    ``checked``: the ids are known to be in the vocabulary; else they are looked at (``require_ids``).

    Raises UniViGUError for ids that are not in the vocabulary."""
    if not checked:
        require_ids(model.config, tokens)
    return normalised_rows(model.embed(tokens)) if model.config.text_flow == "embedding" else tokens


def require_ids(config: ModelConfig, tokens: Tensor) -> None:
    """Raise UniViGUError for ids that are not in the vocabulary. Waits for a card on which they lie."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < config.token_rows:
        raise UniViGUError(
            f"token ids run from {int(tokens.min())} to {int(tokens.max())}; this checkpoint has "
            f"{config.token_rows} rows: the tokenizer belongs to another model"
        )


def _pins(fixed: Fixed | None, rows: int, length: int) -> Tensor | None:
    """Pinned ids ``[B,L]``, -1 where free."""
    if fixed is None:
        return None
    if isinstance(fixed, Mapping):
        pinned = torch.full((length,), -1, dtype=torch.long)
        for position, token in fixed.items():
            if not 0 <= position < length:
                raise UniViGUError(f"fixed pins position {position}; the text has positions 0 to {length - 1}")
            pinned[position] = token
    else:
        pinned = torch.as_tensor(fixed, dtype=torch.long)
        if pinned.shape not in ((length,), (1, length), (rows, length)):
            raise UniViGUError(
                f"fixed has shape {list(pinned.shape)}; expected [{length}] or [{rows}, {length}] ids, "
                "-1 where the model may choose"
            )
    return pinned.expand(rows, length)


def _noisy_text(
    model: UniViGU,
    *,
    rows: int,
    length: int,
    taus: Tensor,
    seed: int | Sequence[int],
    update: str,
    temperature: float,
    top_p: float,
    fixed: Fixed | None,
    rounded: bool,
    like: Tensor,
    stop_when_stable: int = 0,
) -> TextStream:
    """The text stream at pure noise, with the flow's own kind of step."""
    config: ModelConfig = model.config
    if length < 1:
        raise UniViGUError(f"the text length is {length}; expected at least 1 token")
    if update not in TEXT_UPDATES:
        raise UniViGUError(f"text update is {update!r}; expected one of {', '.join(TEXT_UPDATES)}")
    rows_of_numbers = generators(seed, rows)
    pins, pinned, anchor = _pins(fixed, rows, length), None, None
    if pins is not None:
        words = pins.clamp(min=0)
        require_ids(config, words)
        pinned = sent(pins >= 0, like.device)
        anchor = as_text_content(model, sent(words, like.device), checked=True)
    step: TextUpdate
    if config.text_flow == "embedding":
        if temperature != 1 or top_p != 1 or update != "bridge" or stop_when_stable:
            raise UniViGUError(
                "temperature, top_p, stop_when_stable and text_update belong to the discrete text flow; this "
                "checkpoint has the embedding flow: leave them at their defaults"
            )
        noise = [torch.randn(length, config.dim, generator=g) for g in rows_of_numbers]
        content = sent(torch.stack(noise), like.device)
        step = EmbeddingEuler(model.embed, config.token_rows)
    else:
        mask_token = config.mask_token if config.source == "mask" else None
        noise = [
            source_tokens((length,), vocab_size=config.vocab_size, mask_token=mask_token, generator=g)
            for g in rows_of_numbers
        ]
        content = sent(torch.stack(noise), like.device)
        draws: dict[str, Any] = {
            "generators": rows_of_numbers,
            "temperature": temperature,
            "top_p": top_p,
            "forbidden": mask_token,
        }
        if update == "release":
            step = ReleaseRedraw(**draws)
        else:
            step = JumpProcess(
                path=MixturePath(config.kappa_exponent),
                rule=update,
                stop_when_stable=stop_when_stable,
                pinned=pinned,
                **draws,
            )
    return TextStream(
        content,
        tuple(taus.tolist()),
        update=step,
        pinned=pinned,
        anchor=anchor,
        rounded=rounded,
    )


def _clean_text(model: UniViGU, tokens: Tensor | None, mask: Tensor | None, like: Tensor) -> TextStream:
    """The text stream held clean; None is an empty stream, which makes the network plain Wan."""
    rows = like.shape[0]
    if tokens is None:
        if model.config.text_flow == "embedding":
            return TextStream(torch.zeros(rows, 0, model.config.dim, device=like.device))
        return TextStream(torch.zeros(rows, 0, dtype=torch.long, device=like.device))
    require_ids(model.config, tokens)  # before they go to a card
    content = as_text_content(model, sent(tokens, like.device).expand(rows, -1), checked=True)
    # A mask that hides nothing only keeps attention from its fastest kernels.
    mask = None if mask is None or bool(mask.all()) else sent(mask, like.device).expand(rows, -1)
    return TextStream(content, mask=mask)


def _noisy_video(noise: Tensor, steps: int, shift: float, sigmas: Tensor | Sequence[float] | None) -> VideoStream:
    schedule = video_sigmas(steps, shift) if sigmas is None else checked_sigmas(sigmas)
    return VideoStream(noise, tuple(schedule.tolist()))


def _predictor(
    model: UniViGU, context: Tensor, null_context: Tensor | None, scale: float | None, end: float, video: VideoStream
) -> Predictor:
    if scale is None:
        scale = 1.0 if null_context is None else GUIDANCE_SCALE
    assert video.sigmas is not None
    return Predictor(model, context, null_context, scale, guided_steps(end, len(video.sigmas) - 1))


def text_to_video(
    model: UniViGU,
    *,
    noise: Tensor,
    text: Tensor | None = None,
    context: Tensor,
    null_context: Tensor | None = None,
    text_mask: Tensor | None = None,
    steps: int = 50,
    shift: float = 3.0,
    guidance_scale: float | None = None,
    guidance_end: float = 1.0,
    sigmas: Tensor | Sequence[float] | None = None,
    solver: str = "euler",
    callback: Callback | None = None,
) -> Tensor:
    """Generate a latent from a prompt: video noisy, text held clean.

    Args:
        noise: ``[B,C,F,H,W]``, standard normal.
        text: the prompt's token ids ``[B,L]``, or None for an empty text stream (plain Wan). text_mask: ``[B,L]``.
        context, null_context: conditions ``[B,S,E]`` of the prompt and of the empty prompt.
        steps, shift: the release's schedule; or ``sigmas``, any falling list from 1 to 0.
        guidance_scale: 1 turns guidance off and halves the cost; by default 5 where there is a null_context.
        guidance_end: the share of the steps that are guided, from the noisiest on (arXiv 2404.07724).
        solver: ``euler`` or ``heun``.
        callback: see ``sampling/loop.py``.

    Returns the latent ``[B,C,F,H,W]``. Raises UniViGUError for inputs that do not fit the model or are not finite.
    """
    video = _noisy_video(noise, steps, shift, sigmas)
    held = _clean_text(model, text, text_mask, noise)
    predict = _predictor(model, context, null_context, guidance_scale, guidance_end, video)
    return run(video, held, predict, solver=solver, callback=callback)[0].latent


def video_to_text(
    model: UniViGU,
    *,
    video: Tensor,
    context: Tensor | None = None,
    length: int,
    steps: int = 50,
    seed: int | Sequence[int] = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    fixed: Fixed | None = None,
    text_update: str = "bridge",
    stop_when_stable: int = 0,
    video_cache: str = "auto",
    cache: VideoCache | None = None,
    taus: Tensor | Sequence[float] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Describe a clip: video held clean, text noisy.

    Args:
        video: clean latent ``[B,C,F,H,W]``. context: condition ``[B,S,E]`` of a hint text, None for none.
        length: tokens of the text stream. steps: even steps of path time (or ``taus``, a list rising from 0 to 1).
        seed: row b of the batch uses seed + b (or a seed per row); the same seed gives the same words.
        temperature: 0 is greedy. top_p: nucleus, in (0, 1].
        fixed: ``{position: id}``, or ids ``[L]`` / ``[B,L]`` with -1 where the model may choose.
        text_update: ``bridge`` (exact) or ``euler`` (the release's rule).
        stop_when_stable: stop as soon as this many steps in a row draw the same words; 0 takes all steps. Discrete
            flow only.
        video_cache: ``auto`` | ``off`` | ``static`` | ``refresh=K``, see ``CachePolicy``. cache: of this clip and
            context, for several runs to share where the policy is static.

    Returns token ids ``[B,L]``.
    """
    policy = CachePolicy.of(video_cache, model.config)
    if text_update == "release":
        raise UniViGUError(
            "text update is 'release', which is a rule for joint runs; use 'euler' for what the "
            "release does in video-to-text"
        )
    times = text_times(steps) if taus is None else checked_taus(taus)
    text = _noisy_text(
        model,
        rows=video.shape[0],
        length=length,
        taus=times,
        seed=seed,
        update=text_update,
        temperature=temperature,
        top_p=top_p,
        fixed=fixed,
        rounded=True,
        like=video,
        stop_when_stable=stop_when_stable,
    )
    condition = zero_context(model, video) if context is None else context
    predict = Predictor(model, condition, cache=policy.cache(model, cache), policy=policy)
    return run(VideoStream(video), text, predict, callback=callback)[1].words()


def joint(
    model: UniViGU,
    *,
    noise: Tensor,
    context: Tensor,
    null_context: Tensor | None = None,
    length: int,
    steps: int = 50,
    shift: float = 3.0,
    guidance_scale: float | None = None,
    guidance_end: float = 1.0,
    seed: int | Sequence[int] = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    fixed: Fixed | None = None,
    text_update: str = "bridge",
    sigmas: Tensor | Sequence[float] | None = None,
    solver: str = "euler",
    callback: Callback | None = None,
) -> JointResult:
    """Generate a clip and its caption at once, on one shared clock (text path time = 1 - sigma).

    Arguments as in ``text_to_video`` and ``video_to_text``; ``text_update`` is ``bridge`` (the exact jump process),
    ``euler``, or ``release`` (its redraw rule with the closing pass at time 0).
    """
    video = _noisy_video(noise, steps, shift, sigmas)
    assert video.sigmas is not None
    taus = checked_taus(tau_from_sigma(torch.tensor(video.sigmas, dtype=torch.float64)))
    text = _noisy_text(
        model,
        rows=noise.shape[0],
        length=length,
        taus=taus,
        seed=seed,
        update=text_update,
        temperature=temperature,
        top_p=top_p,
        fixed=fixed,
        rounded=False,
        like=noise,
    )
    predict = _predictor(model, context, null_context, guidance_scale, guidance_end, video)
    moved, written = run(video, text, predict, solver=solver, callback=callback)
    return JointResult(moved.latent, written.words())
