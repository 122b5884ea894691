"""Pictures of which FFmpeg shows a part and says nothing: GIF and JPEG that end too early, TIFF of several pages."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_MOST_BYTES = 2**28  # larger ones are not looked at
_MOST_PAGES = 1000
_KIND = 254  # the tag that says whether a page is a preview (1), one of several (2) or a mask (4)
_MOST_BLOCKS = 2**21  # nor more of these: half a gigabyte of an honest GIF


def is_torn(path: Path, kind: str) -> bool:
    """Whether a picture ends before its data do. ``kind``: PyAV's name of the format."""
    look = {"gif": _torn_gif, "jpeg_pipe": _torn_jpeg}.get(kind)
    if look is None or path.stat().st_size > _MOST_BYTES:
        return False
    with path.open("rb") as file:
        return look(file.read(_MOST_BYTES))


def pages(path: Path) -> int:
    """How many pages a TIFF has, up to a thousand; previews and masks are none. 1 for other files."""
    count, seen = 0, set[int]()
    with path.open("rb") as file:
        order: Literal["little", "big"] = "little" if file.read(2) == b"II" else "big"

        def number(width: int) -> int:
            return int.from_bytes(file.read(width), order)

        at = number(4) if number(2) == 42 else 0
        while at and at not in seen and len(seen) < _MOST_PAGES:
            seen.add(at)
            file.seek(at)
            entries = [(number(2), number(2), number(4), file.read(4)) for _ in range(number(2))]
            kinds = [int.from_bytes(value, order) for tag, _, _, value in entries if tag == _KIND]
            count += not any(kind & 5 for kind in kinds)
            at = number(4)
    return max(count, 1)


def _torn_gif(data: bytes) -> bool:
    """Whether it ends inside a block. One without the closing byte is not: some programs write none."""
    at, inside = 13 + _table(data[10:11]), False
    for _ in range(_MOST_BLOCKS):
        if at >= len(data):
            return at > len(data) or inside
        if inside:
            inside, at = data[at] > 0, at + 1 + data[at]
        elif data[at] in b"!,":
            inside, at = True, at + (2 if data[at] == 0x21 else 11 + _table(data[at + 9 : at + 10]))
        else:
            break  # the closing byte, or something appended
    return False


def _table(flags: bytes) -> int:
    """Bytes of the table of colours that follows."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _torn_jpeg(data: bytes) -> bool:
    """Whether no end is marked behind the picture's own data; previews before these have ends of their own."""
    at = 2
    for _ in range(_MOST_BLOCKS):
        if data[at : at + 1] != b"\xff" or data[at + 1 : at + 2] == b"\xda":
            break
        at += 1 if data[at + 1 : at + 2] == b"\xff" else 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return data.find(b"\xff\xd9", at) < 0
