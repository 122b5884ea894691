"""Caption a folder: one ``.txt`` beside each clip, as trainers expect them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UniViGUError, printable
from ..io import MEGABYTE, read_bytes, require_writable, write_new, write_text
from ..locks import Claims
from ..media.video import find_clips


@dataclass(frozen=True)
class FolderReport:
    """What became of each clip.

    written   the text files written
    skipped   the text files that were there already and stayed as they are
    failed    the clips that got no caption and the subfolders that could not be read, each with the reason
    busy      clips that another process captions at this moment

    ``str()`` gives the counts and, on a line each, the failed clips with their reasons.
    """

    written: tuple[Path, ...]
    skipped: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]
    busy: tuple[Path, ...] = ()

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
    *,
    overwrite: bool = False,
    prefix: str = "",
    recursive: bool = True,
    on_clip: Callable[[int, int, Path], None] | None = None,
) -> FolderReport:
    """Write ``clip.txt`` (UTF-8) beside each ``clip.mp4`` of a folder and, with ``recursive``, its subfolders.

    ``caption(path)`` gives the text of one clip; ``prefix`` goes in front of it as it stands, e.g. ``"mystyle, "``.
    Clips whose text file has words are skipped without a call, unless ``overwrite``; a text that someone writes while
    the model works stays as well. Clips that differ only in suffix get different files: ``clip.mp4`` -> ``clip.txt``,
    ``clip.mov`` -> ``clip.mov.txt`` (see ``text_files``). ``on_clip(index, total, path)`` is called before each clip,
    skipped ones too, index from 0. Several processes may work on a folder: each clip is captioned by one of them.

    A clip that fails, whatever the exception, or that gets an empty caption, is noted and the work goes on; only
    KeyboardInterrupt and its like stop it. Raises UniViGUError when the folder is missing or holds no clips.
    """
    failed: list[tuple[Path, str]] = []
    clips = find_clips(folder, recursive=recursive, unreadable=failed)
    if not clips:
        raise UniViGUError(
            f"{folder}: found no videos here{' or in its subfolders' if recursive else ''}; expected files such as "
            "clip.mp4, clip.mov, clip.webm or clip.gif. Check the folder"
        )
    written: list[Path] = []
    skipped: list[Path] = []
    busy: list[Path] = []
    with Claims(Path(folder)) as claims:
        for index, (clip, target) in enumerate(zip(clips, text_files(clips), strict=True)):
            if on_clip is not None:
                on_clip(index, len(clips), clip)
            with claims.claimed(str(target)) as is_ours:
                if not is_ours:
                    busy.append(clip)
                    continue
                try:
                    is_written = _captioned(clip, target, caption, prefix, overwrite)
                except UniViGUError as error:
                    failed.append((clip, str(error)))
                except Exception as error:  # one bad clip must not cost the other captions; the report names it
                    failed.append((clip, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__))
                else:
                    (written if is_written else skipped).append(target)
    return FolderReport(tuple(written), tuple(skipped), tuple(failed), tuple(busy))


def _captioned(clip: Path, target: Path, caption: Callable[[Path], str], prefix: str, overwrite: bool) -> bool:
    """Caption one clip; False where a text with words is there already, or by the time the caption is done."""
    is_empty = _is_empty(target)
    if not (is_empty or overwrite) and target.is_file():
        return False
    require_writable(target)
    if os.path.lexists(target) and not target.is_file():
        raise UniViGUError(f"{target}: is not a regular file; move it away to have the clip captioned")
    text = caption(clip)
    if not text.strip():
        raise UniViGUError(f"{clip}: the caption came out empty; nothing was written. Try another seed or more steps")
    if overwrite or (is_empty and _is_empty(target)):
        write_text(target, prefix + text)
        return True
    return write_new(target, prefix + text)


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
