"""Where the captions of a folder are kept: a text beside each clip, or a table of all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from ..confined import is_open
from ..errors import UniViGUError
from ..io import MEGABYTE, read_bytes, read_text, require_writable, write_beside, write_new, write_text
from ..lines import Lines
from .table import CAPTION, Table
from .wording import FORMATS, Captions, Change, hash_of

EXTENDED = ".uvg.extended.jsonl"
CAPTION_SUFFIX = ".caption"  # of texts beside clips that kohya's tools, for example, write
_TABLE = "metadata"  # as Hugging Face's folders of videos name it


class Texts(Protocol):
    """Where captions are kept."""

    def place(self, clip: Path) -> Path:
        """The file that a clip's caption is in."""

    def is_taken(self, clip: Path) -> bool:
        """Whether a clip has a caption with words, or something else lies in its place that is not ours to change."""

    def read(self, clip: Path) -> str | None:
        """The caption of a clip, None where there is none. Raises UniViGUError where the place holds something else."""

    def put(self, clip: Path, change: Change, *, backup: bool = False, blind: bool = False) -> bool:
        """Change the caption of a clip; False where ``change`` leaves it, or somebody else was quicker. ``backup``:
        keep what was there; ``blind``: change also what cannot be read."""

    def close(self) -> None:
        """After the last one."""


@contextmanager
def texts_of(folder: Path, clips: list[Path], how: Captions, *, writes: bool = True) -> Iterator[Texts]:
    """The captions of a folder's clips, all of them: names depend on each other (``text_files``). Without ``writes``
    they are only looked at."""
    files = files_of(folder, clips, how)
    texts: Texts
    if how.format in ("jsonl", "csv"):
        texts = Table(folder, clips, files[0], writes=writes)
    else:
        texts = Beside(dict(zip(clips, files, strict=True)))
    try:
        yield texts
    finally:
        texts.close()


def files_of(folder: Path, clips: list[Path], how: Captions) -> list[Path]:
    """The files that the captions of a folder's clips are kept in: one for each clip, or the table."""
    name = f".{how.file_suffix}" if how.file_suffix else ""
    if how.format in ("jsonl", "csv"):
        return [folder / f"{_TABLE}{name}.{how.format}"]
    texts = text_files(clips)
    if how.format == "txt" and not name:
        return list(map(caption_file, texts))
    files, owners = [text.with_suffix(f"{name}.{how.format}") for text in texts], dict(zip(texts, clips, strict=True))
    for clip, file in zip(clips, files, strict=True):
        if owners.get(file, clip) != clip:
            raise UniViGUError(
                f"{clip}: with file_suffix {how.file_suffix} its caption would be {file.name}, the caption of "
                f"{owners[file].name}; choose another file_suffix"
            )
    return files


class Beside:
    """A file for each clip: its caption, or a JSON object with the caption in ``caption`` and what others put there."""

    def __init__(self, places: dict[Path, Path]) -> None:
        self._places, self._is_json = places, any(place.suffix == ".json" for place in places.values())

    def place(self, clip: Path) -> Path:
        return self._places[clip]

    def is_taken(self, clip: Path) -> bool:
        path = self._places[clip]
        if not is_open(path):  # a link that leads out: what lies there is not told
            return False
        if not path.is_file() or _is_empty(path):
            return False
        if not self._is_json:
            return True
        try:
            found = self._object(clip, self._content(path) or "")
        except UniViGUError:
            return True
        return CAPTION not in found or bool((found[CAPTION] or "").strip())

    def read(self, clip: Path) -> str | None:
        found = self._content(self._places[clip])
        return found if found is None or not self._is_json else self._object(clip, found).get(CAPTION)

    def put(self, clip: Path, change: Change, *, backup: bool = False, blind: bool = False) -> bool:
        path = self._places[clip]
        for _ in range(2):  # again where somebody has written a first text meanwhile
            try:
                found = self._content(path)
                entries = self._object(clip, found or "") if self._is_json else {}
            except UniViGUError:
                if not blind or backup or self._is_json:
                    raise
                found, entries = "", {}
            text = change(entries.get(CAPTION) if self._is_json else found)
            if text is None:
                return False
            if self._is_json:
                text = json.dumps({**entries, CAPTION: text}, ensure_ascii=False, indent=2) + "\n"
            if found is None:
                if write_new(path, text):
                    return True
                continue
            if backup and found.strip():
                write_beside(path.with_name(f"{path.name}.bak"), found)
            write_text(path, text)
            return True
        return False

    def close(self) -> None:
        pass

    def _content(self, path: Path) -> str | None:
        try:
            return read_text(path)
        except FileNotFoundError:
            require_writable(path)  # a link that leads nowhere, or out
            return None

    def _object(self, clip: Path, text: str) -> dict[str, Any]:
        found: Any = {}
        if text.strip():
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                found = None
        if not isinstance(found, dict) or not isinstance(found.get(CAPTION), str | None):
            raise UniViGUError(
                f"{self._places[clip]}: found something other than a JSON object whose {CAPTION} is text; move it "
                "away, or choose a file_suffix"
            )
        return found


