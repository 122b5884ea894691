"""``joint``: a prompt gives an mp4 and its caption at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from ..errors import UniViGUError
from ..io import free_name, require_writable, write_beside
from ..media.tokenizer import require_blank
from ..pipeline.pipeline import SEEDS, Callback, Parts, Sampled, given
from ..pipeline.story import MOST_SHOTS, Drawing, Shot, Story
from ..progress import Bars
from ..sampling import BestOf, Sampling, Size
from ..settings import Text, Whole, setting, settings
from .common import TEXT, VIDEO, Holds, Model, Video, beside, drawn, latent_saved, steps_of, steps_on
from .flags import Only
from .output import joint_sheet, say, show, show_clip
from .story import require_story, tell_story

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
    story: Path | None = setting(
        "Make a film of several shots: a file with one prompt a line, or YAML (see docs/use.md); the model writes the "
        "caption of each.",
        default=None,
        stdin="file",
    )
    shots: Whole | None = setting(
        "Make a film of so many shots from the prompt; the model writes what happens in each.",
        default=None,
        ge=1,
        le=MOST_SHOTS,
    )
    template: Text = setting("Caption with blanks to fill in, for example 'a ___ circle moves left'.", default="")

    def __post_init__(self) -> None:
        if self.prompt is None and not self.template.strip() and self.story is None:
            raise UniViGUError("joint: pass a prompt or --template, or a story with --story")
        if self.story is not None and (self.prompt is not None or self.shots is not None):
            raise UniViGUError("--story FILE has prompts of its own; leave out the prompt and --shots")
        if (self.story or self.shots) is not None and (self.template.strip() or self.sheet is not None):
            raise UniViGUError("--template and --sheet are for one clip; leave them out with --story and --shots")
        if self.template.strip():
            require_blank(self.template)  # before a model is loaded

    def told(self, seed: int) -> Story:
        """The story that is asked for: that of a file, or shots from one premise. In these something new happens each
        time: they have seeds of their own and go on from one frame, which does not say where things move."""
        if self.story is not None:
            return Story.read(self.story)
        seeds = ((seed + number) % SEEDS for number in range(self.shots or 1))
        return Story(shots=tuple(Shot(prompt=self.prompt or "", seed=one) for one in seeds), overlap=1)


def joint(
    own: Joint,
    model: Model,
    sampling: Annotated[Sampling, Only(*VIDEO, *TEXT, "text_update")],
    video: Video,
    size: Size,
    best: BestOf,
    holds: Holds,
    shown: Bars,
) -> int:
    """Generate a video and its caption at once from a prompt."""
    if own.story is not None or own.shots is not None:
        require_story(holds, best, own.out)
        story = own.told(sampling.seed)
        pipe = model.pipeline(shown, video.null_embedding, fast=video.fast)
        drawing = Drawing(pipe, size, sampling, video.negative, joint=True)
        words_of = partial(steps_on, shown, words=pipe.tokenizer.text)
        path, told = tell_story(
            story, drawing, video=video, best=best, holds=holds, out=own.out, shown=shown, steps=words_of
        )
        words = [text for shot in told for text in shot.texts]
        show("\n".join(words))
        _write_caption(path, "\n".join(words))
        return 0
    out = own.out or free_name(JOINT)
    for path in filter(None, (out, own.sheet)):
        require_writable(path)
    pipe = model.pipeline(shown, video.null_embedding, fast=video.fast)

    held = holds.read(pipe, size, shown)

    def steps(what: str) -> Callback:
        return steps_on(shown, what, pipe.tokenizer.text)

    def draw() -> Sampled:
        return pipe.draw_joint(
            own.prompt or "",
            negative=video.negative,
            size=held.size,
            sampling=sampling,
            parts=Parts(held.kept, own.template),
            best_of=best.best_of,
            callback=steps_of(pipe, best, steps, "generating both"),
            record=8 if own.sheet else 0,
        )

    with latent_saved(pipe, out, shown):
        (kept, *others), code = drawn(pipe, best, shown, draw)
        pixels, trace = pipe.decoded(kept)
        fps = given(video.fps, held.fps or pipe.config.run.fps)
        out = show_clip(own.out or JOINT, held.shown(pixels), fps, video.scale, anew=own.out is None, sound=held.sound)
    show(kept.text)  # first: whatever refuses to be written, the words are not lost
    _write_caption(out, kept.text)
    for one in others:
        made = held.shown(pipe.decoded(one)[0])
        path = show_clip(beside(out, one), made, fps, video.scale, anew=True, sound=held.sound)
        _write_caption(path, one.text)
    if own.sheet:
        joint_sheet(own.sheet, own.prompt or own.template, kept.text, pixels, trace)
        say(f"{own.sheet}: how clip and caption took shape")
    return code


def _write_caption(clip: Path, text: str) -> None:
    caption = clip.with_suffix(".txt")
    if (written := write_beside(caption, text + "\n")) != caption:
        say(f"{caption} already exists and was not changed; the caption is in {written}")
