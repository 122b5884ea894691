"""``caption``: clips give captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from ..errors import UniViGUError
from ..media.video import Clip, ClipSpec
from ..media.video.footage import Footage
from ..pipeline.folders import Captions, FolderReport, caption_folder, survey
from ..pipeline.pipeline import Pipeline
from ..pipeline.together import Together
from ..progress import Bars
from ..sampling import Sampling, Size
from ..settings import Flag, fields_of, setting, settings
from .common import TEXT, Model, steps_on
from .flags import Only
from .output import CANCELLED, complain, say, show
from .streams import as_json, is_stream, write_json


@settings
class Caption:
    """What is captioned."""

    clips: tuple[Path, ...] = setting(
        "Videos or folders of videos; - reads a video from standard input.",
        positional=True,
        metavar="CLIP|FOLDER",
        stdin="file",
    )
    no_recursive: Flag = setting("Do not search subfolders.", default=False)
    dry_run: Flag = setting("Show which clips would be captioned, without writing anything.", default=False)
    json: Path | None = as_json("the result for each clip")

    def __post_init__(self) -> None:
        if self.dry_run and self.json is not None:
            raise UniViGUError("--dry-run makes no results that --json could write; leave out one of them")


@dataclass(frozen=True)
class Describe:
    """Captions as the flags say."""

    pipe: Pipeline
    captions: Captions
    sampling: Sampling
    spec: ClipSpec
    footage: Footage
    shown: Bars

    def read(self, path: Path) -> Clip:
        """A clip as the model wants it."""
        return self.footage.read(path, self.spec)

    def __call__(self, clips: Sequence[Clip], paths: Sequence[Path], folder: Path) -> list[str]:
        latents = self.pipe.encode_clips([clip.pixels for clip in clips])
        self.shown.close()
        for clip in clips:
            say(clip.note)
        return self.pipe.captions(
            latents,
            [self.captions.seed(self.sampling.seed, path.relative_to(folder)) for path in paths],
            hint=self.captions.hint,
            template=self.captions.template,
            sampling=self.sampling,
            callback=steps_on(self.shown, "writing the caption", self.pipe.tokenizer.text),
        )


def caption(
    own: Caption,
    captions: Annotated[Captions, Only(*(name for name in fields_of(Captions) if name != "only"))],
    model: Model,
    sampling: Annotated[
        Sampling,
        Only(
            "steps", "seed", *TEXT, "video_cache", "stop_when_stable", "stop_when_sure", text_update=("bridge", "euler")
        ),
    ],
    size: Size,
    footage: Footage,
    shown: Bars,
) -> int:
    """Caption clips. Every clip of a folder gets a .txt beside it."""
    if own.dry_run:
        return _dry_run(own, captions)
    pipe = model.pipeline(shown)
    results: list[dict[str, Any]] = []
    files: list[Path] = []
    failed, is_stopped = 0, False

    describe = Describe(pipe, captions, sampling, size.spec(pipe.config.run, footage), footage, shown)
    together = pipe.together(size)

    def tell(text: str) -> None:
        if not is_stream(own.json):
            show(text)

    def note(report: FolderReport) -> None:
        results.extend(report.to_json())
        files.extend((*report.written, *report.skipped))

    for path in own.clips:
        try:
            if os.path.isdir(path):  # unlike Path.is_dir, not an error for names that are too long
                report = caption_folder(
                    path,
                    Together(describe.read, partial(describe, folder=path), together),
                    captions,
                    recursive=not own.no_recursive,
                    on_clip=lambda _, __, clip, how_far: say(f"{how_far}: {clip}"),
                    on_stop=note,
                )
                tell(str(report))
                note(report)
                failed += len(report.failed)
            else:
                text = captions.worded(describe([describe.read(path)], [path], path.parent)[0])
                tell(text if len(own.clips) == 1 else f"{path}\t{text}")
                results.append({"clip": str(path), "outcome": "written", "caption": text, "reason": None})
        except UniViGUError as error:
            shown.close()
            complain(error)
            results.append({"clip": str(path), "outcome": "failed", "caption": None, "reason": str(error)})
            failed += 1
        except KeyboardInterrupt:
            shown.close()
            say("stopped; captions written so far are kept. Run the same command again to continue")
            is_stopped = True
            break
    _write_report(own.json, results, files)
    return CANCELLED if is_stopped else int(failed > 0)


def _write_report(report: Path | None, results: list[dict[str, Any]], captions: list[Path]) -> None:
    if report is None:
        return
    if report.exists() and any(path.exists() and report.samefile(path) for path in captions):
        raise UniViGUError(
            f"{report}: holds a clip's caption and was not changed; to get the report, run the same command again with "
            "another name for --json"
        )
    write_json(report, results)


def _dry_run(own: Caption, captions: Captions) -> int:
    failed = 0
    for path in own.clips:
        try:
            if os.path.isdir(path):
                words, unreadable = survey(path, captions, recursive=not own.no_recursive)
                show(words)
                failed += unreadable
            elif os.path.exists(path):
                show(f"{path}: would be captioned; the caption is printed, not saved")
            else:
                raise UniViGUError(f"{path}: no such file or folder; check the path")
        except UniViGUError as error:
            complain(error)
            failed += 1
    return 1 if failed else 0
