"""What a pickle that is read without running it consists of: names, stand-ins for objects, and places of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import torch

_MOST = 1 << 63  # sizes, strides and offsets are signed 64-bit numbers
_MOST_DIMENSIONS = 64
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}

Buffer = mmap | bytes  # a mapped file, mostly


@dataclass(slots=True, eq=False, repr=False)
class Named:
    """A class, function or constant that the pickle refers to by its dotted name. Never looked up."""

    name: str

    def __repr__(self) -> str:
        return self.name[:200]


@dataclass(slots=True, eq=False, repr=False)
class StandIn:
    """In the place of an object: the class or function that would have made it, and a dict's entries."""

    of: Named
    entries: dict[Any, Any] | None = None

    @property
    def is_tensor(self) -> bool:
        """Whether it stands for a tensor of a kind that is not plain numbers: sparse, quantised, sharded."""
        return "._rebuild_" in self.of.name or self.of.name.endswith("Tensor")

    def __repr__(self) -> str:
        kind = repr(self.of)
        return kind.split("._rebuild_")[-1].replace("_", " ") if "._rebuild_" in kind else kind


@dataclass(slots=True, eq=False, repr=False)
class Storage:
    """Numbers in the file: ``count`` of ``dtype`` from number ``start`` of the storage ``key``."""

    key: str
    dtype: torch.dtype
    count: int
    start: int = 0


@dataclass(slots=True, eq=False, repr=False)
class View:
    """A tensor: which numbers of a storage it shows; offset and strides count numbers of its own dtype."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """Bytes from the first number to the last."""
        if 0 in self.shape:
            return 0
        return (1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))) * self.dtype.itemsize


def storage_of(label: Any) -> Storage | None:
    """The storage that a persistent id names: ("storage", kind, key, device, size), and in the older format the part
    of it that is seen. None where it names none."""
    if not isinstance(label, tuple) or len(label) < 5 or label[0] != "storage" or not isinstance(label[1], Named):
        return None
    kind, key, _, count = label[1:5]
    part = label[5] if len(label) == 6 else None
    start, count = part[1:] if isinstance(part, tuple) and len(part) == 3 else (0, count)
    dtype = _STORAGES.get(kind.name.rpartition(".")[2])
    if dtype is None or not isinstance(key, str) or not _are_sizes(start, count):
        return None
    return Storage(key, dtype, count, start)


def view_of(function: str, arguments: tuple[Any, ...]) -> View | None:
    """The tensor that one of torch's ``_rebuild_tensor`` functions makes of a storage; None if not plain."""
    if len(arguments) < 4:
        return None
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        return None
    if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS or not _are_sizes(offset, *shape, *stride):
        return None
    if math.prod(size or 1 for size in shape) >= _MOST:
        return None
    dtype: torch.dtype | None = storage.dtype
    if function.endswith("_v3"):
        given, arguments = arguments[6] if len(arguments) > 6 else None, arguments[1:]
        dtype = _DTYPES.get(given.name) if isinstance(given, Named) else None
    pending = any(arguments[6:])  # to be negated or conjugated
    return None if dtype is None or pending else View(storage, dtype, offset, shape, stride)


def _are_sizes(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < _MOST for value in values)
