"""``generate``: a prompt gives an mp4."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..errors import UniViGUError
from ..io import free_name
from ..media.vae import read_latent
from ..media.video.footage import Footage
from ..pipeline.pipeline import given
from ..progress import Bars
from ..sampling import Sampling, Size
from ..settings import Flag, Text, setting, settings
from .common import PICTURES, VIDEO, Holds, Model, Video, latent_saved, steps_on
from .flags import Only
from .output import show_clip
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
    from_latent: Path | None = setting(
        "Decode a latent that an earlier run saved, instead of generating from a prompt.", default=None
    )
    text: Text | None = setting("Text for the text stream.", default=None, auto="the prompt")
    no_text_stream: Flag = setting("Leave the text stream empty, as in plain Wan.", default=False)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.from_latent is None):
            raise UniViGUError("generate: pass a prompt or --from-latent FILE, and not both")


def generate(
    own: Generate,
    model: Model,
    sampling: Annotated[Sampling, Only(*VIDEO)],
    video: Video,
    size: Size,
    holds: Holds,
    footage: Annotated[Footage, Only(*PICTURES)],
    shown: Bars,
) -> None:
    """Generate a video from a prompt."""
    if own.from_latent is not None and holds != Holds():
        raise UniViGUError("--from-latent decodes a finished clip; leave out what is to be held")
    with output_file(named := own.out or free_name(CLIP), ".mp4") as out:
        target = CLIP if own.out is None else out
        pipe = model.pipeline(shown, video.null_embedding, fast=video.fast)
        if own.from_latent is not None:
            latent, fps = read_latent(own.from_latent, pipe.components.path.name), given(video.fps, pipe.config.run.fps)
            show_clip(target, pipe.decode_clips([latent])[0], fps, video.scale, anew=own.out is None)
            return
        held = holds.read(pipe, size, footage, shown)
        with latent_saved(pipe, free_name(CLIP) if is_stream(named) else out, shown):
            pixels = pipe.generate(
                own.prompt or "",
                text="" if own.no_text_stream else own.text,
                negative=video.negative,
                size=held.size,
                sampling=sampling,
                kept=held.kept,
                callback=steps_on(shown, "generating"),
            )
            fps, pixels = given(video.fps, held.fps or pipe.config.run.fps), held.shown(pixels)
            show_clip(target, pixels, fps, video.scale, anew=own.out is None, sound=held.sound)
