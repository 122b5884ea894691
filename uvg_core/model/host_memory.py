"""Pinned memory of the host for tensors that a device fetches one after the other, in a circle."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .memory import free_memory

log = logging.getLogger(__name__)

SLAB = 2**30  # bytes that are pinned at once: torch rounds each allocation up to a power of two


@dataclass
class _Stage:
    """Room on the device for a tensor on its way from the host; ``there``: when it has come; ``index``: which it is."""

    data: Tensor
    there: torch.cuda.Event
    index: int = -1


class HostMemory:
    """Room for tensors in pinned memory, and their way back to a CUDA device: each is fetched while the device works
    with the one before it. Pinning takes longer than copying: what is pinned is used again after ``clear``."""

    def __init__(self) -> None:
        self._slabs: list[Tensor] = []
        self._size = 0  # bytes of one tensor
        self._side: torch.cuda.Stream | None = None
        self.clear()

    def clear(self) -> None:
        """Give all room free."""
        if self._side is not None:
            self._side.synchronize()  # a tensor may be on its way from where the next one is written
        self._taken = 0  # tensors there is room given for
        self._stages: list[_Stage] = []

    def __del__(self) -> None:
        if getattr(self, "_slabs", None):
            self.clear()
            self._slabs.clear()
            # torch would keep what was pinned until the process ends.
            empty: Any = getattr(torch.accelerator, "empty_host_cache", None)
            if empty is None:  # an older torch: builds for CUDA have it under another name
                empty = getattr(torch._C, "_host_emptyCache", lambda: None)
            with contextlib.suppress(RuntimeError):  # there is no device to have pinned it for
                empty()

    @property
    def _pinned(self) -> int:
        return sum(slab.numel() for slab in self._slabs)

    @property
    def free(self) -> float:
        """Bytes that may be taken, what is pinned already among them."""
        return free_memory(torch.device("cpu")) + self._pinned

    def empty(self, shape: Sequence[int], dtype: torch.dtype, count: int) -> Tensor:
        """Room for a tensor, one of ``count`` like it; in ordinary memory where no more can be pinned."""
        nbytes = dtype.itemsize * torch.Size(shape).numel()
        size = -(-nbytes // 512) * 512
        of_a_slab = max(1, SLAB // size)
        slab, place = divmod(self._taken, of_a_slab)
        if size != self._size:
            self._slabs, self._size = [], size
        if slab == len(self._slabs):
            wanted = size * min(of_a_slab, count - self._taken)
            try:
                self._slabs.append(torch.empty(wanted, dtype=torch.uint8, pin_memory=True))
            except RuntimeError as error:
                log.warning("video cache: %s; continuing with memory that is not pinned, which is slower", error)
                self._slabs.append(torch.empty(wanted, dtype=torch.uint8))
        self._taken += 1
        return self._slabs[slab][place * size : place * size + nbytes].view(dtype).view(shape)

    def fetched(self, index: int, tensors: Sequence[Tensor], room: int, device: torch.device) -> Tensor:
        """Tensor ``index`` of ``tensors`` ``[2,B,V,D]`` on the device, with ``room`` more places behind V; the next one
        is on its way from then on. What is returned is written over when the one after the next is fetched."""
        if not self._stages:
            self._side = torch.cuda.Stream(device)
            self._stages = [self._stage(tensors[0], room, device) for _ in range(2)]
        here, other = self._stages if self._stages[0].index == index else self._stages[::-1]
        if here.index != index:
            self._fetch(index, tensors, here)
        torch.cuda.current_stream(device).wait_event(here.there)
        self._fetch((index + 1) % len(tensors), tensors, other)
        return here.data

    def _stage(self, like: Tensor, room: int, device: torch.device) -> _Stage:
        two, rows, count, width = like.shape
        data = torch.empty(two, rows, count + room, width, dtype=like.dtype, device=device)
        assert self._side is not None
        data.record_stream(self._side)  # when it is freed, it waits for what is on its way into it
        return _Stage(data, torch.cuda.Event())

    def _fetch(self, index: int, tensors: Sequence[Tensor], stage: _Stage) -> None:
        """Copy into a stage, beside whatever runs: once all that was asked of the device so far is done, for that may
        still read there."""
        assert self._side is not None
        self._side.wait_stream(torch.cuda.current_stream(stage.data.device))
        with torch.cuda.stream(self._side):
            for into, kept in zip(stage.data, tensors[index], strict=True):
                into[:, : kept.shape[1]].copy_(kept, non_blocking=True)
            stage.there.record(self._side)
        stage.index = index
