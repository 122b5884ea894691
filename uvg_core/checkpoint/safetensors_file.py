"""A safetensors file, its header checked against its size before anything is believed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import shown
from ..errors import UniViGUError
from .weight_file import COUNT_LIMIT, Stored, WeightFile

_HEADER_LIMIT = 100_000_000  # as in the safetensors format
_DIMENSIONS_LIMIT = 64  # torch's own


class SafetensorsFile(WeightFile):
    """A safetensors file, opened afresh for every read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _HEADER_LIMIT:
                raise self._damaged(f"the header claims {length} bytes")
            self._require_bytes(8 + length)
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
        for begin, name in sorted((self._offsets[n], n) for n, stored in self.tensors.items() if stored.nbytes):
            if begin < end:
                raise self._damaged(f"{before} and {name} claim the same bytes")
            end, before = begin + self.tensors[name].nbytes, name

    def _add(self, name: str, entry: dict[str, Any], start: int) -> None:
        offsets, shape, kind = entry["data_offsets"], entry["shape"], entry["dtype"]
        if not _are_counts(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
            raise self._damaged(f"{name} lies at {shown(offsets)}, expected where it begins and where it ends")
        # Zeros left out: torch computes strides as if they were ones.
        if not _are_counts(shape) or math.prod(size or 1 for size in shape) >= COUNT_LIMIT:
            raise self._damaged(f"{name} has shape {shown(shape)}, expected a list of sizes")
        if not isinstance(kind, str):
            raise self._damaged(f"{name} has dtype {shown(kind)}, expected a name such as BF16")
        stored = Stored(kind, tuple(shape), offsets[1] - offsets[0])
        dtype = stored.torch_dtype
        # A type unknown here may be narrower than a byte, but hardly than a bit.
        fits = 8 * stored.nbytes >= stored.numel if dtype is None else stored.nbytes == stored.numel * dtype.itemsize
        if not fits:
            raise self._damaged(f"{name} is {kind} {shape} but takes {stored.nbytes} bytes")
        self._require_bytes(start + offsets[1])
        self.tensors[name], self._offsets[name] = stored, start + offsets[0]

    def read(self, name: str) -> Tensor:
        stored = self.tensors[name]
        flat = self._bytes(name, stored.nbytes)
        return flat if stored.torch_dtype is None else flat.view(stored.torch_dtype).reshape(stored.shape)

    def _require_bytes(self, expected: int) -> None:
        if self.nbytes < expected:
            raise self._damaged(f"found {self.nbytes} bytes, its header promises at least {expected}")


def _are_counts(values: Any) -> bool:
    """Whether values are a list of non-negative whole numbers, not too many and none too large."""
    return (
        isinstance(values, list)
        and len(values) <= _DIMENSIONS_LIMIT
        and all(type(value) is int and 0 <= value < COUNT_LIMIT for value in values)
    )
