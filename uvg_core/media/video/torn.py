"""Pictures that end too early, of which FFmpeg shows what is there and says nothing: GIF and JPEG."""

from __future__ import annotations

from pathlib import Path

_MOST_BYTES = 2**28  # larger ones are not looked at
_MOST_BLOCKS = 2**21  # nor more of these: half a gigabyte of an honest GIF


def is_torn(path: Path, kind: str) -> bool:
    """Whether a picture ends before its data do. ``kind``: PyAV's name of the format."""
    look = {"gif": _torn_gif, "jpeg_pipe": _torn_jpeg}.get(kind)
    if look is None or path.stat().st_size > _MOST_BYTES:
        return False
    with path.open("rb") as file:
        return look(file.read(_MOST_BYTES))


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
