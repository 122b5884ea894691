"""One little world, rendered: a clip for tests that only need something that moves."""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.worlds.drawing import render
from recipes.worlds.grammar import Shape, World


def one_world(
    kind: str = "circle",
    colour: str = "red",
    size: str = "large",
    motion: str = "moves left",
    background: str = "navy",
    *,
    side: int = 48,
    frames: int = 9,
    seed: int = 0,
) -> Tensor:
    """uint8 ``[T,S,S,3]``; quick where it moves."""
    speed = None if motion == "stays still" else "quickly"
    world = World((Shape(kind, colour, size, motion, speed),), background)
    return render(world, torch.Generator().manual_seed(seed), side=side, frames=frames)
