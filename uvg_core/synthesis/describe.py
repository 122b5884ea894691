"""Captions of real footage by a language model: the same model, retries and kept answers as for generated clips."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ..data.left_out import LeftOut, Unusable, named
from ..data.listing import listed, texts_beside
from ..errors import UniViGUError, counted
from ..io import read_text, write_text
from ..lines import Lines, Replaced, breaks_off
from ..locks import owned
from ..media.video import find_clips, probe
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
    """Asks for captions, one clip after the other, and gives up where every other one would fail too."""

    captioner: Captioner
    kind: str
    done: int = 0
    _failures: int = 0

    def __call__(self, clip: Path) -> str:
        """The caption of a clip. Raises as ``part``."""
        return self.part(clip, self._brief(clip), (0.0, None))

    def part(self, clip: Path, brief: str, part: tuple[float, float | None]) -> str:
        """The caption of a part of a clip (start, seconds), of which a brief one may be known. Raises UniViGUError
        where it gets none, and Stopped."""
        try:
            text = self.captioner.caption(brief if self.kind == "detail" else "", clip, part).text
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
    """What became of the windows of a folder; ``others`` are clips that stand in the manifest with windows of another
    length, each with one of these."""

    written: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    others: dict[str, tuple[float, float]] = field(default_factory=dict)

    def count(self, is_new: bool) -> None:
        self.written += is_new
        self.skipped += not is_new

    def __str__(self) -> str:
        total = self.written + self.skipped + len(self.failed)
        counts = f"{self.written} described, {self.skipped} already described, {len(self.failed)} failed"
        lines = [f"{total} windows: {counts}", *(f"  {name}: {why}" for name, why in self.failed)]
        if self.others:
            start, end = next(iter(self.others.values()))
            lines.append(
                f"  {counted(len(self.others), 'clip')} left out, because windows.jsonl describes other windows of "
                f"them, such as {start:g} s to {end:g} s: {named(list(self.others))}. Use the same --window again, or "
                "move windows.jsonl away to describe them anew"
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
    each window of a clip. The last one of a clip is as long as the others, and begins earlier for that. Clips that
    stand there with windows of another length are left as they are."""
    table, report = folder / "windows.jsonl", WindowReport()
    entry = "detail" if describe.kind == "detail" else "caption"
    with owned(folder, "describing windows"):
        known, replaced = _rows(table), Replaced(table)
        earlier: dict[str, set[tuple[float, float]]] = {}
        for name, start, end in known:
            earlier.setdefault(name, set()).add((start, end))

        def one_window(name: str, clip: Path, start: float, end: float) -> bool:
            row = known.get((name, start, end), {"path": name, "start": start, "end": end})
            if row.get(entry):
                return False
            note(f"{name} from {start:g} s to {end:g} s")
            row = {**row, entry: describe.part(clip, str(row.get("caption", "")), (start, end - start))}
            if (name, start, end) in known:
                replaced.note(name)
            Lines(table, "a manifest of windows", most=_MOST_MANIFEST).add(row)
            known[name, start, end] = row
            return True

        try:
            for one in listed(folder, recursive=recursive):
                if isinstance(one, LeftOut):
                    report.failed.append((one.name, one.found))
                    continue
                name, clip = one[0].name, one[0].path
                try:
                    windows = list(_windows(probe(clip).duration, seconds))
                    if other := earlier.get(name, set()).difference(windows):
                        report.others[name] = min(other)
                        continue
                    for start, end in windows:
                        report.count(one_window(name, clip, start, end))
                except UniViGUError as error:
                    report.failed.append((name, str(error)))
        finally:
            _tidy(table, replaced)
    return report


def _windows(duration: float, seconds: float) -> Iterator[tuple[float, float]]:
    """Start and end of windows that cover a clip, in milliseconds that a file can hold."""
    count = max(1, math.ceil((duration - 1e-3) / seconds))
    last = max(0.0, duration - seconds)
    for number in range(count):
        start = round(last * number / max(1, count - 1), 3)
        yield start, round(min(start + seconds, duration), 3)


def _key(line: str) -> tuple[str, float, float] | None:
    """The window that a line of the table is about; None for one of somebody else, or one that was cut off."""
    try:
        row = json.loads(line)
        return str(row["path"]), float(row["start"]), float(row["end"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _lines(table: Path) -> list[str]:
    try:
        return [line for line in read_text(table, most=_MOST_MANIFEST).split("\n") if line.strip()]
    except FileNotFoundError:
        return []


def _rows(table: Path) -> dict[tuple[str, float, float], dict[str, object]]:
    return {key: json.loads(line) for line in _lines(table) if (key := _key(line)) is not None}


def _tidy(table: Path, replaced: Replaced) -> None:
    """Take away the lines that later ones have replaced, and what a kill has cut; what others wrote stays."""
    lines, names = _lines(table), replaced.names()
    keys = list(map(_key, lines))
    last = {key: number for number, key in enumerate(keys)}
    kept = [
        line
        for number, (key, line) in enumerate(zip(keys, lines, strict=True))
        if (key is None or key[0] not in names or last[key] == number) and not breaks_off(line.encode())
    ]
    if len(kept) < len(lines):
        write_text(table, "".join(f"{line}\n" for line in kept))
    replaced.clear()
