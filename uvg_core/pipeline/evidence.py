"""Which latent space, text states and time rounding a network was trained with, from its own losses on real clips.

Every choice meets the same clips, times and noise (common random numbers), and its errors are compared clip by clip.

* Errors are relative to those of a predictor that knows the clips' mean and variance per channel and nothing else, at
  the same noise and in the same latent space. Only so can two spaces of different spread be compared.
* *Skill* says whether a network has learnt anything: the correlation of its velocity with the true one, both without
  what a straight line through the noisy input explains. It is 0 for weights at random, whose errors favour one space
  all the same.
* A network that was trained on umT5's states, whose padding is zero, does worse with the release's padding. One that
  was trained on the latter does about as well with zeros, so the two errors alone do not decide. A control does:
  padding that no network was trained on, the release's with its channels in another order. A network that does worse
  with the control and not with the release's padding was trained on the latter. The empty prompt shows most here:
  nearly all of its rows are padding.

Legend: K clips, N noisy views of each, C channels, F H W latent, S rows and E width of the prompt condition, L tokens.
"""

from __future__ import annotations

import math
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
from ..progress import Report

SIGMAS = (0.3, 0.55, 0.8, 0.95)  # of the views
CONTROL = "control"
PROMPTED = 4  # one view in so many has the caption as its prompt
# Thresholds, set on twenty small models and tried on twelve others (docs/use.md).
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
    """A clip as the network sees it.

    raw          latent ``[1,C,F,H,W]`` as the VAE gives it
    ids          token ids of the caption
    prompted     prompt condition ``[1,S,E]`` of the caption, by text states
    unprompted   that of the empty prompt
    """

    name: str
    raw: Tensor
    ids: Sequence[int]
    prompted: Mapping[str, Tensor]
    unprompted: Mapping[str, Tensor]


@dataclass(frozen=True)
class Views:
    """Relative ``errors`` and ``skill`` of a choice on the views, each ``[K,N]``; ``prompted``: which of them had the
    caption as their prompt."""

    errors: Tensor
    skill: Tensor
    prompted: Tensor


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
    progress: Report | None = None,
) -> Verdict:
    """The verdict on a network.

    Args:
        predict: its velocity as the file is run now with exact clocks; rounded: with clocks in bfloat16.
        samples: at least three clips; null: a stored null condition ``[1,S,E]`` to compare with "" as encoded.
        draws: views of each clip at each noise level; more are steadier and take longer. at_once: clips
            in one pass, all of one size.
        progress: called after every pass, in views; an exception from it ends the work.

    Raises UniViGUError where the network's numbers are not finite.
    """
    total = len(samples) * len(SIGMAS) * draws * (len(LATENT_SPACES) * len(TEXT_STATES) + 2)
    done = 0

    def count(added: int) -> None:
        nonlocal done
        done += added
        if progress is not None:
            progress("taking the losses", done, total)

    def of(space: str, kind: str, network: Predict = predict) -> Views:
        return views(network, samples, space, kind, draws=draws, at_once=at_once, on_pass=count)

    found = {(space, kind): of(space, kind) for space in LATENT_SPACES for kind in TEXT_STATES}
    space, best_space = _space(found)
    kinds = {kind: found[best_space, kind] for kind in TEXT_STATES}
    states, best_kind = _states(kinds, of(best_space, CONTROL), space)
    if null is not None:
        states = _with_null(states, null, samples[0].unprompted)
    exact = kinds[best_kind]
    rounding = _rounding(exact, of(best_space, best_kind, rounded), space)
    table = {f"{s}, {k}": float(v.errors.mean()) for (s, k), v in found.items()}
    return Verdict(space, states, rounding, table, float(exact.skill.mean()))


