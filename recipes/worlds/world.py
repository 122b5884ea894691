"""Little worlds: rendered clips whose truth is known.

The grammar, version 2. A world is one or two objects on a plain background, seen for two seconds:

    world       =  object ["and" object] "on a" background "background"
    object      =  "a" size colour kind motion [speed]
    size        =  "small" | "large"
    colour      =  "red" | "green" | "blue" | "yellow" | "magenta" | "cyan" | "orange" | "white"
    kind        =  "circle" | "square" | "triangle" | "star" | "ring" | "cross" | "zero" ... "nine"
    motion      =  "moves left" | "moves right" | "moves up" | "moves down" | "stays still" | "grows"
    speed       =  "slowly" | "quickly"                    (absent exactly where the object stays still)
    background  =  "black" | "gray" | "navy" | "beige"

The *brief* prompt names colour and kind alone ("a red circle", "a red circle and a blue star"); the *detailed* caption
is the whole sentence. Two objects never share a colour and are named in the order of the colour table; they are drawn
at 0.8 of the sizes of a single one and keep clear of each other. Digits are handwritten: the images that ship with
scikit-learn (Alpaydin and Kaynak's optical digits, UCI), every fifth of them kept for testing. One tenth of the
(kind, colour, motion) combinations, ``is_held_out``, never appears in training.

Legend: T frames, S side length in pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from uvg_core.errors import UniViGUError

VERSION = 2
SIDE, FRAMES, FPS = 64, 17, 8.0  # the data set as it is documented; any other side and every second frame work too
SECONDS = (FRAMES - 1) / FPS

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
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = ("circle", "square", "triangle", "star", "ring", "cross", *DIGITS)
SIZES: dict[str, float] = {"small": 0.13, "large": 0.20}  # radius in the middle of the clip, as a share of the side
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*(f"moves {direction}" for direction in DIRECTIONS), "stays still", "grows")
SPEEDS = ("slowly", "quickly")
TRAVEL: dict[str, float] = {"slowly": 0.16, "quickly": 0.36}  # way over the clip, as a share of the side
GROWTH: dict[str, float] = {"slowly": 1.35, "quickly": 2.1}  # last radius over first
PAIR_SCALE = 0.8  # objects of a pair are drawn this much smaller
ATTRIBUTES = ("kind", "colour", "size", "motion", "speed", "background")


@dataclass(frozen=True)
class Thing:
    """One object; every field is a word of the grammar. ``speed`` is None exactly where it stays still."""

    kind: str
    colour: str
    size: str
    motion: str
    speed: str | None

    @property
    def brief(self) -> str:
        return f"a {self.colour} {self.kind}"

    @property
    def phrase(self) -> str:
        speed = f" {self.speed}" if self.speed else ""
        return f"a {self.size} {self.colour} {self.kind} {self.motion}{speed}"


@dataclass(frozen=True)
class World:
    """What a clip shows: one or two objects and the background."""

    things: tuple[Thing, ...]
    background: str

    @property
    def caption(self) -> str:
        """The whole truth, e.g. ``a small red circle moves left slowly on a navy background``."""
        return f"{' and '.join(thing.phrase for thing in self.things)} on a {self.background} background"

    @property
    def brief(self) -> str:
        """The short prompt, e.g. ``a red circle`` or ``a red circle and a blue star``."""
        return " and ".join(thing.brief for thing in self.things)

    def attributes(self, index: int = 0) -> dict[str, str | None]:
        """Object ``index``'s words by attribute, and the background; ``speed`` is None where it stays still."""
        thing = self.things[index]
        return {name: getattr(self if name == "background" else thing, name) for name in ATTRIBUTES}


_THING = (
    rf"a (?P<size>{'|'.join(SIZES)}) (?P<colour>{'|'.join(COLOURS)}) (?P<kind>{'|'.join(KINDS)}) "
    rf"(?P<motion>{'|'.join(MOTIONS)})(?: (?P<speed>{'|'.join(SPEEDS)}))?"
)


def _parse_thing(text: str) -> Thing | None:
    match = re.fullmatch(_THING, text)
    if match is None or (match["speed"] is None) != (match["motion"] == "stays still"):
        return None
    return Thing(**match.groupdict())


def parse(caption: str) -> World | None:
    """The world that a detailed caption describes, or None where it is not a sentence of the grammar."""
    match = re.fullmatch(rf"(.*) on a ({'|'.join(BACKGROUNDS)}) background", caption.strip())
    things = [_parse_thing(part) for part in match[1].split(" and ")] if match else []
    found = [thing for thing in things if thing is not None]
    if match is None or not 1 <= len(found) <= 2 or len(found) != len(things):
        return None
    return World(tuple(found), match[2])


