"""Reading tensors one at a time.

A file is opened for its table of contents only; every ``read`` then fetches one tensor into memory of its own. Nothing
stays mapped: a loaded model costs its own size and nothing beside it, and its file may be replaced or deleted.
"""

from __future__ import annotations

import ctypes
import json
import math
import pickle
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import shown
from ..errors import UniViGUError
from .locate import kind_of, locate

# Names of dtypes in safetensors headers. Types that this torch does not have are carried as raw bytes.
_DTYPE_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
}
TORCH_DTYPES: dict[str, torch.dtype] = {
    ours: getattr(torch, theirs) for ours, theirs in _DTYPE_NAMES.items() if hasattr(torch, theirs)
}
_NAME_OF_DTYPE = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # as in the safetensors format
_DIMENSIONS_LIMIT = 64  # torch's own
_COUNT_LIMIT = 1 << 63  # sizes and offsets are signed 64-bit numbers in torch and in every system
# Pages of a mapped file count as used memory until it is unmapped: map it anew after so many bytes.
_REMAP_BYTES = 1 << 28


@dataclass(frozen=True)
class Stored:
    """How a tensor lies in a file: dtype (safetensors name, e.g. ``BF16``), shape, size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def like(cls, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Stored:
        return cls(_NAME_OF_DTYPE[dtype], tuple(shape), math.prod(shape) * dtype.itemsize)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """None for types that this torch does not know."""
        return TORCH_DTYPES.get(self.dtype)


class WeightFile(ABC):
    """An opened checkpoint: ``tensors`` by name, string ``metadata``, ``facts`` of a config.json, training ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Stored] = {}
        self.metadata: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.step: int | None = None
        self.nbytes = path.stat().st_size if path.is_file() else 0

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in memory of its own; flat bytes when its dtype is not one of torch's."""


def open_weights(path: str | Path) -> WeightFile:
    """Open a checkpoint file or folder without reading any weights.

    Raises UniViGUError, naming the file, for anything that is not a whole, readable, safe set of weights.
    """
    location = locate(path)
    files: list[WeightFile] = [
        SafetensorsFile(f) if kind_of(f) == "safetensors" else TorchFile(f) for f in location.files
    ]
    opened = files[0] if len(files) == 1 else _Shards(location.path, files)
    opened.facts = location.facts
    return opened


def read_part(path: str | Path, prefix: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint whose names start with ``prefix``, prefix removed, on the CPU; empty when there are none.

    Meant for the parts of an all-in-one file, e.g. ``vae.``. Raises UniViGUError when the file cannot be read.
    """
    weights = open_weights(path)
    return {name[len(prefix) :]: weights.read(name) for name in weights.tensors if name.startswith(prefix)}


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; the tensor must outlive the view. (Does not need numpy.)"""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())) if size else memoryview(b"")


