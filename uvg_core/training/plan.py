"""What each clip of a step is used for: its job, its times, its texts and its noise.

Everything random is a pure function of (seed, stage, position), where position counts clips since the start of the run:
stages with one seed do not draw the same again. A continued run draws what an uninterrupted one would have drawn, and
it does not matter how a global batch is split over processes and accumulation steps.

Legend: B batch, C F H W latent, L text tokens, S rows and E width of the prompt condition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import ModelConfig, RunConfig
from ..errors import UniViGUError
from ..flow.discrete import MixturePath, corrupt, source_tokens
from ..flow.schedule import shift_sigmas
from ..flow.time import tau_from_sigma
from .config import Times, TrainConfig

if TYPE_CHECKING:
    from ..data.shards import Sample

JOBS = ("text_to_video", "video_to_text", "joint")


def stream_of(seed: int, *position: int | str) -> torch.Generator:
    """A generator for one purpose at one position; neighbouring positions have nothing in common."""
    name = f"{seed}/{'/'.join(map(str, position))}".encode()
    number = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")
    return torch.Generator().manual_seed(number)


class Order:
    """Which clip comes at which position: every epoch is a new permutation."""

    def __init__(self, clips: int, seed: int, stage: str = "") -> None:
        self.clips, self.seed, self.stage = clips, seed, stage
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def clip(self, position: int) -> int:
        epoch, place = divmod(position, self.clips)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = torch.randperm(self.clips, generator=stream_of(self.seed, self.stage, "epoch", epoch))
        return int(self._permutation[place])


def draw_sigma(times: Times, generator: torch.Generator) -> float:
    """A noise share in [0, 1] of the given distribution."""
    u = torch.rand(2, generator=generator, dtype=torch.float64)
    normal = torch.randn((), generator=generator, dtype=torch.float64)
    if times.kind == "uniform" or float(u[1]) < times.uniform_share:
        return float(u[0])
    if times.kind == "logit_normal":
        return float(torch.sigmoid(times.mean + times.std * normal))
    return float(shift_sigmas(u[0], times.shift))


@dataclass(frozen=True)
class SamplePlan:
    """What one clip of a step is used for. ``sigma_video``, ``sigma_text``: noise shares, 0 where held clean."""

    position: int
    job: str
    sigma_video: float
    sigma_text: float
    dropped: bool  # the prompt condition is left out
    detailed: bool  # the detailed caption stands in for the prompt
    without_text: bool  # the text stream is empty: plain Wan

    @property
    def makes_video(self) -> bool:
        return self.job != "video_to_text"

    @property
    def makes_text(self) -> bool:
        return self.job != "text_to_video"


def plan_sample(config: TrainConfig, position: int) -> SamplePlan:
    """The plan of the clip at ``position``, the same for every process."""
    generator = stream_of(config.seed, config.stage, "lot", position)
    u = torch.rand(5, generator=generator).tolist()
    shares = [getattr(config.jobs, name) for name in JOBS]
    job = JOBS[0] if config.stage == "generate" else JOBS[_choice(shares, u[0])]
    sigma_video, sigma_text = draw_sigma(config.video_times, generator), draw_sigma(config.text_times, generator)
    if job == "joint" and u[1] < config.joint_shared:
        sigma_text = sigma_video
    return SamplePlan(
        position,
        job,
        sigma_video=0.0 if job == "video_to_text" else sigma_video,
        sigma_text=0.0 if job == "text_to_video" else sigma_text,
        dropped=u[2] < getattr(config.dropout, job),
        detailed=u[3] < config.detail_share,
        without_text=job == "text_to_video" and (config.stage == "generate" or u[4] < config.empty_text),
    )


def _choice(shares: Sequence[float], u: float) -> int:
    reached, total = 0.0, sum(shares)
    for index, share in enumerate(shares):
        reached += share / total
        if u < reached:
            return index
    return max(i for i, share in enumerate(shares) if share > 0)


@dataclass(frozen=True)
class Batch:
    """Tensors of some clips of a step.

    ``latents``, ``noise`` ``[B,C,F,H,W]``; ``sigma_video``, ``sigma_text`` ``[B]``; ``context`` ``[B,S,E]``;
    ``target`` ``[B,L]`` ids the text stream is to become; ``text`` ``[B,L]`` ids it holds now (the discrete flow's
    noisy tokens; the target itself in the embedding flow, where ``text_noise`` ``[B,L,D]`` is mixed in; D is 0 else);
    ``mask`` ``[B,L]`` false for positions nobody sees; ``weight`` ``[B,L]`` of each position in the
    loss; ``makes_video``, ``makes_text`` ``[B]`` 0 or 1.

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

    def to(self, device: torch.device) -> Batch:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: part.to(device) for name, part in parts.items() if isinstance(part, Tensor)}
        return Batch(**{**parts, **moved})


