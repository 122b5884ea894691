"""The one loop of all three jobs: predict, then advance whatever is not held clean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow.discrete import NOT_FINITE
from ..model import PassOptions, Prediction, VideoCache
from .denoiser import Denoiser
from .finite import FiniteCheck
from .streams import TextStream, VideoStream, steps_of


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


def latent_not_finite(where: str) -> str:
    """The words for a latent that has gone wrong."""
    return (
        f"the video latent holds values that are not numbers {where}; expected finite numbers. In float16, run in "
        "bfloat16 or float32 instead; else check the VAE, the checkpoint and the strength of LoRAs"
    )


@torch.no_grad()
def run(
    video: VideoStream,
    text: TextStream,
    denoise: Denoiser,
    *,
    solver: str = "euler",
    cache: VideoCache | None = None,
    refresh: int = 0,
    callback: Callback | None = None,
) -> tuple[VideoStream, TextStream]:
    """Carry both streams from noise to data.

    ``callback(step, state)`` is called after every step, ``step`` counting from 1; when it returns False the run stops
    there and gives what it has. ``solver``: ``euler`` or ``heun`` (two predictions a step, second order). ``cache``
    keeps what the network made of a clip that is held clean, renewed every ``refresh`` steps (0: never).
    Raises UniViGUError for a latent or logits that are not finite, before the run or after any step; on CUDA a step or
    two later, at the latest when the run is over (``FiniteCheck``).
    """
    steps, finite = steps_of(video, text), FiniteCheck()

    def predict(video: VideoStream, step: int, logits: bool) -> Prediction:
        return denoise(video, text, step, PassOptions(not video.held, logits and not text.held, video.held, cache))

    finite.add(video.latent.isfinite().all(), latent_not_finite("before the first step"))
    text, stopped = text.with_content(text.content), False
    for step in range(steps):
        if cache is not None and refresh and step % refresh == 0:
            cache.clear()
        here = predict(video, step, True)
        moved, text = video.advanced(here.velocity, step), text.advanced(here.logits, step)
        for check in text.update.checks():
            finite.add(check, NOT_FINITE)
        if solver == "heun" and moved.sigma(step + 1) > 0:
            moved = video.corrected(here.velocity, predict(moved, step + 1, False).velocity, step)
        if not video.held:  # else nothing has moved
            finite.add(moved.latent.isfinite().all(), latent_not_finite(f"after step {step + 1} of {steps}"))
        if callback is not None:
            stopped = callback(step + 1, _state(video, moved, text, here.velocity, step, steps)) is False
        video = moved
        del here, moved  # a vocabulary of logits, which the next pass has no use for
        if stopped or (text.settled and video.held):
            break
    if text.update.final_pass and not stopped:
        video, held = VideoStream(video.latent), TextStream(text.content, mask=text.mask)
        logits = denoise(video, held, steps, PassOptions(want_velocity=False, video_clean=True)).logits
        assert logits is not None
        text = text.with_content(text.update.finish(text.content, logits))
    finite.close()
    return video, text


def _state(
    before: VideoStream, after: VideoStream, text: TextStream, velocity: Tensor | None, step: int, steps: int
) -> State:
    estimate, there = before.estimate(velocity, step), step + 1
    return State(there, steps, after.latent, estimate, text, after.sigma(there), text.tau(there))


def spread(count: int, wanted: int) -> set[int]:
    """``wanted`` of the steps 1..``count``, evenly, the first and the last included."""
    wanted = min(wanted, count)
    if wanted < 2:
        return {count} if wanted else set()
    return {1 + round(i * (count - 1) / (wanted - 1)) for i in range(wanted)}
