"""``--story`` of ``generate`` and ``joint``: a film of many shots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import WrongUsage
from ..io import free_name
from ..pipeline.pipeline import Callback, given
from ..pipeline.story import Drawing, Story, Told, tell
from ..progress import Bars
from ..sampling import BestOf, State
from .common import Holds, Video, steps_of
from .output import say, show_clip
from .streams import is_stream

STORY = Path("story.mp4")  # or a free name like it, where nobody named one


def require_story(holds: Holds, best: BestOf, out: Path | None) -> None:
    """Raise WrongUsage for flags that a story has no use for."""
    if is_stream(out):
        raise WrongUsage("a story is written to a file, beside which its shots are kept until then; name one with -o")
    if holds.last_frame is not None or holds.hold is not None:
        raise WrongUsage("--story goes on from one shot to the next; of what is held, only --first-frame fits")
    if best.keep_all:
        raise WrongUsage("--keep-all keeps several draws of one clip; leave it out with --story")


def tell_story(
    story: Story,
    drawing: Drawing,
    *,
    video: Video,
    best: BestOf,
    holds: Holds,
    out: Path | None,
    shown: Bars,
    steps: Callable[[str], Callback],
) -> tuple[Path, list[Told]]:
    """Make the shots and write the film; returns its name, and the shots. What is made is kept beside the film until it
    is written: after Ctrl-C, a kill or a full disk the same command goes on from there."""
    pipe = drawing.pipe
    held = holds.read(pipe, drawing.size, shown)
    named = out or free_name(STORY)
    stored = named.with_suffix(".shots")
    fps, frames = given(video.fps, pipe.config.run.fps), held.size.resolved(pipe.config.run)[0]
    told: list[Told] = []

    def on_step(step: int, state: State) -> object:
        return steps_of(pipe, best, steps, f"shot {len(told) + 1} of {len(story.shots)}")(step, state)

    draw = replace(drawing, size=held.size, best_of=best.best_of, stored=stored, callback=on_step)
    at, seed = 0.0, drawing.sampling.seed
    try:
        for shot in tell(story, draw, fps=fps, frames=frames, seed=seed, first=held.first):
            told.append(shot)
            end = at + len(shot.pixels) / fps
            shown.close()
            say(f"shot {len(told)}, {at:.2f} to {end:.2f} s: {shot.prompt}")
            at = end
        made = torch.cat([shot.pixels for shot in told])
        path = show_clip(STORY if out is None else out, made, fps, video.scale, anew=out is None)
    except BaseException:
        shown.close()
        if stored.exists():
            say(f"{stored}: the clips made so far; the same command with -o {named} goes on from them")
        raise
    draw.forget()
    return path, told
