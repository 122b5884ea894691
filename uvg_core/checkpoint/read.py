"""Reading tensors one at a time.

A file is opened for its table of contents only; every ``read`` then fetches one tensor into memory of its own. Nothing
stays mapped: a loaded model costs its own size and nothing beside it, and its file may be replaced or deleted.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import mmap
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import shown
from ..errors import UniViGUError
from .inert import Malformed, Named, Refused, Storage, Thing, View
from .locate import kind_of, locate
from .torch_form import contents

log = logging.getLogger(__name__)

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
_MOST_SHARING = 16  # tensors of a file, in multiples of its size: tied weights are stored once


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
    """An opened checkpoint: ``tensors`` by name, string ``metadata``, ``facts`` of a config.json, training ``step``.

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

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in memory of its own; flat bytes when its dtype is not one of torch's."""

    def tell_ignored(self) -> None:
        """Say what is left in the file. For whoever loads the weights, once; ``inspect`` shows it in its report."""
        if self.ignored:
            log.info("%s: ignored %s", self.path, self.ignored)

    def _bytes_at(self, begin: int, name: str) -> Tensor:
        """A tensor's bytes, which lie in one piece in the file."""
        tensor = torch.empty(self.tensors[name].nbytes, dtype=torch.uint8)
        view = bytes_of(tensor)
        done = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(begin)
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise self._truncated(begin + len(view))
                    done += count
        except OSError as error:
            raise UniViGUError(f"{self.path}: reading {name} failed ({error.strerror or error})") from error
        return tensor

    def _truncated(self, expected: int) -> UniViGUError:
        """What to raise for a file that has become shorter than it was."""
        return UniViGUError(f"{self.path}: the file ends before byte {expected}. Download or copy it again")


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
        flat, dtype = self._bytes_at(self._offsets[name], name), stored.torch_dtype
        return flat if dtype is None else flat.view(dtype).reshape(stored.shape)

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
    """A ``.pth``: a dict of tensors, bare or as its entry ``model`` (or ``state_dict``). Nothing in it is executed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                opened = contents(data)
        except Refused as error:
            raise UniViGUError(f"{path}: {error}") from None
        except Malformed as error:
            raise self._damaged(str(error)) from error
        except (OSError, ValueError) as error:
            raise UniViGUError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        self._swapped = opened.byteorder != sys.byteorder
        self._offsets: dict[str, int] = {}
        self._views = self._weights(opened.saved)
        for name, view in self._views.items():
            self._add(name, view, opened.places.get(view.storage.key))
        total = sum(stored.nbytes for stored in self.tensors.values())
        if total > _MOST_SHARING * self.nbytes:
            raise UniViGUError(
                f"{path}: found tensors of {total} bytes in a file of {self.nbytes}: they show the same numbers again "
                "and again; expected plain weights. Ask for a safetensors version"
            )

    def _weights(self, saved: Any) -> dict[str, View]:
        """The tensors by name; sets ``step`` and ``ignored``."""
        whole = _entries(saved)
        if whole is None:
            raise UniViGUError(f"{self.path}: found a {_kind(saved)}, expected a dict of tensors by name")
        choices = {key: _entries(whole.get(key)) or {} for key in ("model", "state_dict")}
        inside = next((key for key, state in choices.items() if any(map(_is_tensor, state.values()))), None)
        state = whole if inside is None else choices[inside]
        views: dict[str, View] = {}
        others = {} if inside is None else {key: value for key, value in whole.items() if key != inside}
        for name, value in state.items():
            if isinstance(value, View) and isinstance(name, str):
                views[name] = value
            elif _is_tensor(value):
                raise self._not_stored(str(name), f"a {_kind(value)}")
            else:
                others[name] = value
        if not views:
            raise UniViGUError(
                f"{self.path}: no tensors in it (entries: {_listed(others)}; nothing in it was executed); expected a "
                "dict of tensors by name"
            )
        counter = "step" if "step" in whole else "global_step"
        step = whole.get(counter)
        if isinstance(step, (int, float)) and 0 <= step < _COUNT_LIMIT:
            self.step = int(step)
            others.pop(counter, None)
        if others:
            self.ignored = f"{len(others)} thing{'s' * (len(others) > 1)} beside the weights: {_listed(others)}"
        return views

    def _add(self, name: str, view: View, place: tuple[int, int] | None) -> None:
        """Raise UniViGUError for a tensor that is not there in full: one number shown as a million costs a few bytes
        in the file and a million in memory."""
        if view.dtype not in _NAME_OF_DTYPE:
            raise UniViGUError(f"{self.path}: {name} is {view.dtype}, which is not a dtype of weights")
        storage, itemsize = view.storage, view.storage.dtype.itemsize
        if place is None:
            raise self._damaged(f"the numbers of {name} are not in it")
        present = storage.count * itemsize
        if storage.start * itemsize + present > place[1]:
            raise self._damaged(f"of the numbers of {name}, {present} bytes, {place[1]} are in it")
        if view.needed > present:
            raise self._not_stored(name, f"{present} bytes for shape {list(view.shape)}, which takes {view.needed}")
        first = view.offset * view.dtype.itemsize
        if first + view.span > present:
            raise self._damaged(f"{name} goes beyond its {present} bytes")
        self.tensors[name] = Stored.like(view.shape, view.dtype)
        self._offsets[name] = place[0] + storage.start * itemsize + first

    def read(self, name: str) -> Tensor:
        view, begin = self._views[name], self._offsets[name]
        if view.contiguous:
            tensor = self._bytes_at(begin, name).view(view.dtype).reshape(view.shape)
        else:  # numbers of other tensors lie between: mapped, so that only what is needed is read
            with self.path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if len(data) < begin + view.span:
                raise self._truncated(begin + view.span)
            numbers = torch.frombuffer(data, dtype=torch.uint8, count=view.span, offset=begin).view(view.dtype)
            tensor = numbers.as_strided(view.shape, view.stride).clone(memory_format=torch.contiguous_format)
        if self._swapped:
            tensor.untyped_storage().byteswap(view.dtype)
        return tensor

    def _truncated(self, expected: int) -> UniViGUError:
        return self._damaged(f"it ends before byte {expected}")

    def _damaged(self, reason: str) -> UniViGUError:
        return UniViGUError(
            f"{self.path}: cannot be read as a torch checkpoint ({reason}). The file is damaged or incomplete: "
            "download or copy it again"
        )

    def _not_stored(self, name: str, found: str) -> UniViGUError:
        return UniViGUError(
            f"{self.path}: {name} is not stored in full (found {found}); expected plain weights. Save it anew after "
            ".contiguous() (of sharded weights, the full ones), or ask for a safetensors version"
        )


def _entries(value: Any) -> dict[Any, Any] | None:
    """The entries of a dict, or of what was made by a class of dicts."""
    return value.entries if isinstance(value, Thing) else value if isinstance(value, dict) else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, View) or (isinstance(value, Thing) and value.is_tensor)


def _kind(value: Any) -> str:
    if isinstance(value, (View, Storage)):
        return type(value).__name__.lower().replace("view", "tensor")
    return repr(value) if isinstance(value, (Thing, Named)) else type(value).__name__


def _listed(entries: dict[Any, Any], most: int = 5) -> str:
    """The first by name and kind."""
    named = [f"{shown(key).strip(chr(39))} ({_kind(value)})" for key, value in islice(entries.items(), most)]
    more = [f"{len(entries) - most} more"] if len(entries) > most else []
    return ", ".join(named + more) or "none"


class _Shards(WeightFile):
    """Several files read as one."""

    def __init__(self, path: Path, files: list[WeightFile]) -> None:
        super().__init__(path)
        self._home = {name: file for file in files for name in file.tensors}
        self.tensors = {name: file.tensors[name] for name, file in self._home.items()}
        self.metadata = files[0].metadata
        self.ignored = "; ".join(file.ignored for file in files if file.ignored)
        self.nbytes = sum(file.nbytes for file in files)

    def read(self, name: str) -> Tensor:
        return self._home[name].read(name)
