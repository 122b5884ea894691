"""When the frames of a video are shown, which of them a clip takes, and whether the file is whole."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...errors import UniViGUError
from .clip import ClipSpec
from .limits import MOST_ELEMENTS, PATIENCE
from .source import Source
from .torn import is_torn

# Only these containers mark keyframes reliably. AVI, ASF and MPEG-PS do not, and GIF frames build on one another.
_SEEKABLE = ("mov,mp4", "matroska", "flv", "mpegts")
# Only these mark a packet corrupt when, and only when, the file ends inside it; MPEG marks every disturbance.
_TORN_MARKED = ("mov,mp4", "avi", "flv")
_NEVER_EMPTY = ("mpegts", "matroska,webm", "flv", "mpeg")  # whose last bytes are not zeros where they are whole
_EMPTY = 4096  # bytes at the end that are looked at
_SOON = 0.1  # seconds
_TRANSPORT_PACKETS = (188, 192, 204)  # bytes: plain, with timestamps (m2ts), with error correction


@dataclass(frozen=True)
class Timeline:
    """When the frames of a stream are shown.

    times      timestamps, ascending; plain frame numbers where ``timed`` is false
    unit       seconds per tick of ``times``
    keyframes  those from which decoding can start, ascending
    rate       frames per second, on average
    seconds    from the first frame to the end of the last
    damage     where and why the file breaks off, in words; empty for a whole one
    begun      ticks by which the first frame has been on screen where the timeline begins
    """

    times: list[int]
    unit: float
    keyframes: list[int]
    rate: float
    seconds: float
    timed: bool = True
    damage: str = ""
    begun: int = 0

    @classmethod
    def counted(cls, count: int, rate: float, damage: str = "") -> Timeline:
        """``count`` frames at a constant rate, numbered from 0."""
        return cls(list(range(count)), 1 / rate, [0], rate, count / rate, timed=False, damage=damage)

    def second(self, time: int) -> float:
        """Seconds between the first frame and ``time``."""
        return (time - self.times[0]) * self.unit

    def part(self, start: float, seconds: float | None) -> Timeline:
        """What is shown from ``start`` on, for ``seconds`` (None or 0: to the end); both count from the first frame.

        Both ends are rounded down to whole ticks, as ComfyUI does it: of a clip that is trimmed there, the same frames
        are read. But a frame that is still on screen then is the first one where no other comes soon: lists of cuts
        are rounded, and frames are held. A single frame is there at any time."""
        if len(self.times) == 1 or (start <= 0 and not seconds):
            return self
        first, end = (self.times[0] + int(second / self.unit + 1e-6) for second in (start, start + (seconds or 0)))
        times, begun = [time for time in self.times if first <= time and (time < end or not seconds)], 0
        if start < self.seconds and (not times or (times[0] - first) * self.unit > _SOON):
            shown = self.times[bisect_right(self.times, first) - 1]
            times, begun = [shown, *times], first - shown
        return replace(self, times=times, seconds=min(self.seconds - start, seconds or self.seconds), begun=begun)

    def until(self, time: int) -> Timeline:
        """What is shown to the end of the frame at ``time``, the last that can be read."""
        count = bisect_right(self.times, time)
        seconds = self.second(self.times[count]) if count < len(self.times) else self.seconds
        damage = self.damage or f"breaks off at {seconds:.2f} s; what follows cannot be decoded"
        return replace(self, times=self.times[:count], seconds=seconds, damage=damage)

    def spread(self, spec: ClipSpec) -> list[int]:
        """The timestamps of the frames on screen at the evenly spread times that ``spec`` asks for."""
        frames, fps = spec.frames, spec.fps
        first = self.times[0] + self.begun
        span = max(self.times[-1] - first, 0)
        if spec.at_most:
            most = len(self.times)
            if fps is not None:
                fps = min(fps, self.rate)
                most = min(most, 1 + int(span * self.unit * fps + 1e-6))
            frames = min(frames, 1 + (most - 1) // 4 * 4)
        if fps is not None and frames > 1:
            span = round((frames - 1) / fps / self.unit)
        # Containers round timestamps (Matroska to 1 ms): without slack an exact hit could fall to the frame before.
        slack = Fraction(min((b - a for a, b in pairwise(self.times)), default=0), 4)
        moments = [first + Fraction(span * k, max(frames - 1, 1)) for k in range(frames)]
        return [self.times[bisect_right(self.times, moment + slack) - 1] for moment in moments]


def scan(source: Source) -> Timeline:
    """Read all timestamps of a video, decoding nothing, and rewind it. What a file promises and lacks is ``damage``.

    Raises UniViGUError for a file without frames.
    """
    torn, whole = source.torn or is_torn(source.path, source.kind), 0
    keyframes: list[int] = []
    visible: list[tuple[Any, int]] = []  # timestamp (or None) and duration of what no edit list hides
    torn_marked = any(name in source.kind for name in _TORN_MARKED)
    for packet in source.packets():
        if packet.size == 0:  # the closing packet
            continue
        if packet.is_corrupt and torn_marked:
            torn = True
            continue
        whole += 1
        # Hidden keyframes count: what is shown may start between two of them.
        if packet.is_keyframe and packet.pts is not None:
            keyframes.append(packet.pts)
        if not packet.is_discard:
            visible.append((packet.pts, packet.duration or 0))
    declared = source.header_seconds(binding=True)
    source.rewind()
    timeline = _timeline(source, visible, sorted(keyframes))
    return replace(timeline, damage=_missing(source, timeline, declared, whole=whole, torn=torn))


def require_whole(source: Source, timeline: Timeline) -> None:
    """Raise UniViGUError for a file that breaks off."""
    if timeline.damage:
        raise UniViGUError(
            f"{source.path}: the video {timeline.damage}. Copy or download it again, or cut it to the first "
            f"{timeline.seconds:.2f} s"
        )


def _timeline(source: Source, visible: list[tuple[Any, int]], keyframes: list[int]) -> Timeline:
    if not visible:
        raise source.broken(0.0)
    unit, rate = source.stream.time_base, source.rate
    # AVI has no timestamps; those given are guesses.
    if not unit or source.kind == "avi" or any(time is None for time, _ in visible):
        return Timeline.counted(len(visible), rate)
    # A recording may start between two keyframes, but nothing before its first one can be decoded.
    known = sorted([packet for packet in visible if not keyframes or packet[0] >= keyframes[0]] or visible)
    times = sorted({time for time, _ in known})
    span = float((times[-1] - times[0]) * unit)
    if span and abs((len(times) - 1) / span / rate - 1) > 0.01:  # a varying rate, or a header that is wrong
        rate = (len(times) - 1) / span
    seconds = span + (float(known[-1][1] * unit) or 1 / rate)
    if not any(name in source.kind for name in _SEEKABLE):
        keyframes = keyframes[:1]
    return Timeline(times, float(unit), keyframes or times[:1], rate, seconds)


def _missing(source: Source, timeline: Timeline, declared: float, *, whole: int, torn: bool) -> str:
    """Where and why a file breaks off, in words; empty for a whole one.

    ``declared``: seconds that its header promises. ``whole``: number of packets. ``torn``: whether it ends inside one.
    """
    if source.stalled:
        return f"cannot be read beyond {timeline.seconds:.2f} s: nothing more came for {PATIENCE:g} s"
    # Fewer frames than the header declares are no proof by themselves (edit lists leave some out, empty ones are
    # not passed on), nor is a small difference in length. In a file shorter than it says itself they are.
    cut = is_cut(source.path, source.kind)
    # A transport stream declares no length, but it is made of packets of one size.
    size = source.size
    torn = torn or (source.kind == "mpegts" and all(size % packet for packet in _TRANSPORT_PACKETS))
    few = whole < source.stated_frames and (cut or torn)
    missing, frame = declared - timeline.seconds, 1 / timeline.rate
    if not torn and source.kind in _NEVER_EMPTY and _is_empty(source.path, size - _EMPTY):
        return f"breaks off at {timeline.seconds:.2f} s; the end of the file is empty, as in an unfinished download"
    if not (torn or few or (cut and missing > 0.5 * frame) or missing > max(3 * frame, 0.05 * declared)):
        return ""
    if source.kind == "jpeg_pipe":
        return "breaks off inside the picture: its lower part is missing"
    why = f"its header says {declared:.2f} s" if missing > 0 else "the file ends inside a frame"
    if few:
        why = f"its header says {source.stated_frames} frames, of which {whole} are complete"
    return f"breaks off at {timeline.seconds:.2f} s; {why}"


def _is_empty(path: Path, begin: int) -> bool:
    """Whether a file holds only zeros from there on."""
    if begin < 0:
        return False
    with path.open("rb") as file:
        file.seek(begin)
        return not any(file.read(_EMPTY))


def is_cut(path: Path, kind: str) -> bool:
    """Whether a file is shorter than its outermost elements say."""
    end, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for _ in range(MOST_ELEMENTS):
            if end + 8 > size:
                break
            file.seek(end)
            length = _element_bytes(file.read(16), kind)
            if not length:
                return False
            end += length
    return end > size


def _element_bytes(start: bytes, kind: str) -> int:
    """The length of the element that begins with ``start``: a part of Matroska, a box of MP4, a RIFF chunk of AVI.

    0 where it is none of these (something appended) or does not say."""
    if "matroska" in kind:
        width = 9 - start[4].bit_length()
        unknown = (1 << 7 * width) - 1  # written live
        length = int.from_bytes(start[4 : 4 + width], "big") & unknown
        known = start[:4] in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67") and width < 9 and length != unknown
        return 4 + width + length if known else 0
    if kind == "avi":
        return 8 + int.from_bytes(start[4:8], "little") if start[:4] == b"RIFF" else 0
    if "mov,mp4" not in kind:
        return 0
    length = int.from_bytes(start[:4], "big")
    length = int.from_bytes(start[8:16], "big") if length == 1 else length
    return length if length >= 8 else 0  # a length of 0 is "to the end of the file"
