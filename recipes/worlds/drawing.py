"""Drawing a little world: where its objects are, frame by frame, and the clip that shows them.

Objects are anti-aliased, on a plain background. They stay inside the picture; two keep clear of each other. Digits are
handwritten: the images that ship with scikit-learn (Alpaydin and Kaynak's optical digits, UCI).

Legend: T frames, S side length in pixels. Lengths are fractions of the picture's side where nothing else is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from uvg_core.errors import UniViGUError

from .grammar import BACKGROUNDS, COLOURS, DIGITS, DIRECTIONS, SIZES, Shape, World, draw_index

SIDE, FRAMES = 64, 17  # the data set as it is documented; any other side and every second frame work too
TRAVEL: dict[str, float] = {"slowly": 0.16, "quickly": 0.36}  # way over the clip
GROWTH: dict[str, float] = {"slowly": 1.35, "quickly": 2.1}  # last radius over first
PAIR_SCALE = 0.8  # objects of a pair are drawn this much smaller
REACH = 1.3  # no kind is drawn further from its centre than this many radii
RING_HOLE = 0.52  # radius of the hole, in radii
DIGIT_BOX = 1.2  # half the side of a digit's image, in radii

_STAR = [((1.0, 0.42)[i % 2], math.pi * i / 5) for i in range(10)]  # tips and inner corners: radius and angle
# Corners of the straight-edged kinds, in radii, y down. Kinds of one size look about equally large.
POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0.0, -1.25), (1.0825, 0.625), (-1.0825, 0.625)],
    "star": [(1.3 * (radius * math.sin(angle)), 1.3 * (-radius * math.cos(angle))) for radius, angle in _STAR],
    "cross": [
        *[(-0.36, -1.08), (0.36, -1.08), (0.36, -0.36), (1.08, -0.36), (1.08, 0.36), (0.36, 0.36)],
        *[(0.36, 1.08), (-0.36, 1.08), (-0.36, 0.36), (-1.08, 0.36), (-1.08, -0.36), (-0.36, -0.36)],
    ],
}


@cache
def digit_images(split: str) -> dict[str, Tensor]:
    """Handwritten digits by name, float ``[N,8,8]`` in 0..1; every fifth image of a digit is ``test``, the others are
    ``train``. Raises UniViGUError where scikit-learn, which brings the images, is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UniViGUError('the digits of the little worlds come with scikit-learn; install "scikit-learn"') from None
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
    found = {name: images[labels == value] for value, name in enumerate(DIGITS)}
    return {name: same[(torch.arange(len(same)) % 5 == 0) == (split == "test")] for name, same in found.items()}


@dataclass(frozen=True)
class Placement:
    """Where one object of a clip is: centres ``[T,2]`` (x, y) and radii ``[T]``, both in sides, and ``image``
    ``[8,8]``, the handwriting of a digit."""

    centres: Tensor
    radii: Tensor
    image: Tensor | None = field(default=None, repr=False)


def _place_one(shape: Shape, scale: float, times: Tensor, generator: torch.Generator) -> Placement:
    """A random way of one object that stays inside the picture; ``times`` from -0.5 to 0.5 over the clip."""
    speed = shape.speed or "slowly"
    growth = GROWTH[speed] if shape.motion == "grows" else 1.0
    radii = SIZES[shape.size] * scale * (1 + 2 * times * (growth - 1) / (growth + 1))
    way = [TRAVEL[speed] * d for d in DIRECTIONS.get(shape.motion.removeprefix("moves "), (0, 0))]
    edge = REACH * float(radii.max())
    offset = (torch.rand(2, generator=generator) * 2 - 1).tolist()
    middle = [0.5 + u * max(0.0, 0.5 - edge - abs(d) / 2) for u, d in zip(offset, way, strict=True)]
    return Placement(torch.tensor(middle) + times[:, None] * torch.tensor(way), radii)


def _gap(placed: list[Placement]) -> float:
    """The least free space between two objects over the clip, in sides; negative where they touch."""
    if len(placed) == 1:
        return math.inf
    a, b = placed
    distance = (a.centres - b.centres).square().sum(-1).sqrt()
    return float((distance - 1.15 * (a.radii + b.radii)).min())


def place(world: World, frames: int, generator: torch.Generator, *, split: str = "train") -> list[Placement]:
    """Random ways for all objects. Of a pair, the first of 60 draws that keeps clear, or else the clearest of them.

    ``split``: whose handwriting digits are in, ``train`` or ``test``."""
    times = torch.linspace(-0.5, 0.5, frames) if frames > 1 else torch.zeros(1)
    scale = 1.0 if len(world.shapes) == 1 else PAIR_SCALE
    draws: list[list[Placement]] = []
    while len(draws) < 60 and not (draws and _gap(draws[-1]) > 0.02):
        draws.append([_place_one(shape, scale, times, generator) for shape in world.shapes])
    placed = max(draws, key=_gap)
    for n, shape in enumerate(world.shapes):
        if shape.kind in DIGITS:
            images = digit_images(split)[shape.kind]
            placed[n] = replace(placed[n], image=images[draw_index(len(images), generator)])
    return placed


def _polygon_distance(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a closed polygon, negative inside."""
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (px - along * ex).square() + (py - along * ey).square())
        if ey:  # a ray to the left crosses this edge: even-odd rule
            inside ^= ((ay > y) != (by > y)) & (x < ex * py / ey + ax)
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())


def cover(kind: str, x: Tensor, y: Tensor, radius: Tensor, image: Tensor | None = None) -> Tensor:
    """How much of every pixel an object covers, 0..1 with anti-aliased edges.

    ``x``, ``y``: pixel positions relative to its centre, y down; ``radius`` in pixels; all of shapes that broadcast to
    ``[T,S,S]``. ``image`` ``[8,8]`` in 0..1: the handwriting of a digit.
    """
    u, v = torch.broadcast_tensors(x / radius, y / radius)
    if image is not None:
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
    coverage: Tensor = (0.5 - distance * radius).clamp(0, 1)
    return coverage


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
