"""Writing native safetensors, one tensor at a time.

The safetensors library wants all tensors at once; here the header is written first, from shapes alone, and each tensor
is then fetched, written to its place and let go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
from .read import Stored, bytes_of

ALL_IN_ONE_PREFIX = NETWORK_PREFIXES[0]
SUFFIXES = (".safetensors", ".sft")  # ComfyUI chooses its reader by these
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Pending:
    """A tensor to come: how it will be stored, and how to get it when its turn comes."""

    stored: Stored
    produce: Callable[[], Tensor]


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
    pending = {}
    for name, tensor in model.state_dict().items():
        pending[prefix + strip_wrappers(name)] = _pending(tensor, dtype)
    pending |= {name: _pending(tensor, None) for name, tensor in extra.items()}
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
    # Wide numbers first, so that each lies at a multiple of its own size: the library maps them in place.
    layout = sorted(tensors, key=lambda name: -(tensors[name].stored.nbytes // max(tensors[name].stored.numel, 1)))
    offsets: dict[str, int] = {}
    total = 0
    for name in layout:
        offsets[name] = total
        total += tensors[name].stored.nbytes
    header = _header(tensors, offsets, metadata)
    start, done = 8 + len(header), 0
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name, pending in tensors.items():
            tensor = pending.produce().contiguous()
            if tensor.nbytes != pending.stored.nbytes:
                raise AssertionError(f"{name}: {tensor.nbytes} bytes came, {pending.stored.nbytes} were announced")
            file.seek(start + offsets[name])
            file.write(bytes_of(tensor))
            done += tensor.nbytes
            if on_progress is not None:
                on_progress(done, total)


def _header(tensors: Mapping[str, Pending], offsets: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
    """The JSON header, padded with spaces to a multiple of eight."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, begin in offsets.items():
        stored = tensors[name].stored
        entries[name] = {
            "dtype": stored.dtype,
            "shape": list(stored.shape),
            "data_offsets": [begin, begin + stored.nbytes],
        }
    header = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    return header + b" " * (-len(header) % 8)


def _pending(tensor: Tensor, dtype: torch.dtype | None) -> Pending:
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return Pending(Stored.like(tensor.shape, dtype), partial(tensor.detach().to, "cpu", dtype))
