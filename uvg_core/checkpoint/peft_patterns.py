"""The patterns of names in peft's configurations, matched in time that grows with name and pattern alone.

They are regular expressions, and those of a stranger could keep Python's ``re`` busy for ever. What users of peft write
is read: letters, ``.``, ``\\d``, ``[...]``, once or repeated by ``*``, ``+`` or ``?``, and lists such as ``(q|k|v)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

_LONGEST = 1000  # characters
_MOST, _MOST_CHOICES = 1024, 256
_MOST_STEPS = 5_000_000  # a few seconds; a LoRA of 400 layers and 30 patterns takes a million
# An escaped or plain character, or a set of them, and how often it stands there. Lazy or greedy makes no difference.
_ATOM = re.compile(r"(?P<one>\\[dwDWsS.\-_]|\[\^?[^\[\]\\]+\]|[^\\()\[\]{}*+?|^$])(?P<times>[*+?]?)\??")
_GROUP = re.compile(r"\((?:\?:)?([^()]*)\)(?![*+?{])")


@dataclass(frozen=True)
class _Atom:
    fits: Callable[[str], object]
    optional: bool
    repeated: bool


class Patterns:
    """Patterns with a number each, read as peft does: what stands before a dot may stand before what a pattern matches.

    Raises ValueError for what is not read, and, when names are matched, for patterns that take too long."""

    def __init__(self, numbers: Mapping[str, Any], default: float) -> None:
        if len(numbers) > _MOST:
            raise ValueError(f"{len(numbers)} patterns")
        self._patterns = [(_ways(pattern), float(number)) for pattern, number in numbers.items()]
        self._default = default
        self._left = _MOST_STEPS

    def number_of(self, names: Sequence[str]) -> float:
        """The number of the first pattern that matches one of the names of a layer."""
        return next((number for ways, number in self._patterns if self._match(ways, names)), self._default)

    def _match(self, ways: tuple[bool, list[list[_Atom]]], names: Sequence[str]) -> bool:
        whole, choices = ways
        for name in names:
            begins = {0} if whole else {0, *(at + 1 for at, character in enumerate(name) if character == ".")}
            if any(self._reaches_end(atoms, name, begins) for atoms in choices):
                return True
        return False

    def _reaches_end(self, atoms: list[_Atom], name: str, here: set[int]) -> bool:
        """Whether the atoms match from one of the places on to the end: all places that they reach, atom by atom."""
        for atom in atoms:
            reached = set(here) if atom.optional else set[int]()
            for at in sorted(here):
                self._left -= 1
                while at < len(name) and atom.fits(name[at]):
                    self._left -= 1
                    at += 1
                    if at in reached and atom.repeated:
                        break
                    reached.add(at)
                    if not atom.repeated:
                        break
            if self._left < 0:
                raise ValueError("its patterns take too long to match")
            here = reached
        return len(name) in here


def _ways(pattern: str) -> tuple[bool, list[list[_Atom]]]:
    """Whether a pattern is for whole names, and what it matches: one of several rows of atoms."""
    if len(pattern) > _LONGEST:
        raise ValueError(f"a pattern of {len(pattern)} characters")
    bare = pattern.removeprefix("^")
    return bare != pattern, [_atoms(way) for way in _choices(bare.removesuffix("$"))]


def _choices(pattern: str) -> Iterator[str]:
    """The pattern without its groups, one for each choice of what stands in them."""
    pieces = _GROUP.split(pattern)  # outside, inside, outside, ...
    inside = [piece.split("|") for piece in pieces[1::2]]
    outside = [piece.split("|") for piece in pieces[::2]]
    if len(pieces) == 1:
        yield from outside[0]
        return
    count = 1
    for choices in inside:
        count *= len(choices)
    if count > _MOST_CHOICES or any(len(piece) > 1 for piece in outside):
        raise ValueError(f"the pattern {pattern[:100]!r}, whose choices are not read")
    for chosen in product(*inside):
        yield "".join(a + b for a, b in zip((piece[0] for piece in outside), (*chosen, ""), strict=True))


def _atoms(pattern: str) -> list[_Atom]:
    atoms, at = list[_Atom](), 0
    while at < len(pattern):
        match = _ATOM.match(pattern, at)
        if match is None:
            raise ValueError(f"the pattern {pattern[:100]!r}; expected names, with . * + ? [] and (a|b)")
        at = match.end()
        atoms.append(
            _Atom(re.compile(match["one"]).fullmatch, match["times"] in ("*", "?"), match["times"] in ("*", "+"))
        )
    return atoms
