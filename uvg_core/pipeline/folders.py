"""Caption a folder: one ``.txt`` beside each clip, as trainers expect them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UniViGUError
from ..io import write_text
from ..media.video import find_clips


@dataclass(frozen=True)
class FolderReport:
    """What became of each clip.

    written   the text files written
    skipped   the text files that were there already and stayed as they are
    failed    the clips that got no caption, each with the reason

    ``str()`` gives the counts and, on a line each, the failed clips with their reasons.
    """

    written: tuple[Path, ...]
    skipped: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]

    def __str__(self) -> str:
        counts = [f"{len(self.written)} captioned", f"{len(self.skipped)} skipped (captioned before)"]
        total = len(self.written) + len(self.skipped) + len(self.failed)
        lines = [f"{total} clip{'' if total == 1 else 's'}: {', '.join([*counts, f'{len(self.failed)} failed'])}"]
        for path, reason in self.failed:
            # Most reasons begin with the file already.
            lines.append(f"  {reason}" if str(path) in reason else f"  {path}: {reason}")
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
    Clips whose text file exists are skipped without a call, unless ``overwrite``. Clips that
    differ only in suffix get different files: ``clip.mp4`` -> ``clip.txt``, ``clip.mov`` -> ``clip.mov.txt`` (see
    ``text_files``). ``on_clip(index, total, path)`` is called before each clip,
    skipped ones too, index from 0.

    A clip that fails, whatever the exception, is noted and the work goes on; only KeyboardInterrupt and its like stop
    it. Raises UniViGUError when the folder is missing or holds no clips.
    """
    clips = find_clips(folder, recursive=recursive)
    if not clips:
        raise UniViGUError(
            f"{folder}: found no videos here{' or in its subfolders' if recursive else ''}; expected files such as "
            "clip.mp4, clip.mov, clip.webm or clip.gif. Check the folder"
        )
    written: list[Path] = []
    skipped: list[Path] = []
    failed: list[tuple[Path, str]] = []
    for index, (clip, target) in enumerate(zip(clips, text_files(clips), strict=True)):
        if on_clip is not None:
            on_clip(index, len(clips), clip)
        if target.exists() and not overwrite:
            skipped.append(target)
            continue
        try:
            text = prefix + caption(clip)
            write_text(target, text)
        except UniViGUError as error:
            failed.append((clip, str(error)))
        except Exception as error:  # one bad clip must not cost the other captions; the report names it
            failed.append((clip, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__))
        else:
            written.append(target)
    return FolderReport(tuple(written), tuple(skipped), tuple(failed))


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
