"""Video files <-> pixels, all with PyAV; ffmpeg need not be installed.

Legend: T frames, H rows, W columns; the last axis is RGB. "Shown" sizes are those on screen, after non-square pixels
and rotation. Timestamps are integers in the stream's own unit, ``time_base`` seconds each.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import atan2, degrees
from pathlib import Path
from typing import Any

import av
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UniViGUError
from ..io import written_whole

# What find_clips picks up; read_clip itself looks at the content, not at the name.
CLIP_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"}

# Best first; every one of them makes H.264 that browsers play.
H264_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")

# Only these containers mark keyframes reliably. AVI, ASF and MPEG-PS do not, and GIF frames build on one another.
_SEEKABLE = ("mov,mp4", "matroska", "flv", "mpegts")
# Skipping fewer frames than this by a seek costs more than decoding them.
_SEEK_FROM = 16
# Only these mark a packet corrupt when, and only when, the file ends inside it; MPEG marks every disturbance.
_TORN_MARKED = ("mov,mp4", "avi", "flv")
# swscale's bicubic, accurate rounding, full chroma in and out. Its defaults halve the chroma precision and round down:
# colours would drift by up to 3/255. Numbers, since older PyAVs have no names for them.
_EXACT = 0x4 | 0x40000 | 0x2000 | 0x4000
# Colour spaces as swscale numbers them, by their number in the file (H.273).
_BT709, _BT601, _BT2020 = 1, 5, 9
_SWSCALE_SPACES = {1: _BT709, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: _BT2020, 10: _BT2020}
_LIMITED, _FULL = 1, 2


@dataclass(frozen=True)
class ClipInfo:
    """What a video file holds.

    width, height   shown size in pixels: after non-square pixels and rotation
    fps             frames per second; the average where the rate varies
    frames          number of frames; ``probe`` estimates it from the header where it can, ``read_clip`` counts
    duration        seconds, from the first frame to the end of the last
    rotation        degrees clockwise by which the stored picture is turned for display: 0, 90, 180 or 270
    """

    path: Path
    width: int
    height: int
    fps: float
    frames: int
    duration: float
    rotation: int


@dataclass(frozen=True)
class Clip:
    """A video as the model wants it.

    pixels   uint8 ``[T,H,W,3]``, RGB 0-255, on the CPU
    info     of the file, not of ``pixels``
    note     one line that says what was done, e.g. ``clip.mp4: 9 of 240 frames, evenly over 10.0 s (24 fps);
             1920x1080 resized to 85x48, cropped to 48x48``
    """

    pixels: Tensor
    info: ClipInfo
    note: str


# --------------------------------------------------------------------------------------------------------- reading


def probe(path: str | Path) -> ClipInfo:
    """Look at a video without reading it whole: header and first frame; a file whose header tells neither length nor
    frame count is scanned (not decoded). Raises UniViGUError like ``read_clip``."""
    with _Source(path) as source:
        first = next(source.frames(), None)
        if first is None:
            raise source.broken(0.0)
        rate, seconds = source.rate, source.header_seconds()
        count = source.stream.frames or round(seconds * rate)
        if not count or not seconds:
            source.rewind()
            timeline = source.scan()
            count, rate, seconds = timeline.count, timeline.rate, timeline.seconds
        return source.info(first, count, rate, seconds)


def read_clip(
    path: str | Path,
    *,
    frames: int,
    height: int,
    width: int,
    fps: float | None = None,
    start: float = 0.0,
    seconds: float | None = None,
    at_most: bool = False,
) -> Clip:
    """Read ``frames`` frames, evenly spread in time from the first to the last, as ``height`` x ``width`` pixels.

    ``fps`` takes that many frames a second instead, from the start on. ``start`` and ``seconds`` choose a part of the
    clip. With ``at_most``, ``frames`` is a budget: a shorter clip gives as many of 4n+1 frames as it has, none twice.

    Any container, codec, size, length and frame rate that PyAV reads, GIFs and still pictures too. At each of the
    evenly spread times the frame on screen is taken (``frames=1``: the first); a clip with fewer frames repeats some.
    The picture is turned upright, scaled to cover the target (bicubic, anti-aliased; small ones are enlarged) and
    centre-cropped. Transparent parts become black.

    Only what is needed is decoded: the file is scanned once for timestamps, then read from the nearest keyframes.
    Memory holds a few source frames and the result.

    Raises UniViGUError naming the file, what was found and what to do: nothing there, a folder, empty, no video in
    it, breaks off, or (with the second) damaged where a frame is needed; also for ``frames``, ``height`` or ``width``
    below 1.
    """
    for name, value in (("frames", frames), ("height", height), ("width", width)):
        if value < 1:
            raise UniViGUError(f"{path}: {name} is {value}; expected at least 1")
    if fps is not None and not 0 < fps <= 1000:
        raise UniViGUError(f"{path}: fps is {fps:g}; expected a number above 0, at most 1000")
    with _Source(path) as source:
        timeline = source.scan()
        while True:
            try:
                part = timeline.part(start, seconds)
                if not part.times:
                    raise UniViGUError(
                        f"{path}: no frames in the part from {start:g} s; the clip is {timeline.seconds:.3g} s long"
                    )
                chosen = part.spread(frames, fps, at_most)
                pixels, first, fitted = _collect(source, timeline, chosen, height, width)
                break
            except _Recount as found:  # at most twice: once for the order, once for the number
                source.rewind()
                timeline = _Timeline.counted(found.count, source.rate)
        info = source.info(first, timeline.count, timeline.rate, timeline.seconds)
        shown = source.info(first, part.count, timeline.rate, part.seconds)
    cut = "" if part.count == timeline.count else f", the part from {start:.1f} s of {info.duration:.1f} s"
    return Clip(pixels=pixels, info=info, note=_note(shown, chosen, fps, cut, fitted, height, width, True, at_most))


def fit_pixels(
    pixels: Tensor,
    *,
    frames: int,
    height: int,
    width: int,
    rate: float | None = None,
    fps: float | None = None,
    at_most: bool = False,
) -> tuple[Tensor, str]:
    """Frames in memory, uint8 ``[T,H,W,3]``, as ``read_clip`` would give them, and the note on what was done.

    ``rate`` is how many of them make a second; without it ``fps`` has no meaning.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UniViGUError(
            f"found frames of shape {list(pixels.shape)}; expected [frames, height, width, 3], not empty"
        )
    if fps is not None and rate is None:
        raise UniViGUError(f"fps is {fps:g}, but a batch of images has no frame rate; set it to 0, or connect a VIDEO")
    timeline = _Timeline.counted(len(pixels), rate or 1.0)
    chosen = timeline.spread(frames, fps, at_most)
    rows, columns = pixels.shape[1:3]
    fitted = [_fit(pixels[n], rows, columns, height, width) for n in chosen]
    info = ClipInfo(Path("images"), columns, rows, timeline.rate, len(pixels), timeline.seconds, 0)
    note = _note(info, chosen, fps, "", fitted[0][1], height, width, rate is not None, at_most)
    return torch.stack([f for f, _ in fitted]), note


