"""Decoded frames -> upright RGB pictures of the size that is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from math import atan2, degrees
from typing import Any

import av
import torch
import torch.nn.functional as F
from torch import Tensor

from .clip import ClipSpec
from .colour import Colour, colour_of, to_sdr
from .limits import MOST_PIXELS
from .profile import Profile
from .sidedata import side_data

# swscale's bicubic, accurate rounding, full chroma in and out. Its defaults halve the chroma precision and round down:
# colours would drift by up to 3/255. Numbers, since older PyAVs have no names for them.
EXACT = 0x4 | 0x40000 | 0x2000 | 0x4000
# Colour spaces as swscale numbers them, by their number in the file (H.273).
BT709, _BT601, _BT2020 = 1, 5, 9
_SWSCALE_SPACES = {1: BT709, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: _BT2020, 10: _BT2020}
LIMITED, _FULL = 1, 2


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the display matrix: a stored point (x, y) is shown at (ax + cy, bx + dy), y pointing down."""
    side = side_data(frame, "DISPLAYMATRIX")
    if not side:
        return 1, 0, 0, 1
    numbers = memoryview(side).cast("i")
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


def memory_of(frame: Any, channels: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """A packed frame's memory as ``[H,W,channels]``, shared; rows may be padded in memory, never in the view."""
    plane = frame.planes[0]
    rows = torch.frombuffer(plane, dtype=dtype).view(-1, plane.line_size // dtype.itemsize)
    pixels: Tensor = rows[: frame.height, : frame.width * channels].unflatten(1, (frame.width, channels))
    return pixels


def picture_of(frame: Any, source: Any, spec: ClipSpec) -> tuple[Tensor, tuple[int, int]]:
    """A decoded frame as uint8 RGB ``[H,W,3]``: upright, in the colours of an ordinary screen, fitted as by ``fit``;
    and its size (rows, columns) before cropping and padding."""
    colour = colour_of(frame, source)
    picture, scaled = fit(_upright(frame, colour, spec.background), shown_size(frame, source.stream), spec)
    if isinstance(colour, Colour) and picture.is_floating_point():  # only now: there is less of it
        picture = to_sdr(picture, colour)
    return picture, scaled


def remarks_on(frame: Any, source: Any) -> list[str]:
    """What is done to such a frame beside turning and fitting it, in a few words each."""
    interlaced = ["interlaced: one field of each frame is taken"] if frame.interlaced_frame else []
    colour = colour_of(frame, source)
    return interlaced if colour is None else [*interlaced, str(colour)]


def _upright(frame: Any, colour: Colour | Profile | None, background: tuple[int, int, int]) -> Tensor:
    """A decoded frame as RGB ``[H,W,3]``, turned as its display matrix says, over ``background`` where it is
    transparent: uint8 or, with a ``colour`` that is not mapped yet, floats from 0 to 1."""
    layout, matrix = frame.format, _matrix(frame)
    transparent = layout.has_palette or any(component.is_alpha for component in layout.components)
    colours = {} if layout.is_rgb or layout.has_palette else _colours(frame, colour)
    if frame.interlaced_frame and frame.height > 1:
        frame = _field(frame)
    channels, deep = 4 if transparent else 3, isinstance(colour, Colour)
    kind = ("rgba" if transparent else "rgb") + ("" if transparent else "24")
    if deep:
        kind = "rgba64le" if transparent else "rgb48le"
    packed = frame.reformat(format=kind, interpolation=EXACT, **colours)
    picture = memory_of(packed, channels, torch.uint16 if deep else torch.uint8)
    if deep:
        picture = picture.float() / 65535
    if isinstance(colour, Profile):
        picture = torch.cat([colour.to_srgb(picture[..., :3]), picture[..., 3:]], -1)
        colour = None
    if transparent:
        # Few rows at a time: four times the bytes.
        picture = torch.cat([_opaque(rows, colour, background) for rows in picture.split(64)])
    return _turned(picture, matrix)


def _turned(picture: Tensor, matrix: tuple[int, int, int, int]) -> Tensor:
    a, b, c, d = matrix
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(0, 1), c, b
    flips = [axis for axis, sign in ((0, d), (1, a)) if sign < 0]
    return picture.flip(flips) if flips else picture


def _opaque(picture: Tensor, colour: Colour | None, background: tuple[int, int, int]) -> Tensor:
    """uint8 ``[H,W,3]`` of a picture with transparent parts, over a colour."""
    if colour is not None:
        picture = torch.cat([to_sdr(picture[..., :3], colour), (picture[..., 3:] * 255).round().to(torch.uint8)], -1)
    alpha = picture[..., 3:].to(torch.int32)
    below = torch.tensor(background, dtype=torch.int32) * (255 - alpha)
    return ((picture[..., :3] * alpha + below + 127) // 255).to(torch.uint8)


def _field(frame: Any) -> Any:
    """The upper lines of an interlaced frame: the lower ones are of another moment, and moving edges would be combed.
    A picture of half as many rows, with the colours that belong to them."""
    upper = av.VideoFrame(frame.width, (frame.height + 1) // 2, frame.format.name)
    for whole, half in zip(frame.planes, upper.planes, strict=True):
        lines, kept = (torch.frombuffer(p, dtype=torch.uint8).view(-1, p.line_size) for p in (whole, half))
        length = min(whole.line_size, half.line_size)
        kept[:, :length] = lines[::2][: len(kept), :length]
    return upper


def _colours(frame: Any, colour: Colour | Profile | None) -> dict[str, int]:
    """Arguments of ``reformat`` that turn a frame's Y'CbCr into RGB."""
    # Untagged files follow the usual rule: high definition is BT.709, everything smaller BT.601.
    usual = BT709 if frame.height > 576 or frame.width >= 1280 else _BT601
    if colour is not None and colour.is_hdr:
        usual = _BT2020
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
    """Scale a ``[H,W,3]`` picture, ``shown`` rows and columns large, to cover the target, to lie in it or to fill it,
    as ``spec.fit`` says, and crop it as ``spec.crop`` says: not yet where that is "smart", for ``stacked`` to do.

    Returns it in memory of its own, and the size (rows, columns) before cropping.
    """
    rows, columns = scaled = spec.scaled(*shown)
    if rows * columns > max(MOST_PIXELS, 16 * spec.height * spec.width):  # a strip: only its middle is scaled
        picture, middle = _middle(picture, shown, spec)
        return fit(picture, middle, spec)[0], scaled
    if tuple(picture.shape[:2]) != scaled:
        channels = picture.permute(2, 0, 1)[None]
        picture = F.interpolate(channels, scaled, mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    if spec.crop != "smart":
        share = {"top": 0.0, "bottom": 1.0}.get(spec.crop, 0.5)
        top, left = int(max(rows - spec.height, 0) * share), max(columns - spec.width, 0) // 2
        picture = picture[top : top + spec.height, left : left + spec.width]
    # A copy: the crop must not keep the source frame alive.
    return picture.clone(memory_format=torch.contiguous_format), scaled


def stacked(pictures: Sequence[Tensor], spec: ClipSpec) -> Tensor:
    """Pictures that ``fit`` has given as ``[T,height,width,3]``: all cropped at the same place, padded."""
    if len({picture.shape for picture in pictures}) == 1 and spec.crop == "smart":
        pixels = torch.stack(list(pictures))
        for axis, wanted in ((1, spec.height), (2, spec.width)):
            if pixels.shape[axis] > wanted:
                pixels = pixels.narrow(axis, _liveliest(pixels, axis, wanted), wanted)
        pictures = list(pixels)
    return torch.stack([_placed(picture, spec) for picture in pictures])


def _placed(picture: Tensor, spec: ClipSpec) -> Tensor:
    """A picture in the middle of the size that is asked for."""
    height, width = spec.height, spec.width
    rows, columns = picture.shape[:2]
    if (rows, columns) == (height, width):
        return picture
    top, left = max(rows - height, 0) // 2, max(columns - width, 0) // 2  # frames may grow on the way
    picture = picture[top : top + height, left : left + width]
    rows, columns = picture.shape[:2]
    placed = torch.tensor(spec.background, dtype=torch.uint8).repeat(height, width, 1)
    top, left = (height - rows) // 2, (width - columns) // 2
    placed[top : top + rows, left : left + columns] = picture
    return placed


def _liveliest(pixels: Tensor, axis: int, wanted: int) -> int:
    """Where along ``axis`` the ``wanted`` rows or columns begin that show most: edges, and what moves. The middle where
    no place shows more than others."""
    length = pixels.shape[axis]
    shown, before = torch.zeros(length, dtype=torch.float64), None
    for picture in pixels:
        gray = picture.float().mean(-1)
        gray = gray if axis == 1 else gray.T
        shown += gray.diff(dim=1).abs().double().sum(1)
        shown[1:] += gray.diff(dim=0).abs().double().sum(1)
        if before is not None:
            shown += 2 * (gray - before).abs().double().sum(1)
        before = gray
    sums = shown.cumsum(0)
    windows = sums[wanted - 1 :] - torch.cat([sums.new_zeros(1), sums[: length - wanted]])
    best = windows >= windows.max() * (1 - 1e-6) - 1e-6
    places = best.nonzero().flatten()
    return int(places[(places - (length - wanted) // 2).abs().argmin()])
