"""Paths that strangers name stay inside the folders that the owner of a server has opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Of Windows: devices, streams of a file, short names of a folder above, names that it reads as another.
DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[\d¹²³]|lpt[\d¹²³])( *[.:].*)?|.*[. ]|.*:.*", re.IGNORECASE)

_roots: ContextVar[tuple[str, ...] | None] = ContextVar("roots", default=None)


def place_of(text: str, home: str | Path, roots: Iterable[str | Path], system: ModuleType = os.path) -> Path | None:
    """The path that ``text`` names, relative to ``home``, after links are followed; None outside of ``roots``.

    A spelling that leads out is known by its letters: nothing of it is looked for on the disk, nor on the network
    (Windows would say who it is to a machine that a path names). ``system`` is ``ntpath`` for the rules of Windows.
    """
    if _CONTROL.search(text):
        return None
    named = system.normpath(system.join(str(home), text))
    kept = [system.abspath(str(root)) for root in roots]
    kept += [system.realpath(root) for root in kept]
    if not _is_within(named, kept, system):
        return None
    if system.sep == "\\" and any(DEVICE.fullmatch(part) for part in system.splitdrive(named)[1].split("\\")):
        return None
    found = system.realpath(named)
    return Path(found) if _is_within(found, kept, system) else None


def is_plain(text: str) -> bool:
    """Whether a text can be a file's name, or a path of some, on this system: no control characters, no device."""
    parts = re.split(r"[\\/]", text) if os.name == "nt" else []
    return not (_CONTROL.search(text) or any(DEVICE.fullmatch(part) for part in parts))


@contextmanager
def confined_to(roots: Iterable[str | Path]) -> Iterator[None]:
    """For the length of a block, what the core lists and reads of clips and texts lies inside ``roots`` after links
    are followed; whatever leads out is as if it were not there."""
    token = _roots.set(tuple(os.path.realpath(root) for root in roots))
    try:
        yield
    finally:
        _roots.reset(token)


def is_open(path: str | Path) -> bool:
    """Whether a file may be read: everywhere, unless in a block of ``confined_to``."""
    roots = _roots.get()
    return roots is None or _is_within(os.path.realpath(path), roots, os.path)


def _is_within(path: str, roots: Iterable[str], system: ModuleType) -> bool:
    """By the letters alone."""
    inner = system.normcase(path) + system.sep
    return any(inner.startswith(system.normcase(root).rstrip(system.sep) + system.sep) for root in roots)