_TRANSPORT_PACKETS = (188, 192, 204)  # bytes: plain, with timestamps (m2ts), with error correction


class _Recount(Exception):
    """The timestamps do not fit the decoded frames, or there are fewer frames than packets: frames must be counted."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


@dataclass(frozen=True)
class _Timeline:
    """When the frames of a stream are shown.

    times      timestamps, ascending; plain frame numbers where ``timed`` is false
    unit       seconds per tick of ``times``
    keyframes  those from which decoding can start, ascending
    rate       frames per second, on average
    seconds    from the first frame to the end of the last
    """

    times: list[int]
    unit: float
    keyframes: list[int]
    rate: float
    seconds: float
    timed: bool

    @property
    def count(self) -> int:
        return len(self.times)

    @classmethod
    def counted(cls, count: int, rate: float) -> _Timeline:
        return cls(list(range(count)), 1 / rate, [0], rate, count / rate, timed=False)

    def second(self, time: int) -> float:
        """Seconds between the first frame and ``time``."""
        return (time - self.times[0]) * self.unit

    def part(self, start: float, seconds: float | None) -> _Timeline:
        """What is shown from ``start`` on, for ``seconds`` (None or 0: to the end); both count from the first frame."""
        if start <= 0 and not seconds:
            return self
        first = self.times[0] + start / self.unit - 1e-3
        end = first + seconds / self.unit if seconds else float("inf")
        times = [time for time in self.times if first <= time < end]
        return replace(self, times=times, seconds=min(self.seconds - start, seconds or self.seconds))

    def spread(self, frames: int, fps: float | None = None, at_most: bool = False) -> list[int]:
        """The timestamps of the frames on screen at ``frames`` evenly spread times, first and last included; see
        ``read_clip`` for ``fps`` and ``at_most``."""
        first, span = self.times[0], self.times[-1] - self.times[0]
        if at_most:
            fps = None if fps is None else min(fps, self.rate)
            most = self.count if fps is None else min(self.count, 1 + int(span * self.unit * fps + 1e-6))
            frames = min(frames, 1 + (most - 1) // 4 * 4)
        if fps is not None and frames > 1:
            span = round((frames - 1) / fps / self.unit)
        # Containers round timestamps (Matroska to 1 ms): without slack an exact hit could fall to the frame before.
        slack = Fraction(min((b - a for a, b in pairwise(self.times)), default=0), 4)
        moments = [first + Fraction(span * k, max(frames - 1, 1)) for k in range(frames)]
        return [self.times[bisect_right(self.times, moment + slack) - 1] for moment in moments]


class _Source:
    """An open video file. Use as a context manager."""

    def __init__(self, path: str | Path) -> None:
        if not str(path):  # Path("") would be the working directory
            raise UniViGUError("'': found an empty path, expected a video file. Name one")
        self.path = Path(path)
        try:
            there = self.path.exists()
        except OSError as error:  # a name that is too long, a folder that may not be entered
            raise UniViGUError(
                f"{str(path)[:200]}: cannot be looked up ({error.strerror or error}); expected a video. Check the path"
            ) from None
        if not there:
            raise UniViGUError(f"{path}: there is no such file; expected a video. Check the name and the folder")
        if self.path.is_dir():
            raise UniViGUError(f"{path}: this is a folder; expected a video file. Name one of the files in it")
        if self.path.stat().st_size == 0:
            raise UniViGUError(f"{path}: the file is empty (0 bytes); expected a video. Copy or download it again")
        self.errors = 0  # damaged packets since the last start or seek
        self._open()

    def _open(self) -> None:
        try:
            # Absolute, so that a name like "http:x.mp4" is a name; only files, so that a playlist in disguise
            # reaches nothing else. Not as `options`: with those, older PyAVs (14.2) crash on FLV.
            whitelist = {"protocol_whitelist": "file"}
            self.container = av.open(os.path.abspath(self.path), container_options=whitelist)
        except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
            raise UniViGUError(
                f"{self.path}: cannot be opened as a video ({getattr(error, 'strerror', None) or error}). Expected a "
                "whole video file; one whose writing or download was cut short must be made again"
            ) from error
        # An attached picture is the cover of a song; "tty" is ffmpeg rendering a text file.
        videos = [
            stream
            for stream in self.container.streams.video
            if not stream.disposition.value & 0x400 and self.container.format.name != "tty"
        ]
        if not videos or videos[0].codec_context is None:
            kinds = sorted({stream.type for stream in self.container.streams})
            found = "text" if self.container.format.name == "tty" else f"only {' and '.join(kinds) or 'nothing'}"
            if videos:
                found = "a codec that this PyAV cannot decode"
            self.container.close()
            raise UniViGUError(f"{self.path}: holds no video that can be read; found {found}. Choose a video file")
        self.stream = videos[0]
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.thread_count = 4  # more threads hold more source frames in memory

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def rate(self) -> float:
        """Frames per second as the header says; 25 where it is silent (raw streams)."""
        return float(self.stream.average_rate or getattr(self.stream, "guessed_rate", None) or 25)

    def rewind(self) -> None:
        """Start over. Reopening works for every format; seeking does not."""
        self.container.close()
        self.errors = 0
        self._open()

    def seek(self, time: int) -> bool:
        """Go to the keyframe at ``time``; False where the container cannot."""
        try:
            self.container.seek(time, stream=self.stream, backward=True)
        except (av.FFmpegError, OSError):
            return False
        self.errors = 0
        return True

    def packets(self) -> Iterator[Any]:
        """From here to the end; a file that breaks off ends early."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError):
                self.errors += 1
                return

    def frames(self) -> Iterator[Any]:
        """Decode from here to the end; damaged packets are passed over and counted in ``errors``."""
        for packet in self.packets():
            try:
                decoded = packet.decode()
            except (av.FFmpegError, OSError):
                self.errors += 1
                continue
            yield from decoded

    def broken(self, second: float) -> UniViGUError:
        return UniViGUError(
            f"{self.path}: the video is damaged or breaks off: no frame can be decoded at {second:.2f} s, where one is "
            "needed. Copy or download it again, or cut the damaged part away"
        )

    def scan(self) -> _Timeline:
        """Read all timestamps, decoding nothing, and go back to the start. Raises UniViGUError for a file that ends
        before the length in its header, or inside a frame."""
        kind = self.container.format.name
        known: list[tuple[int, int, bool, bool]] = []
        clocked, torn, whole, count = True, False, 0, 0
        for packet in self.packets():
            if packet.size == 0:  # the closing packet
                continue
            if packet.is_corrupt and any(name in kind for name in _TORN_MARKED):
                torn = True
                continue
            whole += 1
            count += not packet.is_discard  # what an edit list hides
            if packet.pts is not None:
                known.append((packet.pts, packet.duration or 0, packet.is_keyframe, packet.is_discard))
            elif not packet.is_discard:
                clocked = False
        declared = self.header_seconds(binding=True)
        self.rewind()
        if not count:
            raise self.broken(0.0)
        unit = self.stream.time_base
        if not clocked or not unit or kind == "avi":  # AVI has no timestamps; those given are guesses
            timeline = _Timeline.counted(count, self.rate)
        else:
            timeline = self._timed(known, unit)
        # Fewer frames than the header declares are no proof by themselves (edit lists leave some out, empty ones are
        # not passed on), nor is a small difference in length. In a file shorter than it says itself they are.
        size = self.path.stat().st_size
        cut = _promised_bytes(self.path, kind) > size
        # A transport stream declares no length, but it is made of packets of one size.
        torn = torn or (kind == "mpegts" and all(size % packet for packet in _TRANSPORT_PACKETS))
        missing = declared - timeline.seconds
        few = whole < self.stream.frames and (cut or torn)
        if torn or few or (cut and missing > 0.5 / timeline.rate) or missing > max(3 / timeline.rate, 0.05 * declared):
            why = f"its header promises {declared:.2f} s" if missing > 0 else "the file ends inside a frame"
            if few:
                why = f"its header promises {self.stream.frames} frames, of which {whole} are whole"
            raise UniViGUError(
                f"{self.path}: the video breaks off at {timeline.seconds:.2f} s; {why}. Copy or download it again, or "
                f"cut it to the first {timeline.seconds:.2f} s"
            )
        return timeline

    def _timed(self, known: list[tuple[int, int, bool, bool]], unit: Fraction) -> _Timeline:
        """The timeline of packets given by timestamp, duration, whether they are keyframes and whether hidden."""
        kind = self.container.format.name
        known.sort()
        # Hidden keyframes count: what is shown may start between two of them. A recording may too, but nothing before
        # its first one can be decoded.
        keyframes = [time for time, _, key, _ in known if key]
        visible = [entry for entry in known if not entry[3]]
        known = [entry for entry in visible if not keyframes or entry[0] >= keyframes[0]] or visible
        times = sorted({time for time, *_ in known})
        span = float((times[-1] - times[0]) * unit)
        rate = self.rate
        if span and abs((len(times) - 1) / span / rate - 1) > 0.01:  # a varying rate, or a header that is wrong
            rate = (len(times) - 1) / span
        seconds = span + (float(known[-1][1] * unit) or 1 / rate)
        if not any(name in kind for name in _SEEKABLE):
            keyframes = keyframes[:1]
        return _Timeline(times, float(unit), keyframes or times[:1], rate, seconds, timed=True)

    def header_seconds(self, *, binding: bool = False) -> float:
        """The length of the video as the header has it, 0 where it has none worth believing. With ``binding`` only
        where the file must hold that much: elsewhere it is an estimate, or with sound the length of the sound."""
        kind, stream = self.container.format.name, self.stream
        if kind == "mpeg":  # estimated from the bit rate, and badly
            return 0.0
        whole = (self.container.duration or 0) / 1_000_000
        own = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        if "mov,mp4" in kind:  # an edit list shortens the whole, long sound lengthens it
            return min(own or whole, whole or own)
        if "matroska" in kind or kind == "flv":  # these count from zero, not from the first frame
            start = float((stream.start_time or 0) * (stream.time_base or 0))
            hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
            minutes, _, rest = rest.partition(":")
            try:
                return int(hours) * 3600 + int(minutes) * 60 + float(rest) - start
            except ValueError:  # no such tag, or not ffmpeg's
                certain = len(self.container.streams) == 1 and kind != "flv"
                return max(whole - start, 0.0) if certain or not binding else 0.0
        return 0.0 if binding else own or whole

    def info(self, frame: Any, count: int, rate: float, seconds: float) -> ClipInfo:
        shown_height, shown_width = _shown_size(frame, self.stream)
        turn = round(degrees(atan2(_matrix(frame)[1], _matrix(frame)[0])) / 90) * 90 % 360
        return ClipInfo(self.path, shown_width, shown_height, rate, count, seconds, turn)


