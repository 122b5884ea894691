"""The grammar of the little worlds: rendered clips whose caption is known to be true.

Version 2. A world is one or two objects on a plain background, seen for two seconds:

    world       =  object ["and" object] "on a" background "background"
    object      =  "a" size colour kind motion [speed]
    size        =  "small" | "large"
    colour      =  "red" | "green" | "blue" | "yellow" | "magenta" | "cyan" | "orange" | "white"
    kind        =  "circle" | "square" | "triangle" | "star" | "ring" | "cross" | "zero" ... "nine"
    motion      =  "moves left" | "moves right" | "moves up" | "moves down" | "stays still" | "grows"
    speed       =  "slowly" | "quickly"                    (absent exactly where the object stays still)
    background  =  "black" | "gray" | "navy" | "beige"

The *brief* prompt names colour and kind alone ("a red circle", "a red circle and a blue star"); the *detailed* caption
is the whole sentence. Two objects never share a colour and are named in the order of the colour table. One tenth of the
(kind, colour, motion) combinations, ``is_held_out``, never appears in training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch

from uvg_core.errors import UniViGUError

VERSION = 2

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
SIZES: dict[str, float] = {"small": 0.13, "large": 0.20}  # radius in the middle of the clip, as a fraction of the side
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*(f"moves {direction}" for direction in DIRECTIONS), "stays still", "grows")
SPEEDS = ("slowly", "quickly")
# The words of every attribute.
WORDS: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "motion": MOTIONS,
    "speed": SPEEDS,
    "background": tuple(BACKGROUNDS),
}
ATTRIBUTES = tuple(WORDS)


@dataclass(frozen=True)
class Shape:
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

    shapes: tuple[Shape, ...]
    background: str

    @property
    def caption(self) -> str:
        """The detailed caption, e.g. ``a small red circle moves left slowly on a navy background``."""
        return f"{' and '.join(shape.phrase for shape in self.shapes)} on a {self.background} background"

    @property
    def brief(self) -> str:
        """The short prompt, e.g. ``a red circle`` or ``a red circle and a blue star``."""
        return " and ".join(shape.brief for shape in self.shapes)

    def attributes(self, index: int = 0) -> dict[str, str | None]:
        """Words of object ``index`` by attribute, and the background; ``speed`` is None where it stays still."""
        return {**vars(self.shapes[index]), "background": self.background}


_SENTENCE = re.compile(rf"(.*) on a ({'|'.join(BACKGROUNDS)}) background")
_SHAPE = re.compile(
    rf"a (?P<size>{'|'.join(SIZES)}) (?P<colour>{'|'.join(COLOURS)}) (?P<kind>{'|'.join(KINDS)}) "
    rf"(?P<motion>{'|'.join(MOTIONS)})(?:(?<=still)|(?<!still) (?P<speed>{'|'.join(SPEEDS)}))"
)


def parse(caption: str) -> World | None:
    """The world that a detailed caption describes, or None where it is not a sentence of the grammar."""
    sentence = _SENTENCE.fullmatch(caption.strip())
    shapes = [_SHAPE.fullmatch(part) for part in sentence[1].split(" and ")] if sentence else []
    if sentence is None or len(shapes) > 2 or None in shapes:
        return None
    return World(tuple(Shape(**shape.groupdict()) for shape in shapes if shape), sentence[2])


def read_caption(text: str) -> World | None:
    """The world a caption describes. Of a text that is no sentence of the grammar, the words that it does hold: each
    attribute is the first word of its table, per part between "and"; None where there is no word of an object."""
    exact = parse(text)
    if exact is not None:
        return exact
    parts = [{name: _first(part, WORDS[name]) for name in ATTRIBUTES[:-1]} for part in text.split(" and ")]
    shapes = tuple(Shape(speed=words.pop("speed") or None, **words) for words in parts if any(words.values()))
    return World(shapes, _first(text, BACKGROUNDS)) if shapes else None


def _first(text: str, words: Iterable[str]) -> str:
    """Whichever of some words comes first in a text; empty where there is none."""
    found = re.search(rf"(?<![^ ])({'|'.join(words)})(?![^ ])", text)
    return found[1] if found else ""


def hard_negatives(world: World, count: int, generator: torch.Generator) -> list[str]:
    """Captions that differ from the truth in one attribute of one object; the attributes take turns.

    Raises UniViGUError where so many do not exist."""
    options = {name: list(_altered(world, name)) for name in ATTRIBUTES}
    if count > sum(map(len, options.values())):
        raise UniViGUError(f"{count} captions that differ in one attribute were asked for; fewer exist for {world}")
    found: list[str] = []
    names = [name for name in ATTRIBUTES if options[name]]
    while len(found) < count:
        left = options[names[len(found) % len(names)]]
        if left:
            found.append(left.pop(draw_index(len(left), generator)).caption)
        else:
            names = [name for name in names if options[name]]
    return found


def _altered(world: World, name: str) -> Iterator[World]:
    """Worlds that differ in one attribute of one object, or in the background."""
    if name == "background":
        yield from (replace(world, background=word) for word in BACKGROUNDS if word != world.background)
        return
    for index, shape in enumerate(world.shapes):
        for word in WORDS[name] if getattr(shape, name) is not None else ():
            changed = replace(shape, **{name: word})
            if name == "motion":  # whatever stays still has no speed, whatever moves has one
                changed = replace(changed, speed=None if word == "stays still" else shape.speed or "slowly")
            shapes = (*world.shapes[:index], changed, *world.shapes[index + 1 :])
            order = [WORDS["colour"].index(other.colour) for other in shapes]
            # No two of a colour, and in the grammar's order: another order would give the negative away.
            if word != getattr(shape, name) and order == sorted(set(order)):
                yield replace(world, shapes=shapes)


def is_held_out(shape: Shape) -> bool:
    """Whether this (kind, colour, motion) is one of the combinations that training never sees: 78 of the 768.

    A rule rather than a draw, so that every kind, colour and motion is met in training about equally often."""
    kind, colour, motion = (WORDS[name].index(getattr(shape, name)) for name in ("kind", "colour", "motion"))
    return (kind + 3 * colour + 7 * motion) % 10 == 0


def all_shapes() -> Iterator[Shape]:
    """Every object, in a fixed order."""
    for kind, colour, size, motion in product(KINDS, COLOURS, SIZES, MOTIONS):
        for speed in SPEEDS if motion != "stays still" else (None,):
            yield Shape(kind, colour, size, motion, speed)


@cache
def _groups(held_out: bool) -> list[list[Shape]]:
    """Objects of one side of the split, grouped by kind and motion."""
    shapes = [shape for shape in all_shapes() if is_held_out(shape) == held_out]
    groups = [[one for one in shapes if (one.kind, one.motion) == key] for key in product(KINDS, MOTIONS)]
    return [group for group in groups if group]


def draw_index(count: int, generator: torch.Generator) -> int:
    """A random whole number from 0 to ``count`` - 1."""
    return int(torch.randint(count, (), generator=generator))


def random_shape(generator: torch.Generator, held_out: bool) -> Shape:
    """A random object of the training combinations or of the held-out ones; kinds and motions are equally likely."""
    groups = _groups(held_out)
    group = groups[draw_index(len(groups), generator)]
    return group[draw_index(len(group), generator)]


def random_world(generator: torch.Generator, *, objects: int = 1, held_out: bool = False) -> World:
    """A random world of one or two objects, all of them held-out combinations or none of them."""
    shapes: dict[str, Shape] = {}
    while len(shapes) < objects:
        shape = random_shape(generator, held_out)
        shapes.setdefault(shape.colour, shape)
    background = WORDS["background"][draw_index(len(BACKGROUNDS), generator)]
    return World(tuple(shapes[colour] for colour in COLOURS if colour in shapes), background)
