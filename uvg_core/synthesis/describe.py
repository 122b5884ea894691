"""Captions of real footage by a language model: the same model, retries and kept answers as for generated clips."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from ..data.left_out import LeftOut, Unusable, named
from ..data.listing import listed, texts_beside
from ..errors import UniViGUError, counted
from ..io import written_whole
from ..lines import Lines, Replaced, breaks_off
from ..locks import owned
from ..media.video import find_clips, probe
from ..media.video.footage import FOOTAGE, Footage
from ..pipeline.texts import text_files
from ..settings import Flag, Number, OneOf, setting, settings
from .captioner import WORDS_PER_TOKEN, Captioner
from .chat import LengthError
from .endpoint import CaptionError, EndpointError

KINDS = ("prompt", "detail")
_SEEN = """\
You write the captions of a data set of short videos. You are shown frames of one video, in order and evenly spread in \
time.
"""
INSTRUCTIONS = {
    "prompt": _SEEN
    + """\
Say in one or two plain sentences what is to be seen: the subject, what it does, the place, the style and how the \
camera moves, as somebody would who asks for such a video. Do not guess what cannot be seen.
Write plain text without a heading, a list or quotation marks. Speak of the video as a whole; mention neither the \
frames nor these instructions. Answer with the caption alone.""",
    "detail": _SEEN
    + """\
Describe in detail what is to be seen: every subject with its shape, colour, size and place, what moves and how it \
moves from the first frame to the last, the background, the light and the camera. Where there is a brief caption and \
it disagrees with the frames, the frames are right. Do not guess what cannot be seen.
Write one paragraph of plain text without a heading, a list or quotation marks. Speak of the video as a whole; mention \
neither the frames nor the brief caption nor these instructions. Answer with the description alone.""",
}

_IN_A_ROW = 3  # what fails so often in succession fails for a reason that the next clip shares
_WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # letters that are about a token each
_MOST_MANIFEST = 2**30
_LOOK = ("fps", "fit", "crop", "background")  # of the footage: how the frames of a window are read


@settings
class Describe:
    """What is described."""

    clips: tuple[Path, ...] = setting("Videos or folders of videos.", positional=True, metavar="CLIP|FOLDER")
    kind: Annotated[str, OneOf(*KINDS)] = setting(
        "prompt writes brief captions, clip.txt; detail the long ones of the stage refine, clip.detail.txt.",
        default="prompt",
    )
    no_recursive: Flag = setting("Do not search subfolders.", default=False)
    window: Number | None = setting(
        "Describe clips in consecutive windows of this length, and write windows.jsonl, a manifest to train on, into "
        "the folder.",
        default=None,
        metavar="SECONDS",
        ge=0.1,
        le=86_400,
    )
    model: Path | None = setting(
        "Checkpoint whose tokenizer and length limits apply.", default=None, auto="tokens are estimated from words"
    )
    wan: Path | None = setting("Wan2.1 folder with the tokenizer, if the checkpoint has none.", default=None)


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, the end of text counted."""
    wide = len(_WIDE.findall(text))
    return 1 + wide + math.ceil(len(_WIDE.sub(" ", text).split()) / WORDS_PER_TOKEN)


class Stopped(BaseException):
    """No clip will get a caption before the user puts something right. What is caught for one clip lets it pass."""


@dataclass
class Describer:
    """Asks for captions, one clip after the other, and gives up where every other one would fail too. ``footage``: what
    is read of each; ``shape``: height and width that frames are fitted to, None for the clip's own."""

    captioner: Captioner
    kind: str
    footage: Footage = FOOTAGE
    shape: tuple[int, int] | None = None
    done: int = 0
    _failures: int = 0

    def __call__(self, clip: Path) -> str:
        """The caption of a clip. Raises as ``part``."""
        return self.part(clip, self._brief(clip), self.footage)

    def part(self, clip: Path, brief: str, footage: Footage) -> str:
        """The caption of what ``footage`` reads of a clip, of which a brief one may be known. Raises UniViGUError
        where it gets none, and Stopped."""
        try:
            known = brief if self.kind == "detail" else ""
            text = self.captioner.caption(known, clip, footage, self.shape).text
        except EndpointError as error:
            raise Stopped(str(error)) from None
        except LengthError:
            raise
        except CaptionError as error:
            self._failures += 1
            if self._failures == _IN_A_ROW:
                raise Stopped(f"{error} ({_IN_A_ROW} times in a row)") from None
            raise
        self._failures = 0
        self.done += 1
        return text

    def _brief(self, clip: Path) -> str:
        """The prompt beside a clip, where there is one."""
        clips = find_clips(clip.parent, recursive=False)
        files = dict(zip(clips, text_files(clips), strict=True))
        try:
            return " ".join(texts_beside(files.get(clip, clip.with_suffix(".txt")))(True)[0].split())
        except Unusable:
            return ""


