"""``-``: the standard input in place of a file or a text, the standard output in place of a file."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UniViGUError, named
from ..io import MEGABYTE, require_writable, temporary_file, write_text
from ..settings import setting
from .flags import streams_of
from .output import show

_MOST_BYTES, _MOST_TEXT = 4 * 2**30, MEGABYTE


@contextmanager
def standard_input(args: argparse.Namespace) -> Iterator[None]:
    """For the length of a block, what is given as ``-`` comes from the standard input: a text as it is, a file as a
    temporary one of at most 4 GiB. Raises UniViGUError where there is more, or it is asked for twice."""
    asked = [
        (name, kind, value) for name, kind in streams_of(args.run) for value in _values(args, name) if is_stream(value)
    ]
    if not asked:
        yield
        return
    name, kind, value = asked[0]
    if len(asked) > 1:
        args.error("'-' (standard input) can be used only once")
    if sys.stdin is None:
        raise UniViGUError("'-' was given, but standard input is closed")
    if kind == "text":
        setattr(args, name, _text())
        yield
        return
    with temporary_file("standard input", "standard input") as path:
        _spool(path)
        found = getattr(args, name)
        setattr(args, name, [path if one == value else one for one in found] if isinstance(found, list) else path)
        yield


@contextmanager
def output_file(path: Path, suffix: str) -> Iterator[Path]:
    """The file to write; for ``-`` a temporary one with this suffix, which goes to the standard output afterwards."""
    if not is_stream(path):
        require_writable(path)
        yield path
        return
    with temporary_file(f"standard output{suffix}", "standard output") as written:
        yield written
        with written.open("rb") as source:
            shutil.copyfileobj(source, sys.stdout.buffer)
        sys.stdout.flush()


def is_stream(value: Any) -> bool:
    """Whether this is ``-``."""
    return str(value) == "-"


def as_json(what: str) -> Any:
    """A flag for the file of a result for machines."""
    help = f"Also write {what} as JSON; - writes it to standard output, and nothing else."
    return setting(help, default=None, suffixes=(".json",), stdout="file")


def write_json(path: Path, value: Any) -> None:
    """A result for machines, as one JSON document; ``-`` is the standard output."""
    text = named(json.dumps(value, indent=1, ensure_ascii=False))
    if is_stream(path):
        show(text)
    else:
        write_text(path, text + "\n")


def _values(args: argparse.Namespace, name: str) -> list[Any]:
    value = getattr(args, name, None)
    return value if isinstance(value, list) else [value]


def _text() -> str:
    data = sys.stdin.buffer.read(_MOST_TEXT + 1)
    if len(data) > _MOST_TEXT:
        raise UniViGUError("standard input has more than a million bytes; expected a prompt")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UniViGUError("standard input is not UTF-8 text; expected a prompt") from None


def _spool(path: Path) -> None:
    left = _MOST_BYTES
    with path.open("wb") as target:
        while data := sys.stdin.buffer.read(min(MEGABYTE, left + 1)):
            if (left := left - len(data)) < 0:
                raise UniViGUError("standard input has more than 4 GiB; save it to a file and pass the file's name")
            target.write(data)
    if not path.stat().st_size:
        raise UniViGUError("standard input is empty")
