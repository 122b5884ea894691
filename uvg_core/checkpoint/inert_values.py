"""What a pickle that is read without running it consists of: names, stand-ins for objects, and places of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .weight_file import are_counts, is_shape

_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
for _name in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Bool"):
    _STORAGES[f"{_name}Storage"] = getattr(torch, _name.lower())


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
    match label:
        case ("storage", Named(name=kind), str(key), _, _, (_, start, count)):
            pass
        case ("storage", Named(name=kind), str(key), _, count, *_):
            start = 0
        case _:
            return None
    dtype = _STORAGES.get(kind.rpartition(".")[2])
    return Storage(key, dtype, count, start) if dtype and are_counts([start, count]) else None


def view_of(arguments: tuple[Any, ...]) -> View | None:
    """The tensor that one of torch's ``_rebuild_tensor`` functions makes of a storage; None if not plain, or still to
    be negated or conjugated."""
    dtype: torch.dtype | None
    match arguments:
        case (Storage() as storage, offset, tuple(shape), tuple(stride), _, _, Named(name=name), *pending):
            dtype = _DTYPES.get(name)
        case (Storage() as storage, offset, tuple(shape), tuple(stride), *rest):
            dtype, pending = storage.dtype, rest[2:]
        case _:
            return None
    sound = is_shape(shape) and len(stride) == len(shape) and are_counts([offset, *stride])
    return View(storage, dtype, offset, shape, stride) if dtype and sound and not any(pending) else None
