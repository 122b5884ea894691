"""Where the objects of a little world are, frame by frame. Objects stay inside the picture; two keep clear.

Lengths are fractions of the picture's side. Legend: T frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .digits import random_digit
from .grammar import DIRECTIONS, SIZES, Shape, World

TRAVEL: dict[str, float] = {"slowly": 0.16, "quickly": 0.36}  # way over the clip
GROWTH: dict[str, float] = {"slowly": 1.35, "quickly": 2.1}  # last radius over first
PAIR_SCALE = 0.8  # objects of a pair are drawn this much smaller
REACH = 1.3  # no kind is drawn further from its centre than this many radii


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


def _gap(a: Placement, b: Placement) -> float:
    """The least free space between two objects over the clip, in sides; negative where they touch."""
    distance = (a.centres - b.centres).square().sum(-1).sqrt()
    return float((distance - 1.15 * (a.radii + b.radii)).min())


def place(world: World, frames: int, generator: torch.Generator, *, split: str = "train") -> list[Placement]:
    """Random ways for all objects. Of a pair, the first of 60 draws that keeps clear, or else the clearest of them.

    ``split``: whose handwriting digits are in, ``train`` or ``test``."""
    times = torch.linspace(-0.5, 0.5, frames) if frames > 1 else torch.zeros(1)
    scale = 1.0 if len(world.shapes) == 1 else PAIR_SCALE
    best: list[Placement] = []
    widest = -math.inf
    for _ in range(60):
        found = [_place_one(shape, scale, times, generator) for shape in world.shapes]
        gap = _gap(*found) if len(found) == 2 else math.inf
        if gap > widest:
            best, widest = found, gap
        if widest > 0.02:
            break
    images = [random_digit(shape.kind, split, generator) for shape in world.shapes]
    return [replace(placement, image=image) for placement, image in zip(best, images, strict=True)]
