"""What lies in a source of clips, one clip after the other: nothing of a manifest or of shards is held in memory."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UniViGUError, counted
from ..io import read_text
from ..media.video import find_clips
from ..media.video.find import STILL
from ..pipeline.table import CAPTION
from ..pipeline.texts import CAPTION_SUFFIX, caption_file, text_files
from .clip_file import ClipFile, Listed, Texts
from .left_out import BAD_TEXT, UNREADABLE, LeftOut, Unusable
from .manifest import DETAILS, MANIFESTS, entries_of, json_row, rows_of
from .webdataset import SHARD, clips_in, clips_of, several_shards

# The texts that may lie beside a clip.
TEXT_KINDS = (".txt", CAPTION_SUFFIX, ".json", ".detail.txt", ".detail.json")

_EXPECTED = f"a folder of clips, a manifest ({', '.join(MANIFESTS)}) or {SHARD} shards"


def listed(path: Path, *, recursive: bool = True, pictures: bool = False) -> Iterator[Listed]:
    """The clips of a source, in the order of a folder's names or of a manifest's lines.

    Raises UniViGUError for a source that is not there or is of another kind, and for a folder without clips."""
    suffix = path.suffix.lower()
    if not os.path.exists(path) and not several_shards(path):
        raise UniViGUError(f"{path}: no such file or folder; expected {_EXPECTED}. {_near(path)}")
    if suffix == SHARD:
        return clips_of(path)
    if suffix in MANIFESTS and not path.is_dir():
        return rows_of(path, suffix)
    if suffix in (".tgz", ".gz", ".json") and not path.is_dir():
        kind = "the lines of a .jsonl file" if suffix == ".json" else "a .tar file that is not compressed"
        raise UniViGUError(f"{path}: not a supported format for training data; expected {kind}. Convert it")
    if not path.is_dir():
        raise UniViGUError(f"{path}: found another file; expected {_EXPECTED}")
    return _folder(path, recursive, pictures)


def _near(path: Path) -> str:
    """What may have been meant by a path that leads nowhere, or how far it leads."""
    unix = Path(str(path).replace("\\", "/"))
    if os.path.exists(unix):
        return f"Did you mean {unix}?"
    there = next((parent for parent in path.parents if os.path.isdir(parent)), Path())
    missing = path.relative_to(there).parts[0] if path.is_relative_to(there) else path.name
    names: dict[str, str] = {}
    with suppress(OSError):
        names = {name.lower(): name for name in sorted(os.listdir(there)) if not name.startswith(".")}
    if near := difflib.get_close_matches(missing.lower(), names, n=1):
        return f"Did you mean {there / names[near[0]]}?"
    return f"There is no {missing} in {there.absolute()}"


def _folder(root: Path, recursive: bool, pictures: bool) -> Iterator[Listed]:
    unreadable: list[tuple[Path, str]] = []
    clips = find_clips(root, recursive=recursive, stills=pictures, unreadable=unreadable)
    shards = sorted(root.glob(f"*{SHARD}"))
    if not clips and not shards:
        raise UniViGUError(
            f"{root}: found no videos here; expected clips such as clip.mp4, each with its prompt in clip.txt"
            + _elsewhere(root, recursive)
        )
    for path, why in unreadable:
        yield LeftOut(f"{path.relative_to(root).as_posix()}/", UNREADABLE, why)
    for clip, text in zip(clips, text_files(clips), strict=True):
        passed_over = os.path.exists(text.with_suffix(CAPTION_SUFFIX)) and caption_file(text) == text
        yield ClipFile(str(clip), clip.relative_to(root).as_posix(), passed_over=passed_over), texts_beside(text)
    for shard in () if clips else shards:
        yield from clips_in(shard)


def unread_shards(root: Path, read: bool) -> int:
    """How many shards of a folder are not read: those in subfolders, and beside clips (``read`` is False) all."""
    return sum(not read or path.parent != root for path in root.rglob(f"*{SHARD}"))


def pictures_in(root: Path, recursive: bool) -> list[Path]:
    """The still pictures of a folder; a video's covers are none of them."""
    return [path for path in find_clips(root, recursive=recursive) if path.suffix.lower() in STILL]


def _elsewhere(root: Path, recursive: bool) -> str:
    """What else lies in a folder without clips that could have been meant."""
    stills = [] if manifest_in(root) else pictures_in(root, recursive)
    if not stills:
        return manifest_in(root)
    return f". Its {counted(len(stills), 'picture')} can be used if buckets.frames contains 1"


def manifest_in(root: Path) -> str:
    """How to read the manifest in a folder, if there is one."""
    manifests = sorted(path for path in root.glob("*") if path.suffix.lower() in MANIFESTS)
    return f". To read a manifest, pass its file: {manifests[0]}" if manifests else ""


def texts_beside(text: Path) -> Texts:
    """The texts of a clip in a folder, of which ``text`` is the file: the prompt and the detailed caption have each a
    text, or stand in a JSON object, that of the prompt or one of their own, as ``caption`` writes them."""

    def read(prompt: bool) -> tuple[str, ...]:
        try:
            return (read_text(caption_file(text) if prompt else text.with_suffix(".detail.txt")),)
        except FileNotFoundError:
            pass
        except UniViGUError as error:
            raise Unusable(BAD_TEXT, str(error)) from None
        if not prompt:
            with suppress(FileNotFoundError):
                return entries_of({DETAILS[0]: _object(text.with_suffix(".detail.json")).get(CAPTION)})(False)
        try:
            row = _object(text.with_suffix(".json"))
        except FileNotFoundError:
            row = {}
        except Unusable:
            if prompt:
                raise
            row = {}  # somebody else's
        return entries_of(row)(prompt)

    return read


def _object(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        row = json_row(read_text(path, exact=True))
    except UniViGUError as error:
        raise Unusable(BAD_TEXT, str(error)) from None
    if isinstance(row, str):
        raise Unusable(BAD_TEXT, f"{path}: {row}")
    return row
