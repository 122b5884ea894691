"""What each clip of a step is used for: its job, its times, its texts and its noise.

Everything random is a pure function of (seed, stage, position), where position counts clips since the start of the run:
stages with one seed do not draw the same again. A continued run draws what an uninterrupted one would have drawn, and
it does not matter how a global batch is split over processes and accumulation steps.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig, RunConfig
from ..data.shards import Sample, Shards
from ..errors import UniViGUError
from ..flow.discrete import MixturePath, corrupt, source_tokens
from ..flow.schedule import shift_sigmas, video_sigmas
from ..flow.time import tau_from_sigma
from .config import Distill, Times, TrainConfig

JOBS = ("text_to_video", "video_to_text", "joint")
HELD = ("beginning", "ends", "inside", "outside")


def stream_of(seed: int, *position: int | str) -> torch.Generator:
    """A generator for one purpose at one position; neighbouring positions have nothing in common."""
    name = f"{seed}/{'/'.join(map(str, position))}".encode()
    number = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")
    return torch.Generator().manual_seed(number)


# Clips, and how often each of them comes in an epoch.
Repeated = tuple[range, float]


class Order:
    """Which clip comes at which position: every epoch is a new permutation.

    ``buckets``: clips of one size each; a number stands for so many clips of one size. Each bucket has epochs of its
    own, and the ``together`` positions of a step are of one bucket, chosen so that all keep pace with each other. A
    clip that comes 2.5 times an epoch comes twice in one, and three times in the next.
    """

    def __init__(
        self, buckets: int | Sequence[Sequence[Repeated]], seed: int, stage: str = "", together: int = 1
    ) -> None:
        self.buckets = [[(range(buckets), 1.0)]] if isinstance(buckets, int) else buckets
        self.seed, self.stage, self.together = seed, stage, together
        self.lengths = [sum(_draws(some) for some in bucket) for bucket in self.buckets]
        self._epochs: dict[int, tuple[int, Tensor]] = {}
        self._steps = list[tuple[int, int]]()  # the bucket of each step so far, and how many steps it had before
        self._counts = [0] * len(self.buckets)
        self._lock = Lock()  # a step is prepared while the one before is learnt

    @property
    def epoch(self) -> int:
        """How many positions there are in an epoch."""
        return sum(self.lengths)

    def clip(self, position: int) -> int:
        bucket, place = 0, position
        if len(self.buckets) > 1:
            step, within = divmod(position, self.together)
            bucket, before = self._bucket(step)
            place = before * self.together + within
        epoch, place = divmod(place, self.lengths[bucket])
        with self._lock:
            known = self._epochs.get(bucket)
            if known is None or known[0] != epoch:
                known = self._epochs[bucket] = epoch, self._permuted(bucket, epoch)
        return int(known[1][place])

    def _bucket(self, step: int) -> tuple[int, int]:
        """The bucket of a step: the one that is furthest behind its share of the clips."""
        with self._lock:
            while len(self._steps) <= step:
                done = len(self._steps) + 1
                behind = [done * n / self.epoch - had for n, had in zip(self.lengths, self._counts, strict=True)]
                chosen = behind.index(max(behind))
                self._steps.append((chosen, self._counts[chosen]))
                self._counts[chosen] += 1
            return self._steps[step]

    def _permuted(self, bucket: int, epoch: int) -> Tensor:
        clips = torch.cat([_copies(some, epoch) for some in self.buckets[bucket]])
        name = (self.stage, "epoch", epoch, *((bucket,) if bucket else ()))
        return clips[torch.randperm(len(clips), generator=stream_of(self.seed, *name))]


def _draws(some: Repeated) -> int:
    """How many positions of an epoch some clips take."""
    clips, repeats = some
    return max(1, round(len(clips) * repeats))


def _copies(some: Repeated, epoch: int) -> Tensor:
    """The clips of an epoch; where it does not take all of them equally often, the next one goes on where it ends."""
    clips, draws = some[0], _draws(some)
    whole, rest = divmod(draws, len(clips))
    last = (torch.arange(rest) + epoch * rest) % len(clips)
    return clips.start + torch.cat([torch.arange(len(clips)).repeat(whole), last])


def repeats_of(config: TrainConfig, counts: Mapping[int, int]) -> list[float]:
    """How often a clip of each source comes in an epoch; ``counts``: clips by the number of their source."""
    sources, total = config.sources, sum(counts.values())
    weights = [one.weight or 0.0 for one in sources]
    if not any(weights):
        return [one.repeats for one in sources]
    there = sum(weight for number, weight in enumerate(weights) if counts.get(number))
    return [weight / there * total / max(1, counts.get(n, 0)) for n, weight in enumerate(weights)]


def repeated(config: TrainConfig, data: Shards) -> list[list[Repeated]]:
    """The clips by their size, and how often each comes, as ``data`` of a configuration says."""
    buckets, counts = data.buckets(), Counter[int]()
    for some in buckets.values():
        for source, clips in some:
            counts[source] += len(clips)
    repeats = repeats_of(config, counts)
    joined: list[list[Repeated]] = []
    for some in buckets.values():
        runs: dict[int, range] = {}
        for source, clips in some:  # shards of one source lie side by side
            runs[source] = range(runs[source].start if source in runs else clips.start, clips.stop)
        joined.append([(clips, repeats[source] if source < len(repeats) else 1.0) for source, clips in runs.items()])
    return joined


def draw_sigma(times: Times, generator: torch.Generator) -> float:
    """A noise level in [0, 1] of the given distribution."""
    u = torch.rand(2, generator=generator, dtype=torch.float64)
    normal = torch.randn((), generator=generator, dtype=torch.float64)
    if times.kind == "uniform" or float(u[1]) < times.uniform_share:
        return float(u[0])
    if times.kind == "logit_normal":
        return float(torch.sigmoid(times.mean + times.std * normal))
    return float(shift_sigmas(u[0], times.shift))


@dataclass(frozen=True)
class SamplePlan:
    """What one clip of a step is used for. ``sigma_video``, ``sigma_text``: noise levels, 0 where held clean."""

    position: int
    job: str
    sigma_video: float
    sigma_text: float
    dropped: bool  # the prompt condition is left out
    detailed: bool  # the detailed caption stands in for the prompt
    without_text: bool  # the text stream is empty: plain Wan
    sigma_next: float | None = None  # where the student's pass ends (``distill``)
    own: bool = False  # its pass starts where its own passes lead
    held: str = ""  # the parts that are given clean, one of ``HELD``

    @property
    def makes_video(self) -> bool:
        return self.job != "video_to_text"

    @property
    def makes_text(self) -> bool:
        return self.job != "text_to_video"


def plan_sample(config: TrainConfig, position: int, shift: float = 3.0) -> SamplePlan:
    """The plan of the clip at ``position``, the same for every process. ``shift``: of the student's schedule."""
    generator = stream_of(config.seed, config.stage, "lot", position)
    u = torch.rand(5, generator=generator).tolist()
    shares = [getattr(config.jobs, name) for name in JOBS]
    reached = list(accumulate(share / sum(shares) for share in shares))
    last = max(index for index, share in enumerate(shares) if share > 0)
    job = JOBS[0] if config.stage == "generate" else JOBS[min(last, bisect(reached, u[0]))]
    sigma_video, sigma_text = draw_sigma(config.video_times, generator), draw_sigma(config.text_times, generator)
    if job == "joint" and u[1] < config.joint_shared:
        sigma_text = sigma_video
    distills, sigma_next = config.stage == "distill", None
    if distills and job != "video_to_text":
        grid = student_sigmas(config.distill, job, shift)
        at = int(torch.randint(len(grid) - 1, (), generator=generator))
        sigma_video, sigma_next = grid[at : at + 2]
        sigma_text = sigma_video
    return SamplePlan(
        position,
        job,
        sigma_video=0.0 if job == "video_to_text" else sigma_video,
        sigma_text=0.0 if job == "text_to_video" else sigma_text,
        # A student has no guidance: it never draws without its prompt.
        dropped=u[2] < getattr(config.dropout, job) and sigma_next is None,
        detailed=u[3] < config.detail_share,
        without_text=job == "text_to_video" and (config.stage == "generate" or u[4] < config.empty_text),
        sigma_next=sigma_next,
        own=distills and job == "text_to_video" and u[1] < config.distill.own_states,
        held=_held(config, position) if config.hold_share and job != "video_to_text" else "",
    )


