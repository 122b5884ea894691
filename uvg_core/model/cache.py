"""Keys and values of a clip that is only read, kept from one step of its caption to the next.

While a caption forms the clip does not change. What the blocks' attention makes of it is worked out in one pass, and
the steps after it run the text alone against what was kept. Where the video does not see the text nothing is lost;
where it does, what was kept is what it was beside the text of that step. (LaViDa, arXiv 2505.16839, keeps a picture's
keys and values in this way.)

Legend: B batch, V video tokens, T text tokens, D width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UniViGUError

log = logging.getLogger(__name__)

FP8 = torch.float8_e4m3fn
KNOWS_FP8 = ("cpu", "cuda")
PLACES = ("device", "host")
SHARE_OF_FREE = 0.7  # of a device's free memory: the pass needs some of it too
SLAB = 2**30  # bytes that are pinned at once: torch rounds each allocation up to a power of two


def free_memory(device: torch.device) -> float:
    """Bytes that a cache may take on ``device``; without limit where that is the machine's own memory."""
    if device.type != "cuda":
        return math.inf
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - reserved
    unused = reserved - torch.cuda.memory_allocated(device)
    return SHARE_OF_FREE * (min(free, allowed) + unused)


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
            would not fit otherwise.
        place: ``device``, or ``host``: in pinned memory, from where each block's are fetched while the block before it
            works. None: the device if they fit.
        free: how many bytes of a device the cache may take.

    The pass that runs with an empty cache fills it; the passes after that leave the video out (``UniViGU.forward``).
    At 32,760 tokens, 30 blocks and width 1536 it holds 6.0 GB in bfloat16, 3.0 GB in float8.
    """

    def __init__(
        self,
        *,
        reads_text: bool = False,
        fp8: bool | None = None,
        place: str | None = None,
        free: Callable[[torch.device], float] = free_memory,
    ) -> None:
        if place is not None and place not in PLACES:
            raise UniViGUError(f"place of the video cache is {place!r}; expected one of {', '.join(PLACES)}")
        self.reads_text, self.wanted_fp8, self.wanted_place, self.free = reads_text, fp8, place, free
        self.fp8, self.place = False, "device"
        self.clear()

    def clear(self) -> None:
        """Forget everything; the next pass fills the cache again."""
        self.filled = False
        self.tokens = 0
        self._blocks: list[Pair] = []
        self._slabs: list[Tensor] = []
        self._used = 0  # bytes of the last slab
        self._stages: list[_Stage] = []
        self._side: torch.cuda.Stream | None = None
        self._device = torch.device("cpu")

    @property
    def nbytes(self) -> int:
        """What is kept, in bytes."""
        parts = [tensor for pair in self._blocks for stored in pair for tensor in stored if tensor is not None]
        return sum(tensor.nbytes for tensor in parts)

    def keep(self, k: Tensor, v: Tensor, blocks: int, text: int) -> None:
        """Take the next block's keys and values ``[B,V,D]`` of the video; there will be ``blocks`` of them, and
        ``text`` tokens behind the video's."""
        if not self._blocks:
            self._choose(k, blocks)
            self.tokens, self._device = k.shape[1], k.device
        self._blocks.append((self._packed(k, text, blocks), self._packed(v, text, blocks)))
        self.filled = len(self._blocks) == blocks

    def with_text(self, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Block ``index``'s keys and values of video and text ``[B,V+T,D]``, given the text's ``[B,T,D]``. A cache of
        one clip serves any number of texts."""
        stored_k, stored_v = self._blocks[index] if self.place == "device" else self._fetched(index, k.shape[1])
        return self._joined(stored_k, k), self._joined(stored_v, v)

    def _choose(self, k: Tensor, blocks: int) -> None:
        """Where and how to keep 2 * ``blocks`` tensors like ``k``."""
        whole, room = 2 * blocks * k.nbytes, self.free(k.device)
        half = whole * FP8.itemsize / k.element_size()
        may_halve = self.wanted_fp8 is not False and k.device.type in KNOWS_FP8
        on_device = room >= (half if may_halve else whole)
        self.place = self.wanted_place or ("device" if on_device else "host")
        if k.device.type != "cuda":
            self.place = "device"  # it is the host, or nothing can be fetched beside the work
        self.fp8 = room < whole and may_halve if self.wanted_fp8 is None else self.wanted_fp8
        kind = "float8" if self.fp8 else str(k.dtype).removeprefix("torch.")
        log.info("video cache: %.2f GB in %s on the %s", (half if self.fp8 else whole) / 1e9, kind, self.place)

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

    def _on_host(self, x: Tensor, blocks: int) -> Tensor:
        """Room for a tensor like ``x`` in pinned memory, ordinary memory where no more can be pinned."""
        size = -(-x.nbytes // 512) * 512
        if not self._slabs or self._used + size > self._slabs[-1].numel():
            wanted = max(size, min(SLAB, 2 * blocks * size - sum(slab.numel() for slab in self._slabs)))
            try:
                slab = torch.empty(wanted, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                log.warning("video cache: %s; going on in memory that is not pinned, which is slower", error)
                slab = torch.empty(wanted, dtype=torch.uint8)
            self._slabs.append(slab)
            self._used = 0
        start, self._used = self._used, self._used + size
        return self._slabs[-1][start : start + x.nbytes].view(x.dtype).view(x.shape)

    def _fetched(self, index: int, text: int) -> Pair:
        """Block ``index``'s on the device; the next block's are on their way into the other stage from then on."""
        if not self._stages:
            self._stages = [self._stage(text), self._stage(text)]
            self._side = torch.cuda.Stream(self._stages[0].k.device)
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
