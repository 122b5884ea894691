"""The demo: one prompt gives a clip, the clip gives a caption, and a brief prompt gives both at once."""

from __future__ import annotations

import time
from pathlib import Path

from ..io import free_name, make_folder, write_text
from ..progress import Bars
from ..sampling import Sampling
from ..settings import setting, settings
from .common import Model
from .output import joint_sheet, say, show_clip

PROMPT = "a large red circle moves right quickly on a navy background"
BRIEF = "a magenta star"
TEMPLATE = "a ___ ___ circle moves ___"


@settings
class Demo:
    """Where ``generated.mp4``, ``joint.mp4``, ``captions.txt`` and ``joint.png`` go."""

    out: Path | None = setting(
        "Folder for the results.", default=None, auto="out, or out.2 if that exists", metavar="DIR"
    )


def demo(own: Demo, model: Model, shown: Bars) -> None:
    """Run all three jobs on the embedded model in under a minute."""
    pipe, out = model.pipeline(shown), own.out or free_name("out")
    make_folder(out, "choose another with --out")
    started, fps = time.monotonic(), pipe.config.run.fps
    captions: list[str] = []

    say(f"1/3  text to video: “{PROMPT}”")
    clip = out / "generated.mp4"
    pixels = pipe.generate(PROMPT, callback=lambda step, state: shown("generating", step, state.steps))
    show_clip(clip, pixels, fps)

    say("2/3  video to text: that clip, read from its file")
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

    say(f"3/3  both at once: “{BRIEF}”")
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

    write_text(out / "captions.txt", "\n".join(captions) + "\n")
    say(f"All in {out} after {time.monotonic() - started:.0f} s.")
