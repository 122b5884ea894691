"""A safetensors file, its header checked against its size before anything is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UniViGUError
from ..settings import shown
from .weight_file import Place, Stored, WeightFile, are_counts, damaged, is_shape

# The format allows 100 MB; the header of the released network takes 0.2. Python takes ten times as much to read it.
_HEADER_LIMIT = 1 << 24
_MOST_METADATA = 1 << 12


def open_safetensors(path: Path) -> WeightFile:
    """The table of contents of a safetensors file. Raises UniViGUError for one that is not sound."""
    weights = WeightFile(path, nbytes=path.stat().st_size)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _HEADER_LIMIT:
            raise damaged(path, f"the header claims {length} bytes, more than the {_HEADER_LIMIT} that are read")
        _require_bytes(weights, 8 + length)
        text = file.read(length)
    try:
        header = json.loads(text)
        weights.metadata = {str(k): str(v) for k, v in (header.pop("__metadata__", None) or {}).items()}
        if len(weights.metadata) > _MOST_METADATA:
            raise damaged(path, f"found {len(weights.metadata)} entries of metadata, more than {_MOST_METADATA}")
        for name, entry in header.items():
            _add(weights, name, entry, 8 + length)
    except UniViGUError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError) as error:
        raise damaged(path, f"its header is not readable: {error}") from None
    except MemoryError:
        raise damaged(path, f"its header of {length} bytes does not fit into memory") from None
    end, before = 0, ""
    for place, name in sorted((place.begin, name) for name, place in weights.places.items() if place.nbytes):
        if place < end:
            raise damaged(path, f"{before} and {name} claim the same bytes")
        end, before = place + weights.places[name].nbytes, name
    return weights


def _add(weights: WeightFile, name: str, entry: dict[str, Any], start: int) -> None:
    offsets, shape, kind = entry["data_offsets"], entry["shape"], entry["dtype"]
    if not are_counts(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise damaged(weights.path, f"{name} lies at {shown(offsets)}, expected where it begins and where it ends")
    if not is_shape(shape):
        raise damaged(weights.path, f"{name} has shape {shown(shape)}, expected a list of sizes")
    if not isinstance(kind, str):
        raise damaged(weights.path, f"{name} has dtype {shown(kind)}, expected a name such as BF16")
    stored = Stored(kind, tuple(shape), offsets[1] - offsets[0])
    dtype = stored.torch_dtype
    # A type unknown here may be narrower than a byte, but hardly than a bit.
    fits = 8 * stored.nbytes >= stored.numel if dtype is None else stored.nbytes == stored.numel * dtype.itemsize
    if not fits:
        raise damaged(weights.path, f"{name} is {kind} {shape} but takes {stored.nbytes} bytes")
    _require_bytes(weights, start + offsets[1])
    weights.tensors[name] = stored
    weights.places[name] = Place(weights.path, start + offsets[0], stored.nbytes)


def _require_bytes(weights: WeightFile, expected: int) -> None:
    if weights.nbytes < expected:
        raise damaged(weights.path, f"found {weights.nbytes} bytes, its header promises at least {expected}")