class Collator:
    """Turns clips and their plans into tensors. ``empty_states`` ``[n,E]``: the empty prompt's condition."""

    def __init__(self, model: ModelConfig, run: RunConfig, config: TrainConfig, empty_states: Tensor) -> None:
        self.model, self.run, self.config, self.empty = model, run, config, empty_states
        self.path = MixturePath(model.kappa_exponent)
        self.mask_token = model.mask_token if model.source == "mask" and model.text_flow == "discrete" else None

    def __call__(self, samples: Sequence[Sample], plans: Sequence[SamplePlan]) -> Batch:
        rows = [self._row(sample, plan) for sample, plan in zip(samples, plans, strict=True)]
        parts: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        clean = {plan.sigma_video == 0 for plan in plans}
        return Batch(
            **parts,
            hides=not bool(parts["mask"].all()),
            video_clean=clean.pop() if len(clean) == 1 else None,
        )

    def _row(self, sample: Sample, plan: SamplePlan) -> dict[str, Tensor]:
        generator = stream_of(self.config.seed, self.config.stage, "noise", plan.position)
        latent = sample.latent.float()
        noise = torch.randn(latent.shape, generator=generator)
        has_detail = sample.detail_ids is not None and sample.detail_states is not None
        is_detailed = plan.detailed and has_detail
        given_ids = sample.detail_ids if is_detailed else sample.prompt_ids
        given_states = sample.detail_states if is_detailed else sample.prompt_states
        assert given_ids is not None
        assert given_states is not None
        if self.config.stage == "refine" and plan.makes_text:
            # The brief prompt is what is known, the detailed caption what is to be seen (paper, section 3.3).
            given_states, written = sample.prompt_states, sample.detail_ids
            if written is None:
                raise UniViGUError(f"{sample.name}: there is no detailed caption, and the stage refine writes them")
        else:
            written = given_ids
        context = torch.zeros(self.run.context_length, self.model.text_dim)
        if plan.dropped:
            given_states = self.empty if plan.makes_video else given_states[:0]
        context[: len(given_states)] = given_states

        length = 0 if self.config.stage == "generate" else self.run.text_length
        target = torch.full((length,), self.run.pad_token, dtype=torch.long)
        mask = torch.zeros(length, dtype=torch.bool)
        weight = torch.ones(length)
        text, text_noise = target, torch.empty(length, 0)
        if length:
            target[: len(written)] = written
            mask[:] = True
            weight[len(written) :] = self.config.loss.padding
            if not plan.makes_text:
                mask[len(written) :] = False
            if plan.without_text:
                mask[:] = False
            if self.model.text_flow == "embedding":
                text_noise = torch.randn(length, self.model.dim, generator=generator)
            else:
                source = source_tokens(
                    (1, length), vocab_size=self.model.vocab_size, mask_token=self.mask_token, generator=generator
                )
                tau = torch.tensor([tau_from_sigma(plan.sigma_text)])
                text = corrupt(target[None], tau, self.path, source, generator)[0]
        return {
            "latents": latent,
            "noise": noise,
            "sigma_video": torch.tensor(plan.sigma_video),
            "sigma_text": torch.tensor(plan.sigma_text),
            "context": context,
            "target": target,
            "text": text,
            "text_noise": text_noise,
            "mask": mask,
            "weight": weight,
            "makes_video": torch.tensor(float(plan.makes_video)),
            "makes_text": torch.tensor(float(plan.makes_text)),
        }
