"""Keys and values of a clip that is only read, kept from one step of its caption to the next.

While a caption forms the clip does not change. What the blocks' attention makes of it is worked out in one pass, and
the steps after it run the text alone against what was kept. Where the video does not see the text nothing is lost;
where it does, what was kept is what it was beside the text of that step. (LaViDa, arXiv 2505.16839, keeps a picture's
keys and values in this way.)

Legend: B batch, V video tokens, T text tokens, D width.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UniViGUError

log = logging.getLogger(__name__)

FP8 = torch.float8_e4m3fn
KNOWS_FP8 = ("cpu", "cuda")
PLACES = ("device", "host")
NOWHERE = "nowhere"
MEMORY_OF_LINUX = Path("/proc/meminfo")
SHARE_OF_FREE = 0.7  # of a device's free memory: the pass needs some of it too
SLAB = 2**30  # bytes that are pinned at once: torch rounds each allocation up to a power of two


def free_memory(device: torch.device) -> float:
    """Bytes that may be taken on ``device``: of the machine's own memory what Linux says, elsewhere without a limit; of
    other devices 0 where torch cannot tell."""
    if device.type == "cpu":
        lines = MEMORY_OF_LINUX.read_text().splitlines() if MEMORY_OF_LINUX.exists() else []
        told = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        return SHARE_OF_FREE * told[0] if told else math.inf
    if device.type != "cuda":
        try:
            return SHARE_OF_FREE * torch.accelerator.get_memory_info(device)[0]
        except (AttributeError, RuntimeError):  # an older torch; a device that does not know
            return 0.0
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    unused = reserved - torch.cuda.memory_allocated(device)
    return float(SHARE_OF_FREE * (min(free, fraction * total - reserved) + unused))


class _Stored(NamedTuple):
    """A block's keys or values: ``data`` ``[B,V,D]`` or, with room for text behind, ``[B,V+T,D]``; ``scale``
    ``[B,1,D]`` of fp8."""

    data: Tensor
    scale: Tensor | None


Pair = tuple[_Stored, _Stored]


@dataclass
class _Stage:
    """Room on the device for one block's keys and values on their way from the host; ``there``: when they are."""

    k: Tensor
    v: Tensor
    there: torch.cuda.Event
    block: int = -1


