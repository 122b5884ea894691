"""The two forms of a file that ``torch.save`` writes, and where the numbers lie in it. Nothing in it is executed.

Since torch 1.6: a zip archive, members stored as they are, ``NAME/data.pkl`` (the object) and ``NAME/data/KEY`` (a
storage). Before: pickles one after the other (magic number, version, system, object, keys), then each storage behind
its count. The still older tar archive is not read. Written from torch/serialization.py of torch 2.13.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import IO, Any

from ..errors import UniViGUError
from .inert import Unpickler
from .weight_file import damaged

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how the stream of pickles begins
_MOST_DIRECTORY = 1 << 24  # bytes of the list of an archive's members: 100,000 of them


@dataclass
class Contents:
    """The object that was saved, where each storage lies (first byte, bytes), and the order of bytes in numbers."""

    saved: Any
    places: dict[str, tuple[int, int]]
    byteorder: str = "little"


def contents(path: Path, file: IO[bytes], data: mmap) -> Contents:
    """Everything but the numbers of a file that torch.save wrote. Raises UniViGUError."""
    if data[:2] == b"PK":
        return _zipped(path, file, data)
    if _MAGIC.to_bytes(10, "little") in data[:64]:
        return _streamed(path, data)
    raise UniViGUError(
        f"{path}: found a bare pickle, expected a checkpoint written by torch.save; pickles can run code, so it was "
        "not opened. Ask for a safetensors version"
    )


def _zipped(path: Path, file: IO[bytes], data: mmap) -> Contents:
    listing = _directory_bytes(data)
    if listing > _MOST_DIRECTORY:
        raise damaged(path, f"the list of its members claims {listing} bytes, more than {_MOST_DIRECTORY}")
    try:
        infos = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, LookupError, NotImplementedError, OverflowError, struct.error) as error:
        raise damaged(path, f"it is no whole zip archive ({error})") from None
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if members.setdefault(info.filename, info) is not info:
            raise damaged(path, f"{info.filename[:200]} is in it twice")
    tables = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(tables) != 1:
        raise UniViGUError(
            f"{path}: found a zip archive with {len(tables)} tables of contents (data.pkl), expected one, as "
            "torch.save writes it. Choose the checkpoint itself"
        )
    root = tables[0].removesuffix("data.pkl")
    if root + "constants.pkl" in members:
        raise UniViGUError(f"{path}: found a TorchScript program, expected weights. Ask for a safetensors version")
    begin, size = _place(path, data, members[tables[0]])
    pickle = Unpickler(path, data, begin, begin + size)
    saved = pickle.load()
    storages = {key: members.get(f"{root}data/{key}") for key in pickle.storages}
    order = "little"
    if root + "byteorder" in members:
        begin, size = _place(path, data, members[root + "byteorder"])
        order = str(data[begin : begin + min(size, 16)], "utf-8", "replace")
    if order not in ("little", "big"):
        raise damaged(path, f"found byte order {order!r}, expected little or big")
    return Contents(saved, {key: _place(path, data, info) for key, info in storages.items() if info}, order)


def _directory_bytes(data: mmap) -> int:
    """The size of a zip archive's list of members as its end states it, 0 where there is no end. Python's reader takes
    twenty times as much memory for it."""
    end = data.rfind(b"PK\5\6", max(0, len(data) - (1 << 16) - 22))
    sizes = [int.from_bytes(data[end + 12 : end + 16], "little")] if end >= 0 else [0]
    far = end - 20 - 56  # of archives beyond 4 GB
    if far >= 0 and data[far : far + 4] == b"PK\6\6":
        sizes.append(int.from_bytes(data[far + 40 : far + 48], "little"))
    return max(size for size in sizes if size != 0xFFFFFFFF or len(sizes) == 1)


def _place(path: Path, data: mmap, info: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and number of bytes of a zip archive's member that is stored as it is."""
    name = info.filename[:200]
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise UniViGUError(
            f"{path}: found a compressed or encrypted archive ({name}), expected one as torch.save writes it. Unpack "
            "it, or save it anew"
        )
    head = data[info.header_offset : info.header_offset + 30]
    if head[:4] != b"PK\3\4":
        raise damaged(path, f"{name} is not where its table of contents says")
    name_length, extra_length = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
    begin = info.header_offset + 30 + name_length + extra_length
    if begin + info.file_size > len(data):
        raise damaged(path, f"{name} goes beyond the end of the file")
    return begin, info.file_size


def _streamed(path: Path, data: mmap) -> Contents:
    pickle = Unpickler(path, data, 0, len(data))
    magic, protocol, system = pickle.load(), pickle.load(), pickle.load()
    if magic != _MAGIC or protocol != _PROTOCOL or not isinstance(system, dict):
        raise damaged(path, f"version {protocol if isinstance(protocol, int) else '?'}, expected {_PROTOCOL}")
    saved = pickle.load()
    keys = pickle.load()
    if not isinstance(keys, list):
        raise damaged(path, "the list of its storages is missing")
    at, places = pickle.at, {}
    for key in keys:
        if not isinstance(key, str) or key not in pickle.storages:
            raise damaged(path, "it has storages that nothing in it names")
        size = int.from_bytes(data[at : at + 8], "little") * pickle.storages[key].itemsize
        if at + 8 + size > len(data):
            raise damaged(path, f"storage {key[:50]} goes beyond the end of the file")
        places[key] = at + 8, size
        at += 8 + size
    return Contents(saved, places, "big" if system.get("little_endian") is False else "little")
