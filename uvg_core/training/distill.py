"""The losses of the stage ``distill``: a student that draws with few passes and without guidance.

The teacher is the network that the run starts from, with guidance. It takes several Euler steps from the start of a
student's pass to its end, and the student learns the mean velocity between the two (progressive distillation, arXiv
2202.00512, and guidance distillation, arXiv 2210.03142, in one stage). The teacher's differential equation maps each
point to exactly one other, so that there is no average over several targets that would blur. The points which the
student reaches by itself differ from clips with noise, so that a share of the passes starts there.

A student of few passes cannot follow every trajectory: of what the teacher does with several objects it learns a part.
With ``matching: distribution`` (DMD2, arXiv 2405.14867) the passes that start at its own points need not lead where the
teacher's would, but to clips that are as likely to be the teacher's. A critic, a second LoRA that has no part in what
is saved, learns the velocity of noisy clips of the student, and the student's clip moves along the difference between
what critic and guided teacher make of it under noise. The paper's discriminator, which needs real clips, is left out.

In joint runs and captions the student learns the teacher's distribution of words at each point.

Legend: B batch, L text tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config import RunConfig
from ..flow.continuous import clean_estimate, interpolate, velocity_target
from ..flow.schedule import shift_sigmas, unshift_sigmas
from ..model import Hooks, Pass, Prediction, UniViGU
from ..sampling.guidance import guide
from .config import TrainConfig
from .objective import Losses, Objective
from .plan import Batch, padded_states, student_sigmas
from .start import CRITIC, use_lora


def is_copied(config: TrainConfig) -> bool:
    """Whether the teacher is a network of its own: without a LoRA that can be left out, every weight changes."""
    return config.stage == "distill" and config.trains != "lora"


class Distillation(Objective):
    """Network in, losses out, as ``Objective``; with a LoRA in it, the teacher is the network without.

    ``empty_states`` ``[n,E]``: the empty prompt's condition."""

    def __init__(self, model: UniViGU, config: TrainConfig, run: RunConfig, empty_states: Tensor) -> None:
        super().__init__(model, config.loss, checkpointing=config.checkpointing)
        self.distill, self.shift = config.distill, run.shift
        self.scale = run.guidance_scale if config.distill.guidance is None else config.distill.guidance
        self.sigmas = student_sigmas(config.distill, "text_to_video", run.shift)
        self.null = padded_states(empty_states, model.config, run)[None]
        # In a tuple: it is no part of what learns, is checkpointed or wrapped for many devices.
        self._whole = (copy.deepcopy(model).eval().requires_grad_(False),) if is_copied(config) else ()

    def forward(self, batch: Batch) -> Losses:
        video, text = self._noisy(batch)
        with torch.no_grad():
            video = self._own(batch, video, text)
        if self.distill.matching == "distribution":
            return self._both(batch, video, text)
        return self._along(batch, video, text)

    def _both(self, batch: Batch, video: Tensor, text: Tensor) -> Losses:
        """Of rows at the student's own points what ``_matched`` says, of the others what ``_along`` says."""
        assert batch.own is not None
        found = Losses(*(torch.zeros(len(video), device=video.device) for _ in Losses._fields))
        for loss, rows in ((self._matched, batch.own), (self._along, ~batch.own)):
            here = rows.nonzero()[:, 0]
            if len(here):
                own = loss(batch.rows(here), video[here], text[here])
                found = Losses(*(all_.index_put((here,), some) for all_, some in zip(found, own, strict=True)))
        return found

    def _along(self, batch: Batch, video: Tensor, text: Tensor) -> Losses:
        """How far the student's passes are from the teacher's trajectory."""
        with torch.no_grad():
            end, told = self._teacher(batch, video, text)
        velocity, said = self._predict(batch, video, text)
        away = self._spread(batch.sigma_video - self._next(batch), video)
        wanted = torch.where(away > 0, (video - end) / away.clamp(min=1e-6), velocity.detach().float())
        video_loss = (velocity.float() - wanted).square().flatten(1).mean(1)
        if said is None or told is None:
            return Losses(video_loss, torch.zeros_like(video_loss))
        with torch.autocast(video_loss.device.type, enabled=False):
            nats = self._unlike(said.float(), told.float())
        return Losses(video_loss, (nats * batch.weight).sum(1) / batch.weight.sum(1))

    def _matched(self, batch: Batch, video: Tensor, text: Tensor) -> Losses:
        """The student's loss, whose gradient is what DMD2's equation 2 says, and the critic's own."""
        noises, sigmas = batch.again, batch.sigma_again
        assert noises is not None
        assert sigmas is not None
        velocity, _ = self._predict(batch, video, text, logits=False)
        clip = clean_estimate(video, velocity.float(), self._spread(batch.sigma_video, video))
        made = clip.detach()
        points = [
            (replace(batch, sigma_video=sigma), interpolate(made, noise, self._spread(sigma, made)))
            for noise, sigma in zip(noises.unbind(1), sigmas.clamp(0.02, 0.98).unbind(1), strict=True)
        ]

        at, x = points[0]
        with torch.no_grad():
            with self._as_teacher() as model:
                real = self._guided(model, at, x, text, logits=False).velocity
            assert real is not None
            critic = self._criticised(at, x, text)
            # Both velocities point at a clean clip: x - sigma * velocity. The weight is DMD's equation 8.
            sigma = self._spread(at.sigma_video, x)
            distance = (clean_estimate(x, real.float(), sigma) - made).abs().flatten(1).mean(1)
            pull = sigma * (real.float() - critic.float()) / self._spread(distance.clamp(min=1e-4), x)
        student = (clip - (made - pull)).square().flatten(1).mean(1) / 2

        at, x = points[1]
        error = self._criticised(at, x, text).float() - velocity_target(made, noises[:, 1])
        return Losses(student + error.square().flatten(1).mean(1), torch.zeros_like(student))

    def _criticised(self, batch: Batch, video: Tensor, text: Tensor) -> Tensor:
        """The critic's velocity."""
        usual = self.hooks
        self.hooks = Hooks(block=self._recomputed_by_critic) if usual.block else usual
        try:
            with self._using(CRITIC) as model:
                return self._predict(batch, video, text, model=model, logits=False)[0]
        finally:
            self.hooks = usual

    def _recomputed_by_critic(self, _: int, run: Any, x: Tensor, at: Pass) -> Tensor:
        """A block that uses the critic's LoRA in the backward pass, too, when the student's is in use."""

        def inside(x: Tensor, at: Pass) -> Tensor:
            with self._using(CRITIC):
                found: Tensor = run(x, at)
            return found

        out: Tensor = checkpoint(inside, x, at, use_reentrant=False)
        return out

    def _unlike(self, said: Tensor, told: Tensor) -> Tensor:
        """How far the student's words are from the teacher's ``[B,L]``: a divergence in nats, or a squared error of
        the embedding flow's velocities."""
        if self.model.config.text_flow == "embedding":
            return (said - told).square().mean(-1)
        likely = told.log_softmax(-1)
        return (likely.exp() * (likely - said.log_softmax(-1))).sum(-1)

    @staticmethod
    def _next(batch: Batch) -> Tensor:
        assert batch.sigma_next is not None
        return batch.sigma_next

    @staticmethod
    def _spread(values: Tensor, like: Tensor) -> Tensor:
        return values.view(-1, *([1] * (like.ndim - 1)))

    def _own(self, batch: Batch, video: Tensor, text: Tensor) -> Tensor:
        """The points ``[B,C,F,H,W]`` where the student's passes begin: its own ones, where ``batch.own`` says so."""
        assert batch.own is not None
        x = batch.noise
        for sigma, sigma_next in zip(self.sigmas[:-1], self.sigmas[1:-1], strict=False):
            moves = batch.own & (batch.sigma_video < sigma - 1e-6)
            if not bool(moves.any()):
                break
            here = torch.full_like(batch.sigma_video, sigma)
            velocity, _ = self._predict(replace(batch, sigma_video=here), x, text, logits=False)
            x = torch.where(self._spread(moves, x), x + velocity.float() * (sigma_next - sigma), x)
        return torch.where(self._spread(batch.own, x), x, video)

    def _teacher(self, batch: Batch, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where the guided teacher leads from ``video``, and what it says of the words there."""
        first, last = (unshift_sigmas(sigma, self.shift) for sigma in (batch.sigma_video, self._next(batch)))
        x, told = video, None
        with self._as_teacher() as model:
            for step in range(self.distill.substeps):
                here, there = (
                    shift_sigmas(first + (last - first) * at / self.distill.substeps, self.shift)
                    for at in (step, step + 1)
                )
                found = self._guided(model, replace(batch, sigma_video=here), x, text, logits=step == 0)
                told = found.logits if step == 0 else told
                assert found.velocity is not None
                x = x + found.velocity.float() * self._spread(there - here, x)
        return x, told

    def _guided(self, model: UniViGU, batch: Batch, video: Tensor, text: Tensor, logits: bool) -> Prediction:
        rows = len(video)
        if self.scale == 1:
            return Prediction(*self._predict(batch, video, text, model=model, logits=logits))
        double: dict[str, Any] = {name: torch.cat([x, x]) for name, x in vars(batch).items() if isinstance(x, Tensor)}
        double["context"] = torch.cat([batch.context, self.null.to(batch.context).expand(rows, -1, -1)])
        twice = torch.cat([text, text])
        velocity, said = self._predict(
            replace(batch, **double), torch.cat([video, video]), twice, model=model, logits=logits and slice(0, rows)
        )
        conditional, null = velocity.chunk(2)
        return Prediction(guide(null, conditional, self.scale), said)

    @contextmanager
    def _as_teacher(self) -> Iterator[UniViGU]:
        """The network that the run started from, for the length of a block."""
        if self._whole:
            yield self._whole[0].to(next(self.model.parameters()).device)
            return
        with self._using(None) as model:
            yield model

    @contextmanager
    def _using(self, lora: str | None) -> Iterator[UniViGU]:
        """The network with another LoRA than the student's, or none, for the length of a block."""
        use_lora(self.model, lora)
        try:
            yield self.model
        finally:
            use_lora(self.model, "default")
