"""What a decoded frame carries beside its picture."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av

_TRIED = 4  # kinds in one frame that PyAV has no name for


def side_data(frame: Any, name: str) -> bytes:
    """The side data of a kind, by its name in PyAV; empty where a frame has none.

    PyAV refuses all of a frame's, with a ValueError that names a number, where it has no name for one of them: so of
    every photo with Exif. FFmpeg takes that one away."""
    for _ in range(_TRIED):
        try:
            found = frame.side_data.get(name)
            return b"" if found is None else bytes(found)
        except ValueError as error:
            number = str(error).partition(" ")[0]
            if not number.isdecimal():
                break
            frame = without(frame, number)
    return b""


def without(frame: Any, kind: str) -> Any:
    """The same frame without side data of a kind, by FFmpeg's name or number."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add("sidedata", f"mode=delete:type={kind}"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()
