"""What the tables of an mp4 claim, looked at before ffmpeg takes memory for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ...errors import UniViGUError
from .limits import MOST_ELEMENTS, MOST_SAMPLES

_NESTED = set(b"moov trak mdia minf stbl moof traf mvex edts udta dinf clip tapt wave meta".split())
_DEEPEST = 16
_MOST_BEFORE = 1 << 16  # bytes
_MOST_TABLE = 1 << 23  # bytes of a table that is read
_REORDERED = 17  # frames that one may wait for others, at most, by H.264 and HEVC; and one
_ANEW = "rewrite it with ffmpeg -c copy"


def require_short_tables(path: Path) -> None:
    """Raise UniViGUError for an mp4 whose tables claim more frames and pieces of sound than are read: a few bytes can
    claim a billion, and ffmpeg takes memory for all of them when it opens the file. Other files pass."""
    with path.open("rb") as file:
        track, claimed = _Track(), 0
        for number, (kind, begin, end) in enumerate(_boxes(file, 0, path.stat().st_size)):
            if number >= MOST_ELEMENTS:
                raise UniViGUError(f"{path}: found more than {MOST_ELEMENTS} boxes; {_ANEW}")
            if kind == b"cmov":
                raise UniViGUError(f"{path}: its header is compressed, which is not supported; {_ANEW}")
            if kind == b"trak":
                claimed, track = claimed + track.claimed, _Track()
            track.add(kind, _at(file, begin, min(16, end - begin)))
        claimed += track.claimed
    if claimed > MOST_SAMPLES:
        raise UniViGUError(
            f"{path}: its tables claim {claimed} frames and audio samples, of which at most {MOST_SAMPLES} are read. "
            "The file is damaged, or too long: cut it into shorter ones"
        )


def is_steady(path: Path) -> bool:
    """Whether all frames of an mp4 last equally long, by its tables, so that its header is sure of its length. What is
    written in fragments never is."""
    with path.open("rb") as file:
        picture, steps = False, list[int]()
        for kind, begin, end in _boxes(file, 0, path.stat().st_size):
            if kind == b"moof":
                return False
            if kind == b"hdlr":
                picture = _at(file, begin + 8, 4) == b"vide"
            if kind not in (b"stts", b"ctts") or not picture:
                continue
            numbers = _at(file, begin + 4, min(end - begin - 4, _MOST_TABLE))
            values = [int.from_bytes(numbers[at : at + 4], "big") for at in range(8, len(numbers) - 3, 8)]
            if kind == b"stts":
                steps = values
            # How long after it was decoded a frame is shown: several frames, where they are put in another order.
            unsteady = max(steps, default=0) - min(steps, default=0) > 1
            if unsteady or (kind == b"ctts" and max(values, default=0) > _REORDERED * max(steps, default=0)):
                return False
    return bool(steps)


def is_dolby_vision_5(path: Path) -> bool:
    """Whether an mp4 says that its picture is of Dolby Vision's profile 5: in colours of its own, which mean nothing
    without the data beside them. The other profiles build on HDR10, HLG or SDR."""
    with path.open("rb") as file:
        for kind, begin, end in _boxes(file, 0, path.stat().st_size):
            if kind == b"stsd":
                entries = _at(file, begin, min(end - begin, _MOST_BEFORE))
                for name in (b"dvcC", b"dvvC"):
                    record = entries.partition(name)[2]  # two bytes of version, then seven bits of profile
                    if len(record) >= 24 and record[2] >> 1 == 5:
                        return True
    return False


@dataclass
class _Track:
    """What the boxes of one track claim."""

    samples: int = 0
    edits: int = 1
    durations: list[bytes] = field(default_factory=list)
    sound: bool = False

    def add(self, kind: bytes, start: bytes) -> None:
        """A box by the first of its bytes, version and flags included."""
        if kind in (b"stsz", b"stz2"):
            self.samples += int.from_bytes(start[8:12], "big")
        elif kind == b"trun":
            self.samples += int.from_bytes(start[4:8], "big")
        elif kind == b"iloc" and start[:1] > b"\1":  # of still pictures; before version 2 it counts to 65535
            self.samples += int.from_bytes(start[6:10], "big")
        elif kind == b"iinf" and start[:1] > b"\0":
            self.samples += int.from_bytes(start[4:8], "big")
        elif kind == b"elst":  # every edit may show all of it again
            self.edits = max(self.edits, int.from_bytes(start[4:8], "big"))
        elif kind == b"stts":
            self.durations.append(start[4:16])
        elif kind == b"hdlr":
            self.sound = start[8:12] == b"soun"

    @property
    def claimed(self) -> int:
        # Plain sound: a sample is one number of it, and ffmpeg remembers only whole chunks.
        plain = self.sound and [d[:4] + d[8:] for d in self.durations] == [b"\0\0\0\1" * 2]
        return 0 if plain else self.samples * self.edits


def _boxes(file: IO[bytes], at: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Name and place of all boxes, those inside others behind the one they are in."""
    while at + 8 <= end:
        start, head = _at(file, at, 16), 8
        length, kind = int.from_bytes(start[:4], "big"), start[4:8]
        if length == 1:
            length, head = int.from_bytes(start[8:16], "big"), 16
        inside = min(at + length, end) if length >= head else end  # 0: to the end
        yield kind, at + head, inside
        if kind in _NESTED and depth < _DEEPEST:
            begin = at + head
            if kind == b"meta":  # its boxes begin with hdlr, some writers put numbers before it
                words = _at(file, begin, min(inside - begin, _MOST_BEFORE))
                begin += max(next((k - 4 for k in range(0, len(words), 4) if words[k : k + 4] == b"hdlr"), 0), 0)
            yield from _boxes(file, begin, inside, depth + 1)
        at = inside


def _at(file: IO[bytes], place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(max(count, 0))
