"""Read a clip: only the frames that are needed are decoded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UniViGUError
from .clip import Clip, ClipInfo, ClipSpec, describe_fit, require_frames
from .pictures import fit, rotation, shown_size, upright
from .source import Source
from .timeline import Timeline, scan

# Skipping fewer frames than this by a seek costs more than decoding them.
_SEEK_FROM = 16


def probe(path: str | Path, *, start: float = 0.0, seconds: float | None = None) -> ClipInfo:
    """Look at a video without reading it whole: header and first frame. Scanned, not decoded, is a file whose header
    tells neither length nor frame count, and one of which ``start`` and ``seconds`` choose a part. Raises UniViGUError
    like ``read_clip``."""
    with Source(path) as source:
        first = next(source.frames(), None)
        if first is None:
            raise source.broken(0.0)
        rate, length = source.rate, source.header_seconds()
        count = source.stated_frames or round(length * rate)
        if not count or not length or start > 0 or seconds:
            source.rewind()
            timeline = _part(source, scan(source), start, seconds)
            count, rate, length = len(timeline.times), timeline.rate, timeline.seconds
        return _info(source, first, count, rate, length)


def read_clip(path: str | Path, spec: ClipSpec, *, start: float = 0.0, seconds: float | None = None) -> Clip:
    """Read the frames that ``spec`` asks for; ``start`` and ``seconds`` choose a part of the clip.

    Any codec, length and frame rate that PyAV reads, sizes to 8K, in the containers of ``limits.FORMATS``, GIFs and
    still pictures among them. At each of the
    evenly spread times the frame on screen is taken (of one frame: the first); a clip with fewer frames repeats some.
    The picture is turned upright, scaled to cover the target (bicubic, anti-aliased; small ones are enlarged) and
    centre-cropped. Transparent parts become black.

    Only what is needed is decoded: the file is scanned once for timestamps, then read from the nearest keyframes.
    Memory holds a few source frames and the result.

    Raises UniViGUError naming the file, what was found and what to do: nothing there, a folder, empty, no video in
    it, breaks off, or (with the second) damaged where a frame is needed; also for sizes below 1.
    """
    spec.require_valid(path)
    with Source(path) as source:
        timeline = scan(source)
        while True:
            part = _part(source, timeline, start, seconds)
            chosen = part.spread(spec)
            try:
                pixels, frame, scaled = _decoded(source, timeline, chosen, spec)
                break
            except _Recount as found:  # at most twice: once for the order, once for the number
                source.rewind()
                timeline = Timeline.counted(found.args[0], source.rate)
        info, shown = (_info(source, frame, len(t.times), timeline.rate, t.seconds) for t in (timeline, part))
    length = ""
    if shown.frames != info.frames:
        length = f"{shown.duration:.1f} s ({info.fps:.4g} fps), the part from {start:.1f} s of {info.duration:.1f} s"
    return Clip(pixels, info, describe_fit(shown, spec, chosen, scaled, length))


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
    fitted = [fit(pixels[n], (rows, columns), spec) for n in chosen]
    info = ClipInfo(Path("images"), columns, rows, timeline.rate, len(pixels), timeline.seconds)
    note = describe_fit(info, spec, chosen, fitted[0][1], "" if rate else "the batch")
    return torch.stack([picture for picture, _ in fitted]), note


def _decoded(
    source: Source, timeline: Timeline, chosen: Sequence[int], spec: ClipSpec
) -> tuple[Tensor, Any, tuple[int, int]]:
    """The chosen frames as ``[T,H,W,3]``, one decoded frame, and the size (rows, columns) before cropping."""
    pictures: dict[int, Tensor] = {}
    for time, frame in (_by_time if timeline.timed else _by_count)(source, timeline, sorted(set(chosen))):
        pictures[time], scaled = fit(upright(frame), shown_size(frame, source.stream), spec)
        one = frame
    return torch.stack([pictures[time] for time in chosen]), one, scaled


def _part(source: Source, timeline: Timeline, start: float, seconds: float | None) -> Timeline:
    part = timeline.part(start, seconds)
    if not part.times:
        raise UniViGUError(
            f"{source.path}: no frames in the part from {start:g} s; the clip is {timeline.seconds:.3g} s long"
        )
    return part


def _info(source: Source, frame: Any, count: int, rate: float, seconds: float) -> ClipInfo:
    height, width = shown_size(frame, source.stream)
    return ClipInfo(source.path, width, height, rate, count, seconds, rotation(frame))


class _Recount(Exception):
    """Frames must be counted, with so many to expect: their timestamps are wrong, or there are fewer than packets."""


def _by_time(source: Source, timeline: Timeline, wanted: list[int]) -> Iterator[tuple[int, Any]]:
    """Each wanted time with the frame on screen then; jumps to keyframes where that saves decoding.

    Raises _Recount where the frames are not in the order of their timestamps."""
    times, keyframes, here = timeline.times, timeline.keyframes, timeline.times[0]
    frames, ahead, shown = source.frames(), list[Any](), None  # ahead: a frame that was decoded too early
    for time in wanted:
        last = max(bisect_right(keyframes, time) - 1, 0)
        if bisect_right(times, keyframes[last]) - bisect_right(times, here) > _SEEK_FROM:
            # A jump may land too late (TS, an index with holes): then from further back.
            ahead, frames = _frames_from(source, [keyframes[max(last - back, 0)] for back in (0, 2)])
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
        # A packet may rightly give no frame (VP8's hidden references): only with an error is that a gap.
        if shown is None or (shown.pts != time and source.errors) or shown.is_corrupt:
            raise source.broken(timeline.second(time))
        here = time
        yield time, shown


def _frames_from(source: Source, keyframes: Sequence[int]) -> tuple[list[Any], Iterator[Any]]:
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
    """Each wanted frame number with its frame, decoding from the start. Raises _Recount at a short stream's end."""
    number, needed = -1, set(wanted)
    for number, frame in enumerate(source.frames()):
        if number in needed:
            if source.errors or frame.is_corrupt:
                raise source.broken(number / timeline.rate)
            yield number, frame
        if number == wanted[-1]:
            return
    if source.errors or number < 0:
        raise source.broken((number + 1) / timeline.rate)
    raise _Recount(number + 1)
