"""Mutated files for everything that reads what strangers wrote.

A reader is an entry of ``PARSERS`` in one of the modules beside this one: how an honest file is made, how the product
reads it, and how a file of this kind lies while its form stays sound. Half of the mutants of a reader lie like that
(odd seeds), the others are changed blindly. A seed always gives the same mutant. To see one again:

    PYTHONPATH=tests:. python -m mutants "NAME" SEED
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True)
class Parser:
    """How one reader is tested.

    make   write an honest file, and what it needs beside it, into an empty folder; returns the file to be mutated
    read   read it as the product does; may raise UniViGUError and nothing else
    lie    from the honest bytes: a file whose form is sound and whose content is not
    does   what reading it may do of ``_child.RUNS``
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    lie: Callable[[bytes, Random], bytes]
    does: tuple[str, ...] = ()


def modules() -> list[str]:
    """The modules of this package that list readers."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def parsers() -> dict[str, Parser]:
    """All readers by name."""
    found: dict[str, Parser] = {}
    for module in modules():
        found |= importlib.import_module(f"{__name__}.{module}").PARSERS
    return found


def mutant(name: str, parser: Parser, seed: int, honest: bytes) -> bytes:
    random = Random(f"{name} {seed}")
    return (parser.lie if seed % 2 else blind)(honest, random)


NUMBERS = [0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
TEXTS = [
    "",
    "../x",
    "/etc/passwd",
    "\0",
    "\ud800",
    "\u202e",
    "\x1b[31m",
    "nan",
    "inf",
    "(a+)+$",
    "x" * 100_000,
    "ü" * 9,
]


def blind(data: bytes, random: Random) -> bytes:
    """One to eight changes anywhere: bits flipped, bytes and numbers overwritten, pieces cut out, doubled, swapped."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 4, 8])):
        at, length = random.randrange(len(changed) or 1), random.choice([1, 2, 4, 8, 64, 1000])
        piece = bytes(changed[at : at + length])
        match random.randrange(7):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << random.randrange(8)
            case 1:
                changed[at : at + length] = random.randbytes(len(piece))
            case 2:
                changed[at : at + length] = b""
            case 3:
                changed[at:at] = piece * random.choice([1, 2, 50])
            case 4:
                del changed[at:]
            case 5:
                other = random.randrange(len(changed) or 1)
                changed[other : other + length] = piece
            case _:
                changed = overwritten(changed, [(at, min(at + random.choice([1, 2, 4, 8]), len(changed)))], random)
    return bytes(changed)


def overwritten(data: bytes | bytearray, spans: Sequence[tuple[int, int]], random: Random) -> bytearray:
    """One of the spans (begin, end) overwritten by a number that is seldom right, in either byte order, or by noise."""
    changed = bytearray(data)
    begin, end = random.choice(spans)
    length = end - begin
    if random.randrange(4) and length <= 8:
        number = random.choice([*NUMBERS, -1]) % (1 << 8 * length)
        changed[begin:end] = number.to_bytes(length, random.choice(["big", "little"]))
    else:
        changed[begin:end] = random.randbytes(length)
    return changed


def wrong(value: Any, random: Random) -> Any:
    """A value of JSON with one of its nodes replaced, doubled or left out; the rest stays."""
    if isinstance(value, dict) and value and random.randrange(8):
        key = random.choice(list(value))
        match random.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return value | {random.choice(TEXTS): value[key]}
            case _:
                return value | {key: wrong(value[key], random)}
    if isinstance(value, list) and value and random.randrange(8):
        at = random.randrange(len(value))
        match random.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value * random.choice([2, 1000])
            case _:
                return [*value[:at], wrong(value[at], random), *value[at + 1 :]]
    nested: Any = []
    for _ in range(random.choice([3, 900])):
        nested = [nested]
    numbers = [random.choice(NUMBERS), -random.choice(NUMBERS), 10**30, 0.5, float("nan"), float("inf"), 1e308]
    return random.choice([None, True, {}, [], {"": {}}, nested, random.choice(numbers), random.choice(TEXTS), value])


def wrong_json(data: bytes, random: Random) -> bytes:
    """A JSON document with one to three nodes that lie."""
    value = json.loads(data)
    for _ in range(random.choice([1, 1, 3])):
        value = wrong(value, random)
    return json.dumps(value).encode()


def prefixed(text: bytes) -> bytes:
    """Bytes behind their length, as safetensors has its header."""
    return struct.pack("<Q", len(text)) + text
