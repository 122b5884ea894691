"""Work that several processes share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import UniViGUError
from ..settings import shown

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, from 1: every ``count``-th piece of the work."""

    index: int = 1
    count: int = 1

    @classmethod
    def of(cls, text: str) -> Shard:
        """From ``2/4``. Raises UniViGUError for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UniViGUError(f"--shard is {shown(text)}; expected PART/PARTS, from 1/4 to 4/4 for four parts")
        return cls(int(found[1]), int(found[2]))

    def part(self, pieces: Iterable[T]) -> list[T]:
        """The pieces of this part, of all in their order."""
        return list(pieces)[self.index - 1 :: self.count]
