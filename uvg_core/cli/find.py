"""``find``: the clips of a folder that show what some words say."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from ..errors import counted
from ..media.video.footage import Footage
from ..media.video.shots import Cutting
from ..pipeline.find import INDEX, Found, Index, Judge
from ..pipeline.wording import words_of
from ..progress import Bars
from ..sampling import Size
from ..settings import Text, Whole, setting, settings
from .common import Model
from .output import CANCELLED, complain, say, show
from .streams import as_json, is_stream, write_json


@settings
class Find:
    """What is looked for, and where."""

    folder: Path = setting("Folder of videos; its subfolders are searched too.", positional=True, metavar="FOLDER")
    query: Text = setting(
        'What the clip shows, e.g. "a red circle moves left".', positional=True, metavar="QUERY", stdin="text"
    )
    top: Whole = setting("How many clips to list at most.", default=5, ge=1, le=100_000)
    index: Path | None = setting(
        "File that holds the captions and latents of the folder's clips.", default=None, auto=f"FOLDER/{INDEX}"
    )
    json: Path | None = as_json("the clips, the best first, with scores and captions,")
    cutting: Cutting = setting("How a film is divided.", factory=Cutting)

    def __post_init__(self) -> None:
        words_of(self.query)


def find(own: Find, model: Model, size: Size, footage: Footage, shown: Bars) -> int:
    """List the clips of a folder that fit a description, the best first. New clips are captioned first.

    With --shots or --every, videos that last longer than three clips of the model are films: their shots are found."""
    with closing(Index(own.folder, own.index)) as index:
        pipe = model.pipeline(shown)
        judge = Judge(pipe, size, footage, index.content)
        if others := index.of_others(judge):
            say(
                f"{index.path}: {counted(others, 'clip')} described by another model, or with other settings of size "
                "and footage, will be described by this one too; both stay in the index. To use what is there, stop "
                "and name the same --model and settings"
            )
        try:
            report = index.update(judge, own.cutting, on_clip=lambda how_far, clip: say(f"{how_far}: {clip}"))
        except KeyboardInterrupt:
            shown.close()
            say("stopped; what was described so far is kept. Run the same command again to continue")
            return CANCELLED
        shown.close()
        if report.busy:
            say(f"{index.path}: another process is adding clips; searching those that are there already")
        for path, what in report.notes:
            say(f"{path}: {what}")
        for path, why in report.failed:
            complain(why if str(path) in why else f"{path}: {why}")
        found = index.find(own.query, judge, own.top)
    shown.close()
    unit = pipe.score_unit
    for one in () if is_stream(own.json) else found:
        show(f"{one.clip}\t{one.when}" if one.when else str(one.clip))
        say(f"  {one.score:.2f} {unit}: {one.caption}")
    if own.json:
        clips = [
            {"clip": str(one.clip), **_part(own, one), "score": one.score, "caption": one.caption} for one in found
        ]
        write_json(own.json, {"query": own.query, "unit": unit, "found": clips})
    return int(bool(report.failed))


def _part(own: Find, one: Found) -> dict[str, Any]:
    """Which part of the file it is, where films are divided; null for a whole one."""
    if not own.cutting.is_on:
        return {}
    times = {"start": one.start, "end": one.end}
    return {"shot": one.shot, **{name: time if time is None else round(time, 3) for name, time in times.items()}}
