"""What is held of a little world's clip while a model forms the rest, and sentences with one blank."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from uvg_core.media.vae import SPATIAL

from .edits import away_from_ground
from .grammar import ATTRIBUTES, World


def ends_free(latents: Tensor, *, last: bool) -> Tensor:
    """The mask of a run that holds the first picture, and the last four too: ``[1,1,F,1,1]``, 0 where it holds."""
    free = latents.new_ones(1, 1, latents.shape[2], 1, 1)
    free[:, :, 0] = 0
    if last:
        free[:, :, -1] = 0
    return free


def objects_free(clips: Tensor) -> Tensor:
    """The mask of a run that forms the objects anew: a box around their way, in places of the latent, for every clip
    uint8 ``[N,T,S,S,3]``: ``[N,1,1,h,w]``, 1 in it."""
    free = torch.zeros(len(clips), 1, 1, *(side // SPATIAL for side in clips.shape[2:4]))
    for mask, clip in zip(free[:, 0, 0], clips, strict=True):
        shown = away_from_ground(clip).any(0).unfold(0, SPATIAL, SPATIAL).unfold(1, SPATIAL, SPATIAL).any(-1).any(-1)
        rows, columns = (shown.any(axis).nonzero().flatten() for axis in (1, 0))
        mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
    return free


def with_blank(world: World, place: int) -> tuple[str, str]:
    """The sentence of the clip at ``place`` with a blank for one attribute, and which: attributes and objects take
    turns. What stays still has no speed that could be left out, so its motion is."""
    attribute, index = ATTRIBUTES[place % len(ATTRIBUTES)], place // len(ATTRIBUTES) % len(world.shapes)
    if attribute == "background":
        return replace(world, background="___").caption, attribute
    shape = world.shapes[index]
    if attribute == "speed" and shape.speed is None:
        attribute = "motion"
    shapes = (*world.shapes[:index], replace(shape, **{attribute: "___"}), *world.shapes[index + 1 :])
    return replace(world, shapes=shapes).caption, attribute


def psnr(made: Tensor, clips: Tensor, where: Tensor | None = None) -> float:
    """PSNR in dB of ``made`` against ``clips``, both uint8 ``[N,T,S,S,3]``, in the pixels ``where`` ``[N,T,S,S]``."""
    error = (made.float() - clips.float()).square().mean(-1)
    error = error if where is None else error[where]
    return -10 * float((error.mean() / 255**2 + 1e-12).log10())