@dataclass
class WindowReport:
    """What became of the windows of a folder; ``others`` are clips that stand in the manifest with other windows, or
    read in another way, each with one of these in words."""

    written: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)

    def count(self, is_new: bool) -> None:
        self.written += is_new
        self.skipped += not is_new

    def __str__(self) -> str:
        total = self.written + self.skipped + len(self.failed)
        counts = f"{self.written} described, {self.skipped} already described, {len(self.failed)} failed"
        lines = [f"{total} windows: {counts}", *(f"  {name}: {why}" for name, why in self.failed)]
        if self.others:
            lines.append(
                f"  {counted(len(self.others), 'clip')} left out, because windows.jsonl describes other windows of "
                f"them, such as {next(iter(self.others.values()))}: {named(list(self.others))}. Use the same settings "
                "again, or move windows.jsonl away to describe them anew"
            )
        return "\n".join(lines)


def describe_windows(
    folder: Path,
    describe: Describer,
    seconds: float,
    *,
    recursive: bool = True,
    note: Callable[[str], object] = lambda _: None,
) -> WindowReport:
    """Append what is missing to ``windows.jsonl`` of a folder: a line with path, start, end and caption, or detail, for
    each window of what is read of a clip, and how its frames are read unless as usual. The last window of a clip is as
    long as the others, and begins earlier for that. Clips that stand there with other windows, or were read in another
    way, are left as they are."""
    path, report = folder / "windows.jsonl", WindowReport()
    table, replaced = Lines(path, "a manifest of windows", most=_MOST_MANIFEST), Replaced(path)
    entry, look = "detail" if describe.kind == "detail" else "caption", _look(describe)
    with owned(folder, "describing windows"):
        known = {key: row for row in table.news() if (key := _key(row)) is not None}
        earlier: dict[str, dict[tuple[float, float], object]] = {}
        for (name, start, end), row in known.items():
            earlier.setdefault(name, {})[start, end] = row.get("read", {})

        def one_window(name: str, clip: Path, start: float, end: float) -> bool:
            row = known.get((name, start, end), {"path": name, "start": start, "end": end} | look)
            if row.get(entry):
                return False
            note(f"{name} from {start:g} s to {end:g} s")
            part = replace(describe.footage, start=start, seconds=end - start)
            row = {**row, entry: describe.part(clip, str(row.get("caption", "")), part)}
            if (name, start, end) in known:
                replaced.note(name)
            table.add(row)
            known[name, start, end] = row
            return True

        try:
            for one in listed(folder, recursive=recursive):
                if isinstance(one, LeftOut):
                    report.failed.append((one.name, one.found))
                    continue
                name, clip = one[0].name, one[0].path
                try:
                    windows = list(_windows(clip, describe.footage, seconds))
                    wanted = dict.fromkeys(windows, look.get("read", {}))
                    if other := [one for one in earlier.get(name, {}).items() if one not in wanted.items()]:
                        report.others[name] = _shown(*min(other, key=lambda one: one[0]))
                        continue
                    for start, end in windows:
                        report.count(one_window(name, clip, start, end))
                except UniViGUError as error:
                    report.failed.append((name, str(error)))
        finally:
            _tidy(table, replaced)
    return report


def _look(describe: Describer) -> dict[str, dict[str, object]]:
    """How frames are read, as it stands in the lines of their windows: nothing where that is as usual."""
    usual, how = vars(FOOTAGE), vars(describe.footage)
    read: dict[str, object] = {name: how[name] for name in _LOOK if how[name] != usual[name]}
    read |= {} if describe.shape is None else {"size": list(describe.shape)}
    return {"read": read} if read else {}


def _shown(window: tuple[float, float], read: object) -> str:
    how = ", ".join(f"{name} {value}" for name, value in read.items()) if isinstance(read, dict) else str(read)
    return f"{window[0]:g} s to {window[1]:g} s{' with ' if how else ''}{how}"


def _windows(clip: Path, footage: Footage, seconds: float) -> Iterator[tuple[float, float]]:
    """Start and end of windows that cover what is read of a clip, in milliseconds that a file can hold."""
    length = probe(clip, start=footage.start, seconds=footage.seconds).duration
    count = max(1, math.ceil((length - 1e-3) / seconds))
    last, end = max(0.0, length - seconds), footage.start + length
    for number in range(count):
        start = round(footage.start + last * number / max(1, count - 1), 3)
        yield start, round(min(start + seconds, end), 3)


def _key(row: dict[str, Any] | None) -> tuple[str, float, float] | None:
    """The window that a line of the table is about; None for one of somebody else, or one that was cut off."""
    try:
        return None if row is None else (str(row["path"]), float(row["start"]), float(row["end"]))
    except (ValueError, KeyError, TypeError):
        return None


def _tidy(table: Lines, replaced: Replaced) -> None:
    """Take away the lines that later ones have replaced, and what a kill has cut; what others wrote stays. A line all
    of which stands in the last one of its window, too, was left by an earlier version that was killed."""
    lines, names = table.read(), replaced.names()
    last = {key: row for _, row in lines if row is not None and (key := _key(row)) is not None}
    kept = []
    for line, row in lines:
        is_old = False
        if row is not None and (key := _key(row)) is not None and (now := last[key]) is not row:
            is_old = key[0] in names or row.items() <= now.items()
        kept += [] if is_old or breaks_off(line) else [line + b"\n"]
    if len(kept) < len(lines):
        with written_whole(table.path) as temporary:
            temporary.write_bytes(b"".join(kept))
    replaced.clear()
