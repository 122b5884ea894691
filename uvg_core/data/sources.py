"""Where training clips come from: a folder of clips, or whatever else is a ``Source``.

Legend: T frames, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..errors import UniViGUError
from ..media.video import ClipSpec, read_clip
from .folder import Survey, too_short


@dataclass(frozen=True)
class TrainingClip:
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

    def item(self, index: int) -> TrainingClip:
        """The clip itself. A clip for which this raises UniViGUError is left out and counted."""


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
        clip, run = self.survey.usable[index], self.survey.run
        file = [clip.name, clip.size, clip.changed]
        return digest([file, clip.prompt, clip.detail, run.frames, run.height, run.width, run.fps])

    def name(self, index: int) -> str:
        return self.survey.usable[index].name

    def item(self, index: int) -> TrainingClip:
        """Decode one clip. Raises UniViGUError where it is damaged, or shorter than its header says."""
        file, run = self.survey.usable[index], self.survey.run
        clip = read_clip(file.path, ClipSpec(run.frames, run.height, run.width, run.fps))
        if too_short(file.name, clip.info, run) is not None:
            raise UniViGUError(
                f"{file.path}: the clip lasts {clip.info.duration:.2f} s, its header promised {file.info.duration:.2f} "
                f"s; expected {run.frames} frames at {run.fps:g} fps. Copy or download it again"
            )
        return TrainingClip(clip.pixels, file.prompt, file.detail, file.name)
