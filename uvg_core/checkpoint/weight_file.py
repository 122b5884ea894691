"""What every kind of weights file offers: a table of contents, and one tensor at a time."""

from __future__ import annotations

import ctypes
import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UniViGUError

log = logging.getLogger(__name__)

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


class WeightFile(ABC):
    """An opened file of weights: ``tensors`` by name, string ``metadata``, ``facts`` of a config.json beside it,
    training ``step``.

    ``ignored`` counts and names what a trainer left beside the weights; empty if there is nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Stored] = {}
        self.metadata: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.step: int | None = None
        self.ignored = ""
        self.nbytes = path.stat().st_size if path.is_file() else 0
        self._offsets: dict[str, int] = {}  # first byte of each tensor

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in memory of its own; flat bytes when its dtype is not one of torch's."""

    def log_ignored(self) -> None:
        """Log what is left in the file. For whoever loads the weights, once; ``inspect`` shows it in its report."""
        if self.ignored:
            log.info("%s: ignored %s", self.path, self.ignored)

    def _bytes(self, name: str, count: int) -> Tensor:
        """The bytes in the file from a tensor's first to its last."""
        tensor = torch.empty(count, dtype=torch.uint8)
        begin, view, done = self._offsets[name], bytes_of(tensor), 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(begin)
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:  # the file has become shorter since it was opened
                        raise self._damaged(f"it ends before byte {begin + len(view)}")
                    done += count
        except OSError as error:
            raise UniViGUError(f"{self.path}: reading {name} failed ({error.strerror or error})") from error
        return tensor

    def _damaged(self, reason: str) -> UniViGUError:
        return UniViGUError(f"{self.path}: damaged or incomplete: {reason}. Download or copy it again")


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; the tensor must outlive the view. (Does not need numpy.)"""
    size = tensor.nbytes
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())) if size else memoryview(b"")
