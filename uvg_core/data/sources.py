"""What training clips come from: a surveyed folder (``folder.py``), whatever else is a ``Source``, or several."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class TrainingClip:
    """A clip and its texts.

    pixels   uint8 ``[T,H,W,3]``, RGB 0-255, at the model's size and rate
    prompt   the short text; detail: the long one, or None
    name     for reports
    others   further prompts, any of which may take the place of the first; other_details: the same
    """

    pixels: Tensor
    prompt: str
    detail: str | None
    name: str = ""
    others: tuple[str, ...] = ()
    other_details: tuple[str, ...] = ()


class Source(Protocol):
    """A fixed number of clips, each of which can be asked for in any order."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Changes when the clip's content does, and costs little. Shards whose keys have not changed are kept."""

    def name(self, index: int) -> str:
        """For reports, also on clips that cannot be read."""

    def item(self, index: int) -> TrainingClip:
        """The clip itself. A clip for which this raises UniViGUError is left out and counted."""


@dataclass(frozen=True)
class Together:
    """Several sources, one after the other."""

    sources: Sequence[Source]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", [0, *accumulate(map(len, self.sources))])

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def _at(self, index: int) -> tuple[int, int]:
        starts: list[int] = vars(self)["_starts"]
        number = bisect_right(starts, index) - 1
        return number, index - starts[number]

    def key(self, index: int) -> str:
        number, own = self._at(index)
        return self.sources[number].key(own)

    def former_key(self, index: int) -> str:
        number, own = self._at(index)
        source = self.sources[number]
        return str(getattr(source, "former_key", source.key)(own))

    def name(self, index: int) -> str:
        number, own = self._at(index)
        return self.sources[number].name(own)

    def item(self, index: int) -> TrainingClip:
        number, own = self._at(index)
        return self.sources[number].item(own)

    def group(self, index: int) -> tuple[int, object]:
        """The number of the source, and its own group. Clips of one shard are of one group."""
        number, own = self._at(index)
        return number, group_of(self.sources[number], own)


def group_of(source: Source, index: int) -> object:
    """What the clips of one shard have in common: those of sources that say nothing of it are of one size."""
    found: object = source.group(index) if hasattr(source, "group") else ()
    return found


def fingerprints(source: Source) -> list[str]:
    """One number for everything in a source, which changes when any clip, text or their order does; and the one that
    an earlier version of the pack would have given it, where that was another."""
    keys = [source.key(index) for index in range(len(source))]
    return [digest(some) for some in (keys, former_keys(source)) if some]


def former_keys(source: Source) -> list[str]:
    """The keys that earlier versions of the pack gave the clips, where these were others; else none."""
    former = getattr(source, "former_key", None)
    return [] if former is None else [former(index) for index in range(len(source))]


def digest(facts: object) -> str:
    """SHA-256 in hex over anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, ensure_ascii=True, sort_keys=True).encode()).hexdigest()
