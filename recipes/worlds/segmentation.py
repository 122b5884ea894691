"""From a clip's pixels to the background's name and how much of every pixel each object covers.

The ground is the median of the rim; an object's colour is the table colour whose line from the ground explains the
changed pixels best. Legend: T frames, S side in pixels, P noticed pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uvg_core.errors import UniViGUError

from .grammar import BACKGROUNDS, COLOURS

NOTICED = 22.0  # a smoothed pixel this far from the ground belongs to something; white on beige is 84 away
LUMA, TRUST = (0.299, 0.587, 0.114), 3.0  # codecs keep brightness better than hue, so it counts this much extra
CODEC_ERROR = 25.0  # how far off its colour's line a pixel of an object may well lie


def ground(clip: Tensor) -> tuple[str, Tensor]:
    """The background's name, and every pixel's difference from the ground, float ``[T,S,S,3]``.

    ``clip``: float ``[T,S,S,3]``, RGB 0-255. Frame by frame, as a codec's brightness may drift; a tip that touches the
    rim does not move the median."""
    width = max(1, clip.shape[1] // 24)
    rim = torch.ones(clip.shape[1:3], dtype=torch.bool)
    rim[width:-width, width:-width] = False
    level = clip[:, rim].median(dim=1).values
    table = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)
    nearest = int((level.median(dim=0).values - table).square().sum(-1).argmin())
    return list(BACKGROUNDS)[nearest], clip - level[:, None, None]


def smoothed(change: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of 3 x 3 pixels of ``[T,S,S,3]``, and the mask ``[T,S,S]`` of pixels that differ from the ground.

    Enough against noise, and a mix of ground and paint stays on its line."""
    smooth = F.avg_pool2d(change.permute(0, 3, 1, 2), 3, stride=1, padding=1, count_include_pad=False)
    smooth = smooth.permute(0, 2, 3, 1)
    return smooth, smooth.square().sum(-1) > NOTICED**2


def objects_of(change: Tensor, background: str, objects: int) -> Iterator[tuple[str, Tensor]]:
    """Colour and soft coverage ``[T,S,S]``, 0..1, of each object, in the order of the colour table."""
    luma = torch.tensor(LUMA)
    lines = torch.tensor(list(COLOURS.values()), dtype=torch.float32) - torch.tensor(BACKGROUNDS[background])
    smooth, noticed = smoothed(change)
    if int(noticed.sum()) < len(change) * 4:
        return
    cores = _cores(smooth, noticed, lines, objects)
    for colour, core in cores.items():
        if not core.any():
            continue
        near = widened(core, 2)
        for other in cores.values():
            if other is not core and other.any():  # between two objects, to the nearer one; frames are far apart
                mine, theirs = (
                    ndimage().distance_transform_edt(~mask.numpy(), sampling=(99, 1, 1)) for mask in (core, other)
                )
                near &= torch.from_numpy(mine <= theirs)
        line = lines[colour]
        weighted = line + TRUST * (line @ luma) * luma
        yield list(COLOURS)[colour], ((change @ weighted) / (line @ weighted)).clamp(0, 1) * near


def _cores(smooth: Tensor, noticed: Tensor, lines: Tensor, objects: int) -> dict[int, Tensor]:
    """The colours that explain the noticed pixels best, as rows of ``lines``, and the mask ``[T,S,S]`` of each one's
    pixels."""
    points = smooth[noticed]
    # How much of each paint a pixel shows ``[P,8]``, and how far off that colour's line it still is.
    alpha = (points @ lines.T / lines.square().sum(-1)).clamp(0, 1)
    off = (points[:, None] - alpha[..., None] * lines).square().sum(-1)
    loss = off / (off + CODEC_ERROR**2)  # saturates: a large object's shade must not outvote a small second object
    groups = combinations(range(len(lines)), objects)
    chosen = min(groups, key=lambda group: float(loss[:, group].min(dim=1).values.sum()))
    owner = off[:, chosen].argmin(dim=1)
    cores = {}
    for place, colour in enumerate(chosen):
        core = torch.zeros_like(noticed)
        core[noticed] = (owner == place) & (alpha[:, colour] > 0.3)
        # Without blots: only parts of at least a quarter of the largest one's size, as an object that a model lets
        # flicker falls into parts.
        piece, sizes = pieces(core)
        cores[colour] = core & (sizes * 4 >= sizes.max())[piece]
    return cores


def pieces(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which piece every pixel of ``[T,S,S]`` belongs to, from 1 on, 0 for none, and the number of each piece's pixels
    in ``mask``. A piece hangs together in space and time, over gaps such as the strokes of a digit may have."""
    labels, count = ndimage().label(widened(mask, 1).numpy(), structure=torch.ones(3, 3, 3).numpy())
    piece = torch.from_numpy(labels).long()
    return piece, torch.bincount(piece[mask], minlength=count + 1)


def widened(mask: Tensor, by: int) -> Tensor:
    """A mask ``[T,S,S]`` and all within ``by`` pixels of it in the same frame."""
    return F.max_pool2d(mask.float(), 2 * by + 1, stride=1, padding=by) > 0


def ndimage() -> Any:
    """scipy's module. Raises UniViGUError where it is missing."""
    try:
        from scipy import ndimage
    except ImportError:
        raise UniViGUError('scipy is not installed, and reading clips needs it; install "scipy"') from None
    return ndimage
