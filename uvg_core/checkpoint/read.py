"""Reading tensors one at a time.

A file is opened for its table of contents only; every ``read`` then fetches one tensor into memory of its own. Nothing
stays mapped: a loaded model costs its own size and nothing beside it, and its file may be replaced or deleted.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .locate import kind_of, locate
from .safetensors_file import SafetensorsFile
from .torch_file import TorchFile
from .weight_file import Stored, WeightFile, bytes_of

__all__ = ["SafetensorsFile", "Stored", "TorchFile", "WeightFile", "bytes_of", "open_weights", "read_part"]


def open_weights(path: str | Path) -> WeightFile:
    """Open a checkpoint file or folder without reading any weights.

    Raises UniViGUError, naming the file, for anything that is not a whole, readable, safe set of weights.
    """
    location = locate(path)
    files = [SafetensorsFile(f) if kind_of(f) == "safetensors" else TorchFile(f) for f in location.files]
    opened = files[0] if len(files) == 1 else _Shards(location.path, files)
    opened.facts = location.facts
    return opened


def read_part(path: str | Path, prefix: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint whose names start with ``prefix``, prefix removed, on the CPU; empty when there are none.

    Meant for the parts of an all-in-one file, e.g. ``vae.``. Raises UniViGUError when the file cannot be read.
    """
    weights = open_weights(path)
    return {name[len(prefix) :]: weights.read(name) for name in weights.tensors if name.startswith(prefix)}


class _Shards(WeightFile):
    """Several files read as one."""

    def __init__(self, path: Path, files: list[SafetensorsFile | TorchFile]) -> None:
        super().__init__(path)
        self._home = {name: file for file in files for name in file.tensors}
        self.tensors = {name: file.tensors[name] for name, file in self._home.items()}
        self.metadata = files[0].metadata
        self.ignored = "; ".join(file.ignored for file in files if file.ignored)
        self.nbytes = sum(file.nbytes for file in files)

    def read(self, name: str) -> Tensor:
        return self._home[name].read(name)
