"""A folder of clips as training data: ``clip.mp4``, ``clip.txt`` (the prompt) and, for the stage refine,
``clip.detail.txt`` (the detailed caption)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..config import RunConfig
from ..content import content_of
from ..errors import UniViGUError, counted
from ..io import read_text
from ..media.video import ClipInfo, ClipSpec, find_clips, probe, read_clip
from ..pipeline.folders import text_files
from ..progress import Report
from .sources import TrainingClip, digest

# Why a clip is left out; where several reasons hold, the first in this order is reported.
NO_CAPTION = "without a caption"
EMPTY_CAPTION = "with an empty caption"
BAD_TEXT = "with a caption that cannot be read"
PROMPT_LENGTH = "with a prompt outside the token limits"
NO_DETAIL = "without a detailed caption"
DETAIL_LENGTH = "with a detailed caption outside the token limits"
UNREADABLE = "unreadable"
TOO_SHORT = "too short"

_NAMED = 3  # files named in a line of a report
_SHORT = 24  # findings of up to so many characters (mostly numbers) stand beside the file's name
_RATES = 5  # frame rates named in a report
_SAME_RATE = 0.01  # 29.97 and 30 count as one rate, and so do 23.976 and 24

Tokens = Callable[[str], list[int]]


@dataclass(frozen=True)
class TextLimits:
    """How many tokens a prompt and a detailed caption may have: (fewest, most), both included.

    Counted as they lie in the text stream, with the end-of-text token: a text of ``most`` tokens fills a stream of that
    length. The defaults are the paper's, for a stream of 256. Raises UniViGUError for limits that nothing can meet.
    """

    prompt: tuple[int, int] = (0, 128)
    detail: tuple[int, int] = (128, 256)

    def __post_init__(self) -> None:
        for name, (fewest, most) in vars(self).items():
            if not 0 <= fewest <= most:
                raise UniViGUError(
                    f"token limits of the {name} are {fewest} to {most}; expected two numbers from 0 on, the smaller "
                    "one first"
                )

    @classmethod
    def of(cls, run: RunConfig) -> TextLimits:
        """The paper's limits where the text stream has room for them; on a shorter one, whatever fits."""
        most, paper = min(run.text_length, run.context_length), cls()
        return paper if most >= paper.detail[1] else cls((0, min(paper.prompt[1], most)), (0, most))

    def within(self, run: RunConfig) -> TextLimits:
        """These limits, cut to the lengths that the model reads. Raises UniViGUError where nothing is left."""
        longest = min(run.text_length, run.context_length)
        for name, (fewest, _) in (("prompts", self.prompt), ("detailed captions", self.detail)):
            if fewest > longest:
                found = f"{name} must have {fewest} tokens at least, but this model reads {longest} at most"
                raise UniViGUError(f"{found}; lower the limit")
        return TextLimits(*((fewest, min(most, longest)) for fewest, most in (self.prompt, self.detail)))


class LeftOut(NamedTuple):
    """A clip that training does not see: its name, one of the reasons above, and what was found."""

    name: str
    reason: str
    found: str = ""


@dataclass(frozen=True)
class ClipFile:
    """A usable clip and its texts.

    name      path relative to the data folder, with forward slashes
    detail    None where there is none, or none within the limits
    content   what the file holds (``content_of``); size: its bytes; changed: its modification time in ns
    """

    path: Path
    name: str
    prompt: str
    detail: str | None
    info: ClipInfo
    content: str
    size: int
    changed: int


