"""``joint``: a prompt gives an mp4 and its caption at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..errors import UniViGUError
from ..io import free_name, require_writable, write_beside
from ..media.tokenizer import require_blank
from ..media.video.footage import Footage
from ..pipeline.pipeline import given
from ..progress import Bars
from ..sampling import Sampling, Size
from ..settings import Text, setting, settings
from .common import PICTURES, TEXT, VIDEO, Holds, Model, Video, latent_saved, steps_on
from .flags import Only
from .output import joint_sheet, say, show, show_clip

JOINT = Path("joint.mp4")  # or a free name like it, where nobody named one


@settings
class Joint:
    """What ``joint`` makes."""

    prompt: Text | None = setting(
        "What the video should show; - reads it from standard input.",
        default=None,
        auto="the words of --template",
        positional=True,
        metavar="prompt",
        stdin="text",
    )
    out: Path | None = setting(
        "Output file (.mp4); the caption is written beside it as .txt.",
        default=None,
        auto="joint.mp4, or joint.2.mp4 if that exists",
        short="-o",
        suffixes=(".mp4",),
    )
    sheet: Path | None = setting(
        "Also write a contact sheet (.png) that shows both streams forming.",
        default=None,
        suffixes=(".png", ".jpg", ".webp"),
    )
    template: Text = setting("Caption with blanks to fill in, for example 'a ___ circle moves left'.", default="")

    def __post_init__(self) -> None:
        if self.prompt is None and not self.template.strip():
            raise UniViGUError("joint: pass a prompt or --template")
        if self.template.strip():
            require_blank(self.template)  # before a model is loaded


def joint(
    own: Joint,
    model: Model,
    sampling: Annotated[Sampling, Only(*VIDEO, *TEXT, "text_update")],
    video: Video,
    size: Size,
    holds: Holds,
    footage: Annotated[Footage, Only(*PICTURES)],
    shown: Bars,
) -> None:
    """Generate a video and its caption at once from a prompt."""
    out = own.out or free_name(JOINT)
    for path in filter(None, (out, own.sheet)):
        require_writable(path)
    pipe = model.pipeline(shown, video.null_embedding, fast=video.fast)
    held = holds.read(pipe, size, footage, shown)
    with latent_saved(pipe, out, shown):
        pixels, text, trace = pipe.joint(
            own.prompt or "",
            negative=video.negative,
            template=own.template,
            size=held.size,
            sampling=sampling,
            kept=held.kept,
            callback=steps_on(shown, "generating both", pipe.tokenizer.text),
            record=8 if own.sheet else 0,
        )
        fps, made = given(video.fps, held.fps or pipe.config.run.fps), held.shown(pixels)
        out = show_clip(own.out or JOINT, made, fps, video.scale, anew=own.out is None, sound=held.sound)
    show(text)  # first: whatever refuses to be written, the words are not lost
    caption = out.with_suffix(".txt")
    if (written := write_beside(caption, text + "\n")) != caption:
        say(f"{caption} already exists and was not changed; the caption is in {written}")
    if own.sheet:
        joint_sheet(own.sheet, own.prompt or own.template, text, pixels, trace)
        say(f"{own.sheet}: how clip and caption took shape")
