"""A folder of clips and captions as training data: ``clip.mp4``, ``clip.txt`` (the prompt) and, for the second stage,
``clip.detail.txt`` (the detailed caption). Surveying it is quick: headers, first frames and texts, no full decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config import RunConfig
from ..errors import UniViGUError
from ..media.video import ClipInfo, find_clips, probe
from ..pipeline.folders import text_files
from ..progress import Report

# Why a clip is left out; of several reasons the first in this order counts.
NO_CAPTION = "without a caption"
EMPTY_CAPTION = "with an empty caption"
BAD_TEXT = "with a caption that is not UTF-8 text"
PROMPT_LENGTH = "with a prompt outside the token limits"
NO_DETAIL = "without a detailed caption"
DETAIL_LENGTH = "with a detailed caption outside the token limits"
UNREADABLE = "unreadable"
TOO_SHORT = "too short"

_NAMED = 3  # files that a line of a report names
_SHORT = 24  # characters of what was found, a number mostly, that stand beside the name
_RATES = 5  # frame rates that it names
_SAME_RATE = 0.01  # 29.97 and 30 are one rate, and so are 23.976 and 24


@dataclass(frozen=True)
class TextLimits:
    """How many tokens a prompt and a detailed caption may have: (fewest, most), both included.

    Counted as they lie in the text stream, with the end-of-text token: a text of ``most`` tokens fills a stream of that
    length. The defaults are the paper's, for a stream of 256. Raises UniViGUError for limits that nothing can meet.
    """

    prompt: tuple[int, int] = (0, 128)
    detail: tuple[int, int] = (128, 256)

    def __post_init__(self) -> None:
        for name in ("prompt", "detail"):
            fewest, most = getattr(self, name)
            if not 0 <= fewest <= most:
                raise UniViGUError(
                    f"token limits of the {name} are {fewest} to {most}; expected two numbers from 0 on, the smaller "
                    "one first"
                )

    @classmethod
    def of(cls, run: RunConfig) -> TextLimits:
        """The paper's limits where the text stream has room for them; on a shorter one, whatever fits."""
        most = min(run.text_length, run.context_length)
        paper = cls()
        if most >= paper.detail[1]:
            return paper
        return cls(prompt=(0, min(paper.prompt[1], most)), detail=(0, most))


@dataclass(frozen=True)
class LeftOut:
    """A clip that training does not see: its name, one of the reasons above, and what was found."""

    name: str
    reason: str
    found: str = ""


@dataclass(frozen=True)
class Pair:
    """A usable clip and its texts.

    name      path from the data folder on, with forward slashes
    detail    None where there is none, or none within the limits
    size      bytes of the file; ``changed`` its time of change in ns: both tell whether it is still the same clip
    """

    path: Path
    name: str
    prompt: str
    detail: str | None
    info: ClipInfo
    size: int
    changed: int


@dataclass(frozen=True)
class Survey:
    """What a data folder holds. ``str()`` is the report: a line of counts, then one line per reason and per remark.

    usable         in the order of their paths
    left_out       each with the first reason that holds
    unused_details  clips that are used without their detailed caption: it is outside the limits, and not needed
    """

    folder: Path
    run: RunConfig
    limits: TextLimits
    usable: tuple[Pair, ...]
    left_out: tuple[LeftOut, ...]
    unused_details: tuple[LeftOut, ...]

    @property
    def retimed(self) -> str:
        """One line on clips whose rate is not the model's, e.g. ``12 of 40 clips are retimed from 24, 30 fps to 16
        fps``; empty where there are none."""
        fps = self.run.fps
        others = [pair.info.fps for pair in self.usable if abs(pair.info.fps / fps - 1) > _SAME_RATE]
        if not others:
            return ""
        rates = sorted({f"{rate:.4g}" for rate in others}, key=float)
        more = f" and {len(rates) - _RATES} other rates" if len(rates) > _RATES else ""
        verb = "is" if len(others) == 1 else "are"
        return (
            f"{len(others)} of {_clips(len(self.usable))} {verb} retimed from {', '.join(rates[:_RATES])}{more} fps "
            f"to {fps:g} fps"
        )

    def __str__(self) -> str:
        total = len(self.usable) + len(self.left_out)
        lines = [f"{self.folder}: {_clips(total)}, {len(self.usable)} usable, {len(self.left_out)} left out"]
        lines += tally(self.left_out)
        if self.retimed:
            lines.append(self.retimed)
        seconds = self.run.frames / self.run.fps
        long = sum(pair.info.duration > seconds + 1 / self.run.fps for pair in self.usable)
        if long:
            lines.append(f"{long} of {_clips(len(self.usable))} longer than {seconds:.3g} s: their beginning is used")
        if self.unused_details:
            lines += ["used without their detailed captions:", *tally(self.unused_details)]
        return "\n".join(lines)


