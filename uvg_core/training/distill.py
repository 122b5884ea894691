"""The losses of the stage ``distill``: a student that draws with few passes and without guidance.

The teacher is the network that the run starts from, with guidance. It takes several Euler steps from the start of a
student's pass to its end, and the student learns the mean velocity between the two (progressive distillation, arXiv
2202.00512, and guidance distillation, arXiv 2210.03142, in one stage). The teacher's differential equation maps each
point to exactly one other, so that there is no average over several targets that would blur. The points which the
student reaches by itself differ from clips with noise, so that a share of the passes starts there.

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

from ..config import RunConfig
from ..flow.schedule import shift_sigmas, unshift_sigmas
from ..model import Prediction, UniViGU
from ..sampling.guidance import guide
from .config import TrainConfig
from .objective import Losses, Objective
from .plan import Batch, padded_states, student_sigmas


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
        layers: list[Any] = [layer for layer in self.model.modules() if hasattr(layer, "enable_adapters")]
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield self.model
        finally:
            for layer in layers:
                layer._disable_adapters = False
