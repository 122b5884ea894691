"""How the captions of a folder are worded and where they are kept: a text beside each clip, or a table of all."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Protocol

from ..confined import is_open, is_plain
from ..errors import UniViGUError
from ..io import (
    MEGABYTE,
    append,
    read_bytes,
    read_text,
    require_writable,
    write_beside,
    write_new,
    write_text,
)
from ..lines import Lines
from ..locks import appending
from ..settings import Flag, OneOf, Text, setting, settings, shown

FORMATS = ("txt", "json", "jsonl", "csv")
EXISTING = ("keep", "append", "prepend")
TABLE, CLIP, CAPTION = "metadata", "file_name", "caption"  # as Hugging Face's folders of videos name them
EXTENDED = ".uvg.extended.jsonl"
_MOST_BYTES = 2**28  # of a table: a million clips
_TAIL = 256  # bytes before the end of what was read, by which an edit is noticed
_MOST_PAIRS = 1000

# What becomes of a caption: given the one that is there, None where none is, gives the new one, None to leave it.
Change = Callable[[str | None], str | None]


@settings
class Captions:
    """How a folder is captioned, and what is written."""

    overwrite: Flag = setting(
        "Replaces captions that are there already; off: clips that have one are skipped.", default=False
    )
    prefix: Text = setting('In front of every caption, e.g. "mystyle, ".', default="")
    template: Text = setting("Text with blanks (___) to fill in; empty for free captions.", default="")
    suffix: Text = setting('Behind every caption, e.g. ", 35 mm film".', default="")
    existing: Annotated[str, OneOf(*EXISTING)] = setting(
        "What becomes of a caption that is there already: keep it, or put the new one behind it (append) or in front "
        "of it (prepend), once.",
        default="keep",
    )
    replace: Text = setting(
        "Words to replace in new captions, as plain text: one pair 'old => new' a line.", default=""
    )
    format: Annotated[str, OneOf(*FORMATS)] = setting(
        "txt or json beside each clip, or one metadata.jsonl or metadata.csv for the folder.", default="txt"
    )
    file_suffix: Text = setting("A word in the names of the files: caption gives clip.caption.txt.", default="")
    hint: Text = setting("A prompt to look at beside the clip.", default="")
    backup: Flag = setting("Keep what is replaced or extended as clip.txt.bak.", default=False)
    clip_seeds: Flag = setting(
        "Each clip has its own seed, made from seed and the clip's name: the same in any folder that has others, too.",
        default=False,
    )
    only: Text = setting("Caption this clip alone, by its name in the folder; of several, each on a line.", default="")
    review: Flag = setting(
        "New captions wait in captions.review.jsonl, to be read and accepted with Review captions in ComfyUI.",
        default=False,
    )

    def __post_init__(self) -> None:
        if self.overwrite and self.existing != "keep":
            raise UniViGUError(
                f"overwrite is on and existing is {self.existing}; turn overwrite off to keep what is there, or set "
                "existing to keep to replace it"
            )
        name = self.file_suffix
        if (
            len(name) > 64
            or not is_plain(f"a.{name}.txt")
            or re.search(r'[\\/<>:"|?*]', name)
            or name != name.strip(".")
        ):
            raise UniViGUError(
                f"file_suffix is {shown(name)}; expected a word that a file's name can hold, such as caption"
            )
        pairs_of(self.replace)

    def worded(self, caption: str) -> str:
        """A caption of the model as it is written."""
        return self.prefix + replaced(caption, pairs_of(self.replace)) + self.suffix

    @property
    def asked(self) -> str:
        """What is appended or prepended once, empty where nothing is: other words or another question are another
        matter."""
        if self.existing == "keep":
            return ""
        return _hash(json.dumps([self.existing, self.prefix, self.suffix, self.template, self.hint]))

    def seed(self, seed: int, name: Path) -> int:
        """The seed of a clip, by its name in the folder."""
        if not self.clip_seeds:
            return seed
        data = f"{seed} {name.as_posix()}".encode(errors="surrogateescape")
        return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 1

    def change(self, new: str) -> Change:
        """What the new caption makes of the one that is there."""

        def changed(old: str | None) -> str | None:
            if self.overwrite or not (old or "").strip():
                return new
            if self.existing == "keep":
                return None
            return joined(old or "", new) if self.existing == "append" else joined(new, old or "")

        return changed


# Words


def pairs_of(text: str) -> list[tuple[str, str]]:
    """Find and replace: the pairs of a text with ``old => new`` on each line; empty lines do not count."""
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        old, arrow, new = line.partition("=>")
        if not line.strip():
            continue
        if not (arrow and old.strip()):
            raise UniViGUError(
                f"replace: line {number} is {shown(line)}; expected the words to find, => and the words to put there, "
                "such as 'colour => color'"
            )
        pairs.append((old.strip(), new.strip()))
    if len(pairs) > _MOST_PAIRS:
        raise UniViGUError(f"replace: found {len(pairs)} lines; expected at most {_MOST_PAIRS}")
    return pairs


def replaced(text: str, pairs: list[tuple[str, str]]) -> str:
    """A text with each pair replaced, one after the other, everywhere, as plain text; letter case counts."""
    for old, new in pairs:
        if len(text) + text.count(old) * (len(new) - len(old)) > MEGABYTE:  # pairs that double what the ones before did
            raise UniViGUError("replace: the caption grows beyond a million letters; look for pairs that repeat words")
        text = text.replace(old, new)
    return text


def joined(first: str, second: str) -> str:
    """Two texts with a space between, unless one of them brings its own, or the second begins as a sentence goes on."""
    first = first.rstrip("\r\n")
    is_apart = not first or first[-1].isspace() or not second or second[0].isspace() or second[0] in ",.;:!?"
    return f"{first}{'' if is_apart else ' '}{second}"


# Places


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
def texts_of(folder: Path, clips: list[Path], how: Captions) -> Iterator[Texts]:
    """The captions of a folder's clips, all of them: names depend on each other (``text_files``)."""
    kind = Table if how.format in ("jsonl", "csv") else Beside
    texts: Texts = kind(folder, clips, how)
    try:
        yield texts
    finally:
        texts.close()


