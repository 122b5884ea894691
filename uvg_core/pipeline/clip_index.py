"""What is known of a folder's clips, in one SQLite file: words, latents, and what became of the files.

Of every clip it holds the words, those that lie beside the clip or else the model's own, and the latent, so that a
query reads no video. A clip is known by its content: one that was moved keeps its words, one that was changed gets new
ones. What a model has made of a clip is kept by that model's fingerprint, so that two models can take turns; what it
has made of a film, by how that was divided too.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..content import content_of
from ..database import Database
from ..errors import UniViGUError
from ..locks import Claims
from ..media.video import Clip, probe
from ..media.video.find import MOVING
from ..media.video.shots import Cutting, Shot, require_detector
from .film import Line, caption_film, clock
from .folders import Pace, clips_of
from .texts import AllTexts
from .together import Together
from .wording import plain

INDEX = ".uvg.find.sqlite"
FEW = 3  # of the model's windows: what is longer is a film
WHOLE = Cutting()  # nothing is divided
OnClip = Callable[[str, Path], object]
_APPLICATION = 0x55564746
_EMPTY = UniViGUError("an empty caption")
CONTENT = 48  # digits of what says what a file holds; those of a piece of a film end in its number
_CLIPS = """
CREATE TABLE IF NOT EXISTS clips (id INTEGER PRIMARY KEY, name BLOB UNIQUE, size INTEGER, changed INTEGER,
    content TEXT, model TEXT, beside TEXT, caption TEXT, likelihood REAL);
CREATE TABLE IF NOT EXISTS described (model TEXT, content TEXT, caption TEXT, shape TEXT, latent BLOB,
    PRIMARY KEY (model, content));
CREATE INDEX IF NOT EXISTS contents ON clips (content);
CREATE TABLE IF NOT EXISTS files (state TEXT PRIMARY KEY, content TEXT);
CREATE TABLE IF NOT EXISTS folder (path BLOB);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(caption, tokenize = 'porter unicode61');
"""
# Pieces of films. ``shot``: 0 for a whole file; ``seconds``: the file's length, where that mattered; ``films``: those
# whose every piece is described.
_FILMS = """
ALTER TABLE clips RENAME TO whole_clips;
CREATE TABLE clips (id INTEGER PRIMARY KEY, name BLOB, shot INTEGER, size INTEGER, changed INTEGER, seconds REAL,
    content TEXT, model TEXT, beside TEXT, caption TEXT, likelihood REAL, UNIQUE (name, shot));
INSERT INTO clips SELECT id, name, 0, size, changed, NULL, content, model, beside, caption, likelihood FROM whole_clips;
DROP TABLE whole_clips;
CREATE INDEX contents ON clips (content);
ALTER TABLE described ADD COLUMN start REAL;
ALTER TABLE described ADD COLUMN until REAL;
CREATE TABLE films (model TEXT, content TEXT, PRIMARY KEY (model, content));
"""


class Describer(Protocol):
    """What looks at clips. ``fingerprint``: says of two whether they make the same of a clip; ``together``: how many
    clips are described at once; ``window``: how many seconds a clip of the model's lasts."""

    fingerprint: str
    together: int
    window: float

    def read(self, path: Path) -> Clip:
        """A clip's pictures."""

    def shots(self, path: Path, how: Cutting, done: float) -> Iterator[Shot]:
        """The pieces of a film, from so many seconds on."""

    def latents(self, clips: Sequence[Clip | Shot]) -> Tensor:
        """Those of clips of one size, ``[B,C,F,h,w]``."""

    def captions(self, latents: Tensor) -> Sequence[str]:
        """Words for each of them."""

    def likelihoods(self, latents: Tensor, texts: Sequence[str]) -> Tensor:
        """The logarithm of how likely each clip makes its text, ``[B]``."""


@dataclass
class Updated:
    """What became of a folder's clips: how many were ``described``, films as one each, and those that ``failed``, each
    with the reason. ``notes``: what films lack. ``busy``: another process is at work on the index, and nothing was
    done."""

    described: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[tuple[Path, str]] = field(default_factory=list)
    busy: bool = False


@dataclass(frozen=True)
class _Run:
    """What an update works with. ``beside``: the captions that lie in the folder."""

    describer: Describer
    cutting: Cutting
    beside: AllTexts
    report: Updated
    on_clip: OnClip


