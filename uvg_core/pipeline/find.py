"""Clips of a folder by what they show: an index of captions, and the model's own judgement of what that finds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..confined import is_open
from ..content import content_of
from ..errors import UniViGUError
from ..media.video import Clip
from ..media.video.footage import FOOTAGE, Footage
from ..media.video.shots import Cutting, Shot
from ..sampling import Size
from ..sampling.settings import SIZE
from .clip_index import CONTENT, INDEX, WHOLE, ClipIndex, Describer, Updated
from .film import clock, read_ahead
from .pipeline import Pipeline
from .wording import adapted, words_of

__all__ = ["INDEX", "WHOLE", "Describer", "Found", "Index", "Judge", "Updated"]

CANDIDATES = 50  # clips that the words find and the model judges
_JUDGED = 300  # words of a caption that the model judges
_IS_OF = "substr(model || ' ', 1, ?) = ?"  # whether a row is of one describer


@dataclass(frozen=True)
class Found:
    """A clip that was found, and its caption. ``score``: how much likelier the clip makes a caption that says what the
    query says than its own, in the unit of likelihoods; 0 where that says it already.

    Of a film the ``shot``, counted from 1, and when it starts and ends, in seconds from the film's first frame; None
    where the clip is meant as a whole.
    """

    clip: Path
    score: float
    caption: str
    shot: int | None = None
    start: float | None = None
    end: float | None = None

    @property
    def when(self) -> str:
        """The time of a shot, as captions of films have it; empty for a whole clip."""
        return "" if self.start is None or self.end is None else f"{clock(self.start)} --> {clock(self.end)}"


@dataclass(frozen=True)
class _Row:
    """A clip as the index has it. ``likelihood``: of its caption, None where nobody has asked yet. ``times``: start and
    end of a shot."""

    id: int
    name: bytes
    shot: int
    caption: str
    likelihood: float | None
    latent: Tensor
    times: tuple[float, float]


class Index(ClipIndex):
    """The index of a folder's clips (``ClipIndex``), and queries to it."""

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
                    part = (row.shot, *row.times) if row.shot else ()
                    scores[row.id] = Found(self.folder / os.fsdecode(row.name), score, row.caption, *part)
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
                f"SELECT shape FROM clips JOIN described USING (model, content) WHERE id = ? AND {_IS_OF}",
                one,
                *_of(describer),
            ):
                sizes.setdefault(shape, []).append(one)
        for some in sizes.values():
            yield from (some[start : start + describer.together] for start in range(0, len(some), describer.together))

    def _read(self, one: int) -> _Row | None:
        columns = "name, shot, clips.caption, likelihood, shape, latent, start, until"
        rows = self._db(f"SELECT {columns} FROM clips JOIN described USING (model, content) WHERE id = ?", one)
        for name, shot, caption, likelihood, shape, latent, *times in rows:
            values = np.frombuffer(latent, np.float16).reshape([int(side) for side in shape.split()])
            return _Row(one, name, shot, caption, likelihood, torch.from_numpy(values.copy()), (times[0], times[1]))
        return None  # another process has taken it out meanwhile

    # What depends on the describer, and the files of one

    def of_others(self, describer: Describer) -> int:
        """How many clips only another model has described, or the same one in other sizes or parts of them."""
        with self._db.explained():
            (count,) = self._db(
                f"SELECT count(DISTINCT name) FROM clips WHERE NOT {_IS_OF} AND substr(content, 1, {CONTENT}) NOT IN "
                f"(SELECT substr(content, 1, {CONTENT}) FROM described WHERE {_IS_OF})",
                *_of(describer),
                *_of(describer),
            ).fetchone()
        return int(count)

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


def _of(describer: Describer) -> tuple[int, str]:
    """For ``_IS_OF``."""
    mark = f"{describer.fingerprint} "  # that of films goes on with how they are divided
    return len(mark), mark


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
        self.window = self._spec.frames / (footage.fps or pipe.config.run.fps)
        parts, facts = pipe.components, pipe.config.model
        files = [content(path) for path in dict.fromkeys((parts.path, parts.files.vae.path))]
        loras = [(content(one.path), one.choice.video, one.choice.text) for one in pipe.loras]
        what = [files, loras, facts.latent_space, facts.text_flow, facts.source, self._spec, footage]
        self.fingerprint = blake2b(repr(what).encode(), digest_size=16).hexdigest()

    def read(self, path: Path) -> Clip:
        return self._footage.read(path, self._spec)

    def shots(self, path: Path, how: Cutting, done: float) -> Iterator[Shot]:
        return read_ahead(path, how, self._spec, self._footage, done=done, ahead=self.together)

    def latents(self, clips: Sequence[Clip | Shot]) -> Tensor:
        return self.pipe.encode_clips([clip.pixels for clip in clips])

    def captions(self, latents: Tensor) -> Sequence[str]:
        return self.pipe.captions(latents, [0] * len(latents))

    def likelihoods(self, latents: Tensor, texts: Sequence[str]) -> Tensor:
        return self.pipe.judge(latents, texts, batch=len(latents))
