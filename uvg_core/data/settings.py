"""What a training is told about its data: where clips come from, and in which sizes they are used."""

from __future__ import annotations

from typing import Annotated

from annotated_types import MinLen
from pydantic import Field

from ..errors import UniViGUError
from ..media.video.footage import CROPS, FITS, Footage
from ..settings import Flag, Number, OneOf, PathText, Text, Whole, setting, settings

WINDOWS = ("whole", "all", "first")
_LENGTHS = "a list of lengths in square brackets, each of the form 4n+1: 1 (pictures), 5, 9 ... 81"


@settings
class Data:
    """One source of clips: a folder of clips with their texts, a manifest, or shards.

    ``windows``: a caption speaks of the whole clip. ``whole`` spreads the frames of a clip that is longer than the
    model's over all of it, at most ``fastest`` times as fast; ``all`` cuts it into windows that cover it, and says by
    that that the caption holds for each of them; ``first`` takes the beginning alone, as earlier versions did.

    ``start`` and ``seconds`` count from the beginning of the file; of a part that a manifest names, what both have in
    common is used. ``fps`` is taken for the model's rate: with half of it, movement is twice as fast.
    """

    path: Annotated[PathText, MinLen(1)] = setting(
        "Folder of clips; .jsonl, .csv or .parquet manifest; .tar shards.", expected="text: a path"
    )
    repeats: Number = setting(
        "How often a clip comes in an epoch; 0.5 is every second time.", default=1.0, gt=0, le=1e4
    )
    weight: Number | None = setting(
        "Share of the source among all that have one, whatever its size.", default=None, gt=0, le=1e6
    )
    windows: Annotated[str, OneOf(*WINDOWS)] = setting(
        "What is used of a clip longer than the model's: whole, all or first.", default="whole"
    )
    fastest: Number = setting("Longer clips are left out by windows: whole.", default=2.0, ge=1, le=1e4)
    prefix: Text = setting("In front of every text, such as a trigger word.", default="")
    suffix: Text = setting("Behind every text.", default="")
    shuffle_tags: Flag = setting("Shuffle the parts of prompts between commas.", default=False)
    keep_tags: Whole = setting("How many of them stay in front.", default=1, ge=0, le=1000)
    drop_tags: Number = setting("Share of the other tags that is left out.", default=0.0, ge=0, le=1)
    wordings: Whole = setting("How many shuffled prompts are made of each.", default=4, ge=1, le=64)

    start: Number = setting("Seconds to leave out at the beginning of each clip.", default=0.0, ge=0, le=1e6)
    seconds: Number | None = setting("Seconds to use from there; None is to the end.", default=None, gt=0, le=1e6)
    fps: Number | None = setting("Frames per second to read; None is the model's rate.", default=None, gt=0, le=1000)
    fit: Annotated[str, OneOf(*FITS[1:])] = setting("For clips of another shape: crop, pad or stretch.", default="crop")
    crop: Annotated[str, OneOf(*CROPS)] = setting("Which part crop keeps.", default="center")
    background: Text = setting("Colour of bars and behind transparent parts.", default="black")

    @property
    def footage(self) -> Footage:
        return Footage(self.start, self.seconds, self.fps, self.fit, self.crop, self.background)

    def __post_init__(self) -> None:
        _ = self.footage  # refuses what is no colour
        if self.weight is not None and self.repeats != 1:
            raise UniViGUError(f"repeats is {self.repeats:g} and weight is {self.weight:g}; set only one of them")


@settings
class Buckets:
    """Sizes beside the model's own: a step takes clips of one size.

    ``shapes`` above 1 makes so many heights and widths of the model's area, as wide as ``widest`` and as tall; a clip
    goes to the one that is closest to its own shape. ``frames``: lengths; a clip goes to the longest that it fills,
    a picture to 1.
    """

    shapes: Whole = setting("Heights and widths of the model's area; 1 is the model's alone.", default=1, ge=1, le=64)
    widest: Number = setting("Of shapes: the widest, width by height.", default=2.0, gt=1, le=10)
    frames: Annotated[tuple[Annotated[Whole, Field(ge=1, le=1025)], ...], MinLen(1)] | None = setting(
        "Lengths in frames; None is the model's alone.", default=None, expected=_LENGTHS
    )

    def __post_init__(self) -> None:
        if self.frames is not None and any(length % 4 != 1 for length in self.frames):
            raise UniViGUError(f"frames is {list(self.frames)}; expected {_LENGTHS}")