def is_held_out(thing: Thing) -> bool:
    """Whether this (kind, colour, motion) is one of the combinations that training never sees: 78 of the 768.

    A rule rather than a draw, so that every kind, colour and motion is met in training about equally often."""
    indices = KINDS.index(thing.kind), tuple(COLOURS).index(thing.colour), MOTIONS.index(thing.motion)
    return (indices[0] + 3 * indices[1] + 7 * indices[2]) % 10 == 0


def all_things() -> Iterator[Thing]:
    """Every object, in a fixed order."""
    for kind, colour, size, motion in product(KINDS, COLOURS, SIZES, MOTIONS):
        for speed in SPEEDS if motion != "stays still" else (None,):
            yield Thing(kind, colour, size, motion, speed)


@cache
def _things(held_out: bool) -> dict[tuple[str, str], tuple[Thing, ...]]:
    """Objects of one side of the split, by kind and motion."""
    groups: dict[tuple[str, str], list[Thing]] = {(kind, motion): [] for kind in KINDS for motion in MOTIONS}
    for thing in all_things():
        if is_held_out(thing) == held_out:
            groups[thing.kind, thing.motion].append(thing)
    return {key: tuple(group) for key, group in groups.items() if group}


def _pick(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def random_thing(generator: torch.Generator, held_out: bool) -> Thing:
    """A random object of the training combinations or of the held-out ones; kinds and motions are evenly likely."""
    groups = list(_things(held_out).values())
    group = groups[_pick(len(groups), generator)]
    return group[_pick(len(group), generator)]


def random_world(generator: torch.Generator, *, objects: int = 1, held_out: bool = False) -> World:
    """A random world of one or two objects, all of them held-out combinations or none of them."""
    things = [random_thing(generator, held_out)]
    while len(things) < objects:
        other = random_thing(generator, held_out)
        if all(other.colour != thing.colour for thing in things):
            things.append(other)
    order = list(COLOURS)
    things.sort(key=lambda thing: order.index(thing.colour))
    return World(tuple(things), list(BACKGROUNDS)[_pick(len(BACKGROUNDS), generator)])


# --- drawing ----------------------------------------------------------------------------------------------------------


@cache
def digit_images(split: str) -> dict[str, Tensor]:
    """Handwritten digits by name, float ``[N,8,8]`` in 0..1; every fifth image of a digit is ``test``, the others are
    ``train``. Raises UniViGUError where scikit-learn, which brings the images, is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UniViGUError(
            'scikit-learn is not installed, and the digits of the little worlds come with it; install "scikit-learn"'
        ) from None
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
    found = {}
    for value, name in enumerate(DIGITS):
        of_digit = images[labels == value]
        is_test = torch.arange(len(of_digit)) % 5 == 0
        found[name] = of_digit[is_test if split == "test" else ~is_test]
    return found


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    corners = []
    for i in range(2 * points):
        reach, angle = (1.0 if i % 2 == 0 else inner), math.pi * i / points
        corners.append((reach * math.sin(angle), -reach * math.cos(angle)))
    return corners


_SIDE, _ARM, _HALF = 0.88, 1.08, 0.36
# Corners of the straight-edged kinds, in radii, y down. Kinds of one size look about equally large.
POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-_SIDE, -_SIDE), (_SIDE, -_SIDE), (_SIDE, _SIDE), (-_SIDE, _SIDE)],
    "triangle": [(0.0, -1.25), (1.0825, 0.625), (-1.0825, 0.625)],
    "star": [(1.3 * x, 1.3 * y) for x, y in _star(5, 0.42)],
    "cross": [
        *[(-_HALF, -_ARM), (_HALF, -_ARM), (_HALF, -_HALF), (_ARM, -_HALF), (_ARM, _HALF), (_HALF, _HALF)],
        *[(_HALF, _ARM), (-_HALF, _ARM), (-_HALF, _HALF), (-_ARM, _HALF), (-_ARM, -_HALF), (-_HALF, -_HALF)],
    ],
}
REACH = 1.3  # no kind is drawn further from its centre than this many radii
RING_HOLE = 0.52
DIGIT_BOX = 1.2  # half the side of a digit's image, in radii


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
            crosses = ((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax)
            inside = inside ^ crosses
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())


def cover(kind: str, x: Tensor, y: Tensor, radius: Tensor, image: Tensor | None = None) -> Tensor:
    """How much of every pixel an object covers, 0..1 with anti-aliased edges.

    ``x``, ``y``: pixel positions relative to its centre, y down; ``radius`` in pixels, of a shape that broadcasts.
    ``image`` ``[8,8]`` in 0..1: the handwriting of a digit.
    """
    u, v = x / radius, y / radius
    if kind in DIGITS:
        assert image is not None
        grid = torch.stack([u, v], -1) / DIGIT_BOX
        pictures = image.expand(grid.shape[0], 1, *image.shape)
        ink = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
        return ((ink - 0.3) * 2.6).clamp(0, 1)
    if kind == "circle":
        distance = (u.square() + v.square()).sqrt() - 1
    elif kind == "ring":
        distance = ((u.square() + v.square()).sqrt() - (1 + RING_HOLE) / 2).abs() - (1 - RING_HOLE) / 2
    else:
        distance = _polygon_distance(u, v, POLYGONS[kind])
    return (0.5 - distance * radius).clamp(0, 1)


@dataclass(frozen=True)
class Placing:
    """Where one object of a clip is: centres ``[T,2]`` (x, y) and radii ``[T]``, both in sides, and its handwriting."""

    centres: Tensor
    radii: Tensor
    image: Tensor | None = field(default=None, repr=False)


def _place(thing: Thing, scale: float, times: Tensor, generator: torch.Generator) -> Placing:
    """A random way of one object that stays inside the picture; ``times`` from -0.5 to 0.5 over the clip."""
    radius = SIZES[thing.size] * scale
    radii = torch.full_like(times, radius)
    if thing.motion == "grows":
        radii = radius * (1 + 2 * times * (GROWTH[thing.speed or ""] - 1) / (GROWTH[thing.speed or ""] + 1))
    dx, dy = DIRECTIONS.get(thing.motion.removeprefix("moves "), (0, 0))
    way = TRAVEL[thing.speed or "slowly"]
    u = torch.rand(2, generator=generator) * 2 - 1
    edge = REACH * float(radii.max())
    room = [max(0.0, 0.5 - edge - abs(d) * way / 2) for d in (dx, dy)]
    middle = torch.tensor([0.5 + float(u[0]) * room[0], 0.5 + float(u[1]) * room[1]])
    return Placing(middle + times[:, None] * torch.tensor([dx * way, dy * way]), radii)


def _gap(a: Placing, b: Placing) -> float:
    """The least free space between two objects over the clip, in sides; negative where they touch."""
    distance = (a.centres - b.centres).square().sum(-1).sqrt()
    return float((distance - 1.15 * (a.radii + b.radii)).min())


def place(world: World, frames: int, generator: torch.Generator, *, split: str = "train") -> list[Placing]:
    """Random ways for all objects. Of a pair, the first of 60 draws that keeps clear, or else the clearest of them."""
    times = torch.linspace(-0.5, 0.5, frames) if frames > 1 else torch.zeros(1)
    scale = 1.0 if len(world.things) == 1 else PAIR_SCALE
    best: list[Placing] = []
    widest = -math.inf
    for _ in range(60):
        found = [_place(thing, scale, times, generator) for thing in world.things]
        gap = _gap(*found) if len(found) == 2 else math.inf
        if gap > widest:
            best, widest = found, gap
        if widest > 0.02:
            break
    placed = []
    for thing, placing in zip(world.things, best, strict=True):
        image = None
        if thing.kind in DIGITS:
            images = digit_images(split)[thing.kind]
            image = images[_pick(len(images), generator)]
        placed.append(Placing(placing.centres, placing.radii, image))
    return placed


def coverage(thing: Thing, at: Placing, side: int) -> Tensor:
    """How much of every pixel an object covers, float ``[T,S,S]``, 0..1."""
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    x = (axis[None, None, :] - at.centres[:, 0, None, None]) * side
    y = (axis[None, :, None] - at.centres[:, 1, None, None]) * side
    shape = x.expand(-1, side, -1), y.expand(-1, -1, side)
    return cover(thing.kind, *shape, at.radii[:, None, None] * side, at.image)


def draw(world: World, placed: list[Placing], side: int) -> Tensor:
    """The clip, uint8 ``[T,S,S,3]``, RGB 0-255."""
    ground = torch.tensor(BACKGROUNDS[world.background], dtype=torch.float32)
    clip = ground.expand(len(placed[0].radii), side, side, 3)
    for thing, at in zip(world.things, placed, strict=True):
        share = coverage(thing, at, side)[..., None]
        clip = clip * (1 - share) + torch.tensor(COLOURS[thing.colour], dtype=torch.float32) * share
    return clip.round().to(torch.uint8)


def render(
    world: World, generator: torch.Generator, *, side: int = SIDE, frames: int = FRAMES, split: str = "train"
) -> Tensor:
    """A clip of this world at a random place, uint8 ``[T,S,S,3]``, RGB 0-255.

    The clip always lasts two seconds: 9 frames are every second one of 17. ``split``: whose handwriting digits are in.
    """
    return draw(world, place(world, frames, generator, split=split), side)