def files_of(folder: Path, clips: list[Path], how: Captions) -> list[Path]:
    """The files that the captions of a folder's clips are kept in: one for each clip, or the table."""
    name = f".{how.file_suffix}" if how.file_suffix else ""
    if how.format in ("jsonl", "csv"):
        return [folder / f"{TABLE}{name}.{how.format}"]
    texts = text_files(clips)
    files, owners = [text.with_suffix(f"{name}.{how.format}") for text in texts], dict(zip(texts, clips, strict=True))
    for clip, file in zip(clips, files, strict=True):
        if owners.get(file, clip) != clip:
            raise UniViGUError(
                f"{clip}: with file_suffix {how.file_suffix} its caption would be {file.name}, which is that of "
                f"{owners[file].name}; choose another file_suffix"
            )
    return files


class Beside:
    """A file for each clip: its caption, or a JSON object with the caption in ``caption`` and what others put there."""

    def __init__(self, folder: Path, clips: list[Path], how: Captions) -> None:
        self._is_json = how.format == "json"
        self._places = dict(zip(clips, files_of(folder, clips, how), strict=True))

    def place(self, clip: Path) -> Path:
        return self._places[clip]

    def is_taken(self, clip: Path) -> bool:
        path = self._places[clip]
        if not is_open(path):  # a link that leads out: what lies there is not told
            return False
        return path.is_file() and not _is_empty(path)

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
        if not isinstance(found, dict) or not isinstance(found.get(CAPTION, ""), str):
            raise UniViGUError(
                f"{self._places[clip]}: found something other than a JSON object whose {CAPTION} is text; move it "
                "away, or choose a file_suffix"
            )
        return found


