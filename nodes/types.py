"""The pack's own socket type, and the one place for its category."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

CATEGORY = "Uni-ViGU"
UvgText = io.Custom("UVG_TEXT")


@dataclass(frozen=True)
class RecordedStep:
    """One step of a run: ``tokens`` ``[B,L]`` as they stood; ``latent`` ``[1,16,F,h,w]`` the clip that the first video
    of the batch pointed at, in the VAE's space, None where no video formed; ``sigma`` the noise that was left."""

    step: int
    steps: int
    sigma: float
    tokens: Tensor
    latent: Tensor | None


@dataclass(frozen=True)
class GeneratedText:
    """What travels as UVG_TEXT: token ids ``[B,L]`` on the CPU, and the steps that were recorded on the way."""

    tokens: Tensor
    record: tuple[RecordedStep, ...] = ()
