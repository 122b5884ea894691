"""``synthesis.jsonl``: what each clip of a data set came from, a line for everything that happens.

The first line is ``{"version": 2}``; ``{"generator": {...}}`` and ``{"captioner": {...}}`` are the settings of runs,
numbered from 0; ``{"clip": NAME, ...}`` is a ``ClipRecord``, and the last one of a name holds. Lines are only ever
appended, so that no process loses what another wrote. ``synthesis.json``, the record of version 1, which held the same
as one object, is carried over and stays as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UniViGUError
from ..io import append, read_bytes, write_text
from ..lines import breaks_off
from ..locks import appending
from ..settings import from_dict, settings, shown

RECORD, EARLIER = "synthesis.jsonl", "synthesis.json"
VERSION = 2
_MOST_BYTES = 2**30  # of a record: a million clips
_FOR_PEOPLE = ("model",)  # of the settings; the file's hash decides


@settings
class ClipRecord:
    """What a clip came from. ``generator`` and ``captioner`` are places in the lists of settings of the same file;
    ``frames`` is None for a clip that was begun and not finished; ``caption_tokens`` counts the end-of-text token,
    ``answers`` those that the caption took; ``caption_sha256`` is of the file as it was written (not in version 1).
    ``drawn`` is the seed of the draw that was kept of several, and ``score`` how well it fits its prompt."""

    prompt: str
    seed: int
    frames: int | None = None
    generator: int | None = None
    captioner: int | None = None
    caption_tokens: int | None = None
    answers: int | None = None
    caption_sha256: str | None = None
    drawn: int | None = None
    score: float | None = None


@settings
class Contents:
    """The settings of the runs so far, the last ones at the end, and the clips by name."""

    version: int
    generators: list[dict[str, Any]]
    captioners: list[dict[str, Any]]
    clips: dict[str, ClipRecord]

    def __post_init__(self) -> None:
        if self.version not in (1, VERSION):
            raise UniViGUError(f"version {shown(self.version)}, expected {VERSION}")
        if not all(clip.generator in (None, *range(len(self.generators))) for clip in self.clips.values()):
            raise UniViGUError("a clip refers to settings that are missing")


class Record:
    """The record of a folder. Whoever opens it owns the folder (``locks.owned``): a line that a killed run left
    unfinished at the end is cut off.

    Raises UniViGUError for a file that is damaged or of a later version, and where it cannot be appended to."""

    def __init__(self, folder: Path) -> None:
        self.path, self.carried = folder / RECORD, False
        found = self._lines() or self._earlier(folder / EARLIER) or Contents(VERSION, [], [], {})
        self.generators, self.captioners, self.clips = found.generators, found.captioners, found.clips

    def keep(self, name: str, clip: ClipRecord) -> None:
        """Note what is known of a clip now."""
        self._append(_clip_line(name, clip))
        self.clips[name] = clip

    def place(self, kind: str, now: Mapping[str, Any]) -> int:
        """The place of the settings in use, at the end of the list. ``kind``: ``generator`` or ``captioner``."""
        earlier = self.generators if kind == "generator" else self.captioners
        if earlier[-1:] != [now]:
            self._append({kind: now})
            earlier.append(dict(now))
        return len(earlier) - 1

    def require_same(self, generator: Mapping[str, Any], captioner: Mapping[str, Any] | None) -> None:
        """Raise UniViGUError, naming what differs, when the last run here had other settings."""
        differences = [
            f"{name} was {shown(before.get(name))} and is {shown(now.get(name))}"
            for earlier, now in ((self.generators, generator), (self.captioners, captioner))
            if earlier and now is not None
            for before in earlier[-1:]
            for name in {**before, **now}
            if name not in _FOR_PEOPLE and before.get(name) != now.get(name)
        ]
        if differences:
            raise UniViGUError(
                f"{self.path}: this folder was made with other settings: {'; '.join(differences)}. Use those "
                "settings, choose another folder, or pass --anyway to keep what is done and continue with the new ones"
            )

    def _lines(self) -> Contents | None:
        if self.path.is_symlink():
            raise UniViGUError(f"{self.path}: this is a link; expected the record itself. Remove the link")
        try:
            data = read_bytes(self.path, _MOST_BYTES, "the record of a data set")
        except FileNotFoundError:
            return None
        whole, newline, rest = data.rpartition(b"\n")
        is_torn = breaks_off(rest)  # a run was killed while it appended
        try:
            if not newline and (is_torn or not rest):  # the first lines are written whole
                raise UniViGUError("it contains no complete line")
            lines = [line for line in (whole, rest if not is_torn else b"") if line]
            contents = _folded(b"\n".join(lines).decode().split("\n") if lines else [])
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise _damaged(self.path, error) from None
        if rest:
            with self.path.open("rb+") as file:
                if is_torn:
                    file.truncate(len(whole + newline))
                else:  # an editor took the end of the line away
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
        return contents

    def _earlier(self, path: Path) -> Contents | None:
        """The record of version 1, where there is one."""
        try:
            found = from_dict(Contents, json.loads(read_bytes(path, _MOST_BYTES, "the record of a data set")))
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError, RecursionError) as error:
            raise _damaged(path, error) from None
        if found.version != 1:
            raise _damaged(path, f"version {found.version}, expected 1")
        self.carried = True
        return found

    def _append(self, line: Mapping[str, Any]) -> None:
        if not os.path.lexists(self.path):
            write_text(self.path, "".join(map(_json, self._all())))
        with appending(self.path) as handle:
            append(handle, _json(line).encode("utf-8", "backslashreplace"))

    def _all(self) -> Iterator[Mapping[str, Any]]:
        """What is known so far, as lines."""
        yield {"version": VERSION}
        yield from ({"generator": one} for one in self.generators)
        yield from ({"captioner": one} for one in self.captioners)
        yield from (_clip_line(name, clip) for name, clip in self.clips.items())


def _folded(lines: list[str]) -> Contents:
    found: dict[str, Any] = {"version": VERSION, "generators": [], "captioners": [], "clips": {}}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UniViGUError(f"line {number}: {error}") from None
        if "clip" in entry:
            found["clips"][entry.pop("clip")] = entry
        elif len(entry) == 1 and entry.keys() <= {"generator", "captioner"}:
            ((kind, now),) = entry.items()
            found[f"{kind}s"].append(now)
        elif entry.keys() == {"version"}:
            found |= entry
        else:
            raise UniViGUError(f"line {number}: {shown(entry)}, expected a clip or settings")
    return from_dict(Contents, found)


def _clip_line(name: str, clip: ClipRecord) -> dict[str, Any]:
    return {"clip": name, **{key: value for key, value in asdict(clip).items() if value is not None}}


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _damaged(path: Path, error: object) -> UniViGUError:
    return UniViGUError(
        f"{path}: cannot be read as the record of this folder ({error}); restore it from a backup, or choose another "
        "folder (without the record, the clips here cannot be told from others, so they are left alone)"
    )
