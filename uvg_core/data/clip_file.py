"""A clip as training data: where it lies, which part of it is used, and its texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..io import MEGABYTE, open_regular, temporary_file
from ..media.video import ClipSpec
from ..media.video.find import STILL
from .left_out import LeftOut

PICTURES = STILL | {".webp", ".apng", ".avif"}  # of which the last ones may move

_UNSEEN = ClipSpec(1, 1, 1)

# What a listed clip's prompts (True) or detailed caption (False) are. Raises Unusable.
Texts = Callable[[bool], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ClipFile:
    """A clip, or a part of one, and its texts.

    place         where it lies; name: for reports, in a folder its path there with forward slashes
    start         seconds from its beginning; seconds: how long the part is that its texts speak of, None to the end
    member        offset and bytes of a clip in a shard
    passed_over   whether a ``.caption`` lies beside its text, which is not read

    What a survey adds:

    prompt        the first of its prompts; others: the other ones
    detail        None where there is none, or none within the limits; other_details: further ones
    content       what the file holds (``content_of``); size: its bytes; changed: its modification time in ns
    spec          how its frames are read
    fps           frames per second; duration: of the whole file; kept: see ``kept_of``
    """

    place: str
    name: str
    start: float = 0.0
    seconds: float | None = None
    member: tuple[int, int] | None = None
    passed_over: bool = False
    prompt: str = ""
    others: tuple[str, ...] = ()
    detail: str | None = None
    other_details: tuple[str, ...] = ()
    content: str = ""
    size: int = 0
    changed: int = 0
    spec: ClipSpec = _UNSEEN
    fps: float = 0.0
    duration: float = 0.0
    kept: float = 1.0

    @property
    def path(self) -> Path:
        return Path(self.place)

    @property
    def suffix(self) -> str:
        named = self.place if self.member is None else self.name.partition(" from ")[0]
        return Path(named).suffix.lower()

    @property
    def described(self) -> float:
        """Seconds that its texts speak of and that are there."""
        left = self.duration - self.start
        return left if self.seconds is None else min(self.seconds, left)

    @property
    def is_picture(self) -> bool:
        return self.suffix in PICTURES

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """A file that can be read as a video, for the length of a block. Raises UniViGUError where it is not there."""
        if self.member is None:
            yield self.path
            return
        with temporary_file(f"clip{self.suffix}", self.name) as copy:
            offset, left = self.member
            with os.fdopen(open_regular(self.place, "a clip"), "rb") as source, copy.open("wb") as target:
                source.seek(offset)
                while block := source.read(min(left, MEGABYTE)):
                    target.write(block)
                    left -= len(block)
            yield copy


Listed = tuple[ClipFile, Texts] | LeftOut
