"""Keys and values of a clip that is only read, kept from one step of its caption to the next.

While a caption forms the clip does not change. What the blocks' attention makes of it is worked out in one pass, and
the steps after it run the text alone against what was kept. Where the video does not see the text nothing is lost;
where it does, what was kept is what it was beside the text of that step. (LaViDa, arXiv 2505.16839, keeps a picture's
keys and values in this way.)

Legend: B batch, V video tokens, T text tokens, D width.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..errors import UniViGUError
from .host_memory import HostMemory
from .memory import free_memory

log = logging.getLogger(__name__)

FP8 = torch.float8_e4m3fn
KNOWS_FP8 = ("cpu", "cuda")
PLACES = ("device", "host")
NOWHERE = "nowhere"

Given = ParamSpec("Given")
Result = TypeVar("Result")


def untraced(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """``torch.compiler.disable``, asked for where something is compiled: it imports the compiler, which takes as long
    as all the rest of torch."""

    @functools.wraps(method)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if torch.compiler.is_compiling():
            apart: Callable[Given, Result] = torch.compiler.disable(method)
            return apart(*args, **kwargs)
        return method(*args, **kwargs)

    return call


class _Stored(NamedTuple):
    """A block's keys and values ``[2,B,V,D]``, with room for text behind V where they are used as they lie; ``scale``
    ``[2,B,1,D]`` of float8."""

    data: Tensor
    scale: Tensor | None


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
        self._host, self._logged = HostMemory(), False
        self.clear()

    def clear(self) -> None:
        """Forget everything; the next pass fills the cache again."""
        self._host.clear()
        self.filled, self.fp8, self.place = False, False, ""
        self.rows = self.tokens = self.blocks = 0
        self._stored: list[_Stored] = []

    def __del__(self) -> None:
        self._stored = []  # before the host's memory, which is given back once nothing lies in it

    @property
    def nbytes(self) -> int:
        """What is kept, in bytes."""
        return sum(tensor.nbytes for stored in self._stored for tensor in stored if tensor is not None)

    def begin(self, rows: int, tokens: int, blocks: int) -> bool:
        """Begin a pass over ``rows`` clips of ``tokens`` tokens. Returns whether it can leave the video out; else it
        fills the cache. Raises UniViGUError where the cache holds other clips."""
        if not self.filled:
            self.clear()  # of a pass that broke off
            self.rows, self.tokens, self.blocks = rows, tokens, blocks
        elif self.rows not in (1, rows) or self.tokens != tokens:
            raise UniViGUError(
                f"the cache holds {self.rows} clip(s) of {self.tokens} tokens; this pass has {rows} of {tokens}: a "
                "cache serves the clips that it was filled with; clear it or take another"
            )
        return self.filled

    @untraced
    def keep(self, k: Tensor, v: Tensor, text: int) -> None:
        """Take the next block's keys and values ``[B,V,D]`` of the video, which ``text`` tokens will stand behind."""
        if not self.place:
            self._choose(k)
        if self.place == NOWHERE:
            return
        on_host, dtype = self.place == "host", FP8 if self.fp8 else k.dtype
        shape = (2, k.shape[0], k.shape[1] + (0 if on_host or self.fp8 else text), k.shape[2])
        data = self._host.empty(shape, dtype, self.blocks) if on_host else k.new_empty(shape, dtype=dtype)
        scales = []
        for room, x in zip(data, (k, v), strict=True):
            if self.fp8:
                largest = x.abs().amax(1, keepdim=True).float()
                scales.append((largest / torch.finfo(FP8).max).clamp(min=torch.finfo(torch.float32).tiny))
                x = (x / scales[-1]).to(FP8)
            room[:, : x.shape[1]].copy_(x, non_blocking=True)
        self._stored.append(_Stored(data, torch.stack(scales) if scales else None))
        self.filled = len(self._stored) == self.blocks

    @untraced
    def with_text(self, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Block ``index``'s keys and values of video and text ``[B,V+T,D]``, given the text's ``[B,T,D]``. A cache of
        one clip serves any number of texts."""
        (data, scale), (rows, text, width) = self._stored[index], k.shape
        if self.place == "host":
            kept = [stored.data for stored in self._stored]
            data = self._host.fetched(index, kept, 0 if self.fp8 else text, k.device)
        video, count = self.tokens, self.tokens + text
        if data.shape[1:3] == (rows, count) and data.dtype == k.dtype:
            both = data  # there is room for the text: nothing is copied
        else:
            both = k.new_empty(2, rows, count, width)
            both[:, :, :video] = data[:, :, :video]
            if scale is not None:
                both[:, :, :video].mul_(scale.to(k.dtype))
        for room, words in zip(both, (k, v), strict=True):
            room[:, video:] = words
        return both[0], both[1]

    def _choose(self, k: Tensor) -> None:
        """Where and how to keep keys and values like ``k`` of all blocks."""
        whole, room = 2 * self.blocks * k.nbytes, self.free_bytes(k.device)
        half = whole * FP8.itemsize / k.element_size()
        may_halve = self.wanted_fp8 is not False and k.device.type in KNOWS_FP8
        least = half if may_halve else whole
        from_host = k.device.type == "cuda"  # elsewhere it is the host, or nothing can be fetched beside the work
        if self.wanted_place is not None:
            self.place = self.wanted_place if from_host else "device"
        elif room >= least:
            self.place = "device"
        else:
            self.place = "host" if from_host and self._host.free >= least else NOWHERE
        spare = room if self.spare_bytes is None else min(room, self.spare_bytes(k.device))
        self.fp8 = may_halve and (bool(self.wanted_fp8) or spare < whole)
        if not self._logged:
            kind = "float8" if self.fp8 else str(k.dtype).removeprefix("torch.")
            what = "no room to keep it" if self.place == NOWHERE else f"in {kind} on the {self.place}"
            log.info("video cache: %.2f GB, %s", (half if self.fp8 else whole) / 1e9, what)
        self._logged = True