def _promised_bytes(path: Path, kind: str) -> int:
    """The size that a file should have by its own account, from its outermost elements: MP4 boxes, RIFF chunks,
    Matroska's segment. 0 where it does not say."""
    size, end = path.stat().st_size, 0
    with path.open("rb") as file:
        if "matroska" in kind:
            for _ in range(2):  # the EBML header, then the segment that holds everything
                file.seek(end)
                start = file.read(12)
                if len(start) < 12 or start[:4] not in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67") or not start[4]:
                    return 0
                width = 9 - start[4].bit_length()
                length = int.from_bytes(start[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
                if length == (1 << 7 * width) - 1:  # written live: not known
                    return 0
                end += 4 + width + length
            return end
        for _ in range(1_000_000 if "mov,mp4" in kind or kind == "avi" else 0):
            if end + 8 > size:
                break
            file.seek(end)
            start = file.read(16)
            if kind == "avi":
                if start[:4] != b"RIFF":  # something appended
                    break
                length = 8 + int.from_bytes(start[4:8], "little")
            else:
                length = int.from_bytes(start[:4], "big")
                if length == 1:
                    length = int.from_bytes(start[8:16], "big")
                if length < 8:  # 0 is "to the end of the file"; anything else is no box
                    return 0
            end += length
    return end


def _collect(
    source: _Source, timeline: _Timeline, chosen: list[int], height: int, width: int
) -> tuple[Tensor, Any, tuple[int, int]]:
    """The chosen frames as ``[T,H,W,3]``, one decoded frame, and the size (rows, columns) before cropping."""
    wanted = sorted(set(chosen))
    picked = _by_time(source, timeline, wanted) if timeline.timed else _by_count(source, timeline, wanted)
    pictures: dict[int, Tensor] = {}
    for time, frame in picked:
        pictures[time], fitted = _fit(_upright(frame), *_shown_size(frame, source.stream), height, width)
        one = frame
    return torch.stack([pictures[time] for time in chosen]), one, fitted


class _Cursor:
    """A place in the decoded stream, moving forward in time.

    shown   the last frame passed, the one on screen
    ahead   the frame after it, if it had to be decoded to know that
    """

    def __init__(self, source: _Source, timeline: _Timeline) -> None:
        self.source, self.count = source, timeline.count
        self._begin()

    def _begin(self) -> None:
        self.frames, self.shown, self.ahead = self.source.frames(), None, None

    def restart(self) -> None:
        self.source.rewind()
        self._begin()

    def jump(self, keyframe: int) -> bool:
        """Go to a keyframe; False, and nowhere in particular, when the container did not lead to it."""
        if not self.source.seek(keyframe):
            return False
        self._begin()
        self.ahead = frame = next(self.frames, None)
        return frame is not None and frame.key_frame and frame.pts is not None and frame.pts <= keyframe

    def advance(self, time: int) -> Any:
        """The frame on screen at ``time``, or None where decoding has passed it already or found nothing."""
        while self.shown is None or self.shown.pts != time:
            frame = self.ahead if self.ahead is not None else next(self.frames, None)
            if frame is not None and (frame.pts is None or (self.shown is not None and frame.pts < self.shown.pts)):
                raise _Recount(self.count)
            self.ahead = frame
            if frame is None or frame.pts > time:
                break
            self.shown, self.ahead = frame, None
        return self.shown


def _by_time(source: _Source, timeline: _Timeline, wanted: list[int]) -> Iterator[tuple[int, Any]]:
    """Each wanted time with the frame on screen then; jumps to keyframes where that saves decoding."""
    cursor, here = _Cursor(source, timeline), timeline.times[0]
    for time in wanted:
        last = max(bisect_right(timeline.keyframes, time) - 1, 0)
        saved = bisect_right(timeline.times, timeline.keyframes[last]) - bisect_right(timeline.times, here)
        # A jump may land too late (TS, an index with holes): then from further back, at last from the start.
        if saved > _SEEK_FROM and not any(cursor.jump(timeline.keyframes[max(last - back, 0)]) for back in (0, 2)):
            cursor.restart()
        frame = cursor.advance(time)
        # A packet may rightly give no frame (VP8's hidden references): only with an error is that a gap.
        if frame is None or (frame.pts != time and source.errors) or frame.is_corrupt:
            raise source.broken(timeline.second(time))
        here = time
        yield time, frame


def _by_count(source: _Source, timeline: _Timeline, wanted: list[int]) -> Iterator[tuple[int, Any]]:
    """Each wanted frame number with its frame, decoding from the start. Raises _Recount at a short stream's end."""
    number, due = -1, 0
    for number, frame in enumerate(source.frames()):
        if number == wanted[due]:
            if source.errors or frame.is_corrupt:
                raise source.broken(number / timeline.rate)
            yield number, frame
            due += 1
            if due == len(wanted):
                return
    if source.errors or number < 0:
        raise source.broken((number + 1) / timeline.rate)
    raise _Recount(number + 1)


# -------------------------------------------------------------------------------------------------------- pictures


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the display matrix: a stored point (x, y) is shown at (ax + cy, bx + dy), y pointing down."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return 1, 0, 0, 1
    numbers = memoryview(bytes(side)).cast("i")
    return numbers[0], numbers[1], numbers[3], numbers[4]


def _shown_size(frame: Any, stream: Any) -> tuple[int, int]:
    """Rows and columns on screen."""
    ratio = stream.sample_aspect_ratio or 1
    if not Fraction(1, 8) <= ratio <= 8:  # nonsense in the header
        ratio = 1
    rows, columns = frame.height, max(1, round(frame.width * ratio))
    a, b, _, _ = _matrix(frame)
    return (columns, rows) if abs(b) > abs(a) else (rows, columns)


def _plane(frame: Any, channels: int) -> Tensor:
    """A packed 8-bit frame's memory as ``[H,W,channels]``, shared; rows may be padded in memory, never in the view."""
    plane = frame.planes[0]
    rows = torch.frombuffer(plane, dtype=torch.uint8).view(-1, plane.line_size)
    return rows[: frame.height, : frame.width * channels].unflatten(1, (frame.width, channels))


def _upright(frame: Any) -> Tensor:
    """A decoded frame as uint8 RGB ``[H,W,3]``, turned as its display matrix says."""
    layout = frame.format
    transparent = layout.has_palette or any(component.is_alpha for component in layout.components)
    colours: dict[str, int] = {}
    if not layout.is_rgb and not layout.has_palette:
        # Untagged files follow the usual rule: high definition is BT.709, everything smaller BT.601.
        usual = _BT709 if frame.height > 576 or frame.width >= 1280 else _BT601
        source = _SWSCALE_SPACES.get(frame.colorspace, usual)
        # Older PyAVs (14.2) heed the source's space only if the target's differs; for RGB the target's means nothing.
        colours = {"src_colorspace": source, "dst_colorspace": _BT601 if source == _BT709 else _BT709}
        if frame.color_range:
            colours |= {"src_color_range": frame.color_range, "dst_color_range": _FULL}
    packed = frame.reformat(format="rgba" if transparent else "rgb24", interpolation=_EXACT, **colours)
    picture = _plane(packed, 4 if transparent else 3)
    if transparent:
        cover = picture[..., 3:].to(torch.int32)
        picture = ((picture[..., :3] * cover + 127) // 255).to(torch.uint8)
    a, b, c, d = _matrix(frame)
    if abs(b) > abs(a):
        picture, across, down = picture.transpose(0, 1), c, b
    else:
        across, down = a, d
    flips = [axis for axis, sign in ((0, down), (1, across)) if sign < 0]
    return picture.flip(flips) if flips else picture


def _fit(
    picture: Tensor, shown_height: int, shown_width: int, height: int, width: int
) -> tuple[Tensor, tuple[int, int]]:
    """Scale a uint8 ``[H,W,3]`` picture to cover the target and crop the centre.

    Returns uint8 ``[height,width,3]`` in memory of its own, and the size (rows, columns) before cropping.
    """
    scale = max(height / shown_height, width / shown_width)
    rows, columns = max(height, round(shown_height * scale)), max(width, round(shown_width * scale))
    if tuple(picture.shape[:2]) != (rows, columns):
        stacked = picture.permute(2, 0, 1)[None]
        picture = F.interpolate(stacked, (rows, columns), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    top, left = (rows - height) // 2, (columns - width) // 2
    # A copy: the crop must not keep the source frame alive.
    cropped = picture[top : top + height, left : left + width].clone(memory_format=torch.contiguous_format)
    return cropped, (rows, columns)


def _note(
    info: ClipInfo,
    chosen: list[int],
    fps: float | None,
    cut: str,
    fitted: tuple[int, int],
    height: int,
    width: int,
    timed: bool = True,
    at_most: bool = False,
) -> str:
    frames = len(chosen)
    if info.frames == 1:
        taken = "a single frame" + (f", repeated {frames} times" if frames > 1 else "")
    else:
        length = f"{info.duration:.1f} s ({info.fps:.4g} fps){cut}" if timed else "the batch"
        if frames == 1:
            taken = f"the first of {info.frames} frames, {length}"
        elif fps is not None and fps >= info.fps and at_most:
            taken = f"{frames} of {info.frames} frames at the clip's own {info.fps:.4g} fps, of {length}"
        elif fps is not None:
            few = " (the last one repeated: the clip is shorter)" if frames > 1 and chosen[-1] == chosen[-2] else ""
            taken = f"{frames} of {info.frames} frames, retimed from {info.fps:.4g} to {fps:.4g} fps{few}, of {length}"
        elif frames > info.frames:
            taken = f"{frames} frames out of only {info.frames}, some repeated, evenly over {length}"
        else:
            taken = f"{frames} of {info.frames} frames, evenly over {length}"
    steps = [f"{info.width}x{info.height}"]
    if info.rotation:
        steps[0] += f" (turned by {info.rotation}°)"
    rows, columns = fitted
    if (rows, columns) != (info.height, info.width):
        steps[0] += f" {'enlarged' if rows * columns > info.height * info.width else 'resized'} to {columns}x{rows}"
    if (rows, columns) != (height, width):
        steps.append(f"cropped to {width}x{height}")
    return f"{info.path.name}: {taken}; {', '.join(steps)}"


# --------------------------------------------------------------------------------------------------------- writing


def write_video(path: str | Path, pixels: Tensor, fps: float) -> None:
    """Write an H.264 mp4 that browsers play: yuv420p, BT.709 limited range, index in front.

    ``pixels`` is uint8 ``[T,H,W,3]``, RGB 0-255, on any device; ``fps`` in frames per second. Odd sizes grow by one
    row or column, a copy of the last, since 4:2:0 needs even ones. The file appears whole or not at all. Raises
    UniViGUError when there is nothing to write, the values have another form, the name does not end in .mp4, no H.264
    encoder is present, or the system refuses.
    """
    path = Path(path)
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
        raise UniViGUError(
            f"{path}: cannot write pixels of shape {list(pixels.shape)} and type {pixels.dtype}; expected uint8 of "
            "shape [frames, height, width, 3]"
        )
    if 0 in pixels.shape:
        raise UniViGUError(f"{path}: there are no frames to write (shape {list(pixels.shape)}); expected at least one")
    if not 0.01 <= fps <= 1000:
        raise UniViGUError(f"{path}: the frame rate is {fps}; expected 0.01 to 1000 frames per second")
    if path.suffix.lower() != ".mp4":
        raise UniViGUError(f"{path}: only mp4 files are written; let the name end in .mp4")
    encoder = _encoder(path)
    with written_whole(path) as temporary:
        try:
            _encode(temporary, pixels, Fraction(float(fps)).limit_denominator(1001), encoder)
        except OSError:
            raise  # written_whole words these
        except (av.FFmpegError, ValueError) as error:
            raise UniViGUError(
                f"{path}: the encoder {encoder} failed ({error}); nothing was left under that name. Found "
                f"{pixels.shape[0]} frames of {pixels.shape[2]}x{pixels.shape[1]}; try a smaller size"
            ) from error


def _encoder(path: Path) -> str:
    for name in H264_ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError:  # PyAV's UnknownCodecError
            continue
        return name
    raise UniViGUError(
        f"{path}: this PyAV has no H.264 encoder (looked for {', '.join(H264_ENCODERS)}). Install the one from PyPI: "
        "pip install --force-reinstall av"
    )


def _encode(path: Path, pixels_THWC: Tensor, rate: Fraction, encoder: str) -> None:
    count, height, width, _ = pixels_THWC.shape
    rows, columns = height + height % 2, width + width % 2
    with av.open(os.path.abspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream(encoder, rate=rate)
        stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        if encoder == "libx264":
            stream.options = {"crf": "13"}
        else:  # these know no constant quality: half a bit per pixel is plenty
            stream.bit_rate = max(1_000_000, round(0.5 * rows * columns * rate))
        for number in range(count):
            picture = av.VideoFrame(columns, rows, "rgb24")
            memory = _plane(picture, 3)
            memory[:height, :width] = pixels_THWC[number].to(memory.device)
            memory[height:] = memory[height - 1 : height]
            memory[:, width:] = memory[:, width - 1 : width]
            frame = picture.reformat(
                format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED, interpolation=_EXACT
            )
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# --------------------------------------------------------------------------------------------------------- folders


def find_clips(folder: str | Path, *, recursive: bool = True) -> list[Path]:
    """The video files in a folder (by suffix, see ``CLIP_SUFFIXES``), sorted; with ``recursive`` those in its
    subfolders too. Hidden ones and unfinished ones (``*.part``, ``*.part.mp4``) are left out.

    Returns paths that start with ``folder``; maybe none. Raises UniViGUError when ``folder`` is not a folder.
    """
    root = Path(folder)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise UniViGUError(f"{root}: expected a folder of videos, found {found}. Check the name")
    return sorted(
        path
        for path in (root.rglob("*") if recursive else root.glob("*"))
        if path.suffix.lower() in CLIP_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and not path.stem.endswith(".part")
        and path.is_file()
    )
