"""What the pack keeps in folders to save time, and how much of it: training shards and answers of language models."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UniViGUError, counted
from ..locks import Claims, owned
from .shards import INDEX, Index

ANSWERS = ".answers"  # the folder's name beside a data set that ``synthesise`` makes
MOST_ANSWERS = 100_000
_SHARD = re.compile(r"uvg-(empty|shard-\d{5})\.safetensors")
_ANSWER = re.compile(r"[0-9a-f]{64}\.json")


@dataclass(frozen=True)
class Cache:
    """A folder that may be deleted at any time: what it keeps, in words, and its files."""

    folder: Path
    what: str
    files: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.files if path.exists())

    def __str__(self) -> str:
        return f"{self.folder}: {self.what}, {self.nbytes / 1e6:,.1f} MB in {counted(len(self.files), 'file')}"

    def clear(self) -> None:
        """Delete the files, and the folder where nothing else lies in it. Raises UniViGUError while it is in use."""
        with owned(self.folder, "clearing a cache"), Claims(self.folder) as claims:
            if not claims.alone():
                raise UniViGUError(f"{self.folder}: a training run is using this cache; wait until it ends")
            for path in self.files:
                path.unlink(missing_ok=True)


def find_caches(folder: str | Path) -> list[Cache]:
    """The caches in a folder and its subfolders, links not followed. Raises UniViGUError where there is no folder."""
    root = Path(folder)
    if not root.is_dir():
        raise UniViGUError(f"{root}: expected the folder of a training run, or of a data set made by synthesise")
    return sorted(_caches(root), key=lambda cache: cache.folder)


def _caches(root: Path) -> Iterator[Cache]:
    for place, _, names in os.walk(root):
        here = Path(place)
        if here.name == ANSWERS and (files := _named(here, names, _ANSWER)):
            yield Cache(here, f"{counted(len(files), 'answer')} of a language model", files)
        elif INDEX in names and (index := _index(here)):
            shards = _named(here, names, _SHARD)
            others = [here / name for name in (INDEX, "contents.json") if name in names]
            clips = sum(shard.clips for shard in index.shards)
            yield Cache(here, f"{clips:,} clips encoded for training", (*shards, *others))


def _index(folder: Path) -> Index | None:
    try:
        return Index.read(folder)
    except UniViGUError:  # of something else
        return None


def _named(folder: Path, names: list[str], pattern: re.Pattern[str]) -> tuple[Path, ...]:
    return tuple(folder / name for name in sorted(names) if pattern.fullmatch(name))


def keep_newest(folder: Path, most: int = MOST_ANSWERS) -> None:
    """Delete the answers that were longest unused beyond ``most``."""
    files = _named(folder, os.listdir(folder) if folder.is_dir() else [], _ANSWER)
    if len(files) > most:
        for path in sorted(files, key=lambda path: path.stat().st_mtime)[: len(files) - most]:
            path.unlink(missing_ok=True)
