"""Reading tensors one at a time.

A file is opened for its table of contents only; every ``read`` then fetches one tensor into memory of its own. Nothing
stays mapped: a loaded model costs its own size and nothing beside it, and its file may be replaced or deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..errors import UniViGUError
from .locate import Location, kind_of, locate
from .safetensors_file import open_safetensors
from .torch_file import open_torch
from .weight_file import Stored, WeightFile, bytes_of

__all__ = ["Stored", "WeightFile", "bytes_of", "open_safetensors", "open_weights", "read_part"]


def open_weights(path: str | Path) -> WeightFile:
    """Open a checkpoint file or folder without reading any weights; several shards are read as one file.

    Raises UniViGUError, naming the file, for anything that is not a whole, readable, safe set of weights.
    """
    location = locate(path)
    files = [open_safetensors(file) if kind_of(file) == "safetensors" else open_torch(file) for file in location.files]
    _require_listed(location, files)
    opened = files[0]
    opened.facts = location.facts
    for file in files[1:]:
        opened.path = location.path
        opened.tensors |= file.tensors
        opened.places |= file.places
        opened.ignored = "; ".join(filter(None, (opened.ignored, file.ignored)))
        opened.nbytes += file.nbytes
    return opened


def _require_listed(location: Location, files: Sequence[WeightFile]) -> None:
    """Raise UniViGUError where a shard lacks a tensor that the index says is in it, or two shards have the same."""
    holding = {file.path.name: file.tensors for file in files}
    absent = [name for name, shard in location.shards.items() if name not in holding[shard]]
    if absent:
        raise UniViGUError(
            f"{location.path}: lists {len(absent)} tensors that its shards do not hold (first: {absent[0][:200]}, in "
            f"{location.shards[absent[0]]}). Download index and shards again, from one place"
        )
    counts = Counter(name for tensors in holding.values() for name in tensors)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise UniViGUError(f"{location.path}: {twice[:200]} is in two shards. Download the files again, from one place")


def read_part(path: str | Path, prefix: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint whose names start with ``prefix``, prefix removed, on the CPU; empty when there are none.

    Meant for the parts of an all-in-one file, e.g. ``vae.``. Raises UniViGUError when the file cannot be read.
    """
    weights = open_weights(path)
    return {name[len(prefix) :]: weights.read(name) for name in weights.tensors if name.startswith(prefix)}
