"""Read a clip: only the frames that are needed are decoded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import UniViGUError, counted
from .animation import opened
from .clip import Clip, ClipInfo, ClipSpec, describe_fit, require_frames
from .pictures import fit, picture_of, remarks_on, rotation, shown_size, stacked
from .source import Source
from .timeline import Timeline, is_cut, scan

# Skipping fewer frames than this by a seek costs more than decoding them.
_SEEK_FROM = 16
_DOLBY = (
    "its colours are wrong: Dolby Vision profile 5 is not read. Convert it with ffmpeg -i INPUT -vf "
    "libplacebo=colorspace=bt709:color_primaries=bt709:color_trc=bt709:format=yuv420p OUTPUT"
)


def probe(path: str | Path, *, start: float = 0.0, seconds: float | None = None) -> ClipInfo:
    """Look at a video without decoding more than its first frame. All its timestamps are read unless the header is
    sure of the length (see ``Source.is_steady``). Raises UniViGUError like ``read_clip``."""
    with opened(path) as source:
        first = next(source.frames(), None)
        if first is None:
            raise source.broken(0.0)
        rate, length = source.rate, source.header_seconds()
        count = source.stated_frames or round(length * rate)
        unsure = not count or not length or not source.is_steady() or is_cut(source.path, source.kind)
        if unsure or start > 0 or seconds:
            source.rewind()
            timeline = part_of(source, scan(source), start, seconds)
            count, rate, length = len(timeline.times), timeline.rate, timeline.seconds
        return _info(source, first, count, rate, length)


def read_clip(path: str | Path, spec: ClipSpec, *, start: float = 0.0, seconds: float | None = None) -> Clip:
    """Read the frames that ``spec`` asks for; ``start`` and ``seconds`` choose a part of the clip.

    Any codec, length and frame rate that PyAV reads, sizes to 8K, in the containers of ``limits.FORMATS``, GIFs and
    still pictures among them. At each of the evenly spread times the frame on screen is taken (of one frame: the
    first); a clip with fewer frames repeats some. The picture is turned upright, HDR tone-mapped, of interlaced frames
    one field taken, and scaled (bicubic, anti-aliased; small ones are enlarged), cropped or padded as ``spec`` says.

    Only what is needed is decoded: the file is scanned once for timestamps, then read from the nearest keyframes.
    Memory holds a few source frames and the result.

    Of a file that breaks off, what can be read is read; of a damaged frame in the middle, the one before it is taken.
    ``Clip.damage`` says so. Raises UniViGUError naming the file, what was found and what to do: nothing there, a
    folder, empty, no video in it, no frame of it can be decoded; also for sizes below 1.
    """
    spec.require_valid(path)
    with opened(path) as source:
        timeline = scan(source)
        if timeline.damage:
            source.start_over(careful=True)
        while True:
            part = part_of(source, timeline, start, seconds)
            chosen = part.spread(spec)
            try:
                found = _decoded(source, timeline, chosen, spec)
            except _Recount as recount:  # at most twice: once for the order, once for the number
                damage = timeline.damage or ("has parts that cannot be decoded" if source.errors else "")
                source.rewind()
                timeline = Timeline.counted(recount.args[0], source.rate, damage)
                continue
            if not found.lost or (source.careful and found.end is None):
                break
            if found.end is not None:  # once more, without what cannot be read
                timeline = timeline.until(found.end)
            source.start_over(careful=True)
        info, shown = (_info(source, found.frame, len(t.times), timeline.rate, t.seconds) for t in (timeline, part))
    length = ""
    if shown.frames != info.frames:
        length = f"{shown.duration:.1f} s ({info.fps:.4g} fps), the part from {start:.1f} s of {info.duration:.1f} s"
    damage = ". ".join(filter(None, (timeline.damage and f"The file {timeline.damage}", found.held)))
    note = [
        describe_fit(shown, found.spec, chosen, found.scaled, length),
        *remarks_on(found.frame, source),
        _DOLBY if source.has_lost_colours else "",
        f"the first of {count} pages" if (count := source.pages) > 1 else "",
        damage,
    ]
    return Clip(found.pixels, info, "; ".join(filter(None, note)), damage)


def fit_pixels(pixels: Tensor, spec: ClipSpec, *, rate: float | None = None) -> tuple[Tensor, str]:
    """Frames in memory, uint8 ``[T,H,W,3]``, as ``read_clip`` would give them, and the note on what was done.

    ``rate`` is how many of them make a second; without it ``spec.fps`` has no meaning and raises UniViGUError.
    """
    require_frames(pixels, "images")
    if spec.fps is not None and rate is None:
        raise UniViGUError(
            f"fps is {spec.fps:g}, but a batch of images has no frame rate; set it to 0, or connect a VIDEO"
        )
    timeline = Timeline.counted(len(pixels), rate or 1.0)
    chosen = timeline.spread(spec)
    rows, columns = pixels.shape[1:3]
    spec = spec.suited(rows, columns)
    fitted = [fit(pixels[n], (rows, columns), spec) for n in chosen]
    info = ClipInfo(Path("images"), columns, rows, timeline.rate, len(pixels), timeline.seconds)
    note = describe_fit(info, spec, chosen, fitted[0][1], "" if rate or len(pixels) == 1 else "the batch")
    return stacked([picture for picture, _ in fitted], spec), note


@dataclass
class _Decoded:
    """What came out of a file.

    pixels  the chosen frames, ``[T,H,W,3]``
    spec    how they were fitted; scaled: rows and columns before cropping and padding
    frame   one of those that were decoded
    lost    the times of the chosen frames that cannot be decoded
    end     the time of the last frame that can, where the last of the chosen ones cannot; else None
    """

    pixels: Tensor
    spec: ClipSpec
    scaled: tuple[int, int]
    frame: Any
    lost: list[int] = field(default_factory=list)
    end: int | None = None

    @property
    def held(self) -> str:
        """What was done about frames that cannot be decoded, in words."""
        if not self.lost:
            return ""
        return f"{counted(len(self.lost), 'frame')} of {len(self.pixels)} cannot be decoded: the one before is shown"


def _decoded(source: Source, timeline: Timeline, chosen: Sequence[int], spec: ClipSpec) -> _Decoded:
    """Decode and fit the chosen frames. Raises UniViGUError where none of them can be."""
    pictures: dict[int, Tensor] = {}
    wanted, lost, frame = sorted(set(chosen)), list[int](), None
    for time, shown in (_by_time if timeline.timed else _by_count)(source, timeline, wanted):
        if shown is None:
            lost.append(time)
            continue
        if frame is None:
            spec = spec.suited(*shown_size(shown, source.stream))
        frame = shown
        pictures[time], scaled = picture_of(shown, source, spec)
    if frame is None:
        raise source.broken(timeline.second(wanted[0]) if timeline.timed else 0.0)
    for place, time in enumerate(wanted):
        if time not in pictures:
            pictures[time] = pictures[wanted[place - 1]] if place else pictures[min(pictures)]
    pixels = stacked([pictures[time] for time in chosen], spec)
    return _Decoded(pixels, spec, scaled, frame, lost, _end(source, timeline, wanted, lost))


def _end(source: Source, timeline: Timeline, wanted: list[int], lost: list[int]) -> int | None:
    """The time of the last frame that can be decoded, where the last of the wanted ones cannot and that is known."""
    if not (source.careful and lost and lost[-1] == wanted[-1]):
        return None
    if wanted[-1] in source.spoilt:
        return next((t for t in reversed(timeline.times) if t < wanted[-1] and t not in source.spoilt), None)
    return max(set(wanted) - set(lost), default=None)


def part_of(source: Source, timeline: Timeline, start: float, seconds: float | None) -> Timeline:
    part = timeline.part(start, seconds)
    if not part.times:
        to = f" to {start + seconds:g} s" if seconds else ""
        raise UniViGUError(
            f"{source.path}: no frames in the part from {start:g} s{to}; the clip is {timeline.seconds:.3g} s long"
        )
    return part


def _info(source: Source, frame: Any, count: int, rate: float, seconds: float) -> ClipInfo:
    height, width = shown_size(frame, source.stream)
    return ClipInfo(source.path, width, height, rate, count, seconds, rotation(frame))


class _Recount(Exception):
    """Frames must be counted, with so many to expect: their timestamps are wrong, or there are fewer than packets."""


def _by_time(source: Source, timeline: Timeline, wanted: list[int]) -> Iterator[tuple[int, Any]]:
    """Each wanted time with the frame on screen then, None for one that cannot be decoded; jumps to keyframes where
    that saves decoding.

    Raises _Recount where the frames are not in the order of their timestamps."""
    times, keyframes, here = timeline.times, timeline.keyframes, timeline.times[0]
    frames, ahead, shown, ended = source.frames(), list[Any](), None, False  # ahead: one that was decoded too early
    for time in wanted:
        last = max(bisect_right(keyframes, time) - 1, 0)
        if bisect_right(times, keyframes[last]) - bisect_right(times, here) > _SEEK_FROM:
            # A jump may land too late (TS, an index with holes): then from further back.
            ahead, frames = frames_from(source, [keyframes[max(last - back, 0)] for back in (0, 2)])
            shown = None
        for frame in chain(ahead, frames):
            ahead = []
            if frame.pts is None or (shown is not None and frame.pts < shown.pts):
                raise _Recount(len(times))
            if frame.pts > time:
                ahead = [frame]
                break
            shown = frame
            if frame.pts == time:
                break
        else:
            ended = True
        here = time
        yield time, shown if _is_whole(source, shown, time, ended) else None


def _is_whole(source: Source, frame: Any, time: int, ended: bool) -> bool:
    """Whether what was decoded last is what is on screen at ``time``. ``ended``: nothing more comes."""
    if frame is None or frame.is_corrupt or time in source.spoilt:
        return False
    # A packet may rightly give no frame (VP8's hidden references): only with an error is that a gap. Several threads
    # lose the last frames, without an error, where a damaged packet follows them.
    return frame.pts == time or not (source.errors or (ended and not source.careful))


def frames_from(source: Source, keyframes: Sequence[int]) -> tuple[list[Any], Iterator[Any]]:
    """The first frame and those behind it, from the first of ``keyframes`` that the container leads to; from the start
    where it leads to none."""
    for keyframe in keyframes:
        if source.seek(keyframe):
            frames = source.frames()
            first = next(frames, None)
            if first is not None and first.key_frame and first.pts is not None and first.pts <= keyframe:
                return [first], frames
    source.rewind()
    return [], source.frames()


def _by_count(source: Source, timeline: Timeline, wanted: list[int]) -> Iterator[tuple[int, Any]]:
    """Each wanted frame number with its frame, None for a corrupt one, decoding from the start. Raises _Recount at a
    short stream's end."""
    number, needed = -1, set(wanted)
    for number, frame in enumerate(source.frames()):
        if number in needed:
            yield number, None if frame.is_corrupt else frame
        if number == wanted[-1]:
            return
    if number < 0:
        raise source.broken(0.0)
    raise _Recount(number + 1)
