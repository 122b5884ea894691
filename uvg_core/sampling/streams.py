"""The two streams of a run: what they hold, where they are on their way, and whether they are held clean.

A run's job is nothing but data: text-to-video holds the text clean, video-to-text the video, joint neither. A stream
that is held clean has model time 0 in every step and comes out of the loop as the very tensor that went in.

Legend: B batch, C channels, F H W latent frames, height, width, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..flow.continuous import clean_estimate, euler_step, heun_correction
from ..flow.time import model_time_from_sigma, text_model_time_from_tau


class TextUpdate(Protocol):
    """How noisy text moves on in a step (``sampling/text_updates.py``)."""

    final_pass: bool

    @property
    def settled(self) -> bool:
        """Whether no further step would change the words."""
        ...

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        """The text stream's content after ``step``, from the network's prediction."""
        ...

    def checks(self) -> list[Tensor]:
        """Whether what was predicted since the last call is finite: boolean scalars."""
        ...

    def words(self, content: Tensor) -> Tensor:
        """Token ids ``[B,L]`` to show for a content."""
        ...

    def finish(self, content: Tensor, logits: Tensor) -> Tensor:
        """The content after the extra pass at time 0, where ``final_pass`` asks for one."""
        ...


@dataclass(frozen=True)
class VideoStream:
    """``latent`` ``[B,C,F,H,W]``; ``sigmas`` are the N+1 noise shares of a run, None where it is held clean."""

    latent: Tensor
    sigmas: tuple[float, ...] | None = None

    @property
    def held(self) -> bool:
        return self.sigmas is None

    def model_time(self, step: int) -> float:
        """The network's clock at the start of ``step``: 0 clean, 1000 noise."""
        return 0.0 if self.sigmas is None else model_time_from_sigma(self.sigmas[step])

    def advanced(self, velocity: Tensor | None, step: int) -> VideoStream:
        """After an Euler step along the velocity."""
        if self.sigmas is None or velocity is None:
            return self
        return replace(self, latent=euler_step(self.latent, velocity, self.sigmas[step], self.sigmas[step + 1]))

    def corrected(self, velocity: Tensor, velocity_next: Tensor, step: int) -> VideoStream:
        """After a Heun step from here, given the velocities at both ends."""
        assert self.sigmas is not None
        ends = self.sigmas[step], self.sigmas[step + 1]
        return replace(self, latent=heun_correction(self.latent, velocity, velocity_next, *ends))

    def estimate(self, velocity: Tensor | None, step: int) -> Tensor:
        """The clean latent that the velocity points at."""
        if self.sigmas is None or velocity is None:
            return self.latent
        return clean_estimate(self.latent, velocity, self.sigmas[step])


@dataclass(frozen=True)
class TextStream:
    """``content``: token ids ``[B,L]`` (discrete flow) or vectors ``[B,L,D]`` (embedding flow).

    ``taus`` are the N+1 path times of a run, None where the text is held clean. ``mask`` ``[B,L]``: true for real
    tokens. ``pinned`` (same shape as ids, boolean) marks positions that keep their ``anchor`` content all along.
    ``rounded``: whether the network's text clock is rounded to whole numbers.
    """

    content: Tensor
    taus: tuple[float, ...] | None = None
    mask: Tensor | None = None
    update: TextUpdate | None = None
    pinned: Tensor | None = None
    anchor: Tensor | None = None
    rounded: bool = False

    @property
    def held(self) -> bool:
        return self.taus is None

    def model_time(self, step: int) -> float:
        """The network's clock at the start of ``step``: 0 clean, 1000 noise."""
        if self.taus is None:
            return 0.0
        return text_model_time_from_tau(self.taus[step], self.rounded)

    def with_pins(self) -> TextStream:
        """The same stream with the pinned positions at their anchors."""
        if self.pinned is None or self.anchor is None:
            return self
        where = self.pinned if self.content.ndim == 2 else self.pinned[..., None]
        return replace(self, content=torch.where(where, self.anchor, self.content))

    def advanced(self, logits: Tensor | None, step: int) -> TextStream:
        """After the flow's own kind of step."""
        if self.taus is None or self.update is None or logits is None:
            return self
        return replace(self, content=self.update(self.content, logits, step, self.taus)).with_pins()

    def finished(self, logits: Tensor) -> TextStream:
        """After the extra pass at time 0."""
        assert self.update is not None
        return replace(self, content=self.update.finish(self.content, logits)).with_pins()

    def checks(self) -> list[Tensor]:
        """Whether what the words of the last step were drawn from is finite: boolean scalars."""
        return [] if self.update is None else self.update.checks()

    @property
    def settled(self) -> bool:
        """Whether the words stand before the last step (see ``JumpProcess``)."""
        return self.update is not None and self.update.settled

    def words(self) -> Tensor:
        """Token ids ``[B,L]`` as they stand."""
        return self.content if self.update is None else self.update.words(self.content)


def steps_of(video: VideoStream, text: TextStream) -> int:
    """Number of steps of a run; both noisy streams must agree on it."""
    lengths = {len(times) - 1 for times in (video.sigmas, text.taus) if times is not None}
    if len(lengths) != 1:
        raise UniViGUError(
            "a run needs at least one noisy stream, and the same number of steps for both; "
            f"found {sorted(lengths) or 'none'}"
        )
    return lengths.pop()