@dataclass(frozen=True)
class _State:
    """A clip as it lies in the folder: size and time, the same of the captions beside it, and its length where that
    matters. ``way``: what its words are kept by."""

    clip: Path
    size: int
    changed: int
    beside: str
    seconds: float | None = None
    way: str = ""


@dataclass(frozen=True)
class _Piece:
    """A clip or a shot of it, with its words. ``shot``: its number, 0 where it is the whole clip."""

    shot: int
    content: str
    caption: str


class ClipIndex:
    """The index of a folder's clips, which lies in it as ``.uvg.find.sqlite`` or in ``path``; to be closed.

    Raises UniViGUError, here and in all methods, for an index that is damaged, somebody else's or cannot be written.
    """

    def __init__(self, folder: str | Path, path: str | Path | None = None) -> None:
        self.folder, self.path = Path(folder), Path(path) if path is not None else Path(folder) / INDEX
        clips_of(self.folder, True, [])  # before a file is made
        remedy = "put the index elsewhere, on the command line with --index FILE"
        self._db = Database(self.path, (_CLIPS, _FILMS), _APPLICATION, "an index of clips", remedy)

    def close(self) -> None:
        self._db.close()

    def update(self, describer: Describer, cutting: Cutting = WHOLE, *, on_clip: OnClip = lambda *_: None) -> Updated:
        """Take in what is new in the folder, has changed, was moved or is gone. Clips that have captions, as
        ``caption_folder`` writes them, keep those; nothing is written beside clips. ``on_clip`` is called with how far
        it is, in words, before each few clips that are described. Whatever stops it, what was described stays so, of
        films each shot.

        ``cutting``: how films are divided, which are videos longer than three of the describer's windows. Their pieces
        are clips of their own, whose words are the describer's; a film of one piece is a clip like others. Raises
        UniViGUError where PySceneDetect is needed and not installed."""
        report = Updated()
        clips = clips_of(self.folder, True, report.failed)
        is_all = not report.failed
        with Claims(self.path.parent) as claims, claims.claimed(str(self.path)) as is_ours, self._db.explained():
            if not is_ours:
                report.busy = True
                return report
            self._require_folder()
            with AllTexts(self.folder, clips) as beside:
                run = _Run(describer, cutting, beside, report, on_clip)
                todo = self._take_known(clips, run)
                if films := [one for one in todo if one.way != describer.fingerprint]:
                    require_detector(cutting)
                self._describe([one for one in todo if one.way == describer.fingerprint], run)
                self._describe_films(films, run)
            if is_all:  # what could not be looked into may still hold clips
                kept = f"NOT IN (SELECT substr(content, 1, {CONTENT}) FROM clips)"
                with self._db.changing():
                    self._db(f"DELETE FROM described WHERE substr(content, 1, {CONTENT}) {kept}")
                    self._db(f"DELETE FROM films WHERE content {kept}")
        return report

    def _require_folder(self) -> None:
        """Raise UniViGUError for an index of another folder, whose clips would all seem to be gone."""
        mine = os.fsencode(self.folder.absolute())
        (other,) = self._db("SELECT path FROM folder").fetchone() or (mine,)
        lies_within = self.path.parent.absolute() == self.folder.absolute()
        if not lies_within and os.path.isdir(other) and not os.path.samefile(other, mine):
            raise UniViGUError(
                f"{self.path}: is the index of {os.fsdecode(other)}; name another file for {self.folder} with --index"
            )
        with self._db.changing():
            self._db("DELETE FROM folder")
            self._db("INSERT INTO folder VALUES (?)", mine)

    # What is there already

    def _take_known(self, clips: Sequence[Path], run: _Run) -> list[_State]:
        """Take in what needs no look at a clip's pictures; returns the clips that need one."""
        columns = f"name, size, changed, beside, seconds, model, substr(content, 1, {CONTENT})"
        known = {name: rest for name, *rest in self._db(f"SELECT {columns} FROM clips GROUP BY name")}
        sizes = {int(size, 16) for (size,) in self._db("SELECT DISTINCT substr(content, 1, 16) FROM described")}
        todo, entries, failed = [], [], []
        for clip in clips:
            try:
                size, changed, *rest, content = known.pop(self._name(clip), (None,) * 6)
                state = _state_of(clip, run.beside)
                is_same = (size, changed) == (state.size, state.changed)
                seconds = _seconds_of(clip, rest[1] if is_same else None, run.cutting)
                state = replace(state, seconds=seconds, way=_way(run, seconds))
                if is_same and rest == [state.beside, seconds, state.way]:
                    continue
                if not is_same:  # moved, perhaps: read only where something of its size is known
                    content = content_of(clip) if state.size in sizes else ""
                if pieces := self._pieces(state, content, run.beside):
                    entries.append((state, pieces))
                else:
                    todo.append(state)
            except (UniViGUError, OSError) as error:
                failed.append((clip, str(error)))
        with self._db.changing():
            for entry in entries:
                self._enter(*entry)
            for clip, _ in failed:
                self._drop(self._name(clip))
            for name in known:
                self._drop(name)
        run.report.failed += failed
        return todo

    def _pieces(self, one: _State, content: str, beside: AllTexts) -> list[_Piece]:
        """What is known of a clip's content; nothing where it is not described in its way, or only in part."""
        if self._db("SELECT 1 FROM films WHERE model = ? AND content = ?", one.way, content).fetchone():
            found = [_Piece(number, piece, words) for number, piece, words, _ in self._shots(one.way, content)]
            if len(found) > 1:
                return [piece for piece in found if piece.caption.strip()]
        else:
            rows = self._db("SELECT content, caption FROM described WHERE model = ? AND content = ?", one.way, content)
            found = [_Piece(0, *row) for row in rows]
        whole = [_Piece(0, piece.content, beside.read(one.clip) or piece.caption) for piece in found]
        return [piece for piece in whole if piece.caption.strip()]

    def _shots(self, way: str, content: str) -> list[tuple[int, str, str, float]]:
        """The pieces of a film that are described: number, content, words, and when each one ends."""
        query = "SELECT content, caption, until FROM described WHERE model = ? AND content > ? AND content < ?"
        rows = self._db(query, way, f"{content} ", f"{content}!")
        return sorted((int(piece[CONTENT:]), piece, words, until) for piece, words, until in rows)

    # What is new

    def _describe(self, todo: Sequence[_State], run: _Run) -> None:
        describer, beside, made = run.describer, run.beside, dict[Path, Tensor]()

        def describe(clips: Sequence[Clip], paths: Sequence[Path]) -> list[str]:
            latents = describer.latents(clips)
            made.update(zip(paths, _kept(latents, paths[0]), strict=True))
            wanted = [place for place, path in enumerate(paths) if not beside.read(path)]
            words = describer.captions(latents[wanted]) if wanted else ()
            own = dict(zip(wanted, words, strict=True))
            return [own.get(place, "") for place in range(len(paths))]

        pace, step = Pace(len(todo)), describer.together
        with closing(Together(describer.read, describe, step)) as captioner:
            for start in range(0, len(todo), step):
                batch = todo[start : start + step]
                run.on_clip(pace.words(start, len(todo)), batch[0].clip)
                states = [self._seen(one, beside) for one in batch]
                upcoming = [one.clip for one in todo[start + step : start + 2 * step]]
                with pace.timed(len(batch)):
                    texts = captioner([one.clip for one in batch], upcoming)
                with self._db.changing():
                    for one, seen, text in zip(batch, states, texts, strict=True):
                        words = beside.read(one.clip) or text
                        if isinstance(text, Exception) or isinstance(seen, Exception) or not str(words).strip():
                            why = next((error for error in (seen, text) if isinstance(error, Exception)), _EMPTY)
                            self._fail(one.clip, why, run.report)
                            continue
                        state, content = seen
                        self._keep(one.way, content, text, made[one.clip])
                        self._enter(state, [_Piece(0, content, str(words))])
                        run.report.described += 1
                made.clear()

    def _describe_films(self, todo: Sequence[_State], run: _Run) -> None:
        for number, one in enumerate(todo, 1):
            seen = self._seen(one, run.beside)
            try:
                if isinstance(seen, Exception):
                    raise seen
                state, content = seen
                pieces = self._pieces(one, content, run.beside)  # there are some of a copy of one before
                pieces = pieces or self._describe_film(one, content, run, f"film {number} of {len(todo)}")
                if not pieces:
                    raise _EMPTY
                with self._db.changing():
                    self._enter(state, pieces)
            except sqlite3.Error:  # such as of a full disk
                raise
            except Exception as error:  # whatever it is, the other films are described
                with self._db.changing():
                    self._fail(one.clip, error, run.report)

    def _describe_film(self, one: _State, content: str, run: _Run, where: str) -> list[_Piece]:
        """Describe the pieces of a film that are not described yet. ``where``: which of the films it is, in words."""
        describer, known, made = run.describer, self._shots(one.way, content), dict[float, Tensor]()
        count, done = len(known), known[-1][-1] if known else 0.0

        def describe(parts: Sequence[Shot]) -> Sequence[str]:
            run.on_clip(f"{where}, shot {count + 1}, from {clock(parts[0].start)}", one.clip)
            latents = describer.latents(parts)
            made.update(zip((part.start for part in parts), _kept(latents, one.clip), strict=True))
            return describer.captions(latents)

        def keep(line: Line) -> None:
            nonlocal count
            count += 1
            with self._db.changing():
                latent = made.pop(line.start)
                self._keep(one.way, f"{content} {count}", line.caption, latent, line.start, line.end)

        caption_film(
            one.clip,
            lambda _: describer.shots(one.clip, run.cutting, done),
            describe,
            together=describer.together,
            on_line=keep,
            note=lambda words: run.report.notes.append((one.clip, words)),
        )
        with self._db.changing():
            self._db("INSERT OR REPLACE INTO films VALUES (?, ?)", one.way, content)
        run.report.described += 1
        return self._pieces(one, content, run.beside)

    def _seen(self, one: _State, beside: AllTexts) -> tuple[_State, str] | Exception:
        """State and content of a clip, taken before it is read."""
        try:
            return replace(_state_of(one.clip, beside), seconds=one.seconds, way=one.way), content_of(one.clip)
        except (UniViGUError, OSError) as error:
            return error

    # Rows

    def _keep(self, way: str, content: str, caption: str, latent: Tensor, *times: float) -> None:
        """``times``: when a piece of a film begins and ends."""
        start, until = times or (None, None)
        facts = content, caption, " ".join(map(str, latent.shape)), latent.contiguous().numpy().tobytes(), start, until
        columns = "model, content, caption, shape, latent, start, until"
        self._db(f"INSERT OR REPLACE INTO described ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", way, *facts)

    def _enter(self, one: _State, pieces: Sequence[_Piece]) -> None:
        name = self._name(one.clip)
        self._drop(name)
        facts = name, one.size, one.changed, one.seconds, one.way, one.beside
        columns = "name, size, changed, seconds, model, beside, shot, content, caption"
        for piece in pieces:
            row = *facts, piece.shot, piece.content, piece.caption
            added = self._db(f"INSERT INTO clips ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)
            self._db("INSERT INTO words (rowid, caption) VALUES (?, ?)", added.lastrowid, plain(piece.caption))

    def _drop(self, name: bytes) -> None:
        self._db("DELETE FROM words WHERE rowid IN (SELECT id FROM clips WHERE name = ?)", name)
        self._db("DELETE FROM clips WHERE name = ?", name)

    def _fail(self, clip: Path, why: Exception, report: Updated) -> None:
        report.failed.append((clip, str(why)))
        self._drop(self._name(clip))

    def _name(self, clip: Path) -> bytes:
        return os.fsencode(clip.relative_to(self.folder).as_posix())


def _way(run: _Run, seconds: float | None) -> str:
    """What the words of a clip so long are kept by: the describer and, of a film, how it is cut."""
    how, mark = run.cutting, run.describer.fingerprint
    if not how.is_on or (seconds or 0) <= FEW * run.describer.window:
        return mark
    return f"{mark} every {how.every:g}" if how.every is not None else f"{mark} shots {how.shortest:g}"


def _state_of(clip: Path, beside: AllTexts) -> _State:
    facts = os.stat(clip)
    return _State(clip, facts.st_size, facts.st_mtime_ns, beside.state(clip))


def _seconds_of(clip: Path, known: float | None, cutting: Cutting) -> float | None:
    """How long a video is, where that matters; 0 for a still picture, and for what cannot be read, as who reads it will
    find out."""
    if known is not None or not cutting.is_on:
        return known
    try:
        return probe(clip).duration if clip.suffix.lower() in MOVING else 0.0
    except UniViGUError:
        return 0.0


def _kept(latents: Tensor, path: Path) -> Tensor:
    """Latents as they are kept. Raises UniViGUError for what is not finite."""
    halves = latents.half().cpu()
    if not bool(halves.isfinite().all()):
        raise UniViGUError(f"{path}: its latent is not finite; check the VAE and the clip")
    return halves
