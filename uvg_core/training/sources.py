"""Where training clips come from: a folder of one's own, or the little worlds. Shards are built from either.

Legend: T frames, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..codec.video_file import read_clip
from ..errors import UniViGUError
from . import worlds
from .folder import Survey, too_short


@dataclass(frozen=True)
class Item:
    """A clip and its texts.

    pixels   uint8 ``[T,H,W,3]``, RGB 0-255, at the model's size and rate
    prompt   the short text; detail: the long one, or None
    name     for reports
    """

    pixels: Tensor
    prompt: str
    detail: str | None
    name: str = ""


class Source(Protocol):
    """A fixed number of clips, each of which can be asked for in any order."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Changes when the clip's content does, and costs little. Shards whose keys have not changed are kept."""

    def name(self, index: int) -> str:
        """For reports, also on clips that cannot be read."""

    def item(self, index: int) -> Item:
        """The clip itself. What raises UniViGUError is left out and counted."""


def fingerprint(source: Source) -> str:
    """One number for everything in a source: changes when any clip, text or their order does."""
    return digest([source.key(index) for index in range(len(source))])


def digest(facts: object) -> str:
    """SHA-256 in hex over anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


class FolderSource:
    """The usable clips of a surveyed folder: the model's frames at the model's rate from the beginning of each."""

    def __init__(self, found: Survey) -> None:
        self.survey = found

    def __len__(self) -> int:
        return len(self.survey.usable)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self)

    def key(self, index: int) -> str:
        """Over name, size, time of change, texts, and the size and rate that pixels are brought to."""
        pair, run = self.survey.usable[index], self.survey.run
        file = [pair.name, pair.size, pair.changed]
        return digest([file, pair.prompt, pair.detail, run.frames, run.height, run.width, run.fps])

    def name(self, index: int) -> str:
        return self.survey.usable[index].name

    def item(self, index: int) -> Item:
        """Decode one clip. Raises UniViGUError where it is damaged, or shorter than its header says."""
        pair, run = self.survey.usable[index], self.survey.run
        clip = read_clip(pair.path, frames=run.frames, height=run.height, width=run.width, fps=run.fps)
        if too_short(pair.name, clip.info, run) is not None:
            raise UniViGUError(
                f"{pair.path}: the clip lasts {clip.info.duration:.2f} s, its header promised {pair.info.duration:.2f} "
                f"s; expected {run.frames} frames at {run.fps:g} fps. Copy or download it again"
            )
        return Item(clip.pixels, pair.prompt, pair.detail, pair.name)


@dataclass(frozen=True)
class WorldSource:
    """Little worlds, rendered when asked for: the brief text is the prompt, the whole truth the detailed caption.

    World ``i`` depends on the settings, the seed and ``i`` alone: in any order, and in a larger source too, it is the
    same clip. They last two seconds, so a model for them has ``frames`` = 2 fps + 1.

    side        pixels; frames: T, as ``worlds.render``
    pairs       share of worlds with two objects, 0 to 1
    held_out    only combinations that training never sees; split: whose handwriting digits are in (train or test)
    """

    count: int
    side: int = worlds.SIDE
    frames: int = worlds.FRAMES
    seed: int = 0
    pairs: float = 1 / 3
    held_out: bool = False
    split: str = "train"

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        return fingerprint(self)

    def key(self, index: int) -> str:
        settings = [self.side, self.frames, self.seed, self.pairs, self.held_out, self.split]
        return digest(["worlds", worlds.VERSION, *settings, index])

    def name(self, index: int) -> str:
        return f"world {index}"

    def item(self, index: int) -> Item:
        if not 0 <= index < self.count:
            raise IndexError(index)
        # Hashed: torch looks at 32 bits of a seed only, and neighbouring seeds should have nothing in common.
        seed = int(digest([self.seed, index])[:8], 16)
        generator = torch.Generator().manual_seed(seed)
        objects = 1 + int(torch.rand((), generator=generator) < self.pairs)
        world = worlds.random_world(generator, objects=objects, held_out=self.held_out)
        pixels = worlds.render(world, generator, side=self.side, frames=self.frames, split=self.split)
        return Item(pixels, world.brief, world.caption, self.name(index))
