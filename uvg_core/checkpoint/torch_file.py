"""A file of ``torch.save``: the tensors in it, found and read without running anything."""

from __future__ import annotations

import mmap
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import shown
from ..errors import UniViGUError
from .inert import Malformed, Refused
from .inert_values import StandIn, Storage, View
from .torch_form import contents
from .weight_file import COUNT_LIMIT, NAME_OF_DTYPE, Stored, WeightFile

_MOST_SHARING = 16  # tensors of a file, in multiples of its size: tied weights are stored once


class TorchFile(WeightFile):
    """A ``.pth``: a dict of tensors, bare or as its entry ``model`` (or ``state_dict``). Nothing in it is executed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                opened = contents(file, data)
        except Refused as error:
            raise UniViGUError(f"{path}: {error}") from None
        except Malformed as error:
            raise self._damaged(str(error)) from error
        except (OSError, ValueError) as error:
            raise UniViGUError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        self._swapped = opened.byteorder != sys.byteorder
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
        states = {key: _entries(whole.get(key)) or {} for key in ("model", "state_dict")}
        inside = next((key for key, state in states.items() if any(map(_is_tensor, state.values()))), None)
        state = whole if inside is None else states[inside]
        others = {} if inside is None else {key: value for key, value in whole.items() if key != inside}
        views = {name: value for name, value in state.items() if isinstance(value, View) and isinstance(name, str)}
        others |= {name: value for name, value in state.items() if name not in views}
        odd = next((name for name in state if name not in views and _is_tensor(state[name])), None)
        if odd is not None:
            raise self._not_stored(str(odd), f"a {_kind(state[odd])}")
        if not views:
            raise UniViGUError(
                f"{self.path}: no tensors in it (entries: {_listed(others)}; nothing in it was executed); expected a "
                "dict of tensors by name"
            )
        counter = "step" if "step" in whole else "global_step"
        step = whole.get(counter)
        if isinstance(step, (int, float)) and 0 <= step < COUNT_LIMIT:
            self.step = int(step)
            others.pop(counter, None)
        if others:
            self.ignored = f"{len(others)} thing{'s' * (len(others) > 1)} beside the weights: {_listed(others)}"
        return views

    def _add(self, name: str, view: View, place: tuple[int, int] | None) -> None:
        """Raise UniViGUError for a tensor that is not there in full: one number shown as a million costs a few bytes
        in the file and a million in memory."""
        if view.dtype not in NAME_OF_DTYPE:
            raise UniViGUError(f"{self.path}: {name} is {view.dtype}, which is not a dtype of weights")
        if place is None:
            raise self._damaged(f"the numbers of {name} are not in it")
        start, present = (count * view.storage.dtype.itemsize for count in (view.storage.start, view.storage.count))
        if start + present > place[1]:
            raise self._damaged(f"of the numbers of {name}, {present} bytes, {place[1]} are in it")
        stored = Stored.like(view.shape, view.dtype)
        if stored.nbytes > present:
            raise self._not_stored(name, f"{present} bytes for shape {list(view.shape)}, which takes {stored.nbytes}")
        first = view.offset * view.dtype.itemsize
        if first + view.span > present:
            raise self._damaged(f"{name} goes beyond its {present} bytes")
        self.tensors[name], self._offsets[name] = stored, place[0] + start + first

    def read(self, name: str) -> Tensor:
        view = self._views[name]
        # Numbers of other tensors may lie between those of this one.
        numbers = self._bytes(name, view.span).view(view.dtype)
        tensor = numbers.as_strided(view.shape, view.stride).contiguous()
        if self._swapped:
            tensor.untyped_storage().byteswap(view.dtype)
        return tensor

    def _not_stored(self, name: str, found: str) -> UniViGUError:
        return UniViGUError(
            f"{self.path}: {name} is not stored in full (found {found}); expected plain weights. Save it anew after "
            ".contiguous() (of sharded weights, the full ones), or ask for a safetensors version"
        )


def _entries(value: Any) -> dict[Any, Any] | None:
    """The entries of a dict, or of what was made by a class of dicts."""
    return value.entries if isinstance(value, StandIn) else value if isinstance(value, dict) else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, View) or (isinstance(value, StandIn) and value.is_tensor)


def _kind(value: Any) -> str:
    """What a value is, in words: of what was saved, the class's name."""
    known = {View: "tensor", Storage: "storage"}.get(type(value), type(value).__name__)
    return repr(value) if known in ("StandIn", "Named") else known


def _listed(entries: dict[Any, Any], most: int = 5) -> str:
    """The first by name and kind."""
    named = [f"{shown(key).strip(chr(39))} ({_kind(value)})" for key, value in islice(entries.items(), most)]
    more = [f"{len(entries) - most} more"] if len(entries) > most else []
    return ", ".join(named + more) or "none"
