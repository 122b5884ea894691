"""What training clips come from: a surveyed folder (``folder.py``), or whatever else is a ``Source``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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
