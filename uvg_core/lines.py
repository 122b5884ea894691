"""Records that several processes append to: JSON objects, a line each."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import UniViGUError
from .io import append, read_bytes
from .locks import appending

_MOST_BYTES = 2**28


class Lines:
    """A file to which lines are only ever appended. What is no JSON object is passed over, such as the end of a line
    that a kill cut. ``full`` says what to do with a file that has no room for more."""

    def __init__(self, path: Path, what: str, *, most: int = _MOST_BYTES, full: str = "move it away") -> None:
        self.path, self._what, self._most, self._full = path, what, most, full
        self._size = 0  # of what was read

    def news(self) -> list[dict[str, Any]]:
        """All that the file holds, where others have added to it since the last time; else nothing."""
        try:
            if os.stat(self.path).st_size == self._size:
                return []
            data = read_bytes(self.path, self._most, self._what)
        except FileNotFoundError:
            return []
        self._size, found = len(data), []
        for line in data.split(b"\n"):
            with suppress(ValueError, RecursionError):
                found.append(json.loads(line))
        return [entry for entry in found if isinstance(entry, dict)]

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