def survey(
    folder: str | Path,
    run: RunConfig,
    tokens: Callable[[str], list[int]],
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

    Texts belong to clips as ``captioning.text_files`` says; the detailed caption's name is the prompt's with
    ``.detail.txt``. Raises UniViGUError when the folder is missing, holds no clips, or none that is usable.
    """
    root = Path(folder)
    clips = find_clips(root, recursive=recursive)
    if not clips:
        raise UniViGUError(
            f"{root}: found no videos here; expected clips such as clip.mp4, each with its prompt in clip.txt"
        )
    limits = _fitting(limits or TextLimits.of(run), run)
    usable: list[Pair] = []
    left_out: list[LeftOut] = []
    unused: list[LeftOut] = []
    for number, (clip, text) in enumerate(zip(clips, text_files(clips), strict=True)):
        if progress is not None:
            progress("surveying the clips", number, len(clips))
        name = clip.relative_to(root).as_posix()
        try:
            prompt = _text(name, text, NO_CAPTION)
            if not prompt:
                raise _Refused(LeftOut(name, EMPTY_CAPTION))
            _require_length(name, tokens(prompt), limits.prompt, PROMPT_LENGTH)
            try:
                detail = _detail(name, text.with_suffix(".detail.txt"), tokens, limits.detail)
            except _Refused as refused:
                if need_detail:
                    raise
                detail = None
                if refused.left_out.reason != NO_DETAIL:
                    unused.append(refused.left_out)
            info = _probed(name, clip, run)
            stat = clip.stat()
        except _Refused as refused:
            left_out.append(refused.left_out)
        except OSError as error:
            left_out.append(LeftOut(name, UNREADABLE, error.strerror or str(error)))
        else:
            usable.append(Pair(clip, name, prompt, detail, info, stat.st_size, stat.st_mtime_ns))
    if progress is not None:
        progress("surveying the clips", len(clips), len(clips))
    if not usable:
        raise UniViGUError(
            "\n".join(
                [
                    f"{root}: none of {_clips(len(clips))} can be trained on; expected clips of at least "
                    f"{run.frames} frames at {run.fps:g} fps, each with its prompt in clip.txt"
                    f"{' and its detailed caption in clip.detail.txt' if need_detail else ''}. Left out were",
                    *tally(left_out),
                ]
            )
        )
    return Survey(root, run, limits, tuple(usable), tuple(left_out), tuple(unused))


def too_short(name: str, info: ClipInfo, run: RunConfig) -> LeftOut | None:
    """Why a clip is left out that is over before the last of the model's frames, when nothing is on screen any more."""
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


class _Refused(Exception):
    """A clip, or its detailed caption, cannot be used."""

    def __init__(self, left_out: LeftOut) -> None:
        super().__init__(left_out)
        self.left_out = left_out


def _fitting(limits: TextLimits, run: RunConfig) -> TextLimits:
    """Limits within what the model reads. Raises UniViGUError where nothing is left between them."""
    most = min(run.text_length, run.context_length)
    for name, fewest in (("prompts", limits.prompt[0]), ("detailed captions", limits.detail[0])):
        if fewest > most:
            raise UniViGUError(
                f"{name} must have {fewest} tokens at least, but this model reads {most} at most; lower the limit"
            )
    prompt, detail = limits.prompt, limits.detail
    return TextLimits((prompt[0], min(prompt[1], most)), (detail[0], min(detail[1], most)))


def _text(name: str, path: Path, missing: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        raise _Refused(LeftOut(name, missing)) from None
    except UnicodeDecodeError as error:
        raise _Refused(LeftOut(name, BAD_TEXT, f"byte {error.start} of {path.name}")) from None


def _detail(name: str, path: Path, tokens: Callable[[str], list[int]], limits: tuple[int, int]) -> str:
    detail = _text(name, path, NO_DETAIL)
    if not detail:
        raise _Refused(LeftOut(name, NO_DETAIL))
    _require_length(name, tokens(detail), limits, DETAIL_LENGTH)
    return detail


def _require_length(name: str, ids: list[int], limits: tuple[int, int], reason: str) -> None:
    if not limits[0] <= len(ids) <= limits[1]:
        raise _Refused(LeftOut(name, f"{reason} ({limits[0]}-{limits[1]})", f"{len(ids)} tokens"))


def _probed(name: str, clip: Path, run: RunConfig) -> ClipInfo:
    try:
        info = probe(clip)
    except UniViGUError as error:
        raise _Refused(LeftOut(name, UNREADABLE, str(error))) from None
    short = too_short(name, info, run)
    if short is not None:
        raise _Refused(short)
    return info


def _clips(count: int) -> str:
    return f"{count} clip{'' if count == 1 else 's'}"
