"""What a video file holds, how a clip is fitted to the model, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import UniViGUError


@dataclass(frozen=True)
class ClipInfo:
    """What a video file holds.

    width, height   shown size in pixels: after non-square pixels and rotation
    fps             frames per second; the average where the rate varies
    frames          number of frames; ``probe`` estimates it from the header where it can, ``read_clip`` counts
    duration        seconds, from the first frame to the end of the last
    rotation        degrees clockwise by which the stored picture is turned for display: 0, 90, 180 or 270
    """

    path: Path
    width: int
    height: int
    fps: float
    frames: int
    duration: float
    rotation: int = 0


@dataclass(frozen=True)
class ClipSpec:
    """How a clip is fitted to the model.

    What happens to a clip with too few frames is up to the caller. ``Pipeline`` and the command line repeat frames. The
    nodes set ``at_most``, so that a short clip gives a short latent. Training leaves out clips that are shorter in
    seconds than what it trains on (``data/folder.py``).

    frames          number of frames, evenly spread in time from the first to the last
    height, width   pixels of a frame
    fps             take that many frames a second instead, from the start on
    at_most         ``frames`` is a budget: a shorter clip gives as many of 4n+1 frames as it has, none twice
    """

    frames: int
    height: int
    width: int
    fps: float | None = None
    at_most: bool = False

    def require_valid(self, source: str | Path) -> None:
        """Raise UniViGUError, beginning with ``source``, for sizes below 1 and for impossible rates."""
        for name in ("frames", "height", "width"):
            if getattr(self, name) < 1:
                raise UniViGUError(f"{source}: {name} is {getattr(self, name)}; expected at least 1")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UniViGUError(f"{source}: fps is {self.fps:g}; expected a number above 0, at most 1000")


@dataclass(frozen=True)
class Clip:
    """A video as the model wants it.

    pixels   uint8 ``[T,H,W,3]``, RGB 0-255, on the CPU
    info     of the file, not of ``pixels``
    note     one line that says what was done, e.g. ``clip.mp4: 9 of 240 frames, evenly over 10.0 s (24 fps);
             1920x1080 resized to 85x48, cropped to 48x48``
    """

    pixels: Tensor
    info: ClipInfo
    note: str


def describe_fit(
    info: ClipInfo, spec: ClipSpec, chosen: Sequence[int], scaled: tuple[int, int], length: str = ""
) -> str:
    """The ``note`` of a clip.

    ``chosen``: timestamps of the frames taken. ``scaled``: rows and columns before cropping. ``length``: how long the
    source is, in words.
    """
    size = f"{info.width}x{info.height}"
    if info.rotation:
        size += f" (turned by {info.rotation}°)"
    rows, columns = scaled
    if scaled != (info.height, info.width):
        size += f" {'enlarged' if rows * columns > info.height * info.width else 'resized'} to {columns}x{rows}"
    if scaled != (spec.height, spec.width):
        size += f", cropped to {spec.width}x{spec.height}"
    length = length or f"{info.duration:.1f} s ({info.fps:.4g} fps)"
    return f"{info.path.name}: {_frames_taken(info, spec, chosen, length)}; {size}"


def _frames_taken(info: ClipInfo, spec: ClipSpec, chosen: Sequence[int], length: str) -> str:
    frames = len(chosen)
    if info.frames == 1:
        return "a single frame" + (f", repeated {frames} times" if frames > 1 else "")
    if frames == 1:
        return f"the first of {info.frames} frames, {length}"
    if spec.fps is None and frames > info.frames:
        return f"{frames} frames out of only {info.frames}, some repeated, evenly over {length}"
    taken = f"{frames} of {info.frames} frames"
    if spec.fps is None:
        return f"{taken}, evenly over {length}"
    if spec.at_most and spec.fps >= info.fps:
        return f"{taken} at the clip's own {info.fps:.4g} fps, of {length}"
    short = " (the last one repeated: the clip is shorter)" if chosen[-1] == chosen[-2] else ""
    return f"{taken}, retimed from {info.fps:.4g} to {spec.fps:.4g} fps{short}, of {length}"


def require_frames(pixels: Tensor, what: str) -> None:
    """Raise UniViGUError, beginning with ``what``, unless ``pixels`` are uint8 ``[T,H,W,3]`` and not empty."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8 or 0 in pixels.shape:
        raise UniViGUError(
            f"{what}: found pixels of shape {list(pixels.shape)} and type {pixels.dtype}; expected uint8 of shape "
            "[frames, height, width, 3], and at least one frame"
        )
