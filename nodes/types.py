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
    of the batch pointed at, in the VAE's space, None where no video formed; ``sigma`` and ``tau`` the clocks."""

    step: int
    steps: int
    sigma: float
    tau: float
    tokens: Tensor
    latent: Tensor | None


@dataclass(frozen=True)
class GeneratedText:
    """What travels as UVG_TEXT: token ids ``[B,L]`` on the CPU, and the steps that were recorded on the way."""

    tokens: Tensor
    record: tuple[RecordedStep, ...] = ()


def spread(count: int, wanted: int) -> set[int]:
    """``wanted`` of the steps 1..``count``, evenly, the first and the last included."""
    wanted = min(wanted, count)
    if wanted < 2:
        return {count} if wanted else set()
    return {1 + round(i * (count - 1) / (wanted - 1)) for i in range(wanted)}