def _held(config: TrainConfig, position: int) -> str:
    """Which parts of the clip at ``position`` are given clean; mostly none."""
    u, kind = torch.rand(2, generator=stream_of(config.seed, config.stage, "held", position)).tolist()
    return HELD[int(kind * len(HELD))] if u < config.hold_share else ""


def free_parts(held: str, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """A mask ``[1,F,H,W]`` of a latent of ``size`` ``[C,F,H,W]``: 1 where it forms, 0 where it is given clean."""
    free, frames = torch.ones(1, *size[1:]), size[1]
    if held in ("beginning", "ends"):
        ending = held == "ends" and frames > 2
        most = max(0, frames - 1 - ending)  # so that one is left to form
        u = float(torch.rand((), generator=generator))
        free[:, : min(most, 1 + int(u * u * most))] = 0  # mostly the first picture, sometimes what a story goes on from
        free[:, frames - ending :] = 0
    elif held:
        rows, columns = (_span(side, generator) for side in size[2:])
        free[:] = held == "inside"
        free[:, :, rows, columns] = held == "outside"
    return free


def _span(side: int, generator: torch.Generator) -> slice:
    """A third to two thirds of a side, anywhere."""
    u = torch.rand(2, generator=generator).tolist()
    length = max(1, round(side * (1 + u[0]) / 3))
    start = int(u[1] * (side - length + 1))
    return slice(start, start + length)


def student_sigmas(distill: Distill, job: str, shift: float) -> list[float]:
    """The noise levels at which a student's passes of a job begin and end, from 1 to 0."""
    sigmas: list[float] = video_sigmas(distill.joint_passes if job == "joint" else distill.passes, shift).tolist()
    return sigmas


@dataclass(frozen=True)
class Batch:
    """Tensors of some clips of a step.

    ``latents``, ``noise`` ``[B,C,F,H,W]``; ``sigma_video``, ``sigma_text`` ``[B]``; ``context`` ``[B,S,E]``;
    ``target`` ``[B,L]`` ids the text stream is to become; ``text`` ``[B,L]`` ids it holds now (the discrete flow's
    noisy tokens; the target itself in the embedding flow, where ``text_noise`` ``[B,L,D]`` is mixed in; D is 0 else);
    ``mask`` ``[B,L]`` false for positions nobody sees; ``weight`` ``[B,L]`` of each position in the
    loss; ``makes_video``, ``makes_text`` ``[B]`` 0 or 1.

    ``sigma_next`` ``[B]``: where a student's pass ends; ``own`` ``[B]``: whether it begins where the student's own ones
    lead; ``again`` ``[B,2,C,F,H,W]``, ``sigma_again`` ``[B,2]``: noise for the clip that it gives (``distill.py``).
    ``free`` ``[B,1,F,H,W]``: 0 where a clip is given clean and nothing is learnt, None where that is nowhere.
    ``hides``: whether the mask hides anything; ``video_clean``: whether the video of every clip is clean, None where
    some are. They say what the tensors say, without a look at a card.
    """

    latents: Tensor
    noise: Tensor
    sigma_video: Tensor
    sigma_text: Tensor
    context: Tensor
    target: Tensor
    text: Tensor
    text_noise: Tensor
    mask: Tensor
    weight: Tensor
    makes_video: Tensor
    makes_text: Tensor
    hides: bool = True
    video_clean: bool | None = None
    sigma_next: Tensor | None = None
    own: Tensor | None = None
    again: Tensor | None = None
    sigma_again: Tensor | None = None
    free: Tensor | None = None

    def rows(self, which: Tensor) -> Batch:
        """Some of the clips, by their numbers."""
        tensors: dict[str, Any] = {name: x[which] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)

    def to(self, device: torch.device) -> Batch:
        tensors: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)


