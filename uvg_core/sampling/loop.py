"""The one loop of all three jobs: predict, then advance whatever is not held clean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow.discrete import NOT_FINITE
from ..model import Prediction, VideoCache
from .denoiser import Denoiser, Moment, Want
from .finite import FiniteCheck
from .settings import SOLVERS
from .streams import TextStream, VideoStream, steps_of
from .video_cache import EXACT, CachePolicy

__all__ = ["SOLVERS", "Callback", "State", "run", "spread"]


@dataclass(frozen=True)
class State:
    """Where a run stands after a step.

    ``latent`` ``[B,C,F,H,W]`` as it is, ``estimate`` the clean latent it points at (for previews), ``text`` the text
    stream; ``sigma`` and ``tau`` are where the streams have arrived.
    """

    step: int
    steps: int
    latent: Tensor
    estimate: Tensor
    text: TextStream
    sigma: float
    tau: float

    @property
    def tokens(self) -> Tensor:
        """The text as it reads now, ids ``[B,L]``; worked out when it is asked for."""
        return self.text.words()


Callback = Callable[[int, State], object]


def _latent_not_finite(where: str) -> str:
    return (
        f"the video latent holds values that are not numbers {where}; expected finite numbers. In float16, run in "
        "bfloat16 or float32 instead; else check the VAE, the checkpoint and the strength of LoRAs"
    )


@dataclass(frozen=True)
class _Run:
    """What predicts in a run, and the clip's cache between its steps."""

    denoise: Denoiser
    steps: int
    cache: VideoCache | None
    policy: CachePolicy

    def predict(self, video: VideoStream, text: TextStream, step: int, want_logits: bool = True) -> Prediction:
        """The prediction at the start of ``step``; heads that no stream needs are left out."""
        if self.cache is not None and self.policy.due(step):
            self.cache.clear()
        at = Moment(step, self.steps, video.model_time(step), text.model_time(step))
        return self.denoise(video, text, at, Want(not video.held, want_logits and not text.held), self.cache)


@torch.no_grad()
def run(
    video: VideoStream,
    text: TextStream,
    denoise: Denoiser,
    *,
    solver: str = "euler",
    cache: VideoCache | None = None,
    policy: CachePolicy = EXACT,
    callback: Callback | None = None,
) -> tuple[VideoStream, TextStream]:
    """Carry both streams from noise to data.

    ``callback(step, state)`` is called after every step, ``step`` counting from 1; when it returns False the run stops
    there and gives what it has. ``solver``: ``euler`` or ``heun`` (two predictions a step, second order). ``cache``
    keeps what the network made of a clip that is held clean, as often renewed as ``policy`` says.
    Raises UniViGUError for a latent or logits that are not finite, before the run or after any step; on CUDA a step or
    two later, at the latest when the run is over (``FiniteCheck``).
    """
    steps = steps_of(video, text)
    runs, finite = _Run(denoise, steps, cache, policy), FiniteCheck()
    finite.add(video.latent.isfinite().all(), _latent_not_finite("before the first step"))
    text = text.with_pins()
    for step in range(steps):
        here = runs.predict(video, text, step)
        moved = video.advanced(here.velocity, step)
        text = text.advanced(here.logits, step)
        for check in text.checks():
            finite.add(check, NOT_FINITE)
        if solver == "heun" and video.sigmas is not None and video.sigmas[step + 1] > 0:
            there = runs.predict(moved, text, step + 1, want_logits=False)
            assert here.velocity is not None
            assert there.velocity is not None
            moved = video.corrected(here.velocity, there.velocity, step)
        if not video.held:  # else nothing has moved
            finite.add(moved.latent.isfinite().all(), _latent_not_finite(f"after step {step + 1} of {steps}"))
        if callback is not None:
            state = _state(step, steps, moved, video.estimate(here.velocity, step), text)
            if callback(step + 1, state) is False:
                finite.close()
                return moved, text
            del state
        video = moved
        del here, moved  # a vocabulary of logits, which the next pass has no use for
        if text.settled and video.held:
            break
    if text.update is not None and text.update.final_pass:
        clean = VideoStream(video.latent)
        last = denoise(clean, text, Moment(steps, steps, 0.0, 0.0), Want(velocity=False), None)
        assert last.logits is not None
        text = text.finished(last.logits)
    finite.close()
    return video, text


def _state(step: int, steps: int, moved: VideoStream, estimate: Tensor, text: TextStream) -> State:
    sigma = 0.0 if moved.sigmas is None else moved.sigmas[step + 1]
    tau = 1.0 if text.taus is None else text.taus[step + 1]
    return State(step + 1, steps, moved.latent, estimate, text, sigma, tau)


def spread(count: int, wanted: int) -> set[int]:
    """``wanted`` of the steps 1..``count``, evenly, the first and the last included."""
    wanted = min(wanted, count)
    if wanted < 2:
        return {count} if wanted else set()
    return {1 + round(i * (count - 1) / (wanted - 1)) for i in range(wanted)}
