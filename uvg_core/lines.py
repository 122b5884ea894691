"""Records that several processes append to: JSON objects, a line each."""

from __future__ import annotations

import codecs
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import UniViGUError
from .io import append, read_bytes
from .locks import appending

_MOST_BYTES = 2**28
_CUT = ("true", "false", "null", "NaN", "Infinity", "-Infinity", ".", "e+", "e-")  # what else of JSON can break off


class Lines:
    """A file to which lines are only ever appended. What is no JSON object is passed over, such as the end of a line
    that a kill cut. ``full`` says what to do with a file that has no room for more."""

    def __init__(self, path: Path, what: str, *, most: int = _MOST_BYTES, full: str = "move it away") -> None:
        self.path, self._what, self._most, self._full = path, what, most, full
        self._size = 0  # of what was read

    def news(self) -> list[dict[str, Any]]:
        """All that the file holds, where others have added to it since the last time; else nothing."""
        with suppress(FileNotFoundError):
            if os.stat(self.path).st_size != self._size:
                return [entry for _, entry in self.read() if entry is not None]
        return []

    def read(self) -> list[tuple[bytes, dict[str, Any] | None]]:
        """All lines that are not empty, each with the object that it holds; None for what is none."""
        try:
            data = read_bytes(self.path, self._most, self._what)
        except FileNotFoundError:
            return []
        self._size = len(data)
        return [(line, _object(line)) for line in data.split(b"\n") if line.strip()]

    def add(self, entry: dict[str, Any]) -> None:
        """Append a line. Raises UniViGUError where there is no room, and like ``appending``."""
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace")
        with appending(self.path) as handle:
            size = os.fstat(handle).st_size
            if size + len(line) > self._most:
                raise UniViGUError(f"{self.path}: is full ({self._most >> 20} MB); {self._full}")
            is_torn = size > 0 and os.lseek(handle, size - 1, os.SEEK_SET) >= 0 and os.read(handle, 1) != b"\n"
            append(handle, (b"\n" if is_torn else b"") + line + b"\n")
            self._size += os.fstat(handle).st_size - size


def _object(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        entry = json.loads(line)
        return entry if isinstance(entry, dict) else None
    return None


def breaks_off(line: bytes) -> bool:
    """Whether a line is a JSON object as far as it goes, and not to its end, as a kill leaves it; a slip of somebody's
    pen is no such thing."""
    if not line or not line.startswith(b'{"'[: len(line)]):
        return False
    text = ""
    try:
        text, _ = codecs.utf_8_decode(line)  # the last letter may be cut, too
        json.loads(text)
    except json.JSONDecodeError as error:
        left = text[error.pos :]
        is_cut = "Unterminated" in error.msg or ("escape" in error.msg and len(left) < len("\\uXXXX"))
        return is_cut or any(word.startswith(left) for word in _CUT)
    except (ValueError, RecursionError):
        pass
    return False


class Replaced:
    """The clips in a table of which a later line has replaced an earlier one, as long as both stand there. It is noted
    before the later one is added: after a kill, readers take that one, and the next run takes the earlier one away."""

    def __init__(self, table: Path) -> None:
        self._path = table.with_name(f".uvg.{table.name}.replaced")

    def names(self) -> set[str]:
        return {str(entry.get("clip")) for entry in self._lines().news()}

    def note(self, name: str) -> None:
        self._lines().add({"clip": name})

    def clear(self) -> None:
        """The earlier lines are gone."""
        self._path.unlink(missing_ok=True)

    def _lines(self) -> Lines:
        return Lines(self._path, "a record of captions that were replaced")
