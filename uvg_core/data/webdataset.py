"""Shards of clips as WebDataset writes them: .tar files in which the files of one clip have one name and follow each
other, ``0001.mp4``, ``0001.txt``, ``0001.detail.txt`` or ``0001.json``."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from ..errors import UniViGUError
from ..io import MEGABYTE
from ..media.video.find import CLIP_SUFFIXES, MOVING
from .clip_file import ClipFile, Listed
from .left_out import BAD_TEXT, SEVERAL_DOTS, LeftOut, Unusable
from .manifest import entries_of, json_row, opened

SHARD = ".tar"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 100_000
_MOST_READ = 16 * MEGABYTE  # at once, of a shard's headers
_HIDDEN = (".", "_")


def several_shards(path: Path) -> bool:
    """Whether the path is a pattern of several shards."""
    return path.suffix.lower() == SHARD and _BRACES.search(path.name) is not None


def clips_of(path: Path) -> Iterator[Listed]:
    """The clips of a shard, or of several: ``clips-{0000..0012}.tar``."""
    braces = _BRACES.search(path.name)
    if braces is None:
        yield from clips_in(path)
        return
    first, last = int(braces[1]), int(braces[2])
    if not 0 <= last - first < _MOST_SHARDS:
        raise UniViGUError(f"{path}: {braces[0]} names {last - first + 1} shards; expected 1 to {_MOST_SHARDS}")
    for number in range(first, last + 1):
        name = f"{path.name[: braces.start()]}{number:0{len(braces[1])}d}{path.name[braces.end() :]}"
        yield from clips_in(path.with_name(name))


def clips_in(path: Path) -> Iterator[Listed]:
    with os.fdopen(opened(path), "rb") as handle:
        try:
            with tarfile.open(fileobj=_Bounded(handle), mode="r:") as tar:
                for key, group in groupby(_members(tar), lambda member: _key(member.name)):
                    yield from _sample(path, tar, key, list(group))
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            if isinstance(error, UniViGUError):
                raise
            raise UniViGUError(
                f"{path}: cannot be read as a .tar file ({error}); create or download it again"
            ) from None


def _sample(path: Path, tar: tarfile.TarFile, key: str, members: list[tarfile.TarInfo]) -> Iterator[Listed]:
    """The clip among the files of one name, if there is any, with the texts among them."""
    by_kind = {member.name.removeprefix(key).lower(): member for member in members}
    clips = [kind for kind in by_kind if kind in CLIP_SUFFIXES]
    for kind, member in by_kind.items():
        if kind not in CLIP_SUFFIXES and kind[kind.rfind(".") :] in CLIP_SUFFIXES:
            yield LeftOut(f"{path.name}/{member.name}", SEVERAL_DOTS)
    if not clips:
        return
    clip = by_kind[max(clips, key=MOVING.__contains__)]  # a picture beside a video is its cover
    name = f"{path.name}/{clip.name}"
    kinds = {True: (".txt", ".caption", ".text"), False: (".detail.txt",)}
    found: dict[bool, tuple[str, ...]] = {}
    row: dict[str, Any] | str = {}
    try:
        for prompt, suffixes in kinds.items():
            if text := next((by_kind[kind] for kind in suffixes if kind in by_kind), None):
                found[prompt] = (_content(tar, text),)
        if ".json" in by_kind:
            row = json_row(_content(tar, by_kind[".json"]))
        if isinstance(row, str) and True not in found:
            raise Unusable(BAD_TEXT, row)
    except Unusable as why:
        yield LeftOut(name, *why.args)
        return
    entries = entries_of(row if isinstance(row, dict) else {})
    yield (
        ClipFile(str(path), name, member=(clip.offset_data, clip.size)),
        lambda prompt: found[prompt] if prompt in found else entries(prompt),
    )


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        vars(tar)["members"].clear()  # it would remember all of them
        if member.isreg() and not member.name.rpartition("/")[2].startswith(_HIDDEN):
            yield member


def _key(name: str) -> str:
    """What the files of one clip have in common: all before the first dot of the name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    if file is None or member.size > MEGABYTE:
        raise Unusable(BAD_TEXT, f"{member.name}: found {member.size} bytes; expected a short text")
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unusable(BAD_TEXT, f"{member.name}: is not UTF-8 text") from None


class _Bounded(io.RawIOBase):
    """A file of which nothing large is read at once: headers of a .tar file state how long others are."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_READ:
            raise tarfile.ReadError("a header is too large")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
