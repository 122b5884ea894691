"""Captions of little worlds: reading those that a model wrote, and making some that are almost true."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from uvg_core.errors import UniViGUError

from .grammar import ATTRIBUTES, BACKGROUNDS, WORDS, Shape, World, draw_index, parse


def read_caption(text: str) -> World | None:
    """The world a caption describes. Of a text that is no sentence of the grammar, the words that it does hold: each
    attribute is the first word of its table, per part between "and"; None where there is no word of an object."""
    exact = parse(text)
    if exact is not None:
        return exact
    shapes = []
    for part in text.split(" and "):
        found = {name: _first(part, WORDS[name]) for name in ATTRIBUTES if name != "background"}
        if any(found.values()):
            speed = found.pop("speed")
            shapes.append(Shape(**{name: word or "" for name, word in found.items()}, speed=speed))
    return World(tuple(shapes), _first(text, BACKGROUNDS) or "") if shapes else None


def _first(text: str, words: Iterable[str]) -> str | None:
    """Whichever of some words comes first in a text."""
    places = {f" {text} ".find(f" {word} "): word for word in words}
    places.pop(-1, None)  # not found
    return places[min(places)] if places else None


def hard_negatives(world: World, count: int, generator: torch.Generator) -> list[str]:
    """Captions that differ from the truth in one attribute of one object; the attributes take turns.

    Raises UniViGUError where so many do not exist."""
    options = {
        name: [other for index in range(len(world.shapes)) for other in _altered(world, index, name)]
        for name in ATTRIBUTES
        if name != "background"
    }
    options["background"] = [replace(world, background=b) for b in BACKGROUNDS if b != world.background]
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


def _altered(world: World, index: int, name: str) -> Iterator[World]:
    """Worlds in which object ``index`` has another word for one attribute."""
    shape = world.shapes[index]
    for word in WORDS[name] if getattr(shape, name) is not None else ():
        changed = replace(shape, **{name: word})
        if name == "motion":  # whatever stays still has no speed, whatever moves has one
            changed = replace(changed, speed=None if word == "stays still" else shape.speed or "slowly")
        shapes = (*world.shapes[:index], changed, *world.shapes[index + 1 :])
        order = [WORDS["colour"].index(other.colour) for other in shapes]
        # No two of a colour, and in the grammar's order: another order would give the negative away.
        if word != getattr(shape, name) and order == sorted(set(order)):
            yield World(shapes, world.background)
