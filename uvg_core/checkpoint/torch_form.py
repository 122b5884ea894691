"""The two forms of a file that ``torch.save`` writes, and where the numbers lie in it. Nothing in it is executed.

Since torch 1.6: a zip archive, members stored as they are, ``NAME/data.pkl`` (the object) and ``NAME/data/KEY`` (a
storage). Before: pickles one after the other (magic number, version, system, object, keys), then each storage behind
its count. The still older tar archive is not read. Written from torch/serialization.py of torch 2.13 and PKWARE's
description of zip.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from .inert import Malformed, Refused, Unpickler
from .inert_values import Buffer

_MOST_MEMBERS = 200_000
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how the stream of pickles begins


@dataclass
class Contents:
    """The object that was saved, where each storage lies (first byte, bytes), and the order of bytes in numbers."""

    saved: Any
    places: dict[str, tuple[int, int]]
    byteorder: str = "little"


def contents(data: Buffer) -> Contents:
    """Everything but the numbers of a file that torch.save wrote. Raises Malformed or Refused."""
    try:
        if data[:2] == b"PK":
            return _zipped(data)
        if _MAGIC.to_bytes(10, "little") in data[:64]:
            return _streamed(data)
    except struct.error:  # a header that is cut off
        raise Malformed("its table of contents ends in the middle") from None
    raise Refused(
        "found a bare pickle, expected a checkpoint written by torch.save; pickles can run code, so it was not opened. "
        "Ask for a safetensors version"
    )


def _zipped(data: Buffer) -> Contents:
    members = _members(data)
    tables = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(tables) != 1:
        raise Refused(
            f"found a zip archive with {len(tables)} tables of contents (data.pkl), expected one, as torch.save writes "
            "it. Choose the checkpoint itself"
        )
    root = tables[0].removesuffix("data.pkl")
    if root + "constants.pkl" in members:
        raise Refused("found a TorchScript program, expected weights. Ask for a safetensors version")
    begin, size = _place(data, members, tables[0])
    pickle = Unpickler(data, begin, begin + size)
    saved = pickle.load()
    keys = [key for key in pickle.storages if f"{root}data/{key}" in members]
    order = "little"
    if root + "byteorder" in members:
        begin, size = _place(data, members, root + "byteorder")
        order = str(data[begin : begin + min(size, 16)], "utf-8", "replace")
    if order not in ("little", "big"):
        raise Malformed(f"found byte order {order!r}, expected little or big")
    return Contents(saved, {key: _place(data, members, f"{root}data/{key}") for key in keys}, order)


def _members(data: Buffer) -> dict[str, tuple[int, ...]]:
    """A zip archive's table of contents: name -> flags, method, bytes compressed, bytes, and where its header is."""
    count, at = _table(data)
    members: dict[str, tuple[int, ...]] = {}
    for _ in range(count):
        head = data[at : at + 46]
        if head[:4] != b"PK\1\2":
            raise Malformed("its table of contents is not readable")
        flags, method = struct.unpack("<HH", head[8:12])
        packed, whole, in_name, in_extra, in_comment = struct.unpack("<LLHHH", head[20:34])
        (header,) = struct.unpack("<L", head[42:46])
        begin, end = at + 46 + in_name, at + 46 + in_name + in_extra
        name = str(data[at + 46 : begin], "utf-8", "replace")
        if name in members:
            raise Malformed(f"{name[:200]} is in it twice")
        whole, packed, header = _widened(data[begin:end], [whole, packed, header])
        members[name] = flags, method, packed, whole, header
        at = end + in_comment
    return members


def _table(data: Buffer) -> tuple[int, int]:
    """How many members a zip archive's table of contents has, and where it begins."""
    end = data.rfind(b"PK\5\6", max(0, len(data) - 65_557), len(data))
    if end < 0:
        raise Malformed("its table of contents is missing at the end")
    count, size, begin, comment = struct.unpack("<HLLH", data[end + 10 : end + 22])
    if end + 22 + comment > len(data):
        raise Malformed("it ends in the middle of its table of contents")
    if data[max(0, end - 20) : end].startswith(b"PK\6\7"):  # more than 4 GB or 65,535 members
        (at,) = struct.unpack("<Q", data[end - 12 : end - 4])
        if data[at : at + 4] != b"PK\6\6":
            raise Malformed("its table of contents is not where it should be")
        count, size, begin = struct.unpack("<QQQ", data[at + 32 : at + 56])
    if count > _MOST_MEMBERS or begin + size > end:
        raise Malformed(f"its table of contents claims {count} members in {size} bytes")
    return count, begin


def _widened(extra: bytes, values: list[int]) -> list[int]:
    """Values of 32 bits, those that do not fit into these taken from where a zip archive keeps them, in this order."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 1:
            wide = [int.from_bytes(extra[i : i + 8], "little") for i in range(4, 4 + length, 8)]
            values = [wide.pop(0) if value == 0xFFFFFFFF and wide else value for value in values]
        extra = extra[4 + length :]
    return values


def _place(data: Buffer, members: dict[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    """First byte and number of bytes of a member that is stored as it is."""
    flags, method, packed, whole, header = members[name]
    if method != 0 or flags & 1 or packed != whole:
        raise Refused(
            f"found a compressed or encrypted archive ({name[:200]}), expected one as torch.save writes it. Unpack it, "
            "or save it anew"
        )
    head = data[header : header + 30]
    if head[:4] != b"PK\3\4":
        raise Malformed(f"{name[:200]} is not where its table of contents says")
    begin = header + 30 + sum(struct.unpack("<HH", head[26:30]))
    if begin + whole > len(data):
        raise Malformed(f"{name[:200]} goes beyond the end of the file")
    return begin, whole


def _streamed(data: Buffer) -> Contents:
    pickle = Unpickler(data, 0, len(data))
    magic, protocol, system = pickle.load(), pickle.load(), pickle.load()
    if magic != _MAGIC or protocol != _PROTOCOL or not isinstance(system, dict):
        raise Malformed(f"version {protocol if isinstance(protocol, int) else '?'}, expected {_PROTOCOL}")
    saved = pickle.load()
    keys = pickle.load()
    if not isinstance(keys, list):
        raise Malformed("the list of its storages is missing")
    at, places = pickle.at, {}
    for key in keys:
        if not isinstance(key, str) or key not in pickle.storages:
            raise Malformed("it has storages that nothing in it names")
        count = int.from_bytes(data[at : at + 8], "little")
        size = count * pickle.storages[key].itemsize
        if at + 8 + size > len(data):
            raise Malformed(f"storage {key[:50]} goes beyond the end of the file")
        places[key] = at + 8, size
        at += 8 + size
    return Contents(saved, places, "big" if system.get("little_endian") is False else "little")
