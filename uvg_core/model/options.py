"""What a forward pass is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .attention import Attention
from .block import Pass
from .kv_cache import VideoCache
from .modulation import Modulate
from .rope import Rotate


class Prediction(NamedTuple):
    """What the network predicts for each stream.

    ``velocity`` ``[B,C,F,H,W]``: noise minus data, per unit of sigma. ``logits`` ``[B,T,V]``: unnormalised log
    posterior of the clean tokens; with the embedding flow a velocity ``[B,T,D]`` instead. A part that was not asked
    for is None.
    """

    velocity: Tensor | None
    logits: Tensor | None


RunBlock = Callable[[Tensor, Pass], Tensor]


@dataclass(frozen=True)
class Hooks:
    """What a host program may change in one forward pass; None and the defaults change nothing.

    attention, cross_attention   in place of the network's own, see ``model/attention.py``
    block                        ``block(index, run, x, at) -> x`` stands around each block; ``run(x, at)`` is the block
                                 itself, see ``model/block.py``
    rotate, modulate             in place of ``model/rope.py``'s and ``model/modulation.py``'s, where there are fused
                                 kernels. ``rotate`` is given matrices; it may write over the tensor that it is given
    in_place                     whether blocks may write over their input even where ``block`` stands around them
    drop_video                   whether the last block may drop the video where its velocity is not wanted
    scale, shift                 of the video's rotary positions along time, height and width
    """

    attention: Attention | None = None
    cross_attention: Attention | None = None
    block: Callable[[int, RunBlock, Tensor, Pass], Tensor] | None = None
    rotate: Rotate | None = None
    modulate: Modulate | None = None
    in_place: bool = False
    drop_video: bool = True
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class PassOptions:
    """What one forward pass is asked for.

    want_velocity, want_logits   leave a head out where the job has no use for it; a slice gives the logits of these
                                 rows of the batch alone
    video_clean                  whether the video is held clean, as its stream says: of all rows, or ``[B]`` boolean
    cache                        for a video that is held clean: an empty one is filled in passing; with a full one the
                                 text runs alone beside what was kept, whatever ``video`` holds, and there is no
                                 velocity. One clip's serves any number of rows
    hooks                        see ``Hooks``
    """

    want_velocity: bool = True
    want_logits: bool | slice = True
    video_clean: bool | Tensor = False
    cache: VideoCache | None = None
    hooks: Hooks = Hooks()


EVERYTHING = PassOptions()
