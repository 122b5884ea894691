"""A file of ``torch.save``: the tensors in it, found and read without running anything."""

from __future__ import annotations

import mmap
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import UniViGUError
from ..settings import shown
from .inert_values import Named, StandIn, Storage, View
from .torch_form import contents
from .weight_file import COUNT_LIMIT, NAME_OF_DTYPE, Place, Stored, WeightFile, damaged

_DEEPEST = 20  # dicts and lists in one another
_MOST_SHARING = 16  # tensors of a file, in multiples of its size: tied weights are stored once


def open_torch(path: Path) -> WeightFile:
    """A ``.pth``: a dict of tensors, bare or as its entry ``model`` (or ``state_dict``). Nothing in it is executed.

    Raises UniViGUError for anything else, and for tensors that are not there in full."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            opened = contents(path, file, data)
    except OSError as error:
        raise UniViGUError(f"{path}: cannot be read ({error.strerror or error})") from error
    weights = WeightFile(path, nbytes=path.stat().st_size)
    for name, view in _views(weights, opened.saved).items():
        begin, nbytes = _place(path, name, view, opened.places.get(view.storage.key))
        weights.tensors[name] = Stored.like(view.shape, view.dtype)
        weights.places[name] = Place(path, begin, nbytes, view.stride, opened.byteorder != sys.byteorder)
    total = sum(stored.nbytes for stored in weights.tensors.values())
    if total > _MOST_SHARING * weights.nbytes:
        raise UniViGUError(
            f"{path}: found tensors of {total} bytes in a file of {weights.nbytes}: they show the same numbers again "
            "and again; expected plain weights. Ask for a safetensors version"
        )
    return weights


def read_saved(path: Path) -> Any:
    """The object in a small ``torch.save`` file, such as an optimizer's state: dicts and lists of tensors and plain
    values. Nothing in it is executed; any other object is None. Raises UniViGUError."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            opened = contents(path, file, data)
    except (OSError, ValueError) as error:
        raise UniViGUError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    weights, size = WeightFile(path), path.stat().st_size
    total = 0

    def plain(value: Any, depth: int = 0) -> Any:
        nonlocal total
        if depth > _DEEPEST:
            raise damaged(path, "it is nested too deeply")
        if isinstance(value, View):
            name = str(len(weights.tensors))
            begin, nbytes = _place(path, name, value, opened.places.get(value.storage.key))
            weights.tensors[name] = Stored.like(value.shape, value.dtype)
            weights.places[name] = Place(path, begin, nbytes, value.stride, opened.byteorder != sys.byteorder)
            total += weights.tensors[name].nbytes
            if total > _MOST_SHARING * size:
                raise damaged(path, "its tensors show the same numbers again and again")
            return weights.read(name)
        if (entries := _entries(value)) is not None:
            return {key: plain(one, depth + 1) for key, one in entries.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one, depth + 1) for one in value]
        return value if isinstance(value, (int, float, str)) else None

    return plain(opened.saved)


def _views(weights: WeightFile, saved: Any) -> dict[str, View]:
    """The tensors by name; sets ``step`` and ``ignored``."""
    whole = _entries(saved)
    if whole is None:
        raise UniViGUError(f"{weights.path}: found a {_kind(saved)}, expected a dict of tensors by name")
    states = {key: _entries(whole.get(key)) or {} for key in ("model", "state_dict")}
    inside = next((key for key, state in states.items() if any(map(_is_tensor, state.values()))), None)
    state = whole if inside is None else states[inside]
    others = {} if inside is None else {key: value for key, value in whole.items() if key != inside}
    views = {name: value for name, value in state.items() if isinstance(value, View) and isinstance(name, str)}
    others |= {name: value for name, value in state.items() if name not in views}
    odd = next((name for name in state if name not in views and _is_tensor(state[name])), None)
    if odd is not None:
        raise _not_stored(weights.path, str(odd), f"a {_kind(state[odd])}")
    if not views:
        raise UniViGUError(
            f"{weights.path}: no tensors in it (entries: {_listed(others)}; nothing in it was executed); expected a "
            "dict of tensors by name"
        )
    counter = "step" if "step" in whole else "global_step"
    step = whole.get(counter)
    if isinstance(step, (int, float)) and 0 <= step < COUNT_LIMIT:
        weights.step = int(step)
        others.pop(counter, None)
    if others:
        weights.ignored = f"{len(others)} thing{'s' * (len(others) > 1)} beside the weights: {_listed(others)}"
    return views


def _place(path: Path, name: str, view: View, place: tuple[int, int] | None) -> tuple[int, int]:
    """First byte and number of bytes. Raises UniViGUError for a tensor that is not there in full: one number shown as
    a million costs a few bytes in the file and a million in memory."""
    if view.dtype not in NAME_OF_DTYPE:
        raise UniViGUError(f"{path}: {name} is {view.dtype}, which is not a dtype of weights")
    if place is None:
        raise damaged(path, f"the numbers of {name} are not in it")
    start, present = (count * view.storage.dtype.itemsize for count in (view.storage.start, view.storage.count))
    if start + present > place[1]:
        raise damaged(path, f"of the numbers of {name}, {present} bytes, {place[1]} are in it")
    wanted = Stored.like(view.shape, view.dtype).nbytes
    if wanted > present:
        raise _not_stored(path, name, f"{present} bytes for shape {list(view.shape)}, which takes {wanted}")
    first = view.offset * view.dtype.itemsize
    if first + view.span > present:
        raise damaged(path, f"{name} goes beyond its {present} bytes")
    return place[0] + start + first, view.span


def _not_stored(path: Path, name: str, found: str) -> UniViGUError:
    return UniViGUError(
        f"{path}: {name} is not stored in full (found {found}); expected plain weights. Save it anew after "
        ".contiguous() (of sharded weights, the full ones), or ask for a safetensors version"
    )


def _entries(value: Any) -> dict[Any, Any] | None:
    """The entries of a dict, or of what was made by a class of dicts."""
    return value.entries if isinstance(value, StandIn) else value if isinstance(value, dict) else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, View) or (isinstance(value, StandIn) and value.is_tensor)


def _kind(value: Any) -> str:
    """What a value is, in words: of what was saved, the class's name."""
    if isinstance(value, (StandIn, Named)):
        return repr(value)
    return {View: "tensor", Storage: "storage"}.get(type(value), type(value).__name__)


def _listed(entries: dict[Any, Any], most: int = 5) -> str:
    """The first by name and kind."""
    named = [f"{shown(key).strip(chr(39))} ({_kind(value)})" for key, value in islice(entries.items(), most)]
    more = [f"{len(entries) - most} more"] if len(entries) > most else []
    return ", ".join(named + more) or "none"
