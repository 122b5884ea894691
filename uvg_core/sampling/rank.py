"""Ranking texts for a clip by the text flow's own loss.

The loss of a text is a Monte-Carlo mean over path times. All candidates are corrupted with common random numbers (the
same times, the same positions, the same noise), so that only the texts differ. Text-video matching and zero-shot
classification are rankings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..flow.continuous import interpolate, velocity_target
from ..flow.discrete import MixturePath, corrupt, sent, source_tokens, token_log_likelihood
from ..flow.time import model_time_from_sigma, sigma_from_tau, text_model_time_from_tau
from ..model import UniViGU, VideoCache
from .jobs import as_text_content, require_ids, zero_context
from .video_cache import CachePolicy

LOGITS_AT_ONCE = 2**28


def padded(texts: Sequence[Sequence[int]] | Tensor, pad_token: int = 0, length: int | None = None) -> Tensor:
    """Candidates of different lengths as ids ``[K,L]``."""
    if isinstance(texts, Tensor):
        return texts
    longest = max((len(text) for text in texts), default=0)
    length = max(longest, length or 0)
    rows = [[*text, *[pad_token] * (length - len(text))] for text in texts]
    return torch.tensor(rows, dtype=torch.long).view(len(rows), length)


@torch.no_grad()
def caption_likelihood(
    model: UniViGU,
    *,
    video: Tensor,
    texts: Sequence[Sequence[int]] | Tensor,
    context: Tensor | None = None,
    samples: int = 16,
    seed: int = 0,
    batch: int | None = None,
    pad_token: int = 0,
    length: int | None = None,
    video_cache: str = "auto",
    cache: VideoCache | None = None,
    callback: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Score candidate texts for one clip; the highest score fits best.

    Args:
        video: clean latent ``[1,C,F,H,W]``. texts: token ids of K candidates, each with its end-of-text token; padded
            with ``pad_token`` to one length (at least ``length``), and the padding counts: it says where a text ends.
        context: condition ``[1,S,E]``, None for none. samples: Monte-Carlo draws, stratified over path time.
        video_cache, cache: as of ``video_to_text``; ``refresh=K`` has no meaning here.
        batch: candidates in one forward pass; by default as many as keep their logits within half a gigabyte in
            bfloat16, at most 8. callback: ``(done, total)`` after every draw; False stops there.

    Returns ``[K]`` float32: minus the text's loss in nats (discrete flow: summed cross-entropy of its tokens;
    embedding flow: summed squared velocity error).
    Raises UniViGUError for no candidates, an empty candidate, ids outside the vocabulary or a ``refresh=K``.
    """
    tokens = padded(texts, pad_token, length)
    if not tokens.numel():
        raise UniViGUError("there is no text to rank; pass at least one candidate with at least one token")
    if video.shape[0] != 1:
        raise UniViGUError(f"found {video.shape[0]} clips; ranking scores the texts of one clip at a time")
    config, generator = model.config, torch.Generator().manual_seed(seed)
    if batch is None:
        batch = min(8, max(1, LOGITS_AT_ONCE // (tokens.shape[1] * config.text_out_dim)))
    if samples < 1 or batch < 1:
        raise UniViGUError(f"samples is {samples} and batch {batch}; expected at least 1")
    require_ids(config, tokens)
    tokens = sent(tokens, video.device)
    context = zero_context(model, video) if context is None else context
    count, width = tokens.shape
    mask_token = config.mask_token if config.text_flow == "discrete" and config.source == "mask" else None
    path = MixturePath(config.kappa_exponent)
    total = torch.zeros(count, device=video.device)
    policy = CachePolicy.of(video_cache, config)
    if policy.refresh:
        raise UniViGUError(f"video_cache is {video_cache!r}; ranking knows auto, off and static")
    cache = policy.cache(model, cache)
    kept: dict[str, Any] = {} if cache is None else {"cache": cache}
    if config.v2t_attention == "one_way":
        kept["video_clean"] = True

    def losses(chosen: Tensor, tau: float, keep_seed: int, noise: Tensor) -> Tensor:
        rows = chosen.shape[0]
        time_text = torch.full((rows,), text_model_time_from_tau(tau), device=video.device)
        time_video = torch.full((rows,), model_time_from_sigma(0.0), device=video.device)
        if config.text_flow == "embedding":
            data = as_text_content(model, chosen, checked=True)
            spread = sent(noise, data.device).expand_as(data)
            text = interpolate(data, spread, torch.tensor(sigma_from_tau(tau)))
        else:
            # One row of random numbers for everybody: the same positions are noise in every candidate.
            when, keeping = torch.tensor([tau]), torch.Generator()
            text = torch.cat([corrupt(row[None], when, path, noise, keeping.manual_seed(keep_seed)) for row in chosen])
        logits = model(
            video.expand(rows, -1, -1, -1, -1),
            text,
            time_video,
            time_text,
            context.expand(rows, -1, -1),
            want_velocity=False,
            **kept,
        ).logits
        if config.text_flow == "embedding":
            return (logits.float() - velocity_target(data, spread)).square().sum((1, 2))
        return -token_log_likelihood(logits, chosen, mask_token).sum(1)  # a word is never the mask token

    if cache is not None and not cache.filled:  # by one row, for all of them
        clock = torch.zeros(1, device=video.device)
        model(
            video,
            as_text_content(model, tokens[:1], checked=True),
            clock,
            clock,
            context,
            want_velocity=False,
            want_logits=False,
            **kept,
        )
        if not cache.filled:  # there was no room: another batch must not try again with its own rows
            del kept["cache"]
    for sample in range(samples):
        tau = (sample + float(torch.rand((), generator=generator))) / samples
        keep_seed = int(torch.randint(2**31, (), generator=generator))
        if config.text_flow == "embedding":
            noise = torch.randn(1, width, config.dim, generator=generator)
        else:
            noise = source_tokens(
                (1, width),
                vocab_size=config.vocab_size,
                mask_token=mask_token,
                generator=generator,
                device=video.device,
            )
        for start in range(0, count, batch):
            part = slice(start, start + batch)
            total[part] += losses(tokens[part], tau, keep_seed, noise)
        if callback is not None and callback(sample + 1, samples) is False:
            break
    if not bool(total.isfinite().all()):
        raise UniViGUError(
            "the network's text losses are not finite. In float16, run in bfloat16 or float32 instead; else check the "
            "checkpoint, the clip's latent and the strength of LoRAs"
        )
    return -total / (sample + 1)
