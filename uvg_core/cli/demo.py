"""The demo: one prompt gives a clip, the clip gives a caption, a brief prompt both at once, and an edit ends it."""

from __future__ import annotations

import time
from pathlib import Path

from ..io import free_name, make_folder, write_text
from ..media.sheet import SheetRow, contact_sheet
from ..pipeline.pipeline import Pipeline
from ..pipeline.wording import changes_of, reworded
from ..progress import Bars
from ..sampling import Editing, Sampling
from ..settings import setting, settings
from .common import Model, steps_on
from .output import joint_sheet, say, show_clip

PROMPT = "a large red circle moves right quickly on a navy background"
BRIEF = "a magenta star"
TEMPLATE = "a ___ ___ circle moves ___"
CHANGE, STRENGTH = "red=blue", 0.6


@settings
class Demo:
    """Where clips, ``captions.txt`` and contact sheets go."""

    out: Path | None = setting(
        "Folder for the results.", default=None, auto="out, or out.2 if that exists", metavar="DIR"
    )


def demo(own: Demo, model: Model, shown: Bars) -> None:
    """Run all three jobs and an edit on the embedded model in under a minute."""
    pipe, out = model.pipeline(shown), own.out or free_name("out")
    make_folder(out, "choose another with --out")
    started, fps = time.monotonic(), pipe.config.run.fps
    captions: list[str] = []

    say(f"1/4  text to video: “{PROMPT}”")
    clip = out / "generated.mp4"
    pixels = pipe.generate(PROMPT, callback=lambda step, state: shown("generating", step, state.steps))
    show_clip(clip, pixels, fps)

    say("2/4  video to text: that clip, read from its file")
    latent, note = pipe.latent_of(clip)
    say(f"     {note}")
    words = pipe.caption(latent, callback=lambda step, state: shown("writing the caption", step, state.steps))
    filled = pipe.caption(latent, template=TEMPLATE)
    say(f"     -> {words}")
    say(f"     -> “{TEMPLATE}” filled in: {filled}")
    captions += [
        f"{clip.name}, from the prompt “{PROMPT}”",
        f"  caption: {words}",
        f"  template “{TEMPLATE}”: {filled}",
    ]

    say(f"3/4  both at once: “{BRIEF}”")
    pixels, text, trace = pipe.joint(
        BRIEF,
        sampling=Sampling(seed=5),
        record=7,
        callback=lambda step, state: shown("generating both", step, state.steps),
    )
    both, sheet = out / "joint.mp4", out / "joint.png"
    show_clip(both, pixels, fps)
    joint_sheet(sheet, BRIEF, text, pixels, trace)
    say(f"     -> {text}\n     -> {sheet}")
    captions += [f"{both.name}, from the prompt “{BRIEF}”", f"  caption, generated with the clip: {text}"]

    # Of what another model says, nobody knows whether it is red.
    captions += _edited(pipe, clip, words if "red" in words.split() else PROMPT, shown)
    write_text(out / "captions.txt", "\n".join(captions) + "\n")
    say(f"All in {out} after {time.monotonic() - started:.0f} s.")


def _edited(pipe: Pipeline, clip: Path, words: str, shown: Bars) -> list[str]:
    """The clip with other words, beside it, and what is to be said of it."""
    say(f"4/4  an edit: that clip again, with {CHANGE} in its caption")
    both = words, reworded(words, changes_of([CHANGE]))
    latent, _ = pipe.latent_of(clip)
    changed = pipe.edit(latent, both, editing=Editing(strength=STRENGTH), callback=steps_on(shown, "editing"))
    before, after = pipe.decode_clips([latent, changed])
    edited, sheet = clip.with_name("edited.mp4"), clip.with_name("edited.png")
    show_clip(edited, after, pipe.config.run.fps)
    contact_sheet([SheetRow("clip", before, both[0]), SheetRow("edited", after, both[1])], sheet, title=CHANGE)
    say(f"     -> {both[1]}\n     -> {sheet}")
    return [f"{edited.name}, from {clip.name} with {CHANGE}", f"  caption: {both[1]}"]