@dataclass(frozen=True)
class Survey:
    """What a data folder holds: a ``Source`` of the usable clips, of each the model's frames at the model's rate from
    its beginning. ``str()`` is the report: a line of counts, then one line per reason and per remark.

    usable         in the order of their paths
    left_out       each with the first reason that holds
    unused_details  clips that are used without their detailed caption: it is outside the limits, and not needed
    """

    folder: Path
    run: RunConfig
    usable: list[ClipFile]
    left_out: list[LeftOut]
    unused_details: list[LeftOut]

    def __len__(self) -> int:
        return len(self.usable)

    def key(self, index: int) -> str:
        """Over what the file holds, its texts, and the size and rate that pixels are brought to: data that are moved,
        copied or touched stay the same."""
        return self._digest(index, self.usable[index].content)

    def former_key(self, index: int) -> str:
        """The key of versions up to 0.1.1, by name, size and time: what they built need not be built anew."""
        clip = self.usable[index]
        return self._digest(index, [clip.name, clip.size, clip.changed])

    def _digest(self, index: int, file: object) -> str:
        clip, run = self.usable[index], self.run
        return digest([file, clip.prompt, clip.detail, run.frames, run.height, run.width, run.fps])

    def name(self, index: int) -> str:
        return self.usable[index].name

    def item(self, index: int) -> TrainingClip:
        """Decode one clip. Raises UniViGUError where it is damaged, or shorter than its header says."""
        file, run = self.usable[index], self.run
        clip = read_clip(file.path, ClipSpec(run.frames, run.height, run.width, run.fps))
        if clip.damage:
            raise UniViGUError(f"{file.path}: {clip.damage}. Copy or download it again")
        if too_short(file.name, clip.info, run):
            raise UniViGUError(
                f"{file.path}: the clip lasts {clip.info.duration:.2f} s, its header promised {file.info.duration:.2f} "
                f"s; expected {run.frames} frames at {run.fps:g} fps. Copy or download it again"
            )
        return TrainingClip(clip.pixels, file.prompt, file.detail, file.name)

    @property
    def retimed(self) -> str:
        """One line on clips whose rate is not the model's, e.g. ``12 of 40 clips are retimed from 24, 30 fps to 16
        fps``; empty where there are none."""
        fps = self.run.fps
        others = [clip.info.fps for clip in self.usable if abs(clip.info.fps / fps - 1) > _SAME_RATE]
        if not others:
            return ""
        rates = sorted({f"{rate:.4g}" for rate in others}, key=float)
        more = f" and {len(rates) - _RATES} other rates" if len(rates) > _RATES else ""
        verb = "is" if len(others) == 1 else "are"
        found = f"{', '.join(rates[:_RATES])}{more}"
        return f"{len(others)} of {counted(len(self.usable), 'clip')} {verb} retimed from {found} fps to {fps:g} fps"

    def __str__(self) -> str:
        total = len(self.usable) + len(self.left_out)
        lines = [f"{self.folder}: {counted(total, 'clip')}, {len(self.usable)} usable, {len(self.left_out)} left out"]
        lines += tally(self.left_out)
        lines += [self.retimed] if self.retimed else []
        seconds = self.run.frames / self.run.fps
        long = sum(clip.info.duration > seconds + 1 / self.run.fps for clip in self.usable)
        if long:
            of_all = f"{long} of {counted(len(self.usable), 'clip')}"
            lines.append(f"{of_all} longer than {seconds:.3g} s: their beginning is used")
        if self.unused_details:
            lines += ["used without their detailed captions:", *tally(self.unused_details)]
        return "\n".join(lines)


