"""Classifier-free guidance (arXiv 2207.12598) between a prompt's condition and the empty prompt's.

In ComfyUI core's guider does this; ``guided_until`` in ``nodes/comfy/sampling.py`` ends it there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UniViGUError
from ..model import PassOptions, Prediction, UniViGU, VideoCache
from ..model.memory import free_memory, pass_bytes, video_tokens
from ..model.streams import join
from .settings import Sampling
from .streams import TextStream, VideoStream

GUIDANCE_SCALE = 5.0  # the release's
CPU_TOGETHER = 2**30  # bytes of a batch: a CPU gains by one of both passes only where they are small


def guide(null: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """v_null + s * (v_cond - v_null); s = 1 is no guidance."""
    return null + scale * (conditional - null)


def guided_steps(end: float, steps: int) -> int:
    """How many of ``steps`` are guided where the share ``end``, from the noisiest on, is (arXiv 2404.07724): a step
    begun within the share is. Raises UniViGUError for an ``end`` off [0, 1]."""
    if not 0 <= end <= 1:
        raise UniViGUError(f"guidance_end is {end}; expected a share of the steps, from 0 to 1")
    return math.ceil(end * steps - 1e-9)  # 0.55 * 100 is a little more than 55


@dataclass(frozen=True)
class GuidedDenoiser:
    """A network with its prompt condition ``context`` ``[B,S,E]`` (None: no prompt, zeros as in the release) and, for
    guidance, the empty prompt's.

    Both passes of guidance see the same text stream, as in the release; logits are those of the conditional pass. The
    share ``guidance_end`` of the steps is guided, from the noisiest on. ``guidance_scale`` None: 5, the release's,
    where there is a ``null_context``. Raises UniViGUError for a scale that is not finite or lacks a null_context."""

    network: UniViGU
    context: Tensor | None = None
    null_context: Tensor | None = None
    guidance_scale: float | None = None
    guidance_end: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self._scale):
            raise UniViGUError(f"guidance_scale is {self._scale}; expected a finite number, 1 for no guidance")
        if self._scale != 1 and self.null_context is None:
            raise UniViGUError(
                f"guidance_scale is {self._scale}: guidance needs null_context, the condition of the empty prompt; "
                "pass it or set guidance_scale=1"
            )
        guided_steps(self.guidance_end, 1)

    @classmethod
    def of(cls, network: UniViGU, context: Tensor, null_context: Tensor | None, sampling: Sampling) -> GuidedDenoiser:
        """With the guidance of ``sampling``."""
        return cls(network, context, null_context, sampling.guidance_scale, sampling.guidance_end)

    @property
    def _scale(self) -> float:
        usual = 1.0 if self.null_context is None else GUIDANCE_SCALE
        return usual if self.guidance_scale is None else self.guidance_scale

    @property
    def config(self) -> ModelConfig:
        """Sizes and flows of the network."""
        return self.network.config

    def embed(self, tokens: Tensor) -> Tensor:
        """Rows of E for token ids."""
        return self.network.embed(tokens)

    def video_cache(self, **settings: Any) -> VideoCache | None:
        """An empty cache; ``settings`` as of ``VideoCache``."""
        return self.network.video_cache(**settings)

    def __call__(self, video: VideoStream, text: TextStream, step: int, options: PassOptions) -> Prediction:
        """The prediction for both streams, guided where ``step`` is one of the guided steps."""
        latent, null = video.latent, self.null_context
        # The release's condition without a prompt is 512 rows of zeros. Equal rows make cross-attention average the
        # same value: one row gives the same.
        context = latent.new_zeros(1, 1, self.config.text_dim) if self.context is None else self.context
        unguided = not options.want_velocity or self._scale == 1 or step >= guided_steps(self.guidance_end, video.steps)
        if unguided or null is None:
            velocities, logits = self._predict([context], video, text, step, options)
            return Prediction(velocities[0] if velocities else None, logits)
        if self._fit_together(context, null, video, text, options):
            (velocity, without), logits = self._predict([context, null], video, text, step, options)
        else:
            (velocity,), logits = self._predict([context], video, text, step, options)
            (without,), _ = self._predict([null], video, text, step, replace(options, want_logits=False))
        return Prediction(guide(without, velocity, self._scale), logits)

    def _fit_together(
        self, context: Tensor, null: Tensor, video: VideoStream, text: TextStream, options: PassOptions
    ) -> bool:
        """Whether both passes of guidance go through the network as one batch."""
        rows, _, *size = video.latent.shape
        needed = pass_bytes(
            self.config,
            rows=2 * rows,
            video=video_tokens(size, self.config),
            text=text.content.shape[1],
            itemsize=self.network.computes_in(video.latent).itemsize,
            logits=rows if options.want_logits else 0,
        )
        device = video.latent.device
        free = CPU_TOGETHER if device.type == "cpu" else free_memory(device)
        return null.shape[1:] == context.shape[1:] and needed < free

    def _predict(
        self, contexts: list[Tensor], video: VideoStream, text: TextStream, step: int, options: PassOptions
    ) -> tuple[list[Tensor], Tensor | None]:
        """One pass of the network: a velocity under each of ``contexts``, if wanted, and the logits under the first."""
        latent, count = video.latent, len(contexts)
        rows, device = len(latent), latent.device
        if count > 1 and options.want_logits:
            options = replace(options, want_logits=slice(0, rows))
        velocity, logits = self.network(
            join([latent] * count, 0),
            join([text.content] * count, 0),
            torch.full((count * rows,), video.model_time(step), device=device),
            torch.full((count * rows,), text.model_time(step), device=device),
            join([context.expand(rows, -1, -1) for context in contexts], 0),
            None if text.mask is None else join([text.mask] * count, 0),
            options,
        )
        return [] if velocity is None else list(velocity.to(latent.dtype).chunk(count)), logits
