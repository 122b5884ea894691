"""``caption``: clips give captions."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from ..errors import UniViGUError
from ..pipeline.folders import Captions, caption_folder
from ..progress import Bars
from ..sampling import Sampling, Size
from ..settings import Flag, fields_of, setting, settings
from .common import TEXT, Model, steps_on
from .flags import Only
from .output import complain, say, show


@settings
class Caption:
    """What is captioned."""

    clips: tuple[Path, ...] = setting(
        "Videos and folders of videos; - is the standard input.", positional=True, metavar="CLIP|FOLDER", stdin="file"
    )
    no_recursive: Flag = setting("Leave subfolders out.", default=False)


def caption(
    own: Caption,
    captions: Annotated[Captions, Only(*(name for name in fields_of(Captions) if name != "only"))],
    model: Model,
    sampling: Annotated[
        Sampling, Only("steps", "seed", *TEXT, "video_cache", "stop_when_stable", text_update=("bridge", "euler"))
    ],
    size: Size,
    shown: Bars,
) -> int:
    """Caption clips. Every clip of a folder gets a .txt beside it."""
    pipe, failed = model.pipeline(shown), 0

    def describe(path: Path, folder: Path) -> str:
        latent, note = pipe.latent_of(path, size)
        shown.close()
        say(note)
        seed = captions.seed(sampling.seed, path.relative_to(folder))
        watch = steps_on(shown, "writing the caption", pipe.tokenizer.text)
        return pipe.caption(
            latent,
            hint=captions.hint,
            template=captions.template,
            sampling=replace(sampling, seed=seed),
            callback=watch,
        )

    for path in own.clips:
        try:
            if os.path.isdir(path):  # unlike Path.is_dir, not an error for names that are too long
                report = caption_folder(
                    path,
                    partial(describe, folder=path),
                    captions,
                    recursive=not own.no_recursive,
                    on_clip=lambda _, __, clip, how_far: say(f"{how_far}: {clip}"),
                )
                show(str(report))
                failed += len(report.failed)
            else:
                name = "" if len(own.clips) == 1 else f"{path}\t"
                show(f"{name}{captions.worded(describe(path, path.parent))}")
        except UniViGUError as error:
            shown.close()
            complain(error)
            failed += 1
    return 1 if failed else 0
