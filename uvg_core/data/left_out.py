"""Clips that training does not see, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Why a clip is left out; where several reasons hold, the first in this order is reported.
NO_PATH = "without a path"
BAD_ROW = "with an entry that cannot be read"
NO_CAPTION = "without a caption"
EMPTY_CAPTION = "with an empty caption"
SEVERAL_DOTS = "in a shard under a name with several dots (expected, for example, 0001.mp4 and 0001.txt)"
BAD_TEXT = "with a caption that cannot be read"
PROMPT_LENGTH = "with a prompt outside the token limits"
NO_DETAIL = "without a detailed caption"
DETAIL_LENGTH = "with a detailed caption outside the token limits"
UNREADABLE = "unreadable"
TOO_SHORT = "too short"
TOO_LONG = "too long for one caption"

_NAMED = 3  # files named in a line of a report
_SHORT = 24  # findings of up to so many characters (mostly numbers) stand beside the file's name


class LeftOut(NamedTuple):
    """A clip that training does not see: its name, one of the reasons above, and what was found."""

    name: str
    reason: str
    found: str = ""


class Unusable(Exception):
    """Of a clip: ``args`` are the reason and what was found."""


def named(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def tally(left_out: Iterable[LeftOut]) -> list[str]:
    """One indented line per reason: its count, and the first few clips with what was found in them. Where that is a
    whole message, the first one follows on a line of its own."""
    groups: dict[str, list[LeftOut]] = {}
    for one in left_out:
        groups.setdefault(one.reason, []).append(one)
    lines = []
    for reason, group in groups.items():
        names = [f"{one.name} ({one.found})" if 0 < len(one.found) <= _SHORT else one.name for one in group]
        lines.append(f"  {len(group)} {reason}: {named(names)}")
        if len(group[0].found) > _SHORT:
            lines.append(f"    {group[0].found}")
    return lines
