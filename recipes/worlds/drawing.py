"""Drawing a little world: anti-aliased objects on a plain background.

Legend: T frames, S side length in pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .grammar import BACKGROUNDS, COLOURS, DIGITS, World
from .placing import Placement, place

SIDE, FRAMES = 64, 17  # the data set as it is documented; any other side and every second frame work too
RING_HOLE = 0.52  # radius of the hole, in radii
DIGIT_BOX = 1.2  # half the side of a digit's image, in radii

_RADII = (1.0, 0.42)  # of a star's tips and inner corners
_STAR = [(_RADII[i % 2] * math.sin(math.pi * i / 5), -_RADII[i % 2] * math.cos(math.pi * i / 5)) for i in range(10)]
_SIDE, _ARM, _HALF = 0.88, 1.08, 0.36
# Corners of the straight-edged kinds, in radii, y down. Kinds of one size look about equally large.
POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-_SIDE, -_SIDE), (_SIDE, -_SIDE), (_SIDE, _SIDE), (-_SIDE, _SIDE)],
    "triangle": [(0.0, -1.25), (1.0825, 0.625), (-1.0825, 0.625)],
    "star": [(1.3 * x, 1.3 * y) for x, y in _STAR],
    "cross": [
        *[(-_HALF, -_ARM), (_HALF, -_ARM), (_HALF, -_HALF), (_ARM, -_HALF), (_ARM, _HALF), (_HALF, _HALF)],
        *[(_HALF, _ARM), (-_HALF, _ARM), (-_HALF, _HALF), (-_ARM, _HALF), (-_ARM, -_HALF), (-_HALF, -_HALF)],
    ],
}


def _polygon_distance(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a closed polygon, negative inside."""
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (px - along * ex).square() + (py - along * ey).square())
        if ey:  # a ray to the left crosses this edge: even-odd rule
            inside = inside ^ (((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax))
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())


def cover(kind: str, x: Tensor, y: Tensor, radius: Tensor, image: Tensor | None = None) -> Tensor:
    """How much of every pixel an object covers, 0..1 with anti-aliased edges.

    ``x``, ``y``: pixel positions relative to its centre, y down; ``radius`` in pixels; all of shapes that broadcast to
    ``[T,S,S]``. ``image`` ``[8,8]`` in 0..1: the handwriting of a digit.
    """
    u, v = torch.broadcast_tensors(x / radius, y / radius)
    if kind in DIGITS:
        assert image is not None
        grid = torch.stack([u, v], -1) / DIGIT_BOX
        images = image.expand(len(grid), 1, *image.shape)
        ink = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
        return ((ink - 0.3) * 2.6).clamp(0, 1)
    from_centre = (u.square() + v.square()).sqrt()
    if kind == "circle":
        distance = from_centre - 1
    elif kind == "ring":
        distance = (from_centre - (1 + RING_HOLE) / 2).abs() - (1 - RING_HOLE) / 2
    else:
        distance = _polygon_distance(u, v, POLYGONS[kind])
    return (0.5 - distance * radius).clamp(0, 1)


def coverage(kind: str, at: Placement, side: int) -> Tensor:
    """How much of every pixel a placed object covers, float ``[T,S,S]``, 0..1."""
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    x = (axis[None, None, :] - at.centres[:, 0, None, None]) * side
    y = (axis[None, :, None] - at.centres[:, 1, None, None]) * side
    return cover(kind, x, y, at.radii[:, None, None] * side, at.image)


def draw(world: World, placed: list[Placement], side: int) -> Tensor:
    """The clip, uint8 ``[T,S,S,3]``, RGB 0-255."""
    clip = torch.tensor(BACKGROUNDS[world.background], dtype=torch.float32)
    for shape, at in zip(world.shapes, placed, strict=True):
        alpha = coverage(shape.kind, at, side)[..., None]
        clip = clip * (1 - alpha) + torch.tensor(COLOURS[shape.colour], dtype=torch.float32) * alpha
    return clip.round().to(torch.uint8)


def render(
    world: World, generator: torch.Generator, *, side: int = SIDE, frames: int = FRAMES, split: str = "train"
) -> Tensor:
    """A clip of this world at a random place, uint8 ``[T,S,S,3]``, RGB 0-255.

    The clip always lasts two seconds: 9 frames are every second one of 17. ``split``: whose handwriting digits are in.
    """
    return draw(world, place(world, frames, generator, split=split), side)
