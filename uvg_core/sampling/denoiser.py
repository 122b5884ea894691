"""What the jobs ask for predictions."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..config import ModelConfig
from ..model import PassOptions, Prediction, VideoCache
from .streams import TextStream, VideoStream


class Denoiser(Protocol):
    """A network with its prompt conditions, its guidance and whatever a host adds."""

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

    def __call__(self, video: VideoStream, text: TextStream, step: int, options: PassOptions) -> Prediction:
        """The prediction for both streams at the start of ``step``, from 0; ``options`` say which heads are wanted,
        whether the video is held clean, and give the cache."""
        ...