def survey(
    folder: str | Path,
    run: RunConfig,
    tokens: Tokens,
    *,
    limits: TextLimits | None = None,
    need_detail: bool = False,
    recursive: bool = True,
    progress: Report | None = None,
) -> Survey:
    """Which clips of a folder can be trained on, and why the others cannot.

    Args:
        run: the model's frames and rate (a clip must last that long), and how many tokens it reads.
        tokens: a text's ids with the end-of-text token, e.g. the checkpoint's ``Tokenizer.ids``.
        limits: None is ``TextLimits.of(run)``. Whatever they say, no text may exceed the model's own lengths.
        need_detail: leave out clips without a detailed caption (the second stage). Otherwise one that is there is
            used if it is within the limits.

    Each clip's text file is the one that ``text_files`` gives; the detailed caption's name is the prompt's with
    ``.detail.txt``. Raises UniViGUError when the folder is missing, holds no clips, or none that is usable.
    """
    root, report = Path(folder), progress or (lambda *_: None)
    unreadable: list[tuple[Path, str]] = []
    clips = find_clips(root, recursive=recursive, unreadable=unreadable)
    if not clips:
        raise UniViGUError(
            f"{root}: found no videos here; expected clips such as clip.mp4, each with its prompt in clip.txt"
        )
    limits = (limits or TextLimits.of(run)).within(run)
    closed = [LeftOut(f"{path.relative_to(root).as_posix()}/", UNREADABLE, why) for path, why in unreadable]
    found = Survey(root, run, [], closed, [])
    for number, (path, text) in enumerate(zip(clips, text_files(clips), strict=True)):
        report("surveying the clips", number, len(clips))
        name = path.relative_to(root).as_posix()
        try:
            prompt = _text(text, tokens, limits.prompt, (NO_CAPTION, EMPTY_CAPTION, PROMPT_LENGTH))
            detail, reasons = None, (NO_DETAIL, NO_DETAIL, DETAIL_LENGTH)
            try:
                detail = _text(text.with_suffix(".detail.txt"), tokens, limits.detail, reasons)
            except _Unusable as why:
                if need_detail:
                    raise
                if why.args[0] != NO_DETAIL:
                    found.unused_details.append(LeftOut(name, *why.args))
            info, stat = probe(path), path.stat()
            short = too_short(name, info, run)
            if short is None:
                file = content_of(path), stat.st_size, stat.st_mtime_ns
                found.usable.append(ClipFile(path, name, prompt, detail, info, *file))
            else:
                found.left_out.append(short)
        except _Unusable as why:
            found.left_out.append(LeftOut(name, *why.args))
        except (UniViGUError, OSError) as error:
            found.left_out.append(LeftOut(name, UNREADABLE, getattr(error, "strerror", None) or str(error)))
    report("surveying the clips", len(clips), len(clips))
    if not found.usable:
        texts = "its prompt in clip.txt" + (" and its detailed caption in clip.detail.txt" if need_detail else "")
        expected = f"clips of at least {run.frames} frames at {run.fps:g} fps, each with {texts}"
        lines = [f"{root}: none of {counted(len(clips), 'clip')} can be trained on; expected {expected}. Left out were"]
        raise UniViGUError("\n".join(lines + tally(found.left_out)))
    return found


def too_short(name: str, info: ClipInfo, run: RunConfig) -> LeftOut | None:
    """Why a clip is left out that ends before the last of the model's frames; None for one that is long enough."""
    if (run.frames - 1) / run.fps <= info.duration - 1e-3:
        return None
    return LeftOut(name, f"{TOO_SHORT} for {run.frames} frames at {run.fps:g} fps", f"{info.duration:.2f} s")


def tally(left_out: Iterable[LeftOut]) -> list[str]:
    """One indented line per reason: its count, and the first few clips with what was found in them. Where that is a
    whole message, the first one follows on a line of its own."""
    groups: dict[str, list[LeftOut]] = {}
    for one in left_out:
        groups.setdefault(one.reason, []).append(one)
    lines = []
    for reason, group in groups.items():
        names = [f"{one.name} ({one.found})" if 0 < len(one.found) <= _SHORT else one.name for one in group[:_NAMED]]
        more = f" and {len(group) - _NAMED} more" if len(group) > _NAMED else ""
        lines.append(f"  {len(group)} {reason}: {', '.join(names)}{more}")
        if len(group[0].found) > _SHORT:
            lines.append(f"    {group[0].found}")
    return lines


class _Unusable(Exception):
    """Of a text: ``args`` are the reason and what was found."""


def _text(path: Path, tokens: Tokens, limits: tuple[int, int], reasons: tuple[str, str, str]) -> str:
    """A text within the limits. ``reasons``: for one that is missing, one that is empty, and one of another length."""
    missing, empty, other_length = reasons
    try:
        text = read_text(path).strip()
    except FileNotFoundError:
        raise _Unusable(missing) from None
    except UniViGUError as error:
        raise _Unusable(BAD_TEXT, str(error)) from None
    if not text:
        raise _Unusable(empty)
    length = len(tokens(text))
    if not limits[0] <= length <= limits[1]:
        raise _Unusable(f"{other_length} ({limits[0]}-{limits[1]})", counted(length, "token"))
    return text
