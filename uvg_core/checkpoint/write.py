"""Writing native safetensors, one tensor at a time.

The safetensors library wants all tensors at once; here the header is written first, from shapes alone, and each tensor
is then fetched, written to its place and let go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CheckpointConfig, RunConfig
from ..errors import UniViGUError
from ..io import written_whole
from ..model import UniViGU
from .keys import NETWORK_PREFIXES, strip_wrappers
from .read import Stored, WeightFile, bytes_of

ALL_IN_ONE_PREFIX = NETWORK_PREFIXES[0]
SUFFIXES = (".safetensors", ".sft")  # ComfyUI chooses its reader by these
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Pending:
    """A tensor to come: how it will be stored, and how to get it when its turn comes."""

    stored: Stored
    produce: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor, dtype: torch.dtype | None = None) -> Pending:
        """A tensor that is here already, floating point in ``dtype``; by default as it is."""
        dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return cls(Stored.like(tensor.shape, dtype), partial(tensor.detach().to, "cpu", dtype))


def carried_over(weights: WeightFile, names: Iterable[str]) -> dict[str, Pending]:
    """Tensors of another file, to be written as they are there."""
    return {name: Pending(weights.tensors[name], partial(weights.read, name)) for name in names}


def save_model(
    model: UniViGU,
    path: str | Path,
    *,
    run: RunConfig | None = None,
    card: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model as native safetensors, which ``load_model`` and (with this pack) ComfyUI read.

    Args:
        run, card: go into the metadata beside the model's own configuration.
        dtype: of the stored weights; by default as they are.
        extra: further tensors under their full names, e.g. ``vae.*`` and ``text_encoders.umt5xxl.*``; the file then is
            a ComfyUI all-in-one checkpoint, the network under ``model.diffusion_model.``.

    The file appears whole or not at all. Raises UniViGUError when it cannot be written.
    """
    extra = extra or {}
    prefix = ALL_IN_ONE_PREFIX if extra else ""
    clash = next((name for name in extra if name.startswith(ALL_IN_ONE_PREFIX)), None)
    if clash is not None:
        raise UniViGUError(f"{path}: the extra tensor {clash} lies where the network goes; give it another name")
    pending = {prefix + strip_wrappers(name): Pending.of(w, dtype) for name, w in model.state_dict().items()}
    pending |= {name: Pending.of(tensor) for name, tensor in extra.items()}
    config = CheckpointConfig(model=model.config, run=run or RunConfig(), card=card or {})
    write_safetensors(path, pending, {"config": config.to_json(), "format": "pt"})


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str], on_progress: Progress | None = None
) -> None:
    """Stream ``tensors``, in their order, into a file that appears whole or not at all.

    ``on_progress(done, total)`` counts bytes; what it raises stops the writing and leaves nothing behind. Raises
    UniViGUError when the path is no safetensors name or the system refuses.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UniViGUError(f"{path}: expected a name that ends in .safetensors, since loaders choose by it; rename it")
    if not path.parent.is_dir():
        raise UniViGUError(f"{path}: its folder does not exist; make it, or choose another")
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offsets: dict[str, int] = {}
    total = 0
    # Wide numbers first, so that each lies at a multiple of its own size: the library maps them in place.
    for name in sorted(tensors, key=lambda name: -tensors[name].stored.itemsize):
        stored = tensors[name].stored
        offsets[name], total = total, total + stored.nbytes
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [offsets[name], total]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    done = 0
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, pending in tensors.items():
            tensor = pending.produce().contiguous()
            if tensor.nbytes != pending.stored.nbytes:
                raise AssertionError(f"{name}: {tensor.nbytes} bytes came, {pending.stored.nbytes} were announced")
            file.seek(8 + len(text) + offsets[name])
            file.write(bytes_of(tensor))
            done += tensor.nbytes
            if on_progress is not None:
                on_progress(done, total)
