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
from ..settings import shown
from .review import ACCEPTED, OPEN, RECORD, Pending
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
    captions  each clip that has a caption now, with it, in the order of their files; where they wait for review, the
              proposed ones
    waiting   captions that wait for review, where that was asked for

    ``str()`` gives the counts and, on a line each, the failed clips with their reasons.
    """

    written: tuple[Path, ...]
    skipped: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]
    busy: tuple[Path, ...] = ()
    captions: tuple[tuple[Path, str], ...] = field(default=(), compare=False)
    waiting: int | None = None

    def __str__(self) -> str:
        counts = [f"{len(self.written)} captioned", f"{len(self.skipped)} skipped (captioned before)"]
        counts.append(f"{len(self.failed)} failed")
        counts += [f"{len(self.busy)} left to another run"] if self.busy else []
        total = len(self.written) + len(self.skipped) + len(self.failed) + len(self.busy)
        lines = [f"{total} clip{'' if total == 1 else 's'}: {', '.join(counts)}"]
        if self.waiting is not None:
            lines += [f"  {self.waiting} wait in {RECORD}: open Review captions in ComfyUI"]
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
        work = (_Reviewed if how.review else _Work)(folder, texts, how, caption)
        chosen = _chosen(folder, clips, how.only)
        pace = Pace(left=sum(map(work.is_wanted, chosen)))
        for index, clip in enumerate(chosen):
            if on_clip is not None:
                on_clip(index, len(chosen), clip, pace.words(index, len(chosen)))
            with claims.claimed(str(texts.place(clip) if how.format in ("txt", "json") else clip)) as is_ours:
                try:
                    done["busy" if not is_ours else "written" if work.captioned(clip, pace) else "skipped"].append(clip)
                except UniViGUError as error:
                    failed.append((clip, str(error)))
                except Exception as error:  # one bad clip must not cost the other captions; the report names it
                    failed.append((clip, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__))
        captions = work.captions([*done["written"], *done["skipped"]])
        written, skipped = tuple(map(work.file, done["written"])), tuple(map(texts.place, done["skipped"]))
    return FolderReport(written, skipped, tuple(failed), tuple(done["busy"]), captions, work.waiting())


def _chosen(folder: Path, clips: list[Path], only: str) -> list[Path]:
    """The clips that are named, one a line; all where none is."""
    known = {clip.relative_to(folder).as_posix(): clip for clip in clips}
    lines = [line if line in known else line.strip() for line in only.split("\n")]
    names = [name for name in dict.fromkeys(lines) if name]
    if missing := [name for name in names if name not in known]:
        raise UniViGUError(
            f"only: {shown(missing[0])} is no clip of this folder; expected names such as {next(iter(known))}"
        )
    return [known[name] for name in names] if names else clips


class _Work:
    """What is done with each clip of a folder."""

    def __init__(self, folder: Path, texts: Texts, how: Captions, caption: Callable[[Path], str]) -> None:
        self._folder, self._texts, self._how, self._caption = folder, texts, how, caption
        self._extended = Extended(folder, how.asked) if how.existing != "keep" else None

    def is_wanted(self, clip: Path) -> bool:
        """Whether a clip is to be captioned, as far as can be told without reading its text."""
        return self._how.overwrite or self._extended is not None or not self._texts.is_taken(clip)

    def captioned(self, clip: Path, pace: Pace) -> bool:
        """Caption one clip; False where a text with words is there already, or by the time the caption is done."""
        texts = self._texts
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
        return self._put(clip, self._how.worded(text))

    def file(self, clip: Path) -> Path:
        """The file that the caption of a clip was written to."""
        return self._texts.place(clip)

    def captions(self, clips: list[Path]) -> tuple[tuple[Path, str], ...]:
        """The captions that can be read; those of links that lead out cannot."""
        found = []
        for clip in sorted(clips, key=lambda clip: (self._texts.place(clip), clip)):
            with suppress(UniViGUError):
                if (words := self._words(clip)) is not None:
                    found.append((clip, words))
        return tuple(found)

    def waiting(self) -> int | None:
        """How many captions wait for review."""
        return None

    def _is_done(self, clip: Path) -> bool:
        if self._extended is None:
            return not self._how.overwrite and self._texts.is_taken(clip)
        return self._extended.has(self._name(clip), self._texts.read(clip))

    def _put(self, clip: Path, text: str) -> bool:
        if self._extended is not None:
            self._extended.note(self._name(clip), self._texts.read(clip))
        return self._texts.put(clip, self._how.change(text), backup=self._how.backup, blind=self._how.overwrite)

    def _words(self, clip: Path) -> str | None:
        return self._texts.read(clip)

    def _name(self, clip: Path) -> str:
        place = self._texts.place(clip).relative_to(self._folder).as_posix()
        return f"{place} {clip.relative_to(self._folder).as_posix()}"


class _Reviewed(_Work):
    """The same where captions wait for somebody to read them. A clip whose caption waits is left alone, and so is one
    that was decided about, unless captions are to be replaced; ``only`` has a clip captioned in any case."""

    def __init__(self, folder: Path, texts: Texts, how: Captions, caption: Callable[[Path], str]) -> None:
        super().__init__(folder, texts, how, caption)
        self._pending = Pending(folder)

    def is_wanted(self, clip: Path) -> bool:
        return not self._is_done(clip)

    def file(self, clip: Path) -> Path:
        return self._pending.path

    def waiting(self) -> int | None:
        return sum(one.state == OPEN for one in self._pending.proposals.values())

    def _is_done(self, clip: Path) -> bool:
        how = self._how
        if how.only.strip():
            return False
        self._pending.refresh()
        found = self._pending.proposals.get(self._clip(clip))
        if found is not None and (found.state == OPEN or not how.overwrite):
            return found.state != ACCEPTED or self._extended is not None or self._texts.is_taken(clip)
        return not (how.overwrite or self._extended is not None) and self._texts.is_taken(clip)

    def _put(self, clip: Path, text: str) -> bool:
        now = self._texts.read(clip)
        changed = self._how.change(text)(now)
        if changed is None and not self._how.only.strip():
            return False
        self._pending.propose(self._clip(clip), changed or text, self._how)
        return True

    def _words(self, clip: Path) -> str | None:
        found = self._pending.proposals.get(self._clip(clip))
        return found.new if found is not None and found.state == OPEN else super()._words(clip)

    def _clip(self, clip: Path) -> str:
        return clip.relative_to(self._folder).as_posix()


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
