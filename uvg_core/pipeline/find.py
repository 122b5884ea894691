"""Clips of a folder by what they show: an index of captions, and the model's own judgement of what that finds.

The index is one SQLite file. Of every clip it holds the words, those that lie beside the clip or else the model's own,
and the latent, so that a query reads no video. A clip is known by its content: one that was moved keeps its words, one
that was changed gets new ones. What a model has made of a clip is kept by that model's fingerprint, so that two models
can take turns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..confined import is_open
from ..content import content_of
from ..database import Database
from ..errors import UniViGUError
from ..locks import Claims
from ..media.video import Clip
from ..media.video.footage import FOOTAGE, Footage
from ..sampling import Size
from ..sampling.settings import SIZE
from .folders import Pace, clips_of
from .pipeline import Pipeline
from .texts import AllTexts
from .together import Together
from .wording import adapted, plain, words_of

INDEX = ".uvg.find.sqlite"
CANDIDATES = 50  # clips that the words find and the model judges
_JUDGED = 300  # words of a caption that the model judges
OnClip = Callable[[str, Path], object]
_APPLICATION, _VERSION = 0x55564746, 1
_TABLES = """
CREATE TABLE IF NOT EXISTS clips (id INTEGER PRIMARY KEY, name BLOB UNIQUE, size INTEGER, changed INTEGER,
    content TEXT, model TEXT, beside TEXT, caption TEXT, likelihood REAL);
CREATE TABLE IF NOT EXISTS described (model TEXT, content TEXT, caption TEXT, shape TEXT, latent BLOB,
    PRIMARY KEY (model, content));
CREATE INDEX IF NOT EXISTS contents ON clips (content);
CREATE TABLE IF NOT EXISTS files (state TEXT PRIMARY KEY, content TEXT);
CREATE TABLE IF NOT EXISTS folder (path BLOB);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(caption, tokenize = 'porter unicode61');
"""


class Describer(Protocol):
    """What looks at clips. ``fingerprint``: says of two whether they make the same of a clip; ``together``: how many
    clips are described at once."""

    fingerprint: str
    together: int

    def read(self, path: Path) -> Clip:
        """A clip's pictures."""

    def latents(self, clips: Sequence[Clip]) -> Tensor:
        """Those of clips of one size, ``[B,C,F,h,w]``."""

    def captions(self, latents: Tensor) -> Sequence[str]:
        """Words for each of them."""

    def likelihoods(self, latents: Tensor, texts: Sequence[str]) -> Tensor:
        """The logarithm of how likely each clip makes its text, ``[B]``."""


@dataclass(frozen=True)
class Found:
    """A clip that was found, and its caption. ``score``: how much likelier the clip makes a caption that says what the
    query says than its own, in the unit of likelihoods; 0 where that says it already."""

    clip: Path
    score: float
    caption: str


@dataclass
class Updated:
    """What became of a folder's clips: how many were ``described``, and those that ``failed``, each with the reason.
    ``busy``: another process is at work on the index, and nothing was done."""

    described: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    busy: bool = False


@dataclass(frozen=True)
class _State:
    """A clip as it lies in the folder: size and time, and the same of the captions beside it."""

    size: int
    changed: int
    beside: str


@dataclass(frozen=True)
class _Row:
    """A clip as the index has it. ``likelihood``: of its caption, None where nobody has asked yet."""

    id: int
    name: bytes
    caption: str
    likelihood: float | None
    latent: Tensor


