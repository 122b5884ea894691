"""Lists of prompts: one a line, with choices in braces, and the names of what is made from them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

from .errors import UniViGUError, printable

DEEPEST = 8  # choices inside choices
COUNTLESS = 10**9  # combinations, from which on they are not counted
_MARKS = re.compile(r"\\[{}|\\]|[{}|]")
_SLUG = 40  # bytes of a prompt in a file's name


def lines_of(text: str) -> list[str]:
    """The prompts in a text, one a line, without blank lines and those that begin with ``#``."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def literal(text: str) -> str:
    """The pattern that stands for a text alone, whatever characters it holds."""
    return re.sub(r"[\\{}|]", r"\\\g<0>", text)


@dataclass(frozen=True)
class Pattern:
    """A prompt with choices, such as ``a {red|light {blue|green}} circle``: words, and between them choices, each of
    some patterns. A backslash makes a brace or bar a plain character."""

    parts: tuple[str | tuple[Pattern, ...], ...]

    @classmethod
    def of(cls, text: str) -> Pattern:
        """Raises UniViGUError for braces that do not match, and for choices that lie too deep in one another."""
        marks = [(found.start(), found[0]) for found in _MARKS.finditer(text)]
        pattern, at, mark = _read(text, iter([*marks, (len(text), "")]), 0, 0)
        if mark:
            raise UniViGUError(
                f"{text[:80]}: found }} at character {at + 1} without its {{; for a plain brace write \\}}"
            )
        return pattern

    @property
    def count(self) -> int:
        """How many texts it stands for; ``COUNTLESS`` stands for more as well."""
        count = 1
        for part in self.parts:
            if not isinstance(part, str):
                count = min(count * sum(one.count for one in part), COUNTLESS)
        return count

    def all(self) -> Iterator[str]:
        """Every text, the last choice changing fastest."""
        options = (
            [part] if isinstance(part, str) else [text for one in part for text in one.all()] for part in self.parts
        )
        return map("".join, product(*options))

    def drawn(self, random: Random) -> str:
        """One of the texts."""
        return "".join(part if isinstance(part, str) else random.choice(part).drawn(random) for part in self.parts)


def _read(text: str, marks: Iterator[tuple[int, str]], begin: int, depth: int) -> tuple[Pattern, int, str]:
    """The pattern from ``begin`` to the mark that ends it, the place of that mark, and the mark."""
    parts: list[str | tuple[Pattern, ...]] = []
    for at, mark in marks:
        parts.append(text[begin:at])
        begin = at + len(mark)
        if mark == "{":
            if depth == DEEPEST:
                raise UniViGUError(f"{text[:80]}: choices are nested more than {DEEPEST} deep")
            choices = []
            closing = "|"
            while closing == "|":
                choice, end, closing = _read(text, marks, begin, depth + 1)
                begin = end + len(closing)
                choices.append(choice)
            if not closing:
                raise UniViGUError(
                    f"{text[:80]}: found {{ at character {at + 1} without its }}; for a plain brace write \\{{"
                )
            parts.append(tuple(choices))
        elif len(mark) == 2:  # a plain character
            parts.append(mark[1])
        elif mark == "|" and not depth:
            parts.append(mark)
        else:
            return Pattern(tuple(part for part in parts if part)), at, mark
    raise AssertionError("the last mark is the end of the text")


def expanded(lines: Sequence[str], most: int, seed: int | None = None) -> list[str]:
    """Prompts with choices as plain ones: all combinations or, with a ``seed``, one drawn for each line.

    Raises UniViGUError for more than ``most``, before they are made."""
    patterns = [Pattern.of(line) for line in lines]
    count = len(lines) if seed is not None else sum(pattern.count for pattern in patterns)
    if count > most:
        many = f"{count:,}" if count < COUNTLESS else "more than a billion"
        raise UniViGUError(f"the list expands to {many} prompts, and the limit is {most}")
    if seed is not None:
        drawn = (pattern.drawn(Random(f"{seed} {number}")) for number, pattern in enumerate(patterns))
        return [" ".join(text.split()) for text in drawn]
    return [" ".join(text.split()) for pattern in patterns for text in pattern.all()]


def file_name(prompt: str, number: int) -> str:
    """A name for what is made from a prompt, from its number and first words: ``003_a-red-circle``."""
    words = "-".join(re.findall(r"\w+", unicodedata.normalize("NFC", printable(prompt)).lower()))
    slug = words.encode()[:_SLUG].decode(errors="ignore")
    if words[len(slug) : len(slug) + 1] not in ("", "-") and "-" in slug:  # no half words
        slug = slug.rpartition("-")[0]
    slug = slug.strip("-")
    return f"{number:03}_{slug}" if slug else f"{number:03}"