class SafetensorsFile(WeightFile):
    """A safetensors file, opened afresh for every read; the header is checked against the file's size."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._offsets: dict[str, int] = {}
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _HEADER_LIMIT:
                raise self._damaged(f"the header claims {length} bytes")
            if length + 8 > self.nbytes:
                raise self._truncated(length + 8)
            text = file.read(length)
        try:
            header = json.loads(text)
            metadata = header.pop("__metadata__", None) or {}
            self.metadata = {str(key): str(value) for key, value in metadata.items()}
            for name, entry in header.items():
                self._add(name, entry, 8 + length)
        except UniViGUError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError) as error:
            raise self._damaged(f"its header is not readable: {error}") from None
        except MemoryError:
            raise self._damaged(f"its header of {length} bytes does not fit into memory") from None
        end, before = 0, ""
        for begin, name in sorted((begin, name) for name, begin in self._offsets.items() if self.tensors[name].nbytes):
            if begin < end:
                raise self._damaged(f"{before} and {name} claim the same bytes")
            end, before = begin + self.tensors[name].nbytes, name

    def _add(self, name: str, entry: dict[str, Any], start: int) -> None:
        offsets, shape, kind = entry["data_offsets"], entry["shape"], entry["dtype"]
        if not _are_counts(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
            raise self._damaged(f"{name} lies at {shown(offsets)}, expected where it begins and where it ends")
        # Zeros left out: torch computes strides as if they were ones.
        if not _are_counts(shape) or math.prod(size or 1 for size in shape) >= _COUNT_LIMIT:
            raise self._damaged(f"{name} has shape {shown(shape)}, expected a list of sizes")
        if not isinstance(kind, str):
            raise self._damaged(f"{name} has dtype {shown(kind)}, expected a name such as BF16")
        begin, end = offsets
        stored = Stored(kind, tuple(shape), end - begin)
        dtype = stored.torch_dtype
        # A type unknown here may be narrower than a byte, but hardly than a bit.
        fits = 8 * stored.nbytes >= stored.numel if dtype is None else stored.nbytes == stored.numel * dtype.itemsize
        if not fits:
            raise self._damaged(f"{name} is {stored.dtype} {list(stored.shape)} but takes {stored.nbytes} bytes")
        if start + end > self.nbytes:
            raise self._truncated(start + end)
        self.tensors[name] = stored
        self._offsets[name] = start + begin

    def read(self, name: str) -> Tensor:
        stored = self.tensors[name]
        dtype = stored.torch_dtype
        tensor = torch.empty(stored.nbytes, dtype=torch.uint8)
        view = bytes_of(tensor)
        done = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self._offsets[name])
                while done < stored.nbytes:
                    count = file.readinto(view[done:])
                    if not count:
                        raise self._truncated(self._offsets[name] + stored.nbytes)
                    done += count
        except OSError as error:
            raise UniViGUError(f"{self.path}: reading {name} failed ({error.strerror or error})") from error
        return tensor if dtype is None else tensor.view(dtype).reshape(stored.shape)

    def _truncated(self, expected: int) -> UniViGUError:
        return UniViGUError(
            f"{self.path}: the file is incomplete: found {self.nbytes} bytes, its header promises at least {expected}. "
            "Download or copy it again"
        )

    def _damaged(self, reason: str) -> UniViGUError:
        return UniViGUError(f"{self.path}: not a readable safetensors file ({reason}). Download or copy it again")


def _are_counts(values: Any) -> bool:
    """Whether values are a list of non-negative whole numbers, not too many and none too large."""
    return (
        isinstance(values, list)
        and len(values) <= _DIMENSIONS_LIMIT
        and all(type(value) is int and 0 <= value < _COUNT_LIMIT for value in values)
    )


class TorchFile(WeightFile):
    """A ``.pth``: a dict of tensors, bare or as its entry ``model`` (or ``state_dict``), never unpickled freely."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._mapped: dict[str, Tensor] = {}
        self._touched = 0
        self._map()
        unstorable = [name for name, tensor in self._mapped.items() if tensor.dtype not in _NAME_OF_DTYPE]
        if unstorable:
            name = unstorable[0]
            raise UniViGUError(f"{path}: {name} is {self._mapped[name].dtype}, which is not a dtype of weights")
        self.tensors = {name: Stored.like(tensor.shape, tensor.dtype) for name, tensor in self._mapped.items()}

    def read(self, name: str) -> Tensor:
        tensor = self._mapped[name].clone(memory_format=torch.contiguous_format)
        self._touched += tensor.nbytes
        if self._touched > _REMAP_BYTES:
            self._mapped = {}
            self._map()
            self._touched = 0
        return tensor

    def _map(self) -> None:
        whole = _load_safely(self.path)
        state = whole
        if isinstance(whole, dict):
            step = whole.get("step", whole.get("global_step"))
            self.step = int(step) if isinstance(step, (int, float)) and 0 <= step < _COUNT_LIMIT else None
            state = next((whole[key] for key in ("model", "state_dict") if isinstance(whole.get(key), dict)), whole)
        if not isinstance(state, dict):
            raise UniViGUError(f"{self.path}: found a {type(state).__name__}, expected a dict of tensors by name")
        self._mapped = {
            name: value.detach() for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)
        }
        for name, tensor in self._mapped.items():
            self._require_stored(name, tensor)
        if not self._mapped:
            keys = ", ".join(shown(key) for key in list(state)[:5]) or "none"
            raise UniViGUError(f"{self.path}: no tensors in it (entries: {keys}); expected a dict of tensors by name")

    def _require_stored(self, name: str, tensor: Tensor) -> None:
        """Raise UniViGUError for a tensor that is not there in full: one number shown as a million costs a few bytes
        in the file and a million in memory."""
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            found = f"{tensor.layout} on {tensor.device}".replace("torch.", "")
        elif (needed := tensor.numel() * tensor.element_size()) > (present := tensor.untyped_storage().nbytes()):
            found = f"{present} bytes for shape {list(tensor.shape)}, which takes {needed}"
        else:
            return
        raise UniViGUError(
            f"{self.path}: {name} is not stored in full (found {found}); expected plain weights. Save it anew after "
            ".contiguous(), or ask for a safetensors version"
        )


class _Shards(WeightFile):
    """Several files read as one."""

    def __init__(self, path: Path, files: list[WeightFile]) -> None:
        super().__init__(path)
        self._home = {name: file for file in files for name in file.tensors}
        self.tensors = {name: file.tensors[name] for name, file in self._home.items()}
        self.metadata = files[0].metadata
        self.nbytes = sum(file.nbytes for file in files)

    def read(self, name: str) -> Tensor:
        return self._home[name].read(name)


def _load_safely(path: Path) -> Any:
    """``torch.load`` that maps the file and builds nothing but tensors and plain containers."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise UniViGUError(
                f"{path}: found a bare pickle (or torch's format from before 2020), expected a checkpoint written by "
                "torch.save; pickles can run code, so it was not opened. Ask for a safetensors version"
            )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))  # torch's advice to allow it is not passed on
        found = f"found {named[1]}, " if named else ""
        raise UniViGUError(
            f"{path}: refused: {found}expected tensors and plain numbers only, since anything else may be code; "
            "nothing in it was executed. Ask for a safetensors version, or for one with weights only"
        ) from None
    except Exception as error:  # torch reports a damaged archive in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UniViGUError(
            f"{path}: cannot be read as a torch checkpoint ({reason}). The file is damaged or incomplete: download or "
            "copy it again"
        ) from error
