"""Ranking texts for a clip by the text flow's own loss.

The loss of a text is the cross-entropy of its tokens (embedding flow: their squared velocity error), summed over the
text, its padding too, and averaged over draws of the path time. All candidates are corrupted with common random
numbers (the same times, the same positions, the same noise), so that only the texts differ. Text-video matching and
zero-shot classification are rankings. With ``stop_when_sure`` texts that are surely beaten meet no further draws.

The other way round, clips are ranked by how likely each makes a text (``clip_likelihood``): the model judges what it
has drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..flow.continuous import interpolate, velocity_target
from ..flow.discrete import MixturePath, corrupt, sent, token_log_likelihood
from ..flow.time import sigma_from_tau
from ..model import PassOptions, VideoCache
from .cache_policy import CachePolicy
from .denoiser import Denoiser
from .settings import JUDGING, RANKING, Judging, Ranking
from .start import as_text_content, mask_token, require_ids, text_noise
from .streams import TextStream, VideoStream

LOGITS_AT_ONCE = 2**28


def padded(texts: Sequence[Sequence[int]] | Tensor, pad_token: int = 0, length: int | None = None) -> Tensor:
    """Candidates of different lengths as ids ``[K,L]``, padded to one length (at least ``length``). The padding is part
    of what is scored: it says where a text ends."""
    if isinstance(texts, Tensor):
        return texts
    length = max([length or 0, *(len(text) for text in texts)])
    rows = [[*text, *[pad_token] * (length - len(text))] for text in texts]
    return torch.tensor(rows, dtype=torch.long).view(len(rows), length)


@torch.no_grad()
def caption_likelihood(
    denoise: Denoiser,
    video: Tensor,
    texts: Sequence[Sequence[int]] | Tensor,
    settings: Ranking = RANKING,
    *,
    cache: VideoCache | None = None,
    callback: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Score candidate texts for one clip: minus the loss of each, so that the highest fits best.

    Args:
        denoise: the network, with the condition of a hint or without any.
        video: clean latent ``[1,C,F,H,W]``. texts: token ids of K candidates, each with its end-of-text token; those of
            different lengths are padded with 0 (see ``padded`` for other ways).
        settings: Monte-Carlo draws (stratified over path time), seed, candidates in a pass (None: as many as keep their
            logits within half a gigabyte in bfloat16, at most 8), ``video_cache``, where ``refresh=K`` means nothing,
            and ``stop_when_sure`` (see ``_Race``), which costs one look at the device a draw. cache: as of
            ``video_to_text``.
        callback: ``(done, total)`` after every draw; False stops there.

    Returns ``[K]`` float32: minus the text's loss in nats (discrete flow: summed cross-entropy of its tokens;
    embedding flow: summed squared velocity error). A text that was left out is as far behind the one that beat it as it
    was then.
    Raises UniViGUError for no candidates, an empty candidate, ids outside the vocabulary or a ``refresh=K``.
    """
    tokens, config = padded(texts), denoise.config
    if not tokens.numel():
        raise UniViGUError("there is no text to rank; pass at least one candidate with at least one token")
    if video.shape[0] != 1:
        raise UniViGUError(f"found {video.shape[0]} clips; ranking scores the texts of one clip at a time")
    policy = CachePolicy.of(settings.video_cache, config)
    if policy.refresh:
        raise UniViGUError(f"video_cache is {settings.video_cache!r}; ranking knows auto, off and static")
    require_ids(config, tokens)
    tokens = sent(tokens, video.device)
    cache = _filled(denoise, video, tokens, policy.cache(denoise, cache))
    generator = torch.Generator().manual_seed(settings.seed)
    batch = settings.batch or min(8, max(1, LOGITS_AT_ONCE // (tokens.shape[1] * config.text_out_dim)))
    total: Tensor | float = 0.0
    race = _Race(len(tokens), settings.stop_when_sure) if settings.stop_when_sure else None
    for sample, stratum in enumerate(_spread(settings.samples) if race else range(settings.samples), start=1):
        tau = (stratum + float(torch.rand((), generator=generator))) / settings.samples
        keep_seed = int(torch.randint(2**31, (), generator=generator))
        draw = _Draw(tau, sent(text_noise(config, tokens.shape[1], generator), video.device), keep_seed)
        losses = torch.cat([_losses(denoise, video, part, draw, cache) for part in tokens.split(batch)])
        if race is None:
            total = total + losses
        else:
            tokens = tokens[race.add(losses).to(tokens.device)]
        if callback is not None and callback(sample, settings.samples) is False:
            break
        if race is not None and len(tokens) == 1:
            break
    scores = -total / sample if race is None else race.scores().to(video)
    assert isinstance(scores, Tensor)
    return _finite(scores)


@torch.no_grad()
def clip_likelihood(
    denoise: Denoiser,
    videos: Tensor,
    texts: Tensor,
    settings: Judging = JUDGING,
    *,
    batch: int = 1,
    callback: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Score clips by how likely each of them makes a text: the highest fits best.

    The draws lie in the middles of equal parts of the path time, a single one half-way, where some of the words are
    known and the others follow from the clip.

    Args:
        denoise: the network, without a condition.
        videos: clean latents ``[N,C,F,H,W]``. texts: token ids ``[1,L]``, or ``[N,L]`` where each clip has its own.
        settings: draws, which are passes over every clip, and the seed of their noise. batch: clips in a pass.
        callback: ``(done, total)`` after every pass.

    Returns ``[N]`` float32 in the units of ``caption_likelihood``. Raises UniViGUError for texts without tokens, ids
    outside the vocabulary, and losses that are not finite.
    """
    config, rows, total = denoise.config, len(videos), torch.zeros(len(videos))
    if not texts.numel():
        raise UniViGUError("there is no text to judge clips by; expected at least one token")
    require_ids(config, texts)
    tokens = sent(texts, videos.device).expand(rows, -1)
    generator = torch.Generator().manual_seed(settings.seed)
    parts, done = range(0, rows, batch), 0
    for sample in range(settings.samples):
        tau, keep_seed = (sample + 0.5) / settings.samples, int(torch.randint(2**31, (), generator=generator))
        draw = _Draw(tau, sent(text_noise(config, tokens.shape[1], generator), videos.device), keep_seed)
        for start in parts:
            part, done = slice(start, start + batch), done + 1
            total[part] -= _losses(denoise, videos[part], tokens[part], draw, None).float().cpu() / settings.samples
            if callback is not None:
                callback(done, settings.samples * len(parts))
    return _finite(total)


def _finite(scores: Tensor) -> Tensor:
    """The scores. Raises UniViGUError where one is not a number."""
    if not bool(scores.isfinite().all()):
        raise UniViGUError(
            "the network's text losses are not finite. In float16, run in bfloat16 or float32 instead; else check the "
            "checkpoint, the clip's latent and the strength of LoRAs"
        )
    return scores


def _spread(count: int) -> list[int]:
    """The numbers below ``count`` in an order whose first few are spread over all of them (van der Corput's)."""
    bits = max(1, (count - 1).bit_length())
    return [number for i in range(2**bits) if (number := int(f"{i:0{bits}b}"[::-1], 2)) < count]


class _Race:
    """Candidates that drop out as soon as they are surely beaten.

    After every draw but the first, each candidate is compared with the best so far by a one-sided t-test of its lead
    in the same draws; it drops out where the test's confidence is at least ``sure``. Whoever stays meets further draws.
    """

    def __init__(self, count: int, sure: float) -> None:
        self._sure = sure
        self._left = torch.arange(count)
        self._losses = torch.empty(0, count, dtype=torch.float64)  # of those that are left, a row for every draw
        self._beaten: list[tuple[int, int, float]] = []  # who, by whom, by how much

    def add(self, losses: Tensor) -> Tensor:
        """The losses of those that are left in one more draw; which of them stay ``[K]``, boolean. Waits for them."""
        self._losses = torch.cat([self._losses, losses.cpu().double()[None]])
        draws, best = len(self._losses), int(self._losses.mean(0).argmin())
        if draws == 1:
            return torch.ones(len(self._left), dtype=torch.bool)
        behind = self._losses - self._losses[:, best : best + 1]
        lead = behind.mean(0)
        stays = ~(student(lead * math.sqrt(draws) / behind.std(0), draws - 1) >= self._sure) | (lead <= 0)
        for one in (~stays).nonzero().flatten().tolist():
            self._beaten.append((int(self._left[one]), int(self._left[best]), float(lead[one])))
        self._left, self._losses = self._left[stays], self._losses[:, stays]
        return stays

    def scores(self) -> Tensor:
        """Minus the mean losses ``[K]``. Whoever dropped out met other draws, so that its mean says little: it stays as
        far behind the one that beat it."""
        found = torch.zeros(len(self._left) + len(self._beaten), dtype=torch.float64)
        found[self._left] = -self._losses.mean(0)
        for loser, winner, lead in reversed(self._beaten):  # a winner may have dropped out later
            found[loser] = found[winner] - lead
        return found.float()


def student(t: Tensor, freedom: int) -> Tensor:
    """The probability that Student's t with ``freedom`` degrees is at most ``t`` (Abramowitz and Stegun 26.7.3, 26.7.4;
    beyond 100 degrees as at 100, or at 101 where they are odd)."""
    freedom = min(freedom, 100 + freedom % 2)
    angle, is_odd = (t / math.sqrt(freedom)).atan(), freedom % 2
    term, total = angle.cos() ** is_odd, torch.zeros_like(angle)
    for power in range(is_odd, freedom - 1, 2):
        total = total + term
        term = term * angle.cos().square() * (power + 1) / (power + 2)
    within = (angle + angle.sin() * total) * 2 / math.pi if is_odd else angle.sin() * total
    return (1 + within) / 2


def _filled(denoise: Denoiser, video: Tensor, tokens: Tensor, cache: VideoCache | None) -> VideoCache | None:
    """The cache filled by one row, for all candidates; None where there was no room: another batch must not try again
    with its own rows."""
    if cache is not None and not cache.filled:
        text = TextStream(as_text_content(denoise, tokens[:1]))
        denoise(VideoStream(video), text, 0, PassOptions(False, False, True, cache))
    return cache if cache is not None and cache.filled else None


class _Draw(NamedTuple):
    """What all candidates are corrupted with: path time, pure noise ``[1,L]`` or ``[1,L,D]``, and which of their
    positions it takes."""

    tau: float
    noise: Tensor
    keep_seed: int


def _losses(denoise: Denoiser, video: Tensor, tokens: Tensor, draw: _Draw, cache: VideoCache | None) -> Tensor:
    """The text flow's losses ``[K]`` of ``tokens`` ``[K,L]`` in one draw."""
    config, data = denoise.config, as_text_content(denoise, tokens)
    if config.text_flow == "embedding":
        noise = draw.noise.expand_as(data)
        content = interpolate(data, noise, torch.tensor(sigma_from_tau(draw.tau)))
    else:
        # One row of random numbers for everybody: the same positions are noise in every candidate.
        path, tau, keep = MixturePath(config.kappa_exponent), torch.tensor([draw.tau]), torch.Generator()
        rows = [corrupt(row[None], tau, path, draw.noise, keep.manual_seed(draw.keep_seed)) for row in tokens]
        content = torch.cat(rows)
    stream, text = (
        VideoStream(video.expand(len(tokens), -1, -1, -1, -1)),
        TextStream(content, (draw.tau,), rounded=True),
    )
    options = PassOptions(want_velocity=False, video_clean=True, cache=cache)
    predicted = denoise(stream, text, 0, options).logits
    assert predicted is not None
    if config.text_flow == "embedding":
        return (predicted.float() - velocity_target(data, noise)).square().sum((1, 2))
    return -token_log_likelihood(predicted, tokens, mask_token(config)).sum(1)  # a word is never the mask token
