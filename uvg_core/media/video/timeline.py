"""When the frames of a video are shown, which of them a clip takes, and whether the file is whole."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ...errors import UniViGUError
from .clip import ClipSpec
from .source import Source

# Only these containers mark keyframes reliably. AVI, ASF and MPEG-PS do not, and GIF frames build on one another.
_SEEKABLE = ("mov,mp4", "matroska", "flv", "mpegts")
# Only these mark a packet corrupt when, and only when, the file ends inside it; MPEG marks every disturbance.
_TORN_MARKED = ("mov,mp4", "avi", "flv")
_TRANSPORT_PACKETS = (188, 192, 204)  # bytes: plain, with timestamps (m2ts), with error correction


@dataclass(frozen=True)
class Timeline:
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
    timed: bool = True

    @classmethod
    def counted(cls, count: int, rate: float) -> Timeline:
        """``count`` frames at a constant rate, numbered from 0."""
        return cls(list(range(count)), 1 / rate, [0], rate, count / rate, timed=False)

    def second(self, time: int) -> float:
        """Seconds between the first frame and ``time``."""
        return (time - self.times[0]) * self.unit

    def part(self, start: float, seconds: float | None) -> Timeline:
        """What is shown from ``start`` on, for ``seconds`` (None or 0: to the end); both count from the first frame."""
        if start <= 0 and not seconds:
            return self
        first = self.times[0] + start / self.unit - 1e-3
        end = first + seconds / self.unit if seconds else float("inf")
        times = [time for time in self.times if first <= time < end]
        return replace(self, times=times, seconds=min(self.seconds - start, seconds or self.seconds))

    def spread(self, spec: ClipSpec) -> list[int]:
        """The timestamps of the frames on screen at the evenly spread times that ``spec`` asks for."""
        frames, fps = spec.frames, spec.fps
        first, span = self.times[0], self.times[-1] - self.times[0]
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


class _Packet(NamedTuple):
    """A packet's timestamp and duration in the stream's unit; ``hidden`` by an edit list."""

    time: Any  # int or None
    duration: int
    keyframe: bool
    hidden: bool


def scan(source: Source) -> Timeline:
    """Read all timestamps of a video, decoding nothing, and rewind it.

    Raises UniViGUError for a file without frames, and for one that ends before the length in its header, or inside a
    frame.
    """
    torn, packets = False, []
    torn_marked = any(name in source.kind for name in _TORN_MARKED)
    for packet in source.packets():
        if packet.size == 0:  # the closing packet
            continue
        if packet.is_corrupt and torn_marked:
            torn = True
        else:
            packets.append(_Packet(packet.pts, packet.duration or 0, packet.is_keyframe, packet.is_discard))
    declared = source.header_seconds(binding=True)
    source.rewind()
    timeline = _timeline(source, packets)
    _require_whole(source, timeline, declared, whole=len(packets), torn=torn)
    return timeline


def _timeline(source: Source, packets: list[_Packet]) -> Timeline:
    visible = [packet for packet in packets if not packet.hidden]
    if not visible:
        raise source.broken(0.0)
    unit, rate = source.stream.time_base, source.rate
    # AVI has no timestamps; those given are guesses.
    if not unit or source.kind == "avi" or any(packet.time is None for packet in visible):
        return Timeline.counted(len(visible), rate)
    # Hidden keyframes count: what is shown may start between two of them. A recording may too, but nothing before
    # its first one can be decoded.
    keyframes = sorted(packet.time for packet in packets if packet.keyframe and packet.time is not None)
    known = sorted([packet for packet in visible if not keyframes or packet.time >= keyframes[0]] or visible)
    times = sorted({packet.time for packet in known})
    span = float((times[-1] - times[0]) * unit)
    if span and abs((len(times) - 1) / span / rate - 1) > 0.01:  # a varying rate, or a header that is wrong
        rate = (len(times) - 1) / span
    seconds = span + (float(known[-1].duration * unit) or 1 / rate)
    if not any(name in source.kind for name in _SEEKABLE):
        keyframes = keyframes[:1]
    return Timeline(times, float(unit), keyframes or times[:1], rate, seconds)


def _require_whole(source: Source, timeline: Timeline, declared: float, *, whole: int, torn: bool) -> None:
    """Raise UniViGUError for a file that breaks off.

    ``declared``: seconds that its header promises. ``whole``: number of packets. ``torn``: whether it ends inside one.
    """
    # Fewer frames than the header declares are no proof by themselves (edit lists leave some out, empty ones are
    # not passed on), nor is a small difference in length. In a file shorter than it says itself they are.
    size = source.path.stat().st_size
    cut = _promised_bytes(source.path, source.kind) > size
    # A transport stream declares no length, but it is made of packets of one size.
    torn = torn or (source.kind == "mpegts" and all(size % packet for packet in _TRANSPORT_PACKETS))
    few = whole < source.stream.frames and (cut or torn)
    missing, frame = declared - timeline.seconds, 1 / timeline.rate
    if torn or few or (cut and missing > 0.5 * frame) or missing > max(3 * frame, 0.05 * declared):
        why = f"its header promises {declared:.2f} s" if missing > 0 else "the file ends inside a frame"
        if few:
            why = f"its header promises {source.stream.frames} frames, of which {whole} are whole"
        raise UniViGUError(
            f"{source.path}: the video breaks off at {timeline.seconds:.2f} s; {why}. Copy or download it again, or "
            f"cut it to the first {timeline.seconds:.2f} s"
        )


def _promised_bytes(path: Path, kind: str) -> int:
    """The size that a file should have by its own account, from its outermost elements. 0 where it does not say."""
    with path.open("rb") as file:
        if "matroska" in kind:
            return _matroska_bytes(file)
        if "mov,mp4" in kind or kind == "avi":
            return _boxes_bytes(file, path.stat().st_size, riff=kind == "avi")
    return 0


def _matroska_bytes(file: BinaryIO) -> int:
    """To the end of the second element: the EBML header comes first, then the segment that holds everything."""
    end = 0
    for _ in range(2):
        file.seek(end)
        start = file.read(12)
        if len(start) < 12 or start[:4] not in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67") or not start[4]:
            return 0
        width = 9 - start[4].bit_length()
        unknown = (1 << 7 * width) - 1  # written live
        length = int.from_bytes(start[4 : 4 + width], "big") & unknown
        if length == unknown:
            return 0
        end += 4 + width + length
    return end


def _boxes_bytes(file: BinaryIO, size: int, *, riff: bool) -> int:
    """To the end of the last MP4 box or RIFF chunk that begins in the file."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        start = file.read(16)
        if riff:
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
