"""Little worlds: rendered clips whose truth is known.

One object of one kind, colour and size moves over a plain background; the caption says exactly what the pixels
show. Everything is drawn from signed distances with anti-aliased edges, so no asset and no download is needed.

Legend: T frames, S side length in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 50, 47),
    "green": (70, 180, 80),
    "blue": (60, 110, 220),
    "yellow": (240, 210, 60),
    "magenta": (210, 70, 190),
    "cyan": (60, 200, 210),
    "orange": (245, 140, 40),
    "white": (240, 240, 240),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "navy": (20, 30, 90),
    "beige": (215, 200, 170),
}
KINDS = ("circle", "square", "triangle")
SIZES: dict[str, float] = {"small": 0.13, "large": 0.21}  # radius as a share of the side length
MOTIONS: dict[str, tuple[float, float]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TRAVEL = 0.38  # way of the object's centre over the clip, as a share of the side length


@dataclass(frozen=True)
class World:
    """What a clip shows. Every field is a key of the tables above."""

    kind: str
    colour: str
    size: str
    motion: str
    background: str

    @property
    def caption(self) -> str:
        """The whole truth, e.g. ``a small red circle moves left on a navy background``."""
        return f"a {self.size} {self.colour} {self.kind} moves {self.motion} on a {self.background} background"

    @property
    def brief(self) -> str:
        """The short prompt, e.g. ``a red circle``."""
        return f"a {self.colour} {self.kind}"


def all_worlds() -> Iterator[World]:
    """Every combination, in a fixed order."""
    for values in product(KINDS, COLOURS, SIZES, MOTIONS, BACKGROUNDS):
        yield World(*values)


def _distance(kind: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Signed distance in pixels to the outline; negative inside. Shapes of one size cover about the same area."""
    if kind == "circle":
        return (x.square() + y.square()).sqrt() - radius
    if kind == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * radius
    if kind == "triangle":
        inner = 0.62 * radius  # radius of the inscribed circle; the centroid is the object's centre
        slanted = 0.8660254 * x.abs() - 0.5 * y
        return torch.maximum(slanted, y) - inner
    raise ValueError(f"unknown kind {kind!r}; expected one of {', '.join(KINDS)}")


def render(world: World, *, side: int = 48, frames: int = 9, generator: torch.Generator | None = None) -> Tensor:
    """Draw the clip.

    Returns uint8 ``[T,S,S,3]``, RGB 0-255. ``generator`` places the object (its way always stays inside the
    picture); without one it passes through the centre.
    """
    radius = SIZES[world.size] * side
    dx, dy = MOTIONS[world.motion]
    jitter = torch.rand(2, generator=generator) * 2 - 1 if generator is not None else torch.zeros(2)
    way = TRAVEL * side
    room_along = max(0.0, side / 2 - radius - way / 2)
    room_across = max(0.0, side / 2 - radius)
    centre_x = side / 2 + float(jitter[0]) * (room_along if dx else room_across)
    centre_y = side / 2 + float(jitter[1]) * (room_along if dy else room_across)

    axis = torch.arange(side, dtype=torch.float32) + 0.5
    y_SS, x_SS = torch.meshgrid(axis, axis, indexing="ij")
    ground = torch.tensor(BACKGROUNDS[world.background], dtype=torch.float32)
    paint = torch.tensor(COLOURS[world.colour], dtype=torch.float32)
    pictures = []
    for step in torch.linspace(-0.5, 0.5, frames).tolist():
        x = x_SS - (centre_x + dx * way * step)
        y = y_SS - (centre_y + dy * way * step)
        cover = (0.5 - _distance(world.kind, x, y, radius)).clamp(0, 1)[..., None]
        pictures.append(ground * (1 - cover) + paint * cover)
    return torch.stack(pictures).round().to(torch.uint8)


def _nearest(rgb: Tensor, table: dict[str, tuple[int, int, int]]) -> str:
    names = list(table)
    distance = (torch.tensor([table[name] for name in names]).float() - rgb).square().sum(-1)
    return names[int(distance.argmin())]


def read_colours(pixels: Tensor) -> tuple[str, str]:
    """(colour of the object, background) of a clip, uint8 ``[T,S,S,3]``, from the pixels alone.

    The background is the median of the rim; the object's colour is the median of the pixels that differ most from it
    (the object covers 5 % of the picture or more; 3 % of them are its core).
    """
    picture = pixels.float()
    rim = torch.cat([picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], 1).flatten(0, 1)
    ground = rim.median(0).values
    flat = picture.flatten(0, 2)
    distance = (flat - ground).abs().sum(-1)
    core = flat[distance >= distance.quantile(0.97)].median(0).values
    return _nearest(core, COLOURS), _nearest(ground, BACKGROUNDS)