class VideoCache:
    """Keys (normalised and rotated) and values of the video's tokens, of every block.

    Args:
        reads_text: whether the video sees the text in the pass that fills the cache.
        fp8: keep them in float8 (e4m3, a scale per row of the batch and channel), half of bfloat16. None: only if they
            would not fit on the device otherwise.
        place: ``device``, or ``host``: in pinned memory, from where each block's are fetched while the block before it
            works (CUDA alone). None: the device if they fit.
        free_bytes: how many bytes of a device the cache may take. spare_bytes: how many of them nobody misses (a host
            may make room by putting weights aside, which every step then fetches); None: all. A cache that may be in
            float8 is, where it takes more in its own dtype.

    The pass that runs with an empty cache fills it; the passes after that leave the video out (``UniViGU.forward``).
    Where there is room nowhere, nothing is kept and every pass is a full one. At 32,760 tokens, 30 blocks and width
    1536 it holds 6.0 GB in bfloat16, 3.0 GB in float8.
    """

    def __init__(
        self,
        *,
        reads_text: bool = False,
        fp8: bool | None = None,
        place: str | None = None,
        free_bytes: Callable[[torch.device], float] = free_memory,
        spare_bytes: Callable[[torch.device], float] | None = None,
    ) -> None:
        if place is not None and place not in PLACES:
            raise UniViGUError(f"place of the video cache is {place!r}; expected one of {', '.join(PLACES)}")
        self.reads_text, self.wanted_fp8, self.wanted_place = reads_text, fp8, place
        self.free_bytes, self.spare_bytes = free_bytes, spare_bytes
        self._slabs: list[Tensor] = []
        self._side: torch.cuda.Stream | None = None
        self._said = False
        self.clear()

    def clear(self) -> None:
        """Forget everything; the next pass fills the cache again."""
        if self._side is not None:
            self._side.synchronize()  # a block may be on its way from where the next pass writes
        self.filled = False
        self.rows = self.tokens = 0
        self.fp8, self.place = False, ""
        self._blocks: list[Pair] = []
        self._slab = self._used = 0  # which slab is written to, and how many bytes of it are taken
        self._stages: list[_Stage] = []
        self._device = torch.device("cpu")

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
    def nbytes(self) -> int:
        """What is kept, in bytes."""
        parts = [tensor for pair in self._blocks for stored in pair for tensor in stored if tensor is not None]
        return sum(tensor.nbytes for tensor in parts)

    @torch.compiler.disable
    def keep(self, k: Tensor, v: Tensor, blocks: int, text: int) -> None:
        """Take the next block's keys and values ``[B,V,D]`` of the video; there will be ``blocks`` of them, and
        ``text`` tokens behind the video's."""
        if not self.place:
            self._choose(k, blocks)
            self.rows, self.tokens, self._device = k.shape[0], k.shape[1], k.device
        if self.place == NOWHERE:
            return
        self._blocks.append((self._packed(k, text, blocks), self._packed(v, text, blocks)))
        self.filled = len(self._blocks) == blocks

    @torch.compiler.disable
    def with_text(self, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Block ``index``'s keys and values of video and text ``[B,V+T,D]``, given the text's ``[B,T,D]``. A cache of
        one clip serves any number of texts."""
        stored_k, stored_v = self._blocks[index] if self.place == "device" else self._fetched(index, k.shape[1])
        return self._joined(stored_k, k), self._joined(stored_v, v)

    def _choose(self, k: Tensor, blocks: int) -> None:
        """Where and how to keep 2 * ``blocks`` tensors like ``k``."""
        whole, room = 2 * blocks * k.nbytes, self.free_bytes(k.device)
        half = whole * FP8.itemsize / k.element_size()
        may_halve = self.wanted_fp8 is not False and k.device.type in KNOWS_FP8
        must_halve = may_halve and bool(self.wanted_fp8)
        least = half if may_halve else whole
        from_host = k.device.type == "cuda"  # elsewhere it is the host, or nothing can be fetched beside the work
        if self.wanted_place is not None:
            self.place = self.wanted_place if from_host else "device"
        elif room >= least:
            self.place = "device"
        elif from_host and self._host_room() >= least:
            self.place = "host"
        else:
            self.place = NOWHERE
        spare = room if self.spare_bytes is None else min(room, self.spare_bytes(k.device))
        self.fp8 = must_halve or (may_halve and spare < whole)
        if not self._said:
            kind = "float8" if self.fp8 else str(k.dtype).removeprefix("torch.")
            size = (half if self.fp8 else whole) / 1e9
            what = "no room to keep it" if self.place == NOWHERE else f"in {kind} on the {self.place}"
            log.info("video cache: %.2f GB, %s", size, what)
        self._said = True

    def _packed(self, x: Tensor, text: int, blocks: int) -> _Stored:
        scale = None
        if self.fp8:
            largest = x.abs().amax(1, keepdim=True).float()
            scale = (largest / torch.finfo(FP8).max).clamp(min=torch.finfo(torch.float32).tiny)
            x = (x / scale).to(FP8)
        if self.place == "host":
            return _Stored(self._on_host(x, blocks).copy_(x, non_blocking=True), scale)
        if self.fp8:
            return _Stored(x, scale)
        room = x.new_empty(x.shape[0], x.shape[1] + text, x.shape[2])
        room[:, : x.shape[1]] = x
        return _Stored(room, None)

    def _joined(self, stored: _Stored, text: Tensor) -> Tensor:
        data, count = stored.data, self.tokens + text.shape[1]
        if data.shape[:2] == (text.shape[0], count) and data.dtype == text.dtype:
            data[:, self.tokens :] = text  # its room: nothing is copied
            return data
        whole = text.new_empty(text.shape[0], count, text.shape[2])
        whole[:, : self.tokens] = data[:, : self.tokens]
        if stored.scale is not None:
            whole[:, : self.tokens].mul_(stored.scale.to(text.dtype))
        whole[:, self.tokens :] = text
        return whole

    # On the host

    def _host_room(self) -> float:
        """Bytes that may be kept there, what is pinned already among them."""
        return free_memory(torch.device("cpu")) + sum(slab.numel() for slab in self._slabs)

    def _on_host(self, x: Tensor, blocks: int) -> Tensor:
        """Room for a tensor like ``x`` in pinned memory, ordinary memory where no more can be pinned. It is used again
        when the cache is filled again: pinning takes longer than copying."""
        size = -(-x.nbytes // 512) * 512
        while self._slab < len(self._slabs) and self._used + size > self._slabs[self._slab].numel():
            self._slab, self._used = self._slab + 1, 0
        if self._slab == len(self._slabs):
            wanted = max(size, min(SLAB, 2 * blocks * size - sum(slab.numel() for slab in self._slabs)))
            try:
                slab = torch.empty(wanted, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                log.warning("video cache: %s; going on in memory that is not pinned, which is slower", error)
                slab = torch.empty(wanted, dtype=torch.uint8)
            self._slabs.append(slab)
        start, self._used = self._used, self._used + size
        return self._slabs[self._slab][start : start + x.nbytes].view(x.dtype).view(x.shape)

    def _fetched(self, index: int, text: int) -> Pair:
        """Block ``index``'s on the device; the next block's are on their way into the other stage from then on."""
        if not self._stages:
            self._side = torch.cuda.Stream(self._device)
            self._stages = [self._stage(text), self._stage(text)]
        here, other = self._stages
        if here.block != index:
            here, other = other, here
        if here.block != index:
            self._fetch(index, here)
        now = torch.cuda.current_stream(here.k.device)
        now.wait_event(here.there)
        self._fetch((index + 1) % len(self._blocks), other)
        stored_k, stored_v = self._blocks[index]
        return stored_k._replace(data=here.k), stored_v._replace(data=here.v)

    def _stage(self, text: int) -> _Stage:
        data = self._blocks[0][0].data
        shape = (data.shape[0], self.tokens + (0 if self.fp8 else text), data.shape[2])
        k, v = (torch.empty(shape, dtype=data.dtype, device=self._device) for _ in range(2))
        assert self._side is not None
        for room in (k, v):
            room.record_stream(self._side)  # whoever lets go of it, it is free once nothing is on its way into it
        return _Stage(k, v, torch.cuda.Event())

    def _fetch(self, index: int, stage: _Stage) -> None:
        """Copy a block's into a stage, beside whatever runs: once all that was asked of the device so far is done, for
        the block before it may still read there."""
        assert self._side is not None
        self._side.wait_stream(torch.cuda.current_stream(stage.k.device))
        with torch.cuda.stream(self._side):
            for room, stored in zip((stage.k, stage.v), self._blocks[index], strict=True):
                room[:, : self.tokens].copy_(stored.data, non_blocking=True)
            stage.there.record(self._side)
        stage.block = index
