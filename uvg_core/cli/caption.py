"""``caption``: clips give captions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from ..errors import UniViGUError
from ..pipeline.folders import caption_folder
from ..progress import Bars
from ..sampling import Sampling, Size
from ..settings import Flag, Text, setting, settings
from .common import TEXT, Model, steps_on
from .flags import Only
from .output import say, show


@settings
class Caption:
    """What is captioned, and how captions are written."""

    clips: tuple[Path, ...] = setting("Videos and folders of videos.", positional=True, metavar="CLIP|FOLDER")
    hint: Text = setting("A prompt to look at beside the clip.", default="")
    template: Text = setting("Text with blanks to fill in, e.g. 'a red ___ moves ___'.", default="")
    prefix: Text = setting("Put in front of every caption (a trigger word).", default="")
    overwrite: Flag = setting("Write captions that exist already anew.", default=False)
    no_recursive: Flag = setting("Leave subfolders out.", default=False)


def caption(
    own: Caption,
    model: Model,
    sampling: Annotated[
        Sampling, Only("steps", "seed", *TEXT, "video_cache", "stop_when_stable", text_update=("bridge", "euler"))
    ],
    size: Size,
    shown: Bars,
) -> int:
    """Caption clips. Every clip of a folder gets a .txt beside it."""
    pipe, failed = model.pipeline(shown), 0

    def describe(path: Path) -> str:
        latent, note = pipe.latent_of(path, size)
        shown.close()
        say(note)
        watch = steps_on(shown, "writing the caption", pipe.tokenizer.text)
        return pipe.caption(latent, hint=own.hint, template=own.template, sampling=sampling, callback=watch)

    for path in own.clips:
        try:
            if os.path.isdir(path):  # unlike Path.is_dir, not an error for names that are too long
                report = caption_folder(
                    path,
                    describe,
                    overwrite=own.overwrite,
                    prefix=own.prefix,
                    recursive=not own.no_recursive,
                    on_clip=lambda index, total, clip: say(f"[{index + 1}/{total}] {clip}"),
                )
                show(str(report))
                failed += len(report.failed)
            else:
                name = "" if len(own.clips) == 1 else f"{path}\t"
                show(f"{name}{own.prefix}{describe(path)}")
        except UniViGUError as error:
            shown.close()
            say(f"error: {error}")
            failed += 1
    return 1 if failed else 0
