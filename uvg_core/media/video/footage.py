"""The settings of reading a clip, for everything that reads one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from ...errors import UniViGUError
from ...settings import Number, OneOf, Text, setting, settings, shown
from .clip import Clip, ClipSpec
from .read import read_clip

FITS, CROPS = ("auto", "crop", "pad", "stretch"), ("center", "top", "bottom", "smart")
_COLOURS = {
    "black": "#000000",
    "white": "#ffffff",
    "gray": "#808080",
    "red": "#ff0000",
    "green": "#00ff00",
    "blue": "#0000ff",
}


@settings
class Footage:
    """Which part of a clip is read, and how its pictures are fitted to the size."""

    start: Number = setting("Seconds to leave out at the beginning.", default=0.0, ge=0, le=1e6)
    seconds: Number | None = setting("Seconds to read from there.", default=None, auto="to the end", gt=0, le=1e6)
    fps: Number | None = setting(
        "Frames per second to read.", default=None, auto="frames spread evenly over what is read", gt=0, le=1000
    )
    fit: Annotated[str, OneOf(*FITS)] = setting(
        "For clips of another shape: crop cuts off what goes beyond the size, pad adds bars, stretch distorts. auto "
        "crops; where the size is left to a checkpoint that takes others, such as the released model, a clip that "
        "would lose more than a quarter is read in one of its own shape instead.",
        default="auto",
    )
    crop: Annotated[str, OneOf(*CROPS)] = setting(
        "Which part is kept where a clip is cropped; smart: the part with the most detail and movement.",
        default="center",
    )
    background: Text = setting(
        f"Colour of bars, and behind transparent parts: {', '.join(_COLOURS)}, or as #RRGGBB.", default="black"
    )

    def __post_init__(self) -> None:
        if not re.fullmatch("#[0-9a-f]{6}", self._hexadecimal):
            raise UniViGUError(
                f"background is {shown(self.background)}; expected {', '.join(_COLOURS)}, or a colour such as #20c060"
            )

    @property
    def _hexadecimal(self) -> str:
        word = self.background.strip().lower()
        return _COLOURS.get(word, word)

    def spec(self, frames: int, height: int, width: int) -> ClipSpec:
        """How a clip becomes one of that size."""
        red, green, blue = bytes.fromhex(self._hexadecimal[1:])
        spec = ClipSpec(frames, height, width, self.fps, fit=self.fit, crop=self.crop)
        return replace(spec, background=(red, green, blue))

    def read(self, path: str | Path, spec: ClipSpec) -> Clip:
        """The part of a clip that is to be read. Raises UniViGUError as ``read_clip`` does."""
        return read_clip(path, spec, start=self.start, seconds=self.seconds)


FOOTAGE = Footage()
