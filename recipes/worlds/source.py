"""Little worlds as training clips: ``data: worlds:N`` in a configuration."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from uvg_core.config import RunConfig
from uvg_core.data.sources import TrainingClip, digest
from uvg_core.errors import UniViGUError
from uvg_core.model.memory import require_room
from uvg_core.training.config import TrainConfig

from .drawing import FRAMES, SIDE, render
from .grammar import VERSION, random_world

_BYTES_OF_A_WORLD = 300  # its key and its place in the cache's index; the clip itself is not kept
_MOST_DIGITS = 30


@dataclass(frozen=True)
class WorldSource:
    """Little worlds, rendered when asked for: the brief text is the prompt, the whole sentence the detailed caption.

    World ``i`` depends on the settings, the seed and ``i`` alone: in any order, and in a larger source too, it is the
    same clip. They last two seconds, so a model for them has ``frames`` = 2 fps + 1.

    side        pixels; frames: T, as ``drawing.render``
    pairs       fraction of worlds with two objects, 0 to 1
    held_out    only combinations that training never sees; split: whose handwriting digits are in (train or test)
    """

    count: int
    side: int = SIDE
    frames: int = FRAMES
    seed: int = 0
    pairs: float = 1 / 3
    held_out: bool = False
    split: str = "train"

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        settings = [self.side, self.frames, self.seed, self.pairs, self.held_out, self.split]
        return digest(["worlds", VERSION, *settings, index])

    def name(self, index: int) -> str:
        return f"world {index}"

    def item(self, index: int) -> TrainingClip:
        if not 0 <= index < self.count:
            raise IndexError(index)
        # Hashed: torch looks at 32 bits of a seed only, and neighbouring seeds should have nothing in common.
        seed = int(digest([self.seed, index])[:8], 16)
        generator = torch.Generator().manual_seed(seed)
        objects = 1 + int(torch.rand((), generator=generator) < self.pairs)
        world = random_world(generator, objects=objects, held_out=self.held_out)
        pixels = render(world, generator, side=self.side, frames=self.frames, split=self.split)
        return TrainingClip(pixels, world.brief, world.caption, self.name(index))


def open_source(argument: str, config: TrainConfig, run: RunConfig) -> WorldSource | None:
    """``worlds:N`` of a training configuration; None where ``argument`` is no number.

    Raises UniViGUError for a model whose clips are not those of little worlds."""
    if not argument.isdecimal():
        return None
    if run.height != run.width or run.frames != round(2 * run.fps) + 1:
        raise UniViGUError(
            f"{config.model}: its clips are {run.width}x{run.height}, {run.frames} frames at {run.fps:g} fps; "
            "little worlds are square and last two seconds. Train on a folder of clips"
        )
    count = int(argument[:_MOST_DIGITS])
    require_room(_BYTES_OF_A_WORLD * count, torch.device("cpu"), f"a list of {argument[:_MOST_DIGITS]} little worlds")
    return WorldSource(count, side=run.height, frames=run.frames, seed=config.seed, pairs=config.two_objects)
