"""Captions in one table for a folder: metadata.jsonl or metadata.csv."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import unicodedata
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..confined import is_open
from ..errors import UniViGUError
from ..io import MEGABYTE, append, open_regular, read_bytes, require_writable, write_beside, write_text
from ..lines import Replaced, breaks_off
from ..locks import appending
from ..settings import shown
from .wording import Change

CLIP, CAPTION = "file_name", "caption"  # as Hugging Face's folders of videos name them
_MOST_BYTES = 2**28  # of a table: a million clips
_SEPARATORS = ",;\t"  # Excel's depend on the language of the system
_TAIL = 256  # bytes before the end of what was read, by which an edit is noticed


class Table:
    """One file with a line for each clip, to which lines are only appended: nothing is lost when a run is killed, and
    several runs share it. The last line of a clip holds; at the end of a run those that it has replaced go, and those
    that a killed one has. Without ``writes`` nothing is changed.

    A csv keeps its separator, its line ends and its byte order mark, whoever made it."""

    def __init__(self, folder: Path, clips: list[Path], path: Path, *, writes: bool = True) -> None:
        self.path, self._folder, self._is_csv, self._backup = path, folder, path.suffix == ".csv", False
        self._names = {clip.relative_to(folder).as_posix() for clip in clips}
        self._plain = {plain_name(name): name for name in self._names}
        self._writes, self._noted = writes, Replaced(path)
        self._replaced: set[str] = set()  # clips whose earlier lines this run has replaced
        self._forget()
        if os.path.lexists(self.path):
            with self._open():
                pass

    def place(self, clip: Path) -> Path:
        return self.path

    def is_taken(self, clip: Path) -> bool:
        return bool((self.read(clip) or "").strip())

    def read(self, clip: Path) -> str | None:
        with suppress(OSError):
            if self._state != _state(os.stat(self.path)):  # another run has added to it
                with self._open():
                    pass
        return self._rows.get(self._name(clip), {}).get(CAPTION)

    def put(self, clip: Path, change: Change, *, backup: bool = False, blind: bool = False) -> bool:
        name = self._name(clip)
        if self._is_csv and not name.isprintable():
            raise UniViGUError(f"{clip}: a .csv cannot hold this name; rename the clip, or write another format")
        with self._open() as handle:
            row = self._rows.get(name, {})
            text = change(row.get(CAPTION))
            if text is None:
                return False
            row = {**(row or {CLIP: name}), CAPTION: " ".join(text.splitlines()) if self._is_csv else text}
            if name in self._rows.keys() - self._replaced:
                self._noted.note(name)
            head, line = b"" if self._fields else self._head([CLIP, CAPTION]), self._line(row)
            try:
                append(handle, head + line)
            except OSError:
                self._forget()  # the names of the columns may not stand there
                raise
            self._replaced |= {name} & self._rows.keys()
            self._backup |= backup and bool(self._rows.get(name, {}).get(CAPTION))
            self._rows[name] = row
            self._note_state(handle)
        return True

    def close(self) -> None:
        """Take away the lines that were replaced. With ``backup``, the table with all of them stays beside it.
        Lines of others stay as they are, also where a clip has several."""
        # Where that cannot be, the lines hold as they are: on a full disk, or on Windows while the table is open.
        with suppress(UniViGUError, OSError):
            if self._writes and (self._replaced or self._noted.names()):
                self._tidy()

    def _tidy(self) -> None:
        self._forget()
        with self._open():
            data = read_bytes(self.path, _MOST_BYTES, "a table of captions")
            if self._backup:
                write_beside(self.path.with_name(f"{self.path.name}.bak"), data.decode(errors="backslashreplace"))
            last, kept = dict(self._lines), dict[tuple[str, int], bytes]()
            replaced = self._replaced | self._noted.names()  # here: nobody else adds to them now
            for number, (name, line) in enumerate(self._lines):
                if name in replaced:
                    kept.setdefault((name, 0), last[name])
                else:
                    kept[name, number] = line
            whole = self._mark + self._head(self._fields) + b"".join(kept.values())
            write_text(self.path, whole.decode("utf-8"))
            self._noted.clear()

    def _forget(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
        self._lines: list[tuple[str, bytes]] = []  # all lines, each with its clip's name
        self._fields: list[str] = []
        self._separator, self._end, self._mark = ",", "\n", b""
        self._state, self._tail = (0, 0), b""  # of the file that was read: inode and size, and its last bytes

    def _name(self, clip: Path) -> str:
        return clip.relative_to(self._folder).as_posix()

    def _named(self, name: str) -> str:
        """The clip that a line is about, also where others have spelled its name in another way."""
        return name if name in self._names else self._plain.get(plain_name(name), name)

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The table, up to date and for the length of a block nobody else's."""
        require_writable(self.path)
        if not is_open(self.path):
            raise UniViGUError(f"{self.path}: this link leads outside the allowed folders; remove the link")
        with appending(self.path) if self._writes else _reading(self.path) as handle:
            inode, size = _state(os.fstat(handle))
            if size > _MOST_BYTES:
                raise UniViGUError(f"{self.path}: is larger than {_MOST_BYTES // MEGABYTE} MB; expected captions")
            if inode != self._state[0] or size < self._state[1] or self._tail != _tail(handle, self._state[1]):
                self._forget()  # somebody has edited it
            if size != self._state[1]:
                self._add(self._new(handle, self._state[1]))
                self._note_state(handle)
            yield handle

    def _note_state(self, handle: int) -> None:
        self._state = _state(os.fstat(handle))
        self._tail = _tail(handle, self._state[1])

    def _new(self, handle: int, start: int) -> str:
        """What was appended since ``start``. A line that a killed run left unfinished is cut off; one that only lacks
        its end, as editors leave it, gets it. Without ``writes`` both are only passed over."""
        os.lseek(handle, start, os.SEEK_SET)
        data = b""
        while block := os.read(handle, MEGABYTE):
            data += block
        if start == 0:
            self._mark = BOM_UTF8 if data.startswith(BOM_UTF8) else b""
            self._end = "\r\n" if data.partition(b"\n")[0].endswith(b"\r") else "\n"
        whole, newline, rest = data.rpartition(b"\n")
        if rest in (b"", BOM_UTF8):
            return self._decoded(data)
        if not self._is_torn(whole + newline, rest):
            if self._writes:
                append(handle, self._end.encode())
            return self._decoded(data)
        if self._writes:
            os.ftruncate(handle, start + len(whole + newline))
        return self._decoded(whole + newline)

    def _is_torn(self, whole: bytes, rest: bytes) -> bool:
        """Whether the end of a file is the beginning of a line of ours. Raises UniViGUError where it is neither that
        nor a whole line, and where the lines before are damaged."""
        fields = list(self._fields)
        try:
            self._parsed(self._decoded(whole + rest))
            return self._is_csv and rest.startswith(b'"') and rest.endswith(f'"{self._separator}'.encode())
        except UniViGUError:
            self._fields = list(fields)
            self._parsed(self._decoded(whole))
            if not self._breaks_off(rest):
                raise UniViGUError(
                    f"{self.path}: the last line is {shown(rest)}; correct or delete that line"
                ) from None
            return True
        finally:
            self._fields = fields

    def _breaks_off(self, rest: bytes) -> bool:
        """Whether a line begins as ours do and is right as far as it goes: a slip of somebody's pen is not cut off."""
        if not rest.startswith((b'"' if self._is_csv else b'{"file_name": "')[: len(rest)]):
            return False
        if not self._is_csv:
            return breaks_off(rest)
        try:
            (cells,) = csv.reader([rest.decode(errors="ignore")], delimiter=self._separator, strict=True)
            return len(cells) < max(2, len(self._fields))
        except csv.Error as error:
            return "unexpected end" in str(error)

    def _add(self, text: str) -> None:
        rows = self._parsed(text)
        lines = list(map(self._line, rows))
        if not self._is_csv:  # as they were written: numbers, for example, can be written in several ways
            lines = [line.encode() + b"\n" for line in text.split("\n") if line.strip()]
        for row, line in zip(rows, lines, strict=True):
            name, caption = row.get(CLIP), row.get(CAPTION)
            if not isinstance(name, str) or not isinstance(caption, str | None):
                raise self._damaged(row)
            self._rows[self._named(name)] = row
            self._lines.append((self._named(name), line))

    def _parsed(self, text: str) -> list[dict[str, Any]]:
        if not self._is_csv:
            try:
                rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            except (ValueError, RecursionError) as error:
                raise self._damaged(error) from None
            if not all(isinstance(row, dict) for row in rows):
                raise self._damaged(next(row for row in rows if not isinstance(row, dict)))
            self._fields = self._fields or [CLIP, CAPTION]
            return rows
        try:
            if not self._fields:
                self._separator = _separator(text)
            found = csv.reader(io.StringIO(text, newline=""), delimiter=self._separator, strict=True)
            lines = [line for line in found if line]
        except csv.Error as error:
            raise self._damaged(error) from None
        if not self._fields and lines:
            self._fields = lines.pop(0)
            if len(set(self._fields)) < len(self._fields) or not {CLIP, CAPTION} <= set(self._fields):
                raise self._damaged(self._fields)
        for line in lines:
            if len(line) != len(self._fields):
                raise self._damaged(line)
        return [dict(zip(self._fields, line, strict=True)) for line in lines]

    def _head(self, fields: list[str]) -> bytes:
        self._fields = fields
        return self._line(dict(zip(fields, fields, strict=True))) if self._is_csv else b""

    def _line(self, row: dict[str, Any]) -> bytes:
        if not self._is_csv:
            return (json.dumps(row, ensure_ascii=False) + self._end).encode("utf-8", "backslashreplace")
        line = io.StringIO()
        cells = [str(row.get(field, "")) for field in self._fields]
        writer = csv.writer(line, delimiter=self._separator, lineterminator=self._end, quoting=csv.QUOTE_ALL)
        writer.writerow(cells)
        return line.getvalue().encode("utf-8", "backslashreplace")

    def _decoded(self, data: bytes) -> str:
        with suppress(UnicodeDecodeError):
            text = data.decode("utf-8-sig")
            if "\0" not in text:  # UTF-16 that does not say so
                return text
        wanted = "CSV UTF-8 in Excel, or as UTF-8" if self._is_csv else "UTF-8"
        raise self._damaged(ValueError(f"it is not UTF-8; save it as {wanted}"))

    def _damaged(self, found: object) -> UniViGUError:
        said = str(found) if isinstance(found, Exception) else shown(found)
        return UniViGUError(
            f"{self.path}: cannot be read as a table of captions: {said}; expected lines with {CLIP} and {CAPTION}. "
            "Correct it, move it away, or choose a file_suffix"
        )


def plain_name(name: str) -> str:
    """The name of a file in a folder as it is spelled here: ``sub/a.mp4`` for ``./sub\\a.mp4``, and accents in one
    with their letters, which macOS writes apart."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def _separator(text: str) -> str:
    """What stands between the columns of a csv, of which the first line has the names."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    kinds = (kind for kind in _SEPARATORS if {CLIP, CAPTION} <= set(next(csv.reader([first], delimiter=kind), ())))
    return next(kinds, ",")


@contextmanager
def _reading(path: Path) -> Iterator[int]:
    handle = open_regular(path, "a table of captions")
    try:
        yield handle
    finally:
        os.close(handle)


def _state(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_ino, facts.st_size


def _tail(handle: int, end: int) -> bytes:
    """The bytes of a file before ``end``, as many as tell whether it has only been appended to since."""
    os.lseek(handle, max(0, end - _TAIL), os.SEEK_SET)
    return os.read(handle, min(end, _TAIL))
