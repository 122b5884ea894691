"""How many bytes of tensors are alive at the peak of some work: the same everywhere, unlike a process's memory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """``peak``: the most bytes that tensors made inside held at once. What kernels take for themselves is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        for leaf in tree_leaves(out):
            if not torch.is_tensor(leaf):
                continue
            storage = leaf.untyped_storage()
            place, size = storage.data_ptr(), storage.nbytes()
            if place in given or place in self._known:
                continue
            self._known.add(place)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, place, size)
        return out

    def _gone(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size
