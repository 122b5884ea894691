"""Caption a folder, as trainers expect it: a text beside each clip, or a table of all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UniViGUError, printable
from ..io import require_writable
from ..locks import Claims
from ..media.video import find_clips
from .texts import Captions, Extended, Texts, text_files, texts_of

__all__ = ["CAPTIONS", "Captions", "FolderReport", "caption_folder", "text_files"]

CAPTIONS = Captions()
_LATELY = 20  # clips whose time tells how long the others will take


@dataclass(frozen=True)
class FolderReport:
    """What became of each clip.

    written   the files of the captions that were written, one for each clip
    skipped   those of the captions that were there already and stayed as they are
    failed    the clips that got no caption and the subfolders that could not be read, each with the reason
    busy      clips that another process captions at this moment
    captions  each clip that has a caption now, with it, in the order of their files

    ``str()`` gives the counts and, on a line each, the failed clips with their reasons.
    """

    written: tuple[Path, ...]
    skipped: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]
    busy: tuple[Path, ...] = ()
    captions: tuple[tuple[Path, str], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        counts = [f"{len(self.written)} captioned", f"{len(self.skipped)} skipped (captioned before)"]
        counts.append(f"{len(self.failed)} failed")
        counts += [f"{len(self.busy)} left to another run"] if self.busy else []
        total = len(self.written) + len(self.skipped) + len(self.failed) + len(self.busy)
        lines = [f"{total} clip{'' if total == 1 else 's'}: {', '.join(counts)}"]
        for path, reason in self.failed:
            # Most reasons begin with the file already.
            lines.append(f"  {reason}" if printable(str(path)) in reason else f"  {path}: {reason}")
        return "\n".join(lines)


def caption_folder(
    folder: str | Path,
    caption: Callable[[Path], str],
    how: Captions = CAPTIONS,
    *,
    recursive: bool = True,
    on_clip: Callable[[int, int, Path, str], None] | None = None,
) -> FolderReport:
    """Write ``clip.txt`` (UTF-8) beside each ``clip.mp4`` of a folder and, with ``recursive``, its subfolders, or
    what else ``how`` says.

    ``caption(path)`` gives the text of one clip; ``how`` puts other words around it. Clips whose text has words are
    skipped without a call, unless ``how`` replaces or extends them; a text that someone writes while the model works
    stays as well. Clips that differ only in suffix get different files: ``clip.mp4`` -> ``clip.txt``,
    ``clip.mov`` -> ``clip.mov.txt`` (see ``text_files``). ``on_clip(index, total, path, words)`` is called before each
    clip, skipped ones too, index from 0; the words are such as ``12 of 340, about 8 min left``. Several processes may
    work on a folder: each clip is captioned by one of them.

    A clip that fails, whatever the exception, or that gets an empty caption, is noted and the work goes on; only
    KeyboardInterrupt and its like stop it. Raises UniViGUError when the folder is missing or holds no clips.
    """
    folder = Path(folder)
    failed: list[tuple[Path, str]] = []
    clips = find_clips(folder, recursive=recursive, unreadable=failed)
    if not clips:
        raise UniViGUError(
            f"{folder}: found no videos here{' or in its subfolders' if recursive else ''}; expected files such as "
            "clip.mp4, clip.mov, clip.webm or clip.gif. Check the folder"
        )
    done: dict[str, list[Path]] = {"written": [], "skipped": [], "busy": []}
    with Claims(folder) as claims, texts_of(folder, clips, how) as texts:
        work = _Work(folder, texts, how, caption)
        left = sum(map(work.is_open, clips))
        pace = Pace(left)
        for index, clip in enumerate(clips):
            if on_clip is not None:
                on_clip(index, len(clips), clip, pace.words(index, len(clips)))
            with claims.claimed(str(texts.place(clip) if how.format in ("txt", "json") else clip)) as is_ours:
                try:
                    done["busy" if not is_ours else "written" if work.captioned(clip, pace) else "skipped"].append(clip)
                except UniViGUError as error:
                    failed.append((clip, str(error)))
                except Exception as error:  # one bad clip must not cost the other captions; the report names it
                    failed.append((clip, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__))
        files = {name: tuple(map(texts.place, done[name])) for name in ("written", "skipped")}
        captions = _captions(texts, [*done["written"], *done["skipped"]])
    return FolderReport(files["written"], files["skipped"], tuple(failed), tuple(done["busy"]), captions)


class _Work:
    """What is done with each clip of a folder."""

    def __init__(self, folder: Path, texts: Texts, how: Captions, caption: Callable[[Path], str]) -> None:
        self._folder, self._texts, self._how, self._caption = folder, texts, how, caption
        self._extended = Extended(folder, how.asked) if how.existing != "keep" else None

    def is_open(self, clip: Path) -> bool:
        """Whether a clip is to be captioned, as far as can be told without reading its text."""
        return self._how.overwrite or self._extended is not None or not self._texts.is_taken(clip)

    def captioned(self, clip: Path, pace: Pace) -> bool:
        """Caption one clip; False where a text with words is there already, or by the time the caption is done."""
        texts, how = self._texts, self._how
        if self._is_done(clip):
            return False
        target = texts.place(clip)
        require_writable(target)
        if os.path.lexists(target) and not target.is_file():
            raise UniViGUError(f"{target}: is not a regular file; move it away to have the clip captioned")
        with pace.timed():
            text = self._caption(clip)
        if not text.strip():
            raise UniViGUError(
                f"{clip}: the caption came out empty; nothing was written. Try another seed or more steps"
            )
        change = how.change(how.worded(text))
        if self._extended is not None:
            self._extended.note(self._name(clip), texts.read(clip))
        return texts.put(clip, change, backup=how.backup, blind=how.overwrite)

    def _is_done(self, clip: Path) -> bool:
        if self._extended is None:
            return not self._how.overwrite and self._texts.is_taken(clip)
        return self._extended.has(self._name(clip), self._texts.read(clip))

    def _name(self, clip: Path) -> str:
        place = self._texts.place(clip).relative_to(self._folder).as_posix()
        return f"{place} {clip.relative_to(self._folder).as_posix()}"


class Pace:
    """How far a folder is, and how long the rest will take, from how long the last clips took."""

    def __init__(self, left: int) -> None:
        self._left, self._began, self._took = left, 0.0, list[float]()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The time that one clip takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._took = [*self._took[1 - _LATELY :], time.monotonic() - began]
            self._left -= 1

    def words(self, index: int, total: int) -> str:
        where = f"{index + 1} of {total}"
        if not self._took:
            return where
        minutes = sum(self._took) / len(self._took) * max(self._left, 0) / 60
        if minutes >= 90:
            return f"{where}, about {minutes / 60:.1f} h left"
        return f"{where}, about {minutes:.0f} min left" if minutes >= 1 else f"{where}, less than a minute left"


def _captions(texts: Texts, clips: list[Path]) -> tuple[tuple[Path, str], ...]:
    """The captions that can be read; those of links that lead out cannot."""
    found = []
    for clip in sorted(clips, key=lambda clip: (texts.place(clip), clip)):
        with suppress(UniViGUError):
            if (words := texts.read(clip)) is not None:
                found.append((clip, words))
    return tuple(found)
