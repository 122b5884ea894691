"""Decoded frames -> upright RGB pictures of the size that is asked for."""

from __future__ import annotations

import math
from fractions import Fraction
from math import atan2, degrees
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip import ClipSpec
from .limits import MOST_PIXELS

# swscale's bicubic, accurate rounding, full chroma in and out. Its defaults halve the chroma precision and round down:
# colours would drift by up to 3/255. Numbers, since older PyAVs have no names for them.
EXACT = 0x4 | 0x40000 | 0x2000 | 0x4000
# Colour spaces as swscale numbers them, by their number in the file (H.273).
BT709, _BT601, _BT2020 = 1, 5, 9
_SWSCALE_SPACES = {1: BT709, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: _BT2020, 10: _BT2020}
LIMITED, _FULL = 1, 2


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the display matrix: a stored point (x, y) is shown at (ax + cy, bx + dy), y pointing down."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return 1, 0, 0, 1
    numbers = memoryview(bytes(side)).cast("i")
    return numbers[0], numbers[1], numbers[3], numbers[4]


def rotation(frame: Any) -> int:
    """Degrees clockwise by which the stored picture is turned for display, a multiple of 90."""
    a, b, _, _ = _matrix(frame)
    return round(degrees(atan2(b, a)) / 90) * 90 % 360


def shown_size(frame: Any, stream: Any) -> tuple[int, int]:
    """Rows and columns on screen."""
    ratio = stream.sample_aspect_ratio or 1
    if not Fraction(1, 8) <= ratio <= 8:  # nonsense in the header
        ratio = 1
    rows, columns = frame.height, max(1, round(frame.width * ratio))
    a, b, _, _ = _matrix(frame)
    return (columns, rows) if abs(b) > abs(a) else (rows, columns)


def memory_of(frame: Any, channels: int) -> Tensor:
    """A packed 8-bit frame's memory as ``[H,W,channels]``, shared; rows may be padded in memory, never in the view."""
    plane = frame.planes[0]
    rows = torch.frombuffer(plane, dtype=torch.uint8).view(-1, plane.line_size)
    pixels: Tensor = rows[: frame.height, : frame.width * channels].unflatten(1, (frame.width, channels))
    return pixels


def upright(frame: Any) -> Tensor:
    """A decoded frame as uint8 RGB ``[H,W,3]``, turned as its display matrix says; transparent parts become black."""
    layout = frame.format
    transparent = layout.has_palette or any(component.is_alpha for component in layout.components)
    colours = {} if layout.is_rgb or layout.has_palette else _colours(frame)
    packed = frame.reformat(format="rgba" if transparent else "rgb24", interpolation=EXACT, **colours)
    picture = memory_of(packed, 4 if transparent else 3)
    if transparent:
        picture = torch.cat([_on_black(rows) for rows in picture.split(64)])  # few at a time: four times the bytes
    a, b, c, d = _matrix(frame)
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(0, 1), c, b
    flips = [axis for axis, sign in ((0, d), (1, a)) if sign < 0]
    return picture.flip(flips) if flips else picture


def _on_black(picture: Tensor) -> Tensor:
    return ((picture[..., :3] * picture[..., 3:].to(torch.int32) + 127) // 255).to(torch.uint8)


def _colours(frame: Any) -> dict[str, int]:
    """Arguments of ``reformat`` that turn a frame's Y'CbCr into RGB."""
    # Untagged files follow the usual rule: high definition is BT.709, everything smaller BT.601.
    usual = BT709 if frame.height > 576 or frame.width >= 1280 else _BT601
    source = _SWSCALE_SPACES.get(frame.colorspace, usual)
    # Older PyAVs (14.2) heed the source's space only if the target's differs; for RGB the target's means nothing.
    colours = {"src_colorspace": source, "dst_colorspace": _BT601 if source == BT709 else BT709}
    if frame.color_range:
        colours |= {"src_color_range": frame.color_range, "dst_color_range": _FULL}
    return colours


def _middle(picture: Tensor, shown: tuple[int, int], spec: ClipSpec) -> tuple[Tensor, tuple[int, int]]:
    """The middle of a long strip, at most four times as long as what will be seen of it, and its size on screen."""
    axis = int(shown[1] * spec.height > shown[0] * spec.width)  # the one that is cropped
    sides = spec.height, spec.width
    length = 4 * math.ceil(shown[1 - axis] * sides[axis] / sides[1 - axis])  # on screen
    stored = min(picture.shape[axis], max(1, math.ceil(length * picture.shape[axis] / shown[axis])))
    cropped = picture.narrow(axis, (picture.shape[axis] - stored) // 2, stored)
    size = [*shown]
    size[axis] = max(1, round(stored * shown[axis] / picture.shape[axis]))
    return cropped, (size[0], size[1])


def fit(picture: Tensor, shown: tuple[int, int], spec: ClipSpec) -> tuple[Tensor, tuple[int, int]]:
    """Scale a uint8 ``[H,W,3]`` picture, ``shown`` rows and columns large, to cover the target; crop the centre.

    Returns uint8 ``[height,width,3]`` in memory of its own, and the size (rows, columns) before cropping.
    """
    height, width = spec.height, spec.width
    scale = max(height / shown[0], width / shown[1])
    rows, columns = max(height, round(shown[0] * scale)), max(width, round(shown[1] * scale))
    if rows * columns > max(MOST_PIXELS, 16 * height * width):  # a strip: only its middle is scaled
        picture, middle = _middle(picture, shown, spec)
        return fit(picture, middle, spec)[0], (rows, columns)
    if tuple(picture.shape[:2]) != (rows, columns):
        stacked = picture.permute(2, 0, 1)[None]
        picture = F.interpolate(stacked, (rows, columns), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    top, left = (rows - height) // 2, (columns - width) // 2
    # A copy: the crop must not keep the source frame alive.
    cropped = picture[top : top + height, left : left + width].clone(memory_format=torch.contiguous_format)
    return cropped, (rows, columns)