class Table:
    """One file with a line for each clip, to which lines are only appended: nothing is lost when a run is killed, and
    several runs share it. The last line of a clip holds; at the end of a run those that it has replaced go."""

    def __init__(self, folder: Path, clips: list[Path], how: Captions) -> None:
        self._folder, self._is_csv, self._backup = folder, how.format == "csv", False
        self._replaced: set[str] = set()  # clips whose earlier lines this run has replaced
        (self.path,) = files_of(folder, clips, how)
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
            row = {**row, CLIP: name, CAPTION: " ".join(text.splitlines()) if self._is_csv else text}
            head, line = b"" if self._fields else self._head([CLIP, CAPTION]), self._line(row)
            try:
                append(handle, head + line)
            except OSError as error:
                raise UniViGUError(
                    f"{self.path}: could not be written ({error.strerror or error}); free some space"
                ) from None
            self._replaced |= {name} & self._rows.keys()
            self._backup |= backup and bool(self._rows.get(name, {}).get(CAPTION))
            self._rows[name] = row
            self._note_state(handle)
        return True

    def close(self) -> None:
        """Take away the lines that this run has replaced. With ``backup``, the table with all of them stays beside it.
        Lines of others stay as they are, also where a clip has several."""
        if not self._replaced:
            return
        self._forget()
        with self._open():
            data = read_bytes(self.path, _MOST_BYTES, "a table of captions")
            if self._backup:
                write_beside(self.path.with_name(f"{self.path.name}.bak"), data.decode(errors="backslashreplace"))
            last, kept = dict(self._lines), dict[tuple[str, int], bytes]()
            for number, (name, line) in enumerate(self._lines):
                if name in self._replaced:
                    kept.setdefault((name, 0), last[name])
                else:
                    kept[name, number] = line
            whole = self._head(self._fields) + b"".join(kept.values())
            with suppress(UniViGUError):  # Windows replaces no file that is open: the lines hold as they are
                write_text(self.path, whole.decode("utf-8"))
        self._replaced = set()

    def _forget(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
        self._lines: list[tuple[str, bytes]] = []  # all lines, each with its clip's name
        self._fields: list[str] = []
        self._state, self._tail = (0, 0), b""  # of the file that was read: inode and size, and its last bytes

    def _name(self, clip: Path) -> str:
        return clip.relative_to(self._folder).as_posix()

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The table, up to date and for the length of a block nobody else's."""
        require_writable(self.path)
        if not is_open(self.path):
            raise UniViGUError(f"{self.path}: leads out of the folders that are open; remove the link")
        with appending(self.path) as handle:
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
        its end, as editors leave it, gets it."""
        os.lseek(handle, start, os.SEEK_SET)
        data = b""
        while block := os.read(handle, MEGABYTE):
            data += block
        whole, newline, rest = data.rpartition(b"\n")
        if not rest:
            return self._decoded(data)
        if not self._is_torn(whole + newline, rest):
            append(handle, b"\n")
            return self._decoded(data)
        os.ftruncate(handle, start + len(whole + newline))
        return self._decoded(whole + newline)

    def _is_torn(self, whole: bytes, rest: bytes) -> bool:
        """Whether the end of a file is the beginning of a line of ours. Raises UniViGUError where it is neither that
        nor a whole line, and where the lines before are damaged."""
        fields = list(self._fields)
        try:
            self._parsed(self._decoded(whole + rest))
            return self._is_csv and rest.startswith(b'"') and rest.endswith(b'",')
        except UniViGUError:
            self._fields = list(fields)
            self._parsed(self._decoded(whole))
            if not self._breaks_off(rest):
                raise UniViGUError(
                    f"{self.path}: the last line is {shown(rest)}; correct it, or take it away"
                ) from None
            return True
        finally:
            self._fields = fields

    def _breaks_off(self, rest: bytes) -> bool:
        """Whether a line begins as ours do and is right as far as it goes: a slip of somebody's pen is not cut off."""
        if not rest.startswith((b'"' if self._is_csv else b'{"file_name": "')[: len(rest)]):
            return False
        text = rest.decode(errors="ignore")
        try:
            if self._is_csv:
                (cells,) = csv.reader([text], strict=True)
                return len(cells) < max(2, len(self._fields))
            json.loads(text)
        except csv.Error as error:
            return "unexpected end" in str(error)
        except json.JSONDecodeError as error:
            return error.pos >= len(text) or error.msg.startswith("Unterminated")
        return False

    def _add(self, text: str) -> None:
        rows = self._parsed(text)
        lines = list(map(self._line, rows))
        if not self._is_csv:  # as they were written: numbers, for example, can be written in several ways
            lines = [line.encode() + b"\n" for line in text.split("\n") if line.strip()]
        for row, line in zip(rows, lines, strict=True):
            name, caption = row.get(CLIP), row.get(CAPTION)
            if not isinstance(name, str) or not isinstance(caption, str | None):
                raise self._damaged(row)
            self._rows[name] = row
            self._lines.append((name, line))

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
            lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
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
            return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        line = io.StringIO()
        cells = [str(row.get(field, "")) for field in self._fields]
        csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(cells)
        return line.getvalue().encode("utf-8", "backslashreplace")

    def _decoded(self, data: bytes) -> str:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self._damaged(error) from None

    def _damaged(self, found: object) -> UniViGUError:
        said = str(found) if isinstance(found, Exception) else shown(found)
        return UniViGUError(
            f"{self.path}: cannot be read as a table of captions: {said}; expected lines with {CLIP} and {CAPTION}. "
            "Correct it, move it away, or choose a file_suffix"
        )


def _state(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_ino, facts.st_size


def _tail(handle: int, end: int) -> bytes:
    """The bytes of a file before ``end``, as many as tell whether it has only been appended to since."""
    os.lseek(handle, max(0, end - _TAIL), os.SEEK_SET)
    return os.read(handle, min(end, _TAIL))


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
        return before is not None and bool((words or "").strip()) and before != _hash(words)

    def put(self, clip: Path, change: Change, *, asked: str = "", backup: bool = False, blind: bool = False) -> bool:
        """Change a caption like ``Texts.put``. ``asked``: what extends it; else it is replaced."""

        def noted(old: str | None) -> str | None:
            new = change(old)
            if new is not None and asked and not self.has(clip, asked, old):
                self._note({"file": self._name(clip), "before": _hash(old), "asked": asked})
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


def _hash(words: str | None) -> str:
    return blake2b((words or "").encode(errors="surrogateescape"), digest_size=16).hexdigest()
