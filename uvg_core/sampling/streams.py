"""The two streams of a run: what they hold, where they are on their way, and whether they are held clean.

A run's job is nothing but data: text-to-video holds the text clean, video-to-text the video, joint neither. A stream
that is held clean has model time 0 in every step and comes out of the loop as the very tensor that went in.

Legend: B batch, C channels, F H W latent frames, height, width, L text tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..flow.continuous import clean_estimate, euler_step, heun_correction
from ..flow.time import model_time_from_sigma, text_model_time_from_tau
from .text_updates import NO_UPDATE, TextUpdate


@dataclass(frozen=True)
class Kept:
    """What a run keeps of a clip. Where ``free`` is 0 the stream ends at ``clean`` ``[B,C,F,H,W]``, and on the way has
    as much ``noise`` in it as the step; without ``noise`` it is clean all along (``ModelConfig.held_parts``). Where
    ``free`` is 1 it forms freely; between, both are mixed."""

    clean: Tensor
    free: Tensor
    noise: Tensor | None

    def put_into(self, latent: Tensor, sigma: float) -> Tensor:
        """A latent at this noise share, with what is kept in its place."""
        held = self.clean if self.noise is None else (1 - sigma) * self.clean + sigma * self.noise
        return latent * self.free + held * (1 - self.free)


@dataclass(frozen=True)
class VideoStream:
    """``latent`` ``[B,C,F,H,W]``; ``sigmas`` are the N+1 noise shares of a run, None where it is held clean; ``kept``:
    parts that are not formed anew."""

    latent: Tensor
    sigmas: tuple[float, ...] | None = None
    kept: Kept | None = None

    @property
    def held(self) -> bool:
        """Whether it is held clean."""
        return self.sigmas is None

    @property
    def steps(self) -> int:
        """Steps of the run, 0 where it is held clean."""
        return len(self.sigmas or [0.0]) - 1

    def sigma(self, step: int) -> float:
        """The noise share at the start of ``step``."""
        return 0.0 if self.sigmas is None else self.sigmas[step]

    def model_time(self, step: int) -> float:
        """The network's clock at the start of ``step``: 0 clean, 1000 noise."""
        return model_time_from_sigma(self.sigma(step))

    def advanced(self, velocity: Tensor | None, step: int) -> VideoStream:
        """After an Euler step along the velocity."""
        if self.held or velocity is None:
            return self
        return self._moved(euler_step(self.latent, velocity, self.sigma(step), self.sigma(step + 1)), step + 1)

    def corrected(self, velocity: Tensor | None, velocity_next: Tensor | None, step: int) -> VideoStream:
        """After a Heun step from here, given the velocities at both ends."""
        if velocity is None or velocity_next is None:
            return self
        ends = self.sigma(step), self.sigma(step + 1)
        return self._moved(heun_correction(self.latent, velocity, velocity_next, *ends), step + 1)

    def _moved(self, latent: Tensor, step: int) -> VideoStream:
        return replace(self, latent=latent if self.kept is None else self.kept.put_into(latent, self.sigma(step)))

    def estimate(self, velocity: Tensor | None, step: int) -> Tensor:
        """The clean latent that the velocity points at."""
        if self.held or velocity is None:
            return self.latent
        estimate = clean_estimate(self.latent, velocity, self.sigma(step))
        return estimate if self.kept is None else self.kept.put_into(estimate, 0.0)


@dataclass(frozen=True)
class TextStream:
    """``content``: token ids ``[B,L]`` (discrete flow) or vectors ``[B,L,D]`` (embedding flow).

    ``taus`` are the N+1 path times of a run, None where the text is held clean. ``mask`` ``[B,L]``: true for real
    tokens. ``update``: how noisy text moves on. ``pinned`` (same shape as ids, boolean) marks positions that keep their
    ``anchor`` content all along. ``rounded``: whether the network's text clock is rounded to whole numbers.
    """

    content: Tensor
    taus: tuple[float, ...] | None = None
    mask: Tensor | None = None
    update: TextUpdate = NO_UPDATE
    pinned: Tensor | None = None
    anchor: Tensor | None = None
    rounded: bool = False

    @property
    def held(self) -> bool:
        """Whether it is held clean."""
        return self.taus is None

    def tau(self, step: int) -> float:
        """The path time at the start of ``step``."""
        return 1.0 if self.taus is None else self.taus[step]

    def model_time(self, step: int) -> float:
        """The network's clock at the start of ``step``: 0 clean, 1000 noise."""
        return text_model_time_from_tau(self.tau(step), self.rounded)

    def with_content(self, content: Tensor) -> TextStream:
        """The stream with other content, and the pinned positions at their anchors."""
        if self.pinned is not None and self.anchor is not None:
            pinned = self.pinned if content.ndim == 2 else self.pinned[..., None]
            content = torch.where(pinned, self.anchor, content)
        return replace(self, content=content)

    def advanced(self, logits: Tensor | None, step: int) -> TextStream:
        """After the flow's own kind of step."""
        if self.taus is None or logits is None:
            return self
        return self.with_content(self.update(self.content, logits, step, self.taus))

    @property
    def settled(self) -> bool:
        """Whether the words stand before the last step (see ``JumpProcess``)."""
        return self.update.settled

    def words(self) -> Tensor:
        """Token ids ``[B,L]`` as they stand."""
        return self.update.words(self.content)


def steps_of(video: VideoStream, text: TextStream) -> int:
    """Number of steps of a run; both noisy streams must agree on it."""
    lengths = {len(times) - 1 for times in (video.sigmas, text.taus) if times is not None}
    if len(lengths) != 1:
        raise UniViGUError(
            "a run needs at least one noisy stream, and the same number of steps for both; "
            f"found {sorted(lengths) or 'none'}"
        )
    return lengths.pop()