class AllTexts:
    """The captions of a folder's clips to be read, in any form that ``caption_folder`` writes."""

    def __init__(self, folder: Path, clips: list[Path]) -> None:
        self._held, self._texts = ExitStack(), list[Texts]()
        for form in FORMATS:
            with suppress(UniViGUError):  # a table that cannot be read has no captions for us
                self._texts.append(
                    self._held.enter_context(texts_of(folder, clips, Captions(format=form), writes=False))
                )

    def __enter__(self) -> AllTexts:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def state(self, clip: Path) -> str:
        """Says by sizes and times whether the captions of a clip may have changed."""
        found = []
        for texts in self._texts:
            with suppress(OSError):
                facts = os.stat(texts.place(clip))
                found.append(f"{facts.st_size}:{facts.st_mtime_ns}")
        return " ".join(found)

    def read(self, clip: Path) -> str:
        """The first caption with words, empty where there is none."""
        for texts in self._texts:
            with suppress(UniViGUError):
                if words := (texts.read(clip) or "").strip():
                    return words
        return ""


def _is_empty(path: Path) -> bool:
    """Whether a text file is there and has no words."""
    try:
        return not read_bytes(path, MEGABYTE).strip()
    except (UniViGUError, FileNotFoundError):
        return False


def text_files(clips: list[Path]) -> list[Path]:
    """The text file that belongs to each clip, no two the same, also where letter case does not count.

    ``clip.txt`` for ``clip.mp4``, and for any other clip that is alone with its name; of several the mp4, else the
    first in the alphabet, has ``clip.txt``, and each other keeps its suffix: ``clip.mov.txt``.
    """
    taken: set[str] = set()
    targets: dict[Path, Path] = {}
    # The mp4 first: a clip.avi that joins it later must not take its text over.
    for clip in sorted(clips, key=lambda clip: (clip.suffix.lower() != ".mp4", clip)):
        names = (clip.with_suffix(".txt"), *(clip.with_name(f"{clip.name}{extra}.txt") for extra in ("", ".2", ".3")))
        targets[clip] = next(name for name in names if str(name).lower() not in taken)
        taken.add(str(targets[clip]).lower())
    return [targets[clip] for clip in clips]


def caption_file(text: Path) -> Path:
    """Where the caption of a clip is, of which ``text_files`` gives the text: there, unless some trainer has written
    ``clip.caption`` and nobody a text."""
    other = text.with_suffix(CAPTION_SUFFIX)
    return other if not os.path.lexists(text) and is_open(other) and other.is_file() else text


# Captions that were extended


class Extended:
    """Which captions have got something appended or prepended, of what was asked (``Captions.asked``): once is enough,
    whoever wrote it, a run, one that was killed, or somebody who accepted it, and whatever people correct in it later.
    It begins anew where a run or a review has replaced the caption, where it is again what it was before, and where it
    has no words any more.

    ``{"file": NAME, "before": HASH, "asked": HASH}`` is noted when a caption is about to be extended: while what was
    there before still is, nothing has happened. ``{"file": NAME, "replaced": true}`` takes back all of a caption."""

    def __init__(self, folder: Path, texts: Texts) -> None:
        self._folder, self.texts = folder, texts
        self._lines = Lines(folder / EXTENDED, "the record of captions")
        self._before: dict[str, dict[str, str]] = {}  # of each caption, for what was asked

    def has(self, clip: Path, asked: str, words: str | None) -> bool:
        """Whether ``words``, the caption of a clip, are extended."""
        before = self._noted(clip).get(asked)
        return before is not None and bool((words or "").strip()) and before != hash_of(words)

    def put(self, clip: Path, change: Change, *, asked: str = "", backup: bool = False, blind: bool = False) -> bool:
        """Change a caption like ``Texts.put``. ``asked``: what extends it; else it is replaced."""

        def noted(old: str | None) -> str | None:
            new = change(old)
            if new is not None and asked and not self.has(clip, asked, old):
                self._note({"file": self._name(clip), "before": hash_of(old), "asked": asked})
            return new

        is_written = self.texts.put(clip, noted, backup=backup, blind=blind)
        if is_written and not asked and self._noted(clip):
            self._note({"file": self._name(clip), "replaced": True})
        return is_written

    def _noted(self, clip: Path) -> dict[str, str]:
        for entry in self._lines.news():
            self._take(entry)
        return self._before.get(self._name(clip), {})

    def _note(self, entry: dict[str, Any]) -> None:
        self._lines.add(entry)
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        name = str(entry.get("file"))
        if entry.get("replaced") is True:
            self._before.pop(name, None)
        else:
            self._before.setdefault(name, {})[str(entry.get("asked"))] = str(entry.get("before"))

    def _name(self, clip: Path) -> str:
        place = self.texts.place(clip).relative_to(self._folder).as_posix()
        return f"{place} {clip.relative_to(self._folder).as_posix()}"
