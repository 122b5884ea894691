"""The only caller of the model: streams in, prediction out, guidance applied."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..model import Prediction, VideoCache
from ..model.kv_cache import free_memory
from ..model.memory import pass_bytes, video_tokens
from .guidance import guide
from .streams import TextStream, VideoStream
from .video_cache import EXACT, CachePolicy

Model = Callable[..., Prediction]
CPU_TOGETHER = 2**30  # bytes of a batch: a CPU gains by one of both passes only where they are small


def _one_batch(parts: list[Tensor]) -> Tensor:
    """The rows of all; nothing is copied for one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class Predictor:
    """A network with its prompt condition ``[B,S,E]`` and, for guidance, the empty prompt's.

    Both passes see the same text stream, as in the release; logits are those of the conditional pass. Steps from
    ``guided_steps`` on make that pass alone. ``cache`` keeps what the network made of a held-clean video between the
    steps, as often as ``policy`` says.
    """

    model: Model
    context: Tensor
    null_context: Tensor | None = None
    guidance_scale: float = 1.0
    guided_steps: float = math.inf
    cache: VideoCache | None = None
    policy: CachePolicy = EXACT

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance_scale):
            raise UniViGUError(f"guidance_scale is {self.guidance_scale}; expected a finite number, 1 for no guidance")
        if self.guidance_scale != 1 and self.null_context is None:
            raise UniViGUError(
                f"guidance_scale is {self.guidance_scale}: guidance needs null_context, the condition "
                "of the empty prompt; pass it or set guidance_scale=1"
            )

    def __call__(self, video: VideoStream, text: TextStream, step: int, want_logits: bool = True) -> Prediction:
        """Predict at the start of ``step``; heads that no stream needs are left out."""
        times = video.model_time(step), text.model_time(step)
        if self.cache is not None and self.policy.due(step):
            self.cache.clear()
        predictor = self if step < self.guided_steps else replace(self, guidance_scale=1.0)
        wanted = {"want_velocity": not video.held, "want_logits": want_logits and not text.held}
        return predictor.at(video, text, *times, **wanted)

    def at(
        self,
        video: VideoStream,
        text: TextStream,
        time_video: float,
        time_text: float,
        *,
        want_velocity: bool = True,
        want_logits: bool = True,
    ) -> Prediction:
        """Predict at given times on the network's clock."""
        latent = video.latent
        rows, device = latent.shape[0], latent.device
        kept: dict[str, Any] = {} if self.cache is None else {"cache": self.cache}
        if getattr(getattr(self.model, "config", None), "v2t_attention", "") == "one_way":
            kept["video_clean"] = video.held or time_video == 0

        def run(*contexts: Tensor, want_logits: bool | slice) -> Prediction:
            """One batch of as many passes as there are conditions."""
            count = len(contexts)
            velocity, logits = self.model(
                _one_batch([latent] * count),
                _one_batch([text.content] * count),
                torch.full((count * rows,), time_video, device=device),
                torch.full((count * rows,), time_text, device=device),
                _one_batch([context.expand(rows, -1, -1) for context in contexts]),
                None if text.mask is None else _one_batch([text.mask] * count),
                want_velocity=want_velocity,
                want_logits=want_logits,
                **kept,
            )
            return Prediction(None if velocity is None else velocity.to(latent.dtype), logits)

        if not want_velocity or self.guidance_scale == 1:
            return run(self.context, want_logits=want_logits)
        assert self.null_context is not None
        if not self._together(latent, text, want_logits):
            velocity, logits = run(self.context, want_logits=want_logits)
            null = run(self.null_context, want_logits=False).velocity
        else:
            contexts = self.context, self.null_context
            both, logits = run(*contexts, want_logits=slice(0, rows) if want_logits else False)
            assert both is not None
            velocity, null = both.chunk(2)
        assert velocity is not None
        assert null is not None
        return Prediction(guide(null, velocity, self.guidance_scale), logits)

    def _together(self, latent: Tensor, text: TextStream, want_logits: bool) -> bool:
        """Whether both passes of guidance go through the network as one batch: where they fit."""
        config, null = getattr(self.model, "config", None), self.null_context
        if config is None or null is None or null.shape[1:] != self.context.shape[1:]:
            return False
        rows = latent.shape[0]
        number = getattr(self.model, "computes_in", lambda video: torch.float32)(latent).itemsize
        sizes = {"video": video_tokens(latent.shape[2:], config), "text": text.content.shape[1], "itemsize": number}
        needed = pass_bytes(config, rows=2 * rows, logits=rows if want_logits else 0, **sizes)
        return needed < (CPU_TOGETHER if latent.device.type == "cpu" else free_memory(latent.device))
