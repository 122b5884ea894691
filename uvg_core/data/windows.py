"""Which part of a clip is used, and in which of the sizes that a training has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..config import RunConfig
from ..media.video import ClipInfo, ClipSpec
from .left_out import TOO_LONG, TOO_SHORT, Unusable
from .settings import Buckets, Data

_GRID = 16  # pixels: of a latent's patch
_SLACK = 1e-3  # seconds


class Window(NamedTuple):
    """A part of a clip: seconds from its beginning, and how its frames are read. ``seconds`` is None to the end."""

    start: float
    seconds: float | None
    spec: ClipSpec


def lengths_of(run: RunConfig, buckets: Buckets) -> list[int]:
    """The lengths in frames that clips are used in, ascending; 1 is for pictures."""
    return sorted(set(buckets.frames or (run.frames,)))


def shapes_of(run: RunConfig, buckets: Buckets) -> list[tuple[int, int]]:
    """Heights and widths, the model's own first, none of them of a larger area."""
    area, shapes = run.height * run.width, {(run.height, run.width): None}
    for number in range(buckets.shapes if buckets.shapes > 1 else 0):
        aspect = buckets.widest ** (2 * number / (buckets.shapes - 1) - 1)
        height = max(_GRID, round(math.sqrt(area / aspect) / _GRID) * _GRID)
        shapes[height, max(_GRID, int(area / height) // _GRID * _GRID)] = None
    return list(shapes)


def kept_of(info: ClipInfo, shape: tuple[int, int]) -> float:
    """The share of a clip's picture that is left when it is cropped to a shape (height, width), and that is not bars
    when it is padded."""
    wider = (info.width * shape[0]) / (info.height * shape[1])
    return min(wider, 1 / wider)


def best_shape(info: ClipInfo, shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The shape that is closest to a clip's own; of several, the first."""
    return max(shapes, key=lambda shape: round(kept_of(info, shape), 6))


def is_long(seconds: float, frames: int, fps: float) -> bool:
    """Whether there is more to see than so many frames show."""
    return seconds > (frames + 1) / fps


def windows_of(
    info: ClipInfo, part: tuple[float, float | None], run: RunConfig, how: Data, lengths: Sequence[int]
) -> tuple[int, list[tuple[float, float | None, bool]]]:
    """How many frames are taken of the ``part`` of a clip (start, seconds) that its caption speaks of, and where:
    start, seconds, and whether they are spread evenly over these instead of taken at the model's rate.

    Raises Unusable for a clip that is too short, or too long for one caption."""
    start, seconds = part
    span = info.duration - start if seconds is None else min(seconds, info.duration - start)
    moving = [length for length in lengths if length > 1] or [run.frames]
    fitting = [length for length in moving if (length - 1) / run.fps <= span - _SLACK]
    if not fitting:
        raise Unusable(f"{TOO_SHORT} for {moving[0]} frames at {run.fps:g} fps", f"{max(span, 0.0):.2f} s")
    frames = fitting[-1]
    if not is_long(span, frames, run.fps) or how.windows == "first":
        return frames, [(start, None, False)]
    if how.windows == "whole":
        faster = span * run.fps / frames
        if faster > how.fastest:
            raise Unusable(
                f"{TOO_LONG} ({frames / run.fps:.3g} s are used, fastest is {how.fastest:g}; set windows: all if "
                "captions hold for every part, or caption the parts with describe --window)",
                f"{span:.1f} s",
            )
        return frames, [(start, seconds, True)]
    count = math.ceil((span - _SLACK) * run.fps / frames)
    last = span - frames / run.fps
    return frames, [(start + last * number / (count - 1), None, False) for number in range(count)]
