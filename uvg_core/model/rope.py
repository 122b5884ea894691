"""Rotary position embeddings of the two streams (RoFormer, arXiv 2104.09864).

The streams differ in where the angles come from and in which channels pair up:

* video: Wan's three axes (time, height, width), neighbouring channels pair up (interleaved);
* text: the token index, channel i pairs up with channel i + head_dim/2 (half-split).

Angles are ``[N, head_dim/2]`` in float64. Rotations are made from them in float32: complex numbers for the network
itself, matrices ``[N, head_dim/2, 2, 2]`` for a host's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .streams import VIDEO, join, split

THETA = 10000.0


def _precise(device: torch.device | None) -> torch.device | None:
    """Where angles are computed: on the device if it knows float64 (Apple's GPUs do not), else on the CPU."""
    return device if device is None or device.type in ("cpu", "cuda") else torch.device("cpu")


def frequencies(dim: int, device: torch.device | None = None) -> Tensor:
    """The formula's ``dim/2`` frequencies in radians per position, float64."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
    return THETA**-exponent


def video_angles(
    grid: Sequence[int],
    head_dim: int,
    device: torch.device | None = None,
    scale: Sequence[float] = (1.0, 1.0, 1.0),
    shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """Angles ``[F*H*W, head_dim/2]`` for a patch grid (F, H, W), in the order of the video tokens.

    The head is split (d - 4*(d//6), 2*(d//6), 2*(d//6)) over time, height and width, as in Wan2.1. Position n of an
    axis is ``scale * n + shift``.
    """
    spatial = 2 * (head_dim // 6)
    positions = [
        torch.arange(n, device=_precise(device), dtype=torch.float64) * factor + offset
        for n, factor, offset in zip(grid, scale, shift, strict=True)
    ]
    axes = zip(torch.meshgrid(*positions, indexing="ij"), (head_dim - 2 * spatial, spatial, spatial), strict=True)
    return torch.cat([torch.outer(axis.flatten(), frequencies(dim, axis.device)) for axis, dim in axes], 1)


def text_angles(
    length: int, head_dim: int, device: torch.device | None = None, inv_freq: Sequence[float] | None = None
) -> Tensor:
    """Angles ``[L, head_dim/2]`` for L token positions, at the formula's frequencies or at ``inv_freq``."""
    position = torch.arange(length, device=_precise(device), dtype=torch.float64)
    if inv_freq is None:
        return torch.outer(position, frequencies(head_dim, position.device))
    frequency = torch.tensor(inv_freq, dtype=torch.float64)
    if position.device.type == "cuda" and not torch.compiler.is_compiling():
        frequency = frequency.pin_memory()  # from ordinary memory the copy would wait for the card
    return torch.outer(position, frequency.to(position.device, non_blocking=True))


def rotations(angles: Tensor) -> Tensor:
    """Complex rotations ``[N, head_dim/2]`` by ``angles``."""
    return torch.complex(angles.cos().float(), angles.sin().float())


def matrices(angles: Tensor) -> Tensor:
    """Rotation matrices ``[N, head_dim/2, 2, 2]`` by ``angles``, float32."""
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.stack([cos, -sin, sin, cos], -1).view(*angles.shape, 2, 2)


# A function of queries or keys [B,N,heads*d], the rotations of their N tokens, how many of them are text (the last
# ones), and the number of heads.
Rotate = Callable[[Tensor, Tensor, int, int], Tensor]


def _paired(x: Tensor, heads: int, stream: int) -> Tensor:
    """``[B,N,heads*d]`` as ``[B,N,heads,d/2,2]``, a view: channels that pair up lie in the last axis."""
    rows, count, _ = x.shape
    return x.view(rows, count, heads, -1, 2) if stream == VIDEO else x.view(rows, count, heads, 2, -1).mT


def rotate(x: Tensor, rotations: Tensor, text: int, heads: int) -> Tensor:
    """Rotate queries or keys ``[B,V+T,heads*d]``, the last ``text`` tokens as text; computed in float32."""
    parts, done = split(x.to(rotations.real.dtype), text), []
    by = rotations[:, None].split([part.shape[1] for _, part in parts])
    for (stream, part), rotation in zip(parts, by, strict=True):
        turned = torch.view_as_real(torch.view_as_complex(_paired(part, heads, stream).contiguous()) * rotation)
        done.append((turned if stream == VIDEO else turned.mT).flatten(-3).to(x.dtype))
    return join(done)


def rotate_in_place(x: Tensor, rotations: Tensor, text: int, heads: int) -> Tensor:
    """``rotate``, to the bit, written over ``x``."""
    wide = torch.empty(*x.shape[:2], heads, x.shape[2] // heads // 2, 2, dtype=rotations.real.dtype, device=x.device)
    narrow = [_paired(part, heads, stream) for stream, part in split(x, text)]
    rooms = [room for _, room in split(wide, text)]
    for room, part in zip(rooms, narrow, strict=True):
        room.copy_(part)
    torch.view_as_complex(wide).mul_(rotations[:, None])
    for room, part in zip(rooms, narrow, strict=True):
        part.copy_(room)
    return x
