"""What every kind of weights file offers: a table of contents, and one tensor at a time."""

from __future__ import annotations

import ctypes
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UniViGUError

log = logging.getLogger(__name__)

_DIMENSIONS_LIMIT = 64  # torch's own
COUNT_LIMIT = 1 << 63  # sizes and offsets are signed 64-bit numbers in torch and in every system
# Names of dtypes in safetensors headers. Types that this torch does not have are carried as raw bytes.
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64"}
_SMALL = {"BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
_INTEGERS = {f"{i}{bits}": f"{kind}{bits}" for i, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}
_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, known) for name, known in (_FLOATS | _SMALL | _INTEGERS).items() if hasattr(torch, known)
}
NAME_OF_DTYPE = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """How a tensor lies in a file: dtype (safetensors name, e.g. ``BF16``), shape, size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def like(cls, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Stored:
        return cls(NAME_OF_DTYPE[dtype], tuple(shape), math.prod(shape) * dtype.itemsize)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.nbytes // max(self.numel, 1)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """None for types that this torch does not know."""
        return _DTYPES.get(self.dtype)

    @property
    def is_floating(self) -> bool:
        """Whether it holds numbers that a weight can be made of: floating point, fp8 included."""
        dtype = self.torch_dtype
        return dtype is not None and dtype.is_floating_point and self.dtype != "F8_E8M0"


@dataclass(frozen=True)
class Place:
    """Where a tensor's numbers are: the file, the first byte, and how many to the last, those of other tensors between
    them included. ``stride``: as torch counts it, None where the numbers lie in a row; ``swapped``: in the byte order
    that this machine has not."""

    path: Path
    begin: int
    nbytes: int
    stride: tuple[int, ...] | None = None
    swapped: bool = False


@dataclass
class WeightFile:
    """An opened file of weights, or several that belong together: ``tensors`` and their ``places`` by name, string
    ``metadata``, ``facts`` of a config.json beside it, training ``step``.

    ``ignored`` counts and names what a trainer left beside the weights; empty if there is nothing.
    """

    path: Path
    tensors: dict[str, Stored] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    ignored: str = ""
    nbytes: int = 0

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in memory of its own; flat bytes when its dtype is not one of torch's."""
        stored, place = self.tensors[name], self.places[name]
        numbers = _read_bytes(name, place)
        if stored.torch_dtype is None:
            return numbers
        numbers = numbers.view(stored.torch_dtype)
        if place.stride is None:
            return numbers.reshape(stored.shape)
        tensor = numbers.as_strided(stored.shape, place.stride).contiguous()
        if place.swapped:
            tensor.untyped_storage().byteswap(tensor.dtype)
        return tensor

    def log_ignored(self) -> None:
        """Log what is left in the file. For whoever loads the weights, once; ``inspect`` shows it in its report."""
        if self.ignored:
            log.info("%s: ignored %s", self.path, self.ignored)


def _read_bytes(name: str, place: Place) -> Tensor:
    tensor = torch.empty(place.nbytes, dtype=torch.uint8)
    view, done = bytes_of(tensor), 0
    try:
        with place.path.open("rb", buffering=0) as file:
            file.seek(place.begin)
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:  # the file has become shorter since it was opened
                    raise damaged(place.path, f"it ends before byte {place.begin + len(view)}")
                done += count
    except OSError as error:
        raise UniViGUError(f"{place.path}: reading {name} failed ({error.strerror or error})") from error
    return tensor


def are_counts(values: Any) -> bool:
    """Whether values from a file are a list of non-negative whole numbers, none too large."""
    whole = isinstance(values, (list, tuple)) and all(type(value) is int for value in values)
    return whole and all(0 <= value < COUNT_LIMIT for value in values)


def is_shape(values: Any) -> bool:
    """Whether values from a file can be the sizes of a tensor."""
    # Zeros left out: torch computes strides as if they were ones.
    return are_counts(values) and len(values) <= _DIMENSIONS_LIMIT and math.prod(n or 1 for n in values) < COUNT_LIMIT


def damaged(path: Path, reason: str) -> UniViGUError:
    """The error for a file that contradicts its format."""
    return UniViGUError(f"{path}: damaged or incomplete: {reason}. Download or copy it again")


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; the tensor must outlive the view. (Does not need numpy.)"""
    size = tensor.nbytes
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())) if size else memoryview(b"")
