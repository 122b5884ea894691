"""Rotary position embeddings of the two streams (RoFormer, arXiv 2104.09864).

Both are kept as rotation matrices ``[N, head_dim/2, 2, 2]`` in float32 (angles in float64), so that one function
applies them (a host's kernels take them so; the network itself their complex form); the streams differ in where the
angles come from and in which channels pair up:

* video: Wan's three axes (time, height, width), neighbouring channels pair up (interleaved);
* text: the token index, channel i pairs up with channel i + head_dim/2 (half-split).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor

THETA = 10000.0


def _precise(device: torch.device | None) -> torch.device | None:
    """Where angles are computed: on the device if it knows float64 (Apple's GPUs do not), else on the CPU."""
    return device if device is None or device.type in ("cpu", "cuda") else torch.device("cpu")


def frequencies(dim: int, device: torch.device | None = None) -> Tensor:
    """The formula's ``dim/2`` frequencies in radians per position, float64."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
    return THETA**-exponent


def _rotations(position_N: Tensor, frequency: Tensor) -> Tensor:
    """Rotation matrices ``[N, d, 2, 2]`` for positions ``[N]`` at frequencies ``[d]``."""
    angle = torch.outer(position_N.to(torch.float64), frequency)
    cos, sin = angle.cos(), angle.sin()
    return rearrange(torch.stack([cos, -sin, sin, cos], -1), "n p (i j) -> n p i j", i=2)


def video_rotations(
    grid: tuple[int, int, int],
    head_dim: int,
    device: torch.device | None = None,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """Rotations ``[F*H*W, head_dim/2, 2, 2]`` for a patch grid (F, H, W), in the order of the video tokens.

    The head is split (d - 4*(d//6), 2*(d//6), 2*(d//6)) over time, height and width, as in Wan2.1. Position n of an
    axis is ``scale * n + shift``.
    """
    spatial = 2 * (head_dim // 6)
    positions = [
        torch.arange(n, device=_precise(device), dtype=torch.float64) * factor + offset
        for n, factor, offset in zip(grid, scale, shift, strict=True)
    ]
    axes = torch.meshgrid(*positions, indexing="ij")
    parts = [
        _rotations(axis.flatten(), frequencies(dim, axis.device))
        for axis, dim in zip(axes, (head_dim - 2 * spatial, spatial, spatial), strict=True)
    ]
    return torch.cat(parts, 1).float().to(device)


def text_rotations(
    length: int,
    head_dim: int,
    device: torch.device | None = None,
    inv_freq: Sequence[float] | None = None,
) -> Tensor:
    """Rotations ``[L, head_dim/2, 2, 2]`` for L token positions, at the formula's frequencies or at ``inv_freq``."""
    position = torch.arange(length, device=_precise(device))
    if inv_freq is None:
        frequency = frequencies(head_dim, position.device)
    else:
        frequency = torch.tensor(inv_freq, dtype=torch.float64)
        if position.device.type == "cuda" and not torch.compiler.is_compiling():
            frequency = frequency.pin_memory()  # from ordinary memory the copy would wait for the card
        frequency = frequency.to(position.device, non_blocking=True)
    return _rotations(position, frequency).float().to(device)


Rotate = Callable[[Tensor, Tensor, int, str], Tensor]


def turns(rotations: Tensor) -> Tensor:
    """The same rotations as complex numbers ``[N, head_dim/2]``; such are taken as they are."""
    return rotations if rotations.is_complex() else torch.complex(rotations[..., 0, 0], rotations[..., 1, 0])


def _paired(x: Tensor, heads: int, pairs: str) -> Tensor:
    """``[B,N,heads*d]`` as ``[B,N,heads,d/2,2]``, a view: what turns together lies in the last axis."""
    return x.unflatten(-1, (heads, -1, 2)) if pairs == "interleaved" else x.unflatten(-1, (heads, 2, -1)).mT


def rotate(x: Tensor, rotations: Tensor, heads: int, pairs: str) -> Tensor:
    """Turn queries or keys ``[B,N,heads*d]``; ``pairs`` is ``interleaved`` (video) or ``half`` (text).

    ``rotations`` as made here, or their ``turns``. Works in float32 and returns the dtype of ``x``. A turn is a complex
    product, which every device does in one pass."""
    known = turns(rotations)
    whole = _paired(x.to(known.real.dtype), heads, pairs).contiguous()
    turned = torch.view_as_real(torch.view_as_complex(whole) * known[:, None])
    return (turned if pairs == "interleaved" else turned.mT).flatten(-3).to(x.dtype)


def rotate_in_place(x: Tensor, rotations: Tensor, heads: int, pairs: str) -> Tensor:
    """``rotate``, to the bit, written over ``x`` (which may be a part of a tensor); returns ``x``. Where a gradient may
    be asked for, and in a compiled network, which does so by itself, it is ``rotate``."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return rotate(x, rotations, heads, pairs)
    text = x.shape[1] if pairs == "half" else 0
    return rotate_both_in_place(x, turns(rotations), text, heads)


def rotate_both_in_place(x: Tensor, rotations: Tensor, text: int, heads: int) -> Tensor:
    """``rotate`` of video and text ``[B,V+T,heads*d]``, the last ``text`` tokens, written over ``x``, given the
    ``turns`` of all of them."""
    video = x.shape[1] - text
    whole = torch.empty(*x.shape[:2], heads, x.shape[2] // heads // 2, 2, dtype=rotations.real.dtype, device=x.device)
    kinds = (slice(0, video), "interleaved"), (slice(video, None), "half")
    parts = [(whole[:, part], _paired(x[:, part], heads, pairs)) for part, pairs in kinds]
    parts = [pair for pair in parts if pair[0].shape[1]]
    for wide, narrow in parts:
        wide.copy_(narrow)
    torch.view_as_complex(whole).mul_(rotations[:, None])
    for wide, narrow in parts:
        narrow.copy_(wide)
    return x
