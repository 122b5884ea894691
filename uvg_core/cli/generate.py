"""``generate``: a prompt gives an mp4."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from ..errors import UniViGUError, WrongUsage
from ..io import free_name
from ..media.vae import read_latent
from ..pipeline.pipeline import Sampled, given
from ..pipeline.story import Drawing, Story
from ..progress import Bars
from ..sampling import BestOf, Sampling, Size
from ..settings import Flag, Text, setting, settings
from .common import VIDEO, Holds, Model, Video, beside, drawn, latent_saved, steps_of, steps_on
from .flags import Only
from .output import show_clip
from .story import require_story, tell_story
from .streams import is_stream, output_file

CLIP = Path("clip.mp4")  # or a free name like it, where nobody named one


@settings
class Generate:
    """What ``generate`` makes."""

    prompt: Text | None = setting(
        "What the video should show; - reads it from standard input.",
        default=None,
        positional=True,
        metavar="prompt",
        stdin="text",
    )
    out: Path | None = setting(
        "Output file (.mp4); - writes to standard output.",
        default=None,
        auto="clip.mp4, or clip.2.mp4 if that exists",
        short="-o",
        suffixes=(".mp4",),
        stdout="file",
    )
    story: Path | None = setting(
        "Make a film of several shots: a file with one prompt a line, or YAML (see docs/use.md).",
        default=None,
        stdin="file",
    )
    from_latent: Path | None = setting(
        "Decode a latent that an earlier run saved, instead of generating from a prompt.", default=None
    )
    text: Text | None = setting("Text for the text stream.", default=None, auto="the prompt")
    no_text_stream: Flag = setting("Leave the text stream empty, as in plain Wan.", default=False)

    def __post_init__(self) -> None:
        if (self.prompt, self.story, self.from_latent).count(None) != 2:
            raise UniViGUError("generate: pass one of these: a prompt, --story FILE, or --from-latent FILE")
        if self.story is not None and self.text is not None:
            raise UniViGUError("--text is the text of one clip; leave it out with --story")


def generate(
    own: Generate,
    model: Model,
    sampling: Annotated[Sampling, Only(*VIDEO)],
    video: Video,
    size: Size,
    best: BestOf,
    holds: Holds,
    shown: Bars,
) -> int:
    """Generate a video from a prompt."""
    if own.from_latent is not None and holds != Holds():
        raise WrongUsage("--from-latent decodes a finished clip; leave out what is to be held")
    if own.from_latent is not None and best.best_of > 1:
        raise WrongUsage("--best-of draws clips, and --from-latent decodes one that is drawn; leave out one of them")
    if own.story is not None:
        require_story(holds, best, own.out)
        story = Story.read(own.story)
        drawing = Drawing(
            model.pipeline(shown, video.null_embedding, fast=video.fast),
            size,
            sampling,
            video.negative,
            plain=own.no_text_stream,
        )
        steps = partial(steps_on, shown)
        tell_story(story, drawing, video=video, best=best, holds=holds, out=own.out, shown=shown, steps=steps)
        return 0
    if is_stream(own.out) and best.keep_all:
        raise WrongUsage("--keep-all writes several clips, and standard output takes one; pass a file name with -o")
    with output_file(named := own.out or free_name(CLIP), ".mp4") as out:
        target = CLIP if own.out is None else out
        pipe = model.pipeline(shown, video.null_embedding, fast=video.fast)
        fps = given(video.fps, pipe.config.run.fps)
        if own.from_latent is not None:
            latent = read_latent(own.from_latent, model=pipe.components.path.name)
            show_clip(target, pipe.decode_clips([latent])[0], fps, video.scale, anew=own.out is None)
            return 0

        held = holds.read(pipe, size, shown)
        fps = given(video.fps, held.fps or fps)

        def draw() -> Sampled:
            return pipe.draw(
                own.prompt or "",
                text="" if own.no_text_stream else own.text,
                negative=video.negative,
                size=held.size,
                sampling=sampling,
                kept=held.kept,
                best_of=best.best_of,
                callback=steps_of(pipe, best, partial(steps_on, shown), "generating"),
            )

        with latent_saved(pipe, free_name(CLIP) if is_stream(named) else out, shown):
            (kept, *others), code = drawn(pipe, best, shown, draw)
            pixels = held.shown(pipe.decoded(kept)[0])
            target = show_clip(target, pixels, fps, video.scale, anew=own.out is None, sound=held.sound)
            for one in others:
                pixels = held.shown(pipe.decoded(one)[0])
                show_clip(beside(target, one), pixels, fps, video.scale, anew=True, sound=held.sound)
    return code