def padded_states(states: Tensor, model: ModelConfig, run: RunConfig) -> Tensor:
    """A prompt's condition ``[n,E]``, as long as the network expects it ``[S,E]``: rows of zeros follow."""
    context = torch.zeros(run.context_length, model.text_dim)
    context[: len(states)] = states
    return context


class Collator:
    """Turns clips and their plans into tensors. ``empty_states`` ``[n,E]``: the empty prompt's condition."""

    def __init__(self, model: ModelConfig, run: RunConfig, config: TrainConfig, empty_states: Tensor) -> None:
        self.model, self.run, self.config, self.empty = model, run, config, empty_states
        self.path = MixturePath(model.kappa_exponent)
        self.mask_token = model.mask_token if model.source == "mask" and model.text_flow == "discrete" else None

    def __call__(self, samples: Sequence[Sample], plans: Sequence[SamplePlan]) -> Batch:
        rows = [self._row(sample, plan) for sample, plan in zip(samples, plans, strict=True)]
        names = (field.name for field in fields(Batch) if isinstance(getattr(rows[0], field.name), Tensor))
        tensors: dict[str, Any] = {name: torch.stack([getattr(row, name) for row in rows]) for name in names}
        clean = {plan.sigma_video == 0 for plan in plans}
        video_clean = clean.pop() if len(clean) == 1 else None
        return Batch(**tensors, hides=not tensors["mask"].all(), video_clean=video_clean)

    def _row(self, sample: Sample, plan: SamplePlan) -> Batch:
        """The tensors of one clip, without the first dimension."""
        generator = stream_of(self.config.seed, self.config.stage, "noise", plan.position)
        latent = sample.latent.float()
        noise = torch.randn(latent.shape, generator=generator)
        states, written = self._texts(sample, plan)
        if plan.dropped:
            states = self.empty if plan.makes_video else states[:0]

        distills = self.config.stage == "distill"
        matches = distills and self.config.distill.matching == "distribution"
        length = 0 if self.config.stage == "generate" else self.run.text_length
        written = written if length else written[:0]
        target = torch.full((length,), self.run.pad_token, dtype=torch.long)
        target[: len(written)] = written
        weight = torch.full((length,), self.config.loss.padding)
        weight[: len(written)] = 1
        mask = torch.full((length,), plan.makes_text)
        mask[: len(written)] = not plan.without_text
        text, text_noise = target, torch.empty(length, 0)
        if length and self.model.text_flow == "embedding":
            text_noise = torch.randn(length, self.model.dim, generator=generator)
        elif length:
            source = source_tokens(
                (1, length), vocab_size=self.model.vocab_size, mask_token=self.mask_token, generator=generator
            )
            tau = torch.tensor([tau_from_sigma(plan.sigma_text)])
            text = corrupt(target[None], tau, self.path, source, generator)[0]
        return Batch(
            latents=latent,
            noise=noise,
            sigma_video=torch.tensor(plan.sigma_video),
            sigma_text=torch.tensor(plan.sigma_text),
            context=padded_states(states, self.model, self.run),
            target=target,
            text=text,
            text_noise=text_noise,
            mask=mask,
            weight=weight,
            makes_video=torch.tensor(float(plan.makes_video)),
            makes_text=torch.tensor(float(plan.makes_text)),
            sigma_next=torch.tensor(plan.sigma_next or 0.0) if distills else None,
            own=torch.tensor(plan.own) if distills else None,
            again=torch.randn((2, *latent.shape), generator=generator) if matches else None,
            sigma_again=torch.tensor([draw_sigma(self.config.video_times, generator) for _ in "12"])
            if matches
            else None,
            free=free_parts(plan.held, latent.shape, generator) if self.config.hold_share else None,
        )

    def _texts(self, sample: Sample, plan: SamplePlan) -> tuple[Tensor, Tensor]:
        """The rows of the prompt condition, and the ids that the text stream is to become."""
        is_refined = self.config.stage in ("refine", "distill") and plan.makes_text
        if sample.detail_ids is None or sample.detail_states is None:
            if self.config.stage == "refine" and plan.makes_text:
                raise UniViGUError(f"{sample.name}: there is no detailed caption, which the stage refine needs")
            return sample.prompt_states, sample.prompt_ids
        # In refine the brief prompt is what is known, the detailed caption what is to be seen (paper, section 3.3).
        is_given = plan.detailed and not is_refined
        states = sample.detail_states if is_given else sample.prompt_states
        return states, sample.detail_ids if is_given or is_refined else sample.prompt_ids