class Index:
    """The index of a folder's clips, which lies in it as ``.uvg.find.sqlite`` or in ``path``; to be closed.

    Raises UniViGUError, here and in all methods, for an index that is damaged, somebody else's or cannot be written.
    """

    def __init__(self, folder: str | Path, path: str | Path | None = None) -> None:
        self.folder, self.path = Path(folder), Path(path) if path is not None else Path(folder) / INDEX
        clips_of(self.folder, True, [])  # before a file is made
        remedy = "put the index elsewhere, on the command line with --index FILE"
        self._db = Database(self.path, _TABLES, _APPLICATION, _VERSION, "an index of clips", remedy)

    def close(self) -> None:
        self._db.close()

    # The clips of the folder

    def update(self, describer: Describer, *, on_clip: OnClip = lambda *_: None) -> Updated:
        """Take in what is new in the folder, has changed, was moved or is gone. Clips that have captions, as
        ``caption_folder`` writes them, keep those; nothing is written beside clips. ``on_clip`` is called with how far
        it is, in words, before each few clips that are described. Whatever stops it, what was described stays so."""
        report = Updated()
        clips = clips_of(self.folder, True, report.failed)
        is_all = not report.failed
        with Claims(self.path.parent) as claims, claims.claimed(str(self.path)) as is_ours, self._db.explained():
            if not is_ours:
                report.busy = True
                return report
            self._require_folder()
            with AllTexts(self.folder, clips) as beside:
                todo = self._take_known(clips, beside, describer.fingerprint, report)
                self._describe(todo, beside, describer, report, on_clip)
            if is_all:  # what could not be looked into may still hold clips
                with self._db.changing():
                    self._db("DELETE FROM described WHERE content NOT IN (SELECT content FROM clips)")
        return report

    def of_others(self, describer: Describer) -> int:
        """How many clips only another model has described, or the same one in other sizes or parts of them."""
        with self._db.explained():
            (count,) = self._db(
                "SELECT count(*) FROM clips WHERE model != ? AND content NOT IN "
                "(SELECT content FROM described WHERE model = ?)",
                describer.fingerprint,
                describer.fingerprint,
            ).fetchone()
        return int(count)

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

    def _take_known(self, clips: Sequence[Path], beside: AllTexts, model: str, report: Updated) -> list[Path]:
        """Take in what needs no look at a clip's pictures; returns the clips that need one."""
        columns = "name, size, changed, beside, model, content"
        known = {name: rest for name, *rest in self._db(f"SELECT {columns} FROM clips")}
        described = dict(self._db("SELECT content, caption FROM described WHERE model = ?", model))
        sizes = {int(content[:16], 16) for content in described}
        todo, entries, failed = [], [], []
        for clip in clips:
            try:
                state = _state_of(clip, beside)
                size, changed, *rest, content = known.pop(self._name(clip), (None,) * 5)
                is_same = (size, changed) == (state.size, state.changed)
                if is_same and rest == [state.beside, model]:
                    continue
                if not is_same:  # moved, perhaps: read only where something of its size is known
                    content = content_of(clip) if state.size in sizes else ""
                if words := content in described and (beside.read(clip) or described[content]):
                    entries.append((clip, state, content, model, words))
                else:
                    todo.append(clip)
            except (UniViGUError, OSError) as error:
                failed.append((clip, str(error)))
        with self._db.changing():
            for entry in entries:
                self._enter(*entry)
            for clip, _ in failed:
                self._drop(self._name(clip))
            for name in known:
                self._drop(name)
        report.failed += failed
        return todo

    def _describe(
        self, todo: Sequence[Path], beside: AllTexts, describer: Describer, report: Updated, on_clip: OnClip
    ) -> None:
        made: dict[Path, Tensor] = {}

        def describe(clips: Sequence[Clip], paths: Sequence[Path]) -> list[str]:
            latents = describer.latents(clips)
            halves = latents.half().cpu()
            if not bool(halves.isfinite().all()):
                raise UniViGUError(f"{paths[0]}: its latent is not finite; check the VAE and the clip")
            made.update(zip(paths, halves, strict=True))
            wanted = [place for place, path in enumerate(paths) if not beside.read(path)]
            words = describer.captions(latents[wanted]) if wanted else ()
            own = dict(zip(wanted, words, strict=True))
            return [own.get(place, "") for place in range(len(paths))]

        pace, step = Pace(len(todo)), describer.together
        with closing(Together(describer.read, describe, step)) as captioner:
            for start in range(0, len(todo), step):
                batch = todo[start : start + step]
                on_clip(pace.words(start, len(todo)), batch[0])
                states = {clip: self._seen(clip, beside) for clip in batch}
                with pace.timed(len(batch)):
                    texts = captioner(batch, todo[start + step : start + 2 * step])
                with self._db.changing():
                    for clip, text in zip(batch, texts, strict=True):
                        seen = states[clip]
                        words = beside.read(clip) or text
                        if isinstance(text, Exception) or isinstance(seen, Exception) or not str(words).strip():
                            why = next((one for one in (seen, text) if isinstance(one, Exception)), "an empty caption")
                            report.failed.append((clip, str(why)))
                            self._drop(self._name(clip))
                            continue
                        latent = made[clip].contiguous().numpy()
                        facts = seen[1], text, " ".join(map(str, latent.shape)), latent.tobytes()
                        self._db(
                            "INSERT OR REPLACE INTO described VALUES (?, ?, ?, ?, ?)", describer.fingerprint, *facts
                        )
                        self._enter(clip, *seen, describer.fingerprint, str(words))
                        report.described += 1
                made.clear()

    def _seen(self, clip: Path, beside: AllTexts) -> tuple[_State, str] | Exception:
        """State and content of a clip, taken before it is read."""
        try:
            return _state_of(clip, beside), content_of(clip)
        except (UniViGUError, OSError) as error:
            return error

    def _enter(self, clip: Path, state: _State, content: str, model: str, caption: str) -> None:
        self._drop(self._name(clip))
        row = self._name(clip), state.size, state.changed, content, model, state.beside, caption
        columns = "name, size, changed, content, model, beside, caption"
        added = self._db(f"INSERT INTO clips ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", *row)
        self._db("INSERT INTO words (rowid, caption) VALUES (?, ?)", added.lastrowid, plain(caption))

    def _drop(self, name: bytes) -> None:
        self._db("DELETE FROM words WHERE rowid = (SELECT id FROM clips WHERE name = ?)", name)
        self._db("DELETE FROM clips WHERE name = ?", name)

    def _name(self, clip: Path) -> bytes:
        return os.fsencode(clip.relative_to(self.folder).as_posix())

    # Queries

    def find(self, query: str, describer: Describer, top: int = 5, *, candidates: int = CANDIDATES) -> list[Found]:
        """The clips that fit best, the best first, at most ``top``. Words alone find the ``candidates`` that the model
        judges, as many as are asked for at least; where there are not more clips than that, it judges all. Raises
        UniViGUError for a query without words, and where none of them is in a caption."""
        with self._db.explained():
            most = max(top, candidates)
            ids = list(self.by_words(query, most))
            known = {one for (one,) in self._db("SELECT id FROM clips LIMIT ?", most + 1)}
            if len(known) <= most:
                ids += sorted(known - set(ids))
            if not ids:
                raise UniViGUError(
                    f"no caption of the clips in {self.folder} has a word of {query!r}; try other words, such as "
                    "those of the captions"
                    if known
                    else f"{self.path}: no clip of {self.folder} is in the index yet"
                )
            scores: dict[int, Found] = {}
            for some in self._alike(ids, describer):
                rows = [row for one in some if (row := self._read(one)) is not None and self._is_there(row.name)]
                for row, score in zip(rows, self._scores(rows, describer, query), strict=True):
                    scores[row.id] = Found(self.folder / os.fsdecode(row.name), score, row.caption)
        found = [scores[one] for one in ids if one in scores]
        return sorted(found, key=lambda one: -one.score)[:top]  # stable: clips alike stay in the order of words

    def _is_there(self, name: bytes) -> bool:
        clip = self.folder / os.fsdecode(name)
        return is_open(clip) and clip.is_file()

    def _scores(self, rows: Sequence[_Row], describer: Describer, query: str) -> list[float]:
        """As ``Found`` has them. A query alone is no sentence as the model writes them, and what it leaves out would
        count against every clip; long captions are less likely than short ones, whatever the clip."""
        captions = [" ".join(row.caption.split()[:_JUDGED]) for row in rows]
        texts = [adapted(caption, query) for caption in captions]
        changed = [place for place, caption in enumerate(captions) if texts[place] != caption]

        def likelihoods(places: Sequence[int], texts: Sequence[str]) -> list[float]:
            latents = torch.stack([rows[place].latent for place in places]).float()
            return [float(one) for one in describer.likelihoods(latents, texts)]

        own = {place: rows[place].likelihood for place in changed}
        if unknown := [place for place in changed if own[place] is None]:
            own.update(zip(unknown, likelihoods(unknown, [captions[place] for place in unknown]), strict=True))
            with self._db.changing():
                for place in unknown:
                    row = own[place], rows[place].id, rows[place].caption
                    self._db("UPDATE clips SET likelihood = ? WHERE id = ? AND caption = ?", *row)
        scores = [0.0] * len(rows)
        if changed:
            for place, one in zip(changed, likelihoods(changed, [texts[place] for place in changed]), strict=True):
                scores[place] = one - (own[place] or 0.0)
        return scores

    def by_words(self, query: str, most: int) -> dict[int, Path]:
        """The clips whose captions hold any word of a query, by id, those with rare words and many first."""
        # Each word in quotes: AND, NEAR, * and the like are words as others are.
        asked = " OR ".join(f'"{word}"' for word in words_of(query))
        found = "SELECT id, name FROM words JOIN clips ON id = words.rowid WHERE words MATCH ? ORDER BY rank LIMIT ?"
        return {one: self.folder / os.fsdecode(name) for one, name in self._db(found, asked, most)}

    def _alike(self, ids: Sequence[int], describer: Describer) -> Iterator[list[int]]:
        """Clips of one size, as many as are judged at once; those that the describer has not seen are left out."""
        sizes: dict[str, list[int]] = {}
        for one in ids:
            for (shape,) in self._db(
                "SELECT shape FROM clips JOIN described USING (model, content) WHERE id = ? AND model = ?",
                one,
                describer.fingerprint,
            ):
                sizes.setdefault(shape, []).append(one)
        for some in sizes.values():
            yield from (some[start : start + describer.together] for start in range(0, len(some), describer.together))

    def _read(self, one: int) -> _Row | None:
        columns = "name, clips.caption, likelihood, shape, latent"
        rows = self._db(f"SELECT {columns} FROM clips JOIN described USING (model, content) WHERE id = ?", one)
        for name, caption, likelihood, shape, latent in rows:
            values = np.frombuffer(latent, np.float16).reshape([int(side) for side in shape.split()])
            return _Row(one, name, caption, likelihood, torch.from_numpy(values.copy()))
        return None  # another process has taken it out meanwhile

    # The file

    def content(self, path: Path) -> str:
        """What a file of weights holds (``content_of``), or the files of a folder; large ones are read once."""
        if path.is_dir():
            return " ".join(self.content(one) for one in sorted(path.iterdir()) if one.is_file())
        with self._db.explained():
            facts = os.stat(path)
            state = f"{path.absolute()} {facts.st_size} {facts.st_mtime_ns}"
            row = self._db("SELECT content FROM files WHERE state = ?", state).fetchone()
            if row is None:
                row = (content_of(path),)
                with self._db.changing():
                    self._db("INSERT OR REPLACE INTO files VALUES (?, ?)", state, *row)
            return str(row[0])


