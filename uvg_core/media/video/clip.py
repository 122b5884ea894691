"""What a video file holds, how a clip is fitted to the model, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...errors import UniViGUError

_ENOUGH = 0.75  # of a picture: as much is left where a clip is cropped unasked
_LONGEST = 4.0  # width by height, or height by width, of a size that is chosen for a clip
_GRID = 16  # pixels that sizes are multiples of


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
    fit             what becomes of another shape: ``crop`` covers the size and cuts the rest off, ``pad`` keeps the
                    whole picture, ``stretch`` distorts it; ``auto`` crops, unless there may be another size
    crop            what is kept of it: ``center``, ``top``, ``bottom``, or ``smart``: the part with most detail and
                    movement, the same in all frames
    background      RGB behind transparent parts and around padded pictures
    any_shape       rather than crop more than a quarter off, ``auto`` takes another size of at most as many pixels
    """

    frames: int
    height: int
    width: int
    fps: float | None = None
    at_most: bool = False
    fit: str = "crop"
    crop: str = "center"
    background: tuple[int, int, int] = (0, 0, 0)
    any_shape: bool = False

    def require_valid(self, source: str | Path) -> None:
        """Raise UniViGUError, beginning with ``source``, for sizes below 1 and for impossible rates."""
        for name in ("frames", "height", "width"):
            if getattr(self, name) < 1:
                raise UniViGUError(f"{source}: {name} is {getattr(self, name)}; expected at least 1")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UniViGUError(f"{source}: fps is {self.fps:g}; expected a number above 0, at most 1000")

    def suited(self, rows: int, columns: int) -> ClipSpec:
        """``auto`` decided, for pictures that are so many rows and columns large on screen."""
        if self.fit != "auto":
            return self
        if not self.any_shape or self._kept(rows, columns) >= _ENOUGH:
            return replace(self, fit="crop")
        turned = replace(self, fit="crop", height=self.width, width=self.height)
        if turned._kept(rows, columns) >= _ENOUGH:
            return turned
        shape = min(max(columns / rows, 1 / _LONGEST), _LONGEST)
        area = self.height * self.width
        height = max(_GRID, round((area / shape) ** 0.5 / _GRID) * _GRID)
        chosen = replace(self, fit="crop", height=height, width=max(_GRID, area // height // _GRID * _GRID))
        return chosen if chosen._kept(rows, columns) >= _ENOUGH else replace(chosen, fit="pad")

    def _kept(self, rows: int, columns: int) -> float:
        """The share of a picture that is left after it was cropped to the size."""
        shape = columns * self.height / (rows * self.width)
        return min(shape, 1 / shape)

    def scaled(self, rows: int, columns: int) -> tuple[int, int]:
        """The rows and columns that a picture is scaled to, before it is cropped or padded."""
        height, width = self.height, self.width
        if self.fit == "stretch":
            return height, width
        scales = height / rows, width / columns
        if self.fit == "pad":
            return tuple(  # type: ignore[return-value]
                min(most, max(1, round(side * min(scales)))) for most, side in ((height, rows), (width, columns))
            )
        return max(height, round(rows * max(scales))), max(width, round(columns * max(scales)))


@dataclass(frozen=True)
class Clip:
    """A video as the model wants it.

    pixels   uint8 ``[T,H,W,3]``, RGB 0-255, on the CPU
    info     of the file, not of ``pixels``
    note     one line that says what was done, e.g. ``clip.mp4: 9 of 240 frames, evenly over 10.0 s (24 fps);
             1920x1080 resized to 85x48, cropped to 48x48``
    damage   what the file lacks, as the note says it too; empty for a whole one
    """

    pixels: Tensor
    info: ClipInfo
    note: str
    damage: str = ""


def describe_fit(
    info: ClipInfo, spec: ClipSpec, chosen: Sequence[int], scaled: tuple[int, int], length: str = ""
) -> str:
    """The ``note`` of a clip.

    ``chosen``: timestamps of the frames taken. ``scaled``: rows and columns before cropping. ``length``: how long the
    source is, in words.
    """
    if info.frames == 1:
        taken = "a single frame" + (f", repeated {len(chosen)} times" if len(chosen) > 1 else "")
        taken += f", of {length}" if length else ""
    else:
        taken = _frames_taken(info, spec, chosen, length or f"{info.duration:.1f} s ({info.fps:.4g} fps)")
    return f"{info.path.name}: {taken}; {_fitted(info, spec, scaled)}"


def _fitted(info: ClipInfo, spec: ClipSpec, scaled: tuple[int, int]) -> str:
    size = f"{info.width}x{info.height}"
    if info.rotation:
        size += f" (turned by {info.rotation}°)"
    rows, columns = scaled
    if scaled != (info.height, info.width):
        how = "enlarged" if rows * columns > info.height * info.width else "resized"
        size += f" {'stretched' if spec.fit == 'stretch' else how} to {columns}x{rows}"
    if scaled != (spec.height, spec.width):
        how = "padded" if spec.fit == "pad" else "cropped"
        where = f" ({spec.crop})" if how == "cropped" and spec.crop != "center" else ""
        size += f", {how} to {spec.width}x{spec.height}{where}"
    return size


def _frames_taken(info: ClipInfo, spec: ClipSpec, chosen: Sequence[int], length: str) -> str:
    frames = len(chosen)
    if frames == 1:
        return f"the first of {info.frames} frames, {length}"
    if spec.fps is None and frames > info.frames:
        return f"{frames} frames out of only {info.frames}, some repeated, evenly over {length}"
    taken = f"{frames} of {info.frames} frames" if frames <= info.frames else f"{frames} frames out of {info.frames}"
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
