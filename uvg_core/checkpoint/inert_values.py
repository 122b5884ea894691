"""What a pickle that is read without running it consists of: names, stand-ins for objects, and places of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import torch

_MOST = 1 << 63  # sizes, strides and offsets are signed 64-bit numbers
_MOST_DIMENSIONS = 64
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
    "_Untyped": torch.uint8,
}

Buffer = mmap | bytes  # a mapped file, mostly


@dataclass(slots=True, eq=False, repr=False)
class Named:
    """A class, function or constant that the pickle refers to by name. Never looked up."""

    module: str
    name: str

    def __repr__(self) -> str:
        return f"{self.module[:100]}.{self.name[:100]}".removeprefix(".")


@dataclass(slots=True, eq=False, repr=False)
class Thing:
    """In the place of an object: the class or function that would have made it, and a dict's entries."""

    of: Named
    entries: dict[Any, Any] | None = None

    @property
    def is_tensor(self) -> bool:
        """Whether it stands for a tensor of a kind that is not plain numbers: sparse, quantised, sharded."""
        return self.of.name.startswith("_rebuild_") or self.of.name.endswith("Tensor")

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

    @property
    def contiguous(self) -> bool:
        return torch.empty_strided(self.shape, self.stride, device="meta").is_contiguous()


def storage_of(label: Any) -> Storage | None:
    """The storage that a persistent id names: ("storage", kind, key, device, size), and in the older format the part
    of it that is seen. None where it names none."""
    if not isinstance(label, tuple) or len(label) < 5 or label[0] != "storage" or not isinstance(label[1], Named):
        return None
    kind, key, _, count = label[1:5]
    part = label[5] if len(label) == 6 else None
    start, count = part[1:] if isinstance(part, tuple) and len(part) == 3 else (0, count)
    dtype = _STORAGES.get(kind.name.removesuffix("Storage")) if kind.name.endswith("Storage") else None
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
    if function == "_rebuild_tensor_v3":
        given, arguments = arguments[6] if len(arguments) > 6 else None, arguments[1:]
        dtype = _DTYPES.get(given.name) if isinstance(given, Named) and given.module == "torch" else None
    pending = any(arguments[6:])  # to be negated or conjugated
    return None if dtype is None or pending else View(storage, dtype, offset, shape, stride)


def _are_sizes(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < _MOST for value in values)
