"""Keys and values of a clip that is only read, kept from one step of its caption to the next.

While a caption forms the clip does not change. What the blocks' attention makes of it is worked out in one pass, and
the steps after it run the text alone against what was kept. Where the video does not see the text nothing is lost;
where it does, what was kept is what it was beside the text of that step. (LaViDa, arXiv 2505.16839, keeps a picture's
keys and values in this way.)

Legend: B batch, V video tokens, T text tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UniViGUError

FP8 = torch.float8_e4m3fn
PLACES = ("device", "host")
# Of what is free when the first block is kept: the pass under way has most of its own memory already.
SHARE_OF_FREE = 0.7


def free_memory(device: torch.device) -> float:
    """Bytes that may still be taken on ``device``; without limit where that is the machine's own memory."""
    if device.type != "cuda":
        return math.inf
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


class _Stored(NamedTuple):
    """A block's keys or values: ``data`` ``[B,V,D]`` or, with room for text behind, ``[B,V+T,D]``; ``scale``
    ``[B,1,D]`` of fp8."""

    data: Tensor
    scale: Tensor | None


class _Coming(NamedTuple):
    """Keys and values on their way from the host to the device, and when they are there."""

    pair: tuple[_Stored, _Stored]
    there: torch.cuda.Event


class VideoCache:
    """Keys (normalised and rotated) and values of the video's tokens, of every block.

    Args:
        reads_text: whether the video sees the text in the pass that fills the cache.
        fp8: keep them in float8 (e4m3, a scale per row of the batch and channel), half of bfloat16. None: only if they
            would not fit otherwise.
        place: ``device``, or ``host``: in pinned memory, from where each block's are fetched while the block before it
            works. None: the device if they fit.
        free: how many bytes of a device may be taken.

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
        self._blocks: list[tuple[_Stored, _Stored]] = []
        self._coming: dict[int, _Coming] = {}
        self._side: torch.cuda.Stream | None = None

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
            self.tokens = k.shape[1]
        self._blocks.append((self._packed(k, text), self._packed(v, text)))
        self.filled = len(self._blocks) == blocks

    def with_text(self, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Block ``index``'s keys and values of video and text ``[B,V+T,D]``, given the text's ``[B,T,D]``. A cache of
        one clip serves any number of texts."""
        stored_k, stored_v = self._read(index)
        return self._joined(stored_k, k), self._joined(stored_v, v)

    def _choose(self, k: Tensor, blocks: int) -> None:
        """Where and how to keep 2 * ``blocks`` tensors like ``k``."""
        whole, room = 2 * blocks * k.nbytes, SHARE_OF_FREE * self.free(k.device)
        half = whole * FP8.itemsize / k.element_size()
        on_device = room >= (whole if self.wanted_fp8 is False else half)
        self.place = self.wanted_place or ("device" if on_device else "host")
        if k.device.type != "cuda":
            self.place = "device"  # it is the host
        self.fp8 = room < whole if self.wanted_fp8 is None else self.wanted_fp8

    def _packed(self, x: Tensor, text: int) -> _Stored:
        scale = None
        if self.fp8:
            largest = x.abs().amax(1, keepdim=True).float()
            scale = (largest / torch.finfo(FP8).max).clamp(min=torch.finfo(torch.float32).tiny)
            x = (x / scale).to(FP8)
        if self.place == "host":
            pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            return _Stored(pinned.copy_(x, non_blocking=True), scale)
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
        video = data[:, : self.tokens].to(text.dtype)
        whole[:, : self.tokens] = video if stored.scale is None else video * stored.scale.to(text.dtype)
        whole[:, self.tokens :] = text
        return whole

    # On the host: the next block's are fetched while this one works.

    def _read(self, index: int) -> tuple[_Stored, _Stored]:
        if self.place == "device":
            return self._blocks[index]
        coming = self._coming.pop(index, None) or self._fetch(index)
        now = torch.cuda.current_stream()
        now.wait_event(coming.there)
        for stored in coming.pair:
            stored.data.record_stream(now)
        following = (index + 1) % len(self._blocks)
        self._coming[following] = self._fetch(following)
        return coming.pair

    def _fetch(self, index: int) -> _Coming:
        """Start copying a block's to the device, beside whatever runs there."""
        device = torch.device("cuda", torch.cuda.current_device())
        if self._side is None:
            self._side = torch.cuda.Stream(device)
            self._side.wait_stream(torch.cuda.current_stream())  # what was kept is on its way to the host
        with torch.cuda.stream(self._side):
            k, v = (stored._replace(data=stored.data.to(device, non_blocking=True)) for stored in self._blocks[index])
            there = torch.cuda.Event()
            there.record(self._side)
        return _Coming((k, v), there)
