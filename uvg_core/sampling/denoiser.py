"""What the jobs ask for predictions."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..config import ModelConfig
from ..model import PassOptions, Prediction, VideoCache
from .streams import TextStream, VideoStream


class Moment(NamedTuple):
    """Where a run is: at the start of ``step`` of ``steps``, with both streams' times on the network's clock."""

    step: int
    steps: int
    time_video: float
    time_text: float


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

    def __call__(self, video: VideoStream, text: TextStream, at: Moment, options: PassOptions) -> Prediction:
        """The prediction for both streams as they are ``at`` that moment; ``options`` say which heads are wanted,
        whether the video is held clean, and give the cache."""
        ...
