"""A prompt condition from a file: the release guides away from one that it ships (``empty_context_t5_emb.pt``), in
place of the encoded empty prompt."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..checkpoint.read import open_weights
from ..checkpoint.torch_file import read_saved
from ..errors import UniViGUError

MOST_ROWS = 8192
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".sft")


def read_null_embedding(path: str | Path, width: int | None = None) -> Tensor:
    """The condition ``[1,S,E]``, float32, of a file with one tensor, ``[S,E]`` or ``[1,S,E]``, alone or in a dict.

    ``.pt`` files are opened without running anything in them. ``width``: the E that the model reads, None if any is
    right. Raises UniViGUError, naming the file, when it holds anything else.
    """
    path = Path(path)
    found = [tensor for tensor in _tensors(path) if tensor.ndim in (2, 3) and tensor.is_floating_point()]
    expected = f"one tensor [rows, {width or 'width'}], hidden states of the text encoder"
    if len(found) != 1:
        raise UniViGUError(
            f"{path}: found {len(found)} tensors with rows and columns; expected {expected}, such as the release's "
            "empty_context_t5_emb.pt"
        )
    states = found[0].float() if found[0].ndim == 3 else found[0].float()[None]
    batch, rows, columns = states.shape
    if batch != 1 or not 1 <= rows <= MOST_ROWS or columns != (width or columns):
        raise UniViGUError(
            f"{path}: found a tensor {list(found[0].shape)}; expected {expected}. It belongs to another text encoder "
            "or is no prompt condition: choose another file"
        )
    if not bool(states.isfinite().all()):
        raise UniViGUError(f"{path}: the tensor holds values that are not numbers; download the file again")
    return states


def _tensors(path: Path) -> list[Tensor]:
    if not path.is_file():
        raise UniViGUError(f"{path}: no such file; expected a prompt condition, such as empty_context_t5_emb.pt")
    if path.suffix.lower() not in SUFFIXES:
        raise UniViGUError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    if path.suffix.lower() in (".safetensors", ".sft"):
        weights = open_weights(path)
        return [weights.read(name) for name in weights.tensors]
    try:
        saved = read_saved(path)
    except UniViGUError as error:
        raise UniViGUError(f"{path}: cannot be read as one tensor. {error}") from None
    values = list(saved.values()) if isinstance(saved, dict) else saved if isinstance(saved, list) else [saved]
    if any(value is None for value in values):
        raise UniViGUError(
            f"{path}: holds an object that is no tensor; expected one tensor. Nothing in it was executed. Ask for a "
            "safetensors version"
        )
    return [value for value in values if isinstance(value, Tensor)]
