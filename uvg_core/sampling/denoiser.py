"""The network as the jobs see it, and its plain form: one network, its conditions and its guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UniViGUError
from ..model import PassOptions, Prediction, UniViGU, VideoCache
from ..model.memory import free_memory, pass_bytes, video_tokens
from .guidance import guide, guided_steps
from .settings import Sampling
from .streams import TextStream, VideoStream

GUIDANCE_SCALE = 5.0  # the release's
CPU_TOGETHER = 2**30  # bytes of a batch: a CPU gains by one of both passes only where they are small


class Moment(NamedTuple):
    """Where a run is: at the start of ``step`` of ``steps``, with both streams' times on the network's clock."""

    step: int
    steps: int
    time_video: float
    time_text: float


class Want(NamedTuple):
    """Which heads are asked for."""

    velocity: bool = True
    logits: bool = True


BOTH = Want()


class Denoiser(Protocol):
    """What jobs ask for predictions. Prompt conditions, guidance and whatever a host adds are its own business."""

    @property
    def config(self) -> ModelConfig:
        """Sizes and flows of the network."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Rows of E ``[...,D]`` for token ids."""
        ...

    def video_cache(self, **settings: Any) -> VideoCache | None:
        """An empty cache for a clip that is only read, None where there can be none."""
        ...

    def __call__(
        self, video: VideoStream, text: TextStream, at: Moment, want: Want = BOTH, cache: VideoCache | None = None
    ) -> Prediction:
        """The prediction for both streams as they are ``at`` that moment."""
        ...


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

    def __call__(
        self, video: VideoStream, text: TextStream, at: Moment, want: Want = BOTH, cache: VideoCache | None = None
    ) -> Prediction:
        """The prediction for both streams, guided where ``at`` lies in the guided steps."""
        batch = _Batch(self.network, video, text, at, PassOptions(cache=cache, video_clean=video.held))
        context = self._context(video.latent)
        if not want.velocity or self._scale == 1 or at.step >= guided_steps(self.guidance_end, at.steps):
            return batch.predict([context], want)
        assert self.null_context is not None
        if not self._together(context, video.latent, text, want.logits):
            velocity, logits = batch.predict([context], want)
            null = batch.predict([self.null_context], want._replace(logits=False)).velocity
        else:
            both, logits = batch.predict([context, self.null_context], want)
            assert both is not None
            velocity, null = both.chunk(2)
        assert velocity is not None
        assert null is not None
        return Prediction(guide(null, velocity, self._scale), logits)

    def _context(self, latent: Tensor) -> Tensor:
        """The condition. The release's without a prompt is 512 rows of zeros; equal rows make cross-attention average
        the same value, so one row says the same."""
        if self.context is not None:
            return self.context
        return torch.zeros(1, 1, self.config.text_dim, device=latent.device, dtype=latent.dtype)

    def _together(self, context: Tensor, latent: Tensor, text: TextStream, want_logits: bool) -> bool:
        """Whether both passes of guidance go through the network as one batch: where they fit."""
        null = self.null_context
        if null is None or null.shape[1:] != context.shape[1:]:
            return False
        rows, config = latent.shape[0], self.config
        number = self.network.computes_in(latent).itemsize
        needed = pass_bytes(
            config,
            rows=2 * rows,
            video=video_tokens(latent.shape[2:], config),
            text=text.content.shape[1],
            itemsize=number,
            logits=rows if want_logits else 0,
        )
        return needed < (CPU_TOGETHER if latent.device.type == "cpu" else free_memory(latent.device))


@dataclass(frozen=True)
class _Batch:
    """One state of the streams, repeated for as many conditions as it is predicted under."""

    network: UniViGU
    video: VideoStream
    text: TextStream
    at: Moment
    options: PassOptions

    def predict(self, contexts: list[Tensor], want: Want) -> Prediction:
        """One pass of the network; logits of the first condition's rows alone."""
        latent, count = self.video.latent, len(contexts)
        rows, device = latent.shape[0], latent.device
        logits: bool | slice = want.logits if count == 1 else slice(0, rows) if want.logits else False
        velocity, words = self.network(
            _repeated(latent, count),
            _repeated(self.text.content, count),
            torch.full((count * rows,), self.at.time_video, device=device),
            torch.full((count * rows,), self.at.time_text, device=device),
            _joined([context.expand(rows, -1, -1) for context in contexts]),
            None if self.text.mask is None else _repeated(self.text.mask, count),
            replace(self.options, want_velocity=want.velocity, want_logits=logits),
        )
        return Prediction(None if velocity is None else velocity.to(latent.dtype), words)


def _repeated(rows: Tensor, count: int) -> Tensor:
    return _joined([rows] * count)


def _joined(parts: list[Tensor]) -> Tensor:
    """The rows of all; nothing is copied for one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