def _state_of(clip: Path, beside: AllTexts) -> _State:
    facts = os.stat(clip)
    return _State(facts.st_size, facts.st_mtime_ns, beside.state(clip))


class Judge:
    """A pipeline as ``Describer``. ``content``: of its files, such as ``Index.content``."""

    def __init__(
        self,
        pipe: Pipeline,
        size: Size = SIZE,
        footage: Footage = FOOTAGE,
        content: Callable[[Path], str] = content_of,
    ) -> None:
        self.pipe, self._footage = pipe, footage
        self._spec = size.spec(pipe.config.run, footage)
        self.together = pipe.together(size)
        parts, facts = pipe.components, pipe.config.model
        files = [content(path) for path in dict.fromkeys((parts.path, parts.files.vae.path))]
        loras = [(content(one.path), one.choice.video, one.choice.text) for one in pipe.loras]
        what = [files, loras, facts.latent_space, facts.text_flow, facts.source, self._spec, footage]
        self.fingerprint = blake2b(repr(what).encode(), digest_size=16).hexdigest()

    def read(self, path: Path) -> Clip:
        return self._footage.read(path, self._spec)

    def latents(self, clips: Sequence[Clip]) -> Tensor:
        return self.pipe.encode_clips([clip.pixels for clip in clips])

    def captions(self, latents: Tensor) -> Sequence[str]:
        return self.pipe.captions(latents, [0] * len(latents))

    def likelihoods(self, latents: Tensor, texts: Sequence[str]) -> Tensor:
        return self.pipe.judge(latents, texts, batch=len(latents))
