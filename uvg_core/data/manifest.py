"""Manifests: a line of a .jsonl, .csv or .tsv file, or a row of a .parquet file, for each clip."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from ..errors import UniViGUError
from ..io import MEGABYTE, WINDOWS, open_regular
from ..lines import Replaced
from ..pipeline.table import plain_name
from ..settings import shown
from .clip_file import ClipFile, Listed, Texts
from .left_out import BAD_ROW, BAD_TEXT, NO_CAPTION, NO_DETAIL, NO_PATH, UNREADABLE, LeftOut, Unusable

MANIFESTS = (".jsonl", ".csv", ".tsv", ".parquet")
# The names that entries have in the manifests of this pack and of others.
PATHS = ("path", "file_name", "file_path", "video_path", "image_path", "video", "image", "file")
CAPTIONS = ("caption", "prompt", "text")
DETAILS = ("detail", "detailed_caption", "long_caption")
_DRIVE = re.compile("([a-zA-Z]):/+")
_OF_WINDOWS = "a path of Windows that leads nowhere here; expected one relative to the manifest"
STARTS, ENDS = ("start", "start_time"), ("end", "end_time")

_Rows = Iterator[tuple[int, dict[str, Any] | str]]  # with the numbers of their lines; in words what is wrong with one


def rows_of(path: Path, suffix: str) -> Iterator[Listed]:
    read = _parquet if suffix == ".parquet" else _lines
    replaced = _replaced(path, read)
    for number, row in read(path):
        if number in replaced:
            continue
        name = f"{'row' if suffix == '.parquet' else 'line'} {number}"
        place = _first(row, PATHS) if isinstance(row, dict) else None
        if not isinstance(row, dict):
            yield LeftOut(name, BAD_ROW, str(row))
        elif not isinstance(place, str) or not place.strip():
            yield LeftOut(name, NO_PATH)
        else:
            yield _listed_row(path, name, place.strip(), row)


def _replaced(path: Path, read: Callable[[Path], _Rows]) -> set[int]:
    """The numbers of the lines that a later one of the same part of a clip has replaced, and a killed run has left."""
    names, last, found = Replaced(path).names(), dict[tuple[str, str, str], int](), set[int]()
    for number, row in read(path) if names else ():
        place = _first(row, PATHS) if isinstance(row, dict) else None
        if isinstance(row, dict) and isinstance(place, str) and plain_name(place.strip()) in names:
            part = plain_name(place.strip()), str(_first(row, STARTS)), str(_first(row, ENDS))
            found |= {last[part]} if part in last else set()
            last[part] = number
    return found


def _listed_row(path: Path, line: str, place: str, row: dict[str, Any]) -> Listed:
    try:
        start, end = _seconds(_first(row, STARTS)), _seconds(_first(row, ENDS))
        if end is not None and end <= (start or 0):
            raise ValueError(f"its end ({end:g} s) is not after its start ({start or 0:g} s)")
    except (ValueError, TypeError) as error:
        return LeftOut(f"{place} ({line})", BAD_ROW, str(error))
    begin = start or 0.0
    part = "" if start is None and end is None else f" from {begin:g} s" + (f" to {end:g} s" if end else "")
    found = _place(path.parent, place)
    if found is None:
        return LeftOut(f"{place} ({line})", UNREADABLE, _OF_WINDOWS)
    return ClipFile(found, f"{place}{part}", begin, None if end is None else end - begin), entries_of(row)


def _place(folder: Path, place: str) -> str | None:
    """Where a clip lies. Manifests from Windows hold its paths: relative ones mean the same elsewhere, and drives lie
    in /mnt where Linux runs in Windows; None for one that leads nowhere."""
    literal, plain = folder / place, place.replace("\\", "/")
    drive = _DRIVE.match(plain)
    if WINDOWS or (drive is None and plain == place) or os.path.lexists(literal):
        return str(literal)
    if drive is None:
        return str(folder / plain)
    path = f"/mnt/{drive[1].lower()}/{plain[drive.end() :]}"
    return path if os.path.lexists(path) else None


def entries_of(row: dict[str, Any]) -> Texts:
    def read(prompt: bool) -> tuple[str, ...]:
        found = _first(row, CAPTIONS if prompt else DETAILS)
        if found is None:
            raise Unusable(NO_CAPTION if prompt else NO_DETAIL)
        texts = tuple(found) if isinstance(found, list | tuple) and found else (found,)
        if not all(isinstance(text, str) for text in texts):
            raise Unusable(BAD_TEXT, f"found {shown(found)}; expected text, or a list of texts")
        return texts

    return read


def _first(row: dict[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"found {shown(value)}; expected seconds from the beginning of the clip")
    return seconds


def _lines(path: Path) -> _Rows:
    """The rows of a .jsonl, .csv or .tsv file."""
    with os.fdopen(opened(path), "rb") as file:
        lines = _bounded(path, file)
        if path.suffix.lower() == ".jsonl":
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, json_row(line)
            return
        head = next(lines, "")
        separators = ",;\t" if path.suffix.lower() == ".csv" else "\t"  # Excel's depend on the system's language
        separator = max(separators, key=lambda one: (head.partition("\n")[0].count(one) > 0, -separators.index(one)))
        rows = csv.DictReader(chain([head], lines), delimiter=separator, strict=True)
        try:
            names = [str(name).strip() for name in rows.fieldnames or ()]
            if not set(names) & set(PATHS):
                raise UniViGUError(f"{path}: the header row is {shown(names)}; expected a column path and one caption")
            for row in rows:
                cells = {str(name).strip(): value for name, value in row.items() if name is not None}
                extra = f"found more cells than the header row has names: {shown(row.get(None))}; put quotation marks"
                yield rows.line_num, f"{extra} around text that contains separators" if None in row else cells
        except csv.Error as error:
            raise UniViGUError(
                f"{path}: the row after line {rows.line_num}: {error}; expected a table with a header row, in which "
                "quotation marks are closed"
            ) from None


def _bounded(path: Path, file: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(MEGABYTE + 1), b""), 1):
        if len(line) > MEGABYTE:
            raise UniViGUError(f"{path}: line {number} is longer than a megabyte; expected a clip and its caption")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UniViGUError(f"{path}: line {number} is not UTF-8; save the manifest as UTF-8") from None


def json_row(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"{error}; expected a JSON object"
    return row if isinstance(row, dict) else f"found {shown(row)}; expected a JSON object"


def _parquet(path: Path) -> _Rows:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UniViGUError(f"{path}: .parquet needs pyarrow: pip install pyarrow") from None
    with os.fdopen(opened(path), "rb") as handle:
        try:
            file = parquet.ParquetFile(handle)
            wanted = [name for name in file.schema_arrow.names if name in (*PATHS, *CAPTIONS, *DETAILS, *STARTS, *ENDS)]
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError) as error:
            raise UniViGUError(f"{path}: cannot be read as Parquet ({error})") from None


def opened(path: Path) -> int:
    try:
        return open_regular(path, "a manifest of clips")
    except FileNotFoundError:
        raise UniViGUError(f"{path}: no such file; expected a manifest or a shard of clips. Check the name") from None
