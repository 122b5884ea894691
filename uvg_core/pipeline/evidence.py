"""Which latent space, text states and clock a network was trained with: told by its own losses on a few real clips.

Every choice meets the same clips, times and noise (common random numbers), and its errors are compared clip by clip.

* An error is a share of what a predictor makes that knows the clips' mean and variance per channel and nothing else, at
  that noise and in that latent space. Only so can two spaces of different spread be compared.
* Whether a network has learnt anything is told by its *skill*: the correlation of its velocity with the true one, both
  without what a straight line through the noisy input explains. It is 0 for weights at random, whose errors favour a
  space all the same.
* A network that was trained on umT5's states, whose padding is zero, is thrown by the release's padding. One that was
  trained on the latter hardly minds zeros, so that the two errors alone would not tell. A control does: padding that
  nobody was trained on, the release's with its channels in another order. Who minds the control and not the release's
  padding has met that one before. The empty prompt says most here: nearly all of its rows are padding.

Legend: K clips, N noisy views of each, C channels, F H W latent, S rows and E width of the prompt condition, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import LATENT_SPACES, TEXT_STATES, TIME_ROUNDING, ModelConfig, RunConfig
from ..errors import UniViGUError
from ..flow.continuous import interpolate, velocity_target
from ..flow.time import model_time_from_sigma
from ..media.vae import to_latent_space

SIGMAS = (0.3, 0.55, 0.8, 0.95)  # noise shares of the views
CONTROL = "control"
TOLD = 4  # one view in so many has the caption as its prompt
# Thresholds, set on twenty small models and shown on twelve others: benchmarks/check_models.py.
SKILL = 0.15
LEAST_T = 3.0  # a difference in its own standard errors
SPACE_LEAST = 0.05  # differences in logarithms of the error
STATES_LEAST = 0.02
ROUNDING_LEAST = 0.01
SAME_STATES = 0.25  # a stored null condition is the encoder's "" at this distance, relative to its size, or nearer

# (video [B,C,F,H,W], ids [B,L], their mask [B,L], model time [B], condition [B,S,E]) -> velocity [B,C,F,H,W]; the text
# is held clean
Predict = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sample:
    """A clip as the VAE sees it, ``raw`` ``[1,C,F,H,W]``, its caption's ids, and prompt conditions ``[1,S,E]`` of the
    caption and of the empty prompt, by text states."""

    name: str
    raw: Tensor
    ids: Sequence[int]
    told: Mapping[str, Tensor]
    untold: Mapping[str, Tensor]


@dataclass(frozen=True)
class Views:
    """What a choice makes of the views: relative ``errors`` and ``skill``, each ``[K,N]``; ``told``: which of them had
    the caption as their prompt, and not the empty one."""

    errors: Tensor
    skill: Tensor
    told: Tensor


@dataclass(frozen=True)
class Answer:
    """What was found on one question. ``best`` is what the network was trained with, empty where that cannot be told;
    ``why`` says it in numbers."""

    question: str
    best: str
    why: str

    def __str__(self) -> str:
        return f"{self.question:<14} {self.best or 'cannot tell':<12} {self.why}"


@dataclass(frozen=True)
class Verdict:
    """The three answers; ``errors``: mean relative error by "latent space, text states"; ``skill`` in the better
    space."""

    space: Answer
    states: Answer
    rounding: Answer
    errors: Mapping[str, float] = field(default_factory=dict)
    skill: float = 0.0

    def applied(self, model: ModelConfig, run: RunConfig, version: str) -> tuple[ModelConfig, RunConfig]:
        """The facts of a file with what was found in them; what could not be told stays as it is."""
        model = replace(
            model,
            latent_space=self.space.best or model.latent_space,
            time_rounding=self.rounding.best or model.time_rounding,
        )
        answers = "; ".join(f"{a.question} {a.best or 'cannot be told'}" for a in self.answers)
        return model, replace(run, text_states=self.states.best or run.text_states, checked=f"{version}: {answers}")

    @property
    def answers(self) -> tuple[Answer, Answer, Answer]:
        return self.space, self.states, self.rounding

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def weigh(
    predict: Predict,
    rounded: Predict,
    samples: Sequence[Sample],
    *,
    null: Tensor | None = None,
    draws: int = 1,
    at_once: int = 1,
    watch: Callable[[int, int], object] | None = None,
) -> Verdict:
    """The verdict on a network.

    Args:
        predict: its velocity as the file is run now with exact clocks; rounded: with clocks in bfloat16.
        samples: at least three clips; null: a stored null condition ``[1,S,E]`` to compare with "" as encoded.
        draws: views of each clip at each noise level; more are steadier and take longer. at_once: clips
            in one pass, all of one size.
        watch: ``(done, total)`` after every view; what it raises ends the matter.

    Raises UniViGUError where the network's numbers are not finite.
    """
    many = len(samples) * len(SIGMAS) * draws
    total, done = many * (len(LATENT_SPACES) * len(TEXT_STATES) + 2), 0

    def one(space: str, kind: str, network: Predict = predict) -> Views:
        nonlocal done

        def count() -> None:
            nonlocal done
            done += 1
            if watch is not None:
                watch(done, total)

        return views(network, samples, space, kind, draws, at_once, count)

    found = {(space, kind): one(space, kind) for space in LATENT_SPACES for kind in TEXT_STATES}
    space, best_space = _space(found)
    kinds = {kind: found[best_space, kind] for kind in TEXT_STATES}
    states, best_kind = _states(kinds, one(best_space, CONTROL), space)
    if null is not None:
        states = _with_null(states, null, samples[0].untold)
    exact = kinds[best_kind]
    rounding = _rounding(exact, one(best_space, best_kind, rounded), space)
    table = {f"{s}, {k}": float(v.errors.mean()) for (s, k), v in found.items()}
    return Verdict(space, states, rounding, table, float(exact.skill.mean()))


@torch.no_grad()
def views(
    predict: Predict,
    samples: Sequence[Sample],
    space: str,
    kind: str,
    draws: int = 1,
    at_once: int = 1,
    watch: Callable[[], object] = lambda: None,
) -> Views:
    """Errors and skill in one latent space under one kind of text states; one view in four is told the caption."""
    latents = [to_latent_space(sample.raw, space) for sample in samples]
    spread = torch.cat([latent[0].float().flatten(1) for latent in latents], 1).var(1).clamp(min=1e-6)
    errors, skill = torch.zeros(2, len(samples), len(SIGMAS) * draws).unbind(0)
    told = (torch.arange(len(samples))[:, None] + torch.arange(len(SIGMAS) * draws)) % TOLD == 0
    for n in range(len(SIGMAS) * draws):
        sigma = SIGMAS[n // draws]
        least = spread / ((1 - sigma) ** 2 * spread + sigma**2)
        for first in range(0, len(samples), at_once):
            rows = range(first, min(first + at_once, len(samples)))
            generators = [torch.Generator().manual_seed(1000 * k + n) for k in rows]
            data = torch.cat([latents[k] for k in rows])
            noise = torch.cat([torch.randn(latents[0].shape, generator=one) for one in generators]).to(data)
            video, target = interpolate(data, noise, torch.tensor(sigma)), velocity_target(data, noise)
            prompts = [samples[k].told if told[k, n] else samples[k].untold for k in rows]
            condition = torch.cat([_condition(one, kind, by) for one, by in zip(prompts, generators, strict=True)])
            ids = [torch.tensor(list(samples[k].ids)) for k in rows]
            text = nn.utils.rnn.pad_sequence(ids, batch_first=True).to(data.device)
            lengths = torch.tensor([len(one) for one in ids], device=data.device)
            mask = torch.arange(text.shape[1], device=data.device) < lengths[:, None]
            time = model_time_from_sigma(torch.full((len(rows),), sigma, device=data.device))
            velocity = predict(video, text, mask, time, condition).float()
            if not bool(velocity.isfinite().all()):
                raise UniViGUError(
                    "the network's velocity holds values that are not numbers; run it in bfloat16 or float32"
                )
            for row, k in enumerate(rows):
                errors[k, n] = float((velocity[row] - target[row]).square().mean() / least.mean())
                skill[k, n] = _partial_correlation(velocity[row], target[row], video[row])
                watch()
    return Views(errors, skill, told)


def _condition(by_states: Mapping[str, Tensor], kind: str, generator: torch.Generator) -> Tensor:
    if kind != CONTROL:
        return by_states[kind]
    zeroed, whole = (by_states[name] for name in TEXT_STATES)
    order = torch.randperm(whole.shape[-1], generator=generator).to(whole.device)
    return torch.where((zeroed == 0).all(-1, keepdim=True), whole[..., order], zeroed)


def _partial_correlation(velocity: Tensor, target: Tensor, video: Tensor) -> float:
    """Correlation of two velocities ``[C,F,H,W]`` without what a line through the noisy input explains in each
    channel."""
    left = []
    line = video.float().flatten(1)
    line = line - line.mean(1, keepdim=True)
    for one in (velocity, target):
        rows = one.float().flatten(1)
        rows = rows - rows.mean(1, keepdim=True)
        slope = (rows * line).sum(1, keepdim=True) / line.square().sum(1, keepdim=True).clamp(min=1e-12)
        left.append((rows - slope * line).flatten())
    size = left[0].norm() * left[1].norm()
    return float(left[0] @ left[1] / size) if float(size) > 1e-6 else 0.0


@dataclass(frozen=True)
class _Gap:
    """How much larger the errors of one choice are than another's: mean of the logarithms' differences over clips, in
    standard errors too, and how many of the clips agree with its sign."""

    mean: float
    t: float
    agree: int
    clips: int

    @classmethod
    def of(cls, larger: Tensor, smaller: Tensor, told: Tensor | None = None) -> _Gap:
        """Over all views, or those that were not ``told``."""
        gaps = larger.log() - smaller.log()
        by_clip = gaps.mean(1) if told is None else (gaps * ~told).sum(1) / (~told).sum(1)
        mean, error = by_clip.mean(), by_clip.std() / len(by_clip) ** 0.5
        agree = int((by_clip.sign() == mean.sign()).sum())
        return cls(float(mean), float(mean / error.clamp(min=1e-9)), agree, len(by_clip))

    def clear(self, least: float) -> bool:
        return abs(self.mean) >= least and abs(self.t) >= LEAST_T

    def __str__(self) -> str:
        percent = 100 * (torch.tensor(self.mean).exp().item() - 1)
        return f"{percent:+.1f} % error, t {self.t:.1f}, {self.agree} of {self.clips} clips"


def _space(found: Mapping[tuple[str, str], Views]) -> tuple[Answer, str]:
    """The answer, and the space that is better, whether that is clear or not."""
    question = "latent space"
    first, second = LATENT_SPACES
    errors = {s: torch.cat([found[s, kind].errors for kind in TEXT_STATES], 1) for s in LATENT_SPACES}
    gap = _Gap.of(errors[second], errors[first])
    best, other = (first, second) if gap.mean > 0 else (second, first)
    gap = _Gap.of(errors[other], errors[best])
    skill = max(float(found[best, kind].skill.mean()) for kind in TEXT_STATES)
    why = f"{other}: {gap}"
    if skill < SKILL:
        return Answer(question, "", f"the network has learnt too little (skill {skill:.2f}; {why})"), best
    return Answer(question, best if gap.clear(SPACE_LEAST) else "", why), best


def _states(kinds: Mapping[str, Views], control: Views, space: Answer) -> tuple[Answer, str]:
    question = "text states"
    first, second = TEXT_STATES
    told = control.told
    gap = _Gap.of(kinds[second].errors, kinds[first].errors, told)
    better = first if gap.mean > 0 else second
    minds = _Gap.of(control.errors, kinds[first].errors, told)
    spared = _Gap.of(control.errors, kinds[second].errors, told)
    why = f"{second}: {gap}; foreign padding: {minds}"
    if not space.best:
        return Answer(question, "", f"the latent space is not clear ({why})"), better
    if gap.mean > 0 and gap.clear(STATES_LEAST):
        return Answer(question, first, why), first
    known = gap.mean < STATES_LEAST and minds.mean > STATES_LEAST and spared.clear(STATES_LEAST)
    if known or (gap.mean < 0 and gap.clear(STATES_LEAST)):
        return Answer(question, second, why), second
    return Answer(question, "", why), better


def _with_null(states: Answer, null: Tensor, encoded: Mapping[str, Tensor]) -> Answer:
    """The answer with the distances of a stored null condition from "" as encoded, which settle it where they can."""
    distances = {}
    for kind in TEXT_STATES:
        rows = min(null.shape[1], encoded[kind].shape[1])
        one, other = (part[:, :rows].float().cpu() for part in (null, encoded[kind]))
        distances[kind] = float((one - other).norm() / other.norm().clamp(min=1e-9))
    near, far = sorted(TEXT_STATES, key=distances.__getitem__)
    told = "null file: " + ", ".join(f"{kind} {distance:.2f} away" for kind, distance in distances.items())
    why = f"{told}; {states.why}"
    if distances[near] > SAME_STATES or distances[far] < 2 * distances[near]:
        return Answer(states.question, states.best, why)
    if states.best and states.best != near:
        return Answer(states.question, "", f"the null file says {near}, the losses {states.best} ({why})")
    return Answer(states.question, near, why)


def _rounding(exact: Views, rounded: Views, space: Answer) -> Answer:
    question = "time rounding"
    none, bfloat16 = TIME_ROUNDING
    gap = _Gap.of(rounded.errors, exact.errors)
    why = f"{bfloat16}: {gap}"
    if not space.best or not gap.clear(ROUNDING_LEAST):
        return Answer(question, "", why)
    return Answer(question, none if gap.mean > 0 else bfloat16, why)