@torch.no_grad()
def views(
    predict: Predict,
    samples: Sequence[Sample],
    space: str,
    kind: str,
    *,
    draws: int = 1,
    at_once: int = 1,
    on_pass: Callable[[int], object] = lambda _: None,
) -> Views:
    """Errors and skill in one latent space under one kind of text states; one view in four has the caption as its
    prompt, the others have the empty one. ``on_pass`` is called with the number of views in each pass."""
    latents = [to_latent_space(sample.raw, space) for sample in samples]
    spread = torch.cat([latent[0].float().flatten(1) for latent in latents], 1).var(1).clamp(min=1e-6)
    errors, skill = torch.zeros(2, len(samples), len(SIGMAS) * draws).unbind(0)
    prompted = (torch.arange(len(samples))[:, None] + torch.arange(len(SIGMAS) * draws)) % PROMPTED == 0
    for n in range(len(SIGMAS) * draws):
        sigma = SIGMAS[n // draws]
        least = spread / ((1 - sigma) ** 2 * spread + sigma**2)
        for rows in torch.arange(len(samples)).split(at_once):
            batch = [samples[k] for k in rows]
            generators = [torch.Generator().manual_seed(1000 * int(k) + n) for k in rows]
            data = torch.cat([latents[k] for k in rows])
            noise = torch.cat([torch.randn(latents[0].shape, generator=one) for one in generators]).to(data)
            video, target = interpolate(data, noise, torch.tensor(sigma)), velocity_target(data, noise)
            prompts = [one.prompted if prompted[k, n] else one.unprompted for k, one in zip(rows, batch, strict=True)]
            condition = torch.cat([_condition(one, kind, by) for one, by in zip(prompts, generators, strict=True)])
            ids = nn.utils.rnn.pad_sequence([torch.tensor(list(one.ids)) for one in batch], True, -1).to(data.device)
            time = model_time_from_sigma(torch.full((len(rows),), sigma, device=data.device))
            velocity = predict(video, ids.clamp(min=0), ids >= 0, time, condition).float()
            if not bool(velocity.isfinite().all()):
                raise UniViGUError(
                    "the network's velocity holds values that are not numbers; run it in bfloat16 or float32"
                )
            errors[rows, n] = ((velocity - target).square().flatten(1).mean(1) / least.mean()).cpu()
            skill[rows, n] = _partial_correlation(velocity, target, video).cpu()
            on_pass(len(rows))
    return Views(errors, skill, prompted)


def _condition(by_states: Mapping[str, Tensor], kind: str, generator: torch.Generator) -> Tensor:
    if kind != CONTROL:
        return by_states[kind]
    zeroed, whole = (by_states[name] for name in TEXT_STATES)
    order = torch.randperm(whole.shape[-1], generator=generator).to(whole.device)
    return torch.where((zeroed == 0).all(-1, keepdim=True), whole[..., order], zeroed)


def _partial_correlation(velocity: Tensor, target: Tensor, video: Tensor) -> Tensor:
    """Correlation ``[B]`` of velocities ``[B,C,F,H,W]``, without what a line through the noisy input explains in each
    channel."""
    line, *both = (part.float().flatten(2) for part in (video, velocity, target))
    line = line - line.mean(-1, keepdim=True)
    least = line.square().sum(-1, keepdim=True).clamp(min=1e-12)
    centred = [part - part.mean(-1, keepdim=True) for part in both]
    one, other = ((part - (part * line).sum(-1, keepdim=True) / least * line).flatten(1) for part in centred)
    size = one.norm(dim=1) * other.norm(dim=1)
    return torch.where(size > 1e-6, (one * other).sum(1) / size, 0.0)


@dataclass(frozen=True)
class _Gap:
    """How much larger the errors of one choice are than another's: ``mean`` over clips of the difference of logarithms,
    ``t`` the same in standard errors, and how many of the clips agree with its sign."""

    mean: float
    t: float
    agree: int
    clips: int

    @classmethod
    def of(cls, larger: Tensor, smaller: Tensor) -> _Gap:
        """From errors ``[K,N]``; NaN marks views that do not count."""
        by_clip = (larger.log() - smaller.log()).nanmean(1)
        mean, error = by_clip.mean(), by_clip.std() / len(by_clip) ** 0.5
        agree = int((by_clip.sign() == mean.sign()).sum())
        return cls(float(mean), float(mean / error.clamp(min=1e-9)), agree, len(by_clip))

    def is_clear(self, least: float) -> bool:
        return abs(self.mean) >= least and abs(self.t) >= LEAST_T

    def __str__(self) -> str:
        return f"{100 * math.expm1(self.mean):+.1f} % error, t {self.t:.1f}, {self.agree} of {self.clips} clips"


def _space(found: Mapping[tuple[str, str], Views]) -> tuple[Answer, str]:
    """The answer, and the space with the smaller errors, whether that is clear or not."""
    errors = {space: torch.cat([found[space, kind].errors for kind in TEXT_STATES], 1) for space in LATENT_SPACES}
    best, other = sorted(LATENT_SPACES, key=lambda space: float(errors[space].log().mean()))
    gap = _Gap.of(errors[other], errors[best])
    skill = max(float(found[best, kind].skill.mean()) for kind in TEXT_STATES)
    why = f"{other}: {gap}"
    if skill < SKILL:
        why = f"the network is not trained well enough (skill {skill:.2f}; {why})"
    return Answer("latent space", best if skill >= SKILL and gap.is_clear(SPACE_LEAST) else "", why), best


def _states(kinds: Mapping[str, Views], control: Views, space: Answer) -> tuple[Answer, str]:
    """The answer, and the text states with the smaller errors without a prompt."""
    umt5, release = TEXT_STATES
    known, foreign = (kinds[kind].errors.masked_fill(control.prompted, torch.nan) for kind in TEXT_STATES)
    gap = _Gap.of(foreign, known)
    over_umt5, over_release = _Gap.of(control.errors, known), _Gap.of(control.errors, foreign)
    better = umt5 if gap.mean > 0 else release
    why = f"{release}: {gap}; foreign padding: {over_umt5}"
    if not space.best:
        return Answer("text states", "", f"the latent space is not clear ({why})"), better
    # Foreign padding makes it worse and the release's does not: it knows the latter.
    if gap.mean < STATES_LEAST < over_umt5.mean and over_release.is_clear(STATES_LEAST):
        return Answer("text states", release, why), release
    return Answer("text states", better if gap.is_clear(STATES_LEAST) else "", why), better


def _with_null(states: Answer, null: Tensor, encoded: Mapping[str, Tensor]) -> Answer:
    """The answer with the distances of a stored null condition from "" as encoded, which settle it where they can."""
    distances = {}
    for kind in TEXT_STATES:
        rows = min(null.shape[1], encoded[kind].shape[1])
        one, other = (part[:, :rows].float().cpu() for part in (null, encoded[kind]))
        distances[kind] = float((one - other).norm() / other.norm().clamp(min=1e-9))
    near, far = sorted(TEXT_STATES, key=distances.__getitem__)
    measured = ", ".join(f"{kind} {distance:.2f} away" for kind, distance in distances.items())
    why = f"null file: {measured}; {states.why}"
    if distances[near] > SAME_STATES or distances[far] < 2 * distances[near]:
        return replace(states, why=why)
    if states.best not in ("", near):
        return replace(states, best="", why=f"the null file says {near}, the losses {states.best} ({why})")
    return replace(states, best=near, why=why)


def _rounding(exact: Views, rounded: Views, space: Answer) -> Answer:
    none, bfloat16 = TIME_ROUNDING
    gap = _Gap.of(rounded.errors, exact.errors)
    clear = space.best and gap.is_clear(ROUNDING_LEAST)
    return Answer("time rounding", (none if gap.mean > 0 else bfloat16) if clear else "", f"{bfloat16}: {gap}")
