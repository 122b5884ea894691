"""``caption``: clips give captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from ..content import content_of
from ..errors import UniViGUError, WrongUsage, counted
from ..media.video import Clip, ClipSpec, find_clips
from ..media.video.footage import Footage
from ..media.video.shots import Cutting, Shot
from ..pipeline.film import CHAPTERS, FORMS, Line, caption_film, read_ahead, rows_of
from ..pipeline.folders import Captions, FolderReport, FolderWorker, caption_folder, survey
from ..pipeline.pipeline import Pipeline
from ..pipeline.together import Together
from ..pipeline.workers import Engine, RayWorkers, Shard
from ..progress import Bars
from ..sampling import Sampling, Size
from ..settings import Flag, Text, fields_of, setting, settings
from .common import TEXT, Model, steps_on
from .flags import Only
from .output import CANCELLED, complain, is_quiet, say, show
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
    shard: Text = setting(
        "Caption one part of each folder, e.g. 2/4, where several processes or machines share the work.",
        default="1/1",
        metavar="PART/PARTS",
    )
    json: Path | None = as_json("the result for each clip")
    out: Path | None = setting(
        "With --shots or --every: write captions with times, as .srt, .vtt, .json or .csv, or a copy of the film with "
        "chapters, as .mp4, .mov, .mkv or .webm.",
        default=None,
        auto="lines on the standard output; for a folder, an .srt beside each film",
        short="-o",
        suffixes=(*FORMS, *CHAPTERS),
    )
    cutting: Cutting = setting("How a film is divided.", factory=Cutting)
    where: Engine = setting("Where folders are captioned.", factory=Engine)

    def __post_init__(self) -> None:
        if self.out is not None and not self.cutting.is_on:
            raise UniViGUError("-o writes the captions of a film; add --shots, or --every SECONDS")
        if self.out is not None and (len(self.clips) > 1 or os.path.isdir(self.clips[0])):
            raise UniViGUError(
                "-o names one file; give it one film, or leave it out: films of folders get an .srt each"
            )
        if self.cutting.is_on and self.dry_run:
            raise UniViGUError("--dry-run does not tell how many shots there are; leave out --dry-run, or --shots")
        is_ray = self.where.engine == "ray"
        for path in self.clips if is_ray or self.part != Shard() else ():
            if not os.path.isdir(path):
                flag = "--engine ray" if is_ray else "--shard"
                raise UniViGUError(f"{flag} divides the clips of folders, and {path} is not a folder; leave it out")
        if is_ray and self.cutting.is_on:
            raise UniViGUError("--engine ray captions clips, not films; use --shard instead, or leave out --shots")
        if self.dry_run and self.json is not None:
            raise UniViGUError("--dry-run makes no results that --json could write; leave out one of them")

    @property
    def part(self) -> Shard:
        """Which of a folder's clips are captioned."""
        return Shard.of(self.shard)


@dataclass(frozen=True)
class Describe:
    """Captions as the flags say."""

    pipe: Pipeline
    captions: Captions
    sampling: Sampling
    spec: ClipSpec
    footage: Footage
    shown: Bars
    model: Model
    together: int

    def captioner(self, folder: Path) -> Together:
        """Captions the clips of a folder."""
        return Together(self.read, partial(self, folder=folder), self.together)

    def read(self, path: Path) -> Clip:
        """A clip as the model wants it."""
        return self.footage.read(path, self.spec)

    def __call__(self, clips: Sequence[Clip], paths: Sequence[Path], folder: Path) -> list[str]:
        latents = self.pipe.encode_clips([clip.pixels for clip in clips])
        self.shown.close()
        for clip in clips:
            say(clip.note)
        return self.texts(latents, [self.captions.seed(self.sampling.seed, path.relative_to(folder)) for path in paths])

    def shots(self, parts: Sequence[Shot]) -> list[str]:
        """What is written for parts of a film."""
        latents = self.pipe.encode_clips([part.pixels for part in parts])
        self.shown.close()
        return [self.captions.worded(text) for text in self.texts(latents, [self.sampling.seed] * len(parts))]

    def facts(self, cutting: Cutting) -> dict[str, Any]:
        """What captions of a film depend on beside the film, in plain values."""
        parts = self.pipe.components
        loras = [[content_of(lora.path), lora.video, lora.text] for lora in self.model.lora]
        sampling = {name: str(value) for name, value in asdict(self.sampling).items()}
        return {
            "model": [content_of(parts.path), content_of(parts.files.vae.path), str(self.pipe.config), loras],
            "way of cutting": asdict(cutting),
            "part, size or fit": [str(self.spec), asdict(self.footage)],
            "sampling": sampling,
            "wording": asdict(self.captions),
        }

    def texts(self, latents: Tensor, seeds: Sequence[int]) -> list[str]:
        """The words of the model."""
        return self.pipe.captions(
            latents,
            seeds,
            hint=self.captions.hint,
            template=self.captions.template,
            sampling=self.sampling,
            callback=steps_on(self.shown, "writing the caption", self.pipe.tokenizer.text),
        )


@dataclass(frozen=True)
class _Asked:
    """What the flags say, from which ``Describe`` is made, here or in another process."""

    captions: Captions
    model: Model
    sampling: Sampling
    size: Size
    footage: Footage

    def describe(self, shown: Bars) -> Describe:
        """Load the model."""
        pipe = self.model.pipeline(shown)
        spec, together = self.size.spec(pipe.config.run, self.footage), pipe.together(self.size)
        return Describe(pipe, self.captions, self.sampling, spec, self.footage, shown, self.model, together)

    def worker(self) -> FolderWorker:
        """The same in a process of Ray's."""
        return FolderWorker(self.describe(Bars(hidden=True)).captioner)


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
    _require_plain(own, captions)
    results: list[dict[str, Any]] = []
    files: list[Path] = []
    failed, is_stopped = 0, False

    def note(report: FolderReport) -> None:
        results.extend(report.to_json())
        files.extend((*report.written, *report.skipped))

    with _captioners(own, _Asked(captions, model, sampling, size, footage), shown) as captioners:
        for path in own.clips:
            try:
                if os.path.isdir(path) and not own.cutting.is_on:  # unlike Path.is_dir, no error for too long names
                    failed += _folder(own, path, captioners, captions, note)
                else:
                    assert isinstance(captioners, Describe)  # Caption asks for it
                    failed += _clip(own, path, captioners, results)
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


@contextmanager
def _captioners(own: Caption, asked: _Asked, shown: Bars) -> Iterator[Describe | RayWorkers]:
    """The model, here, or in the workers of Ray."""
    if own.where.engine == "process":
        yield asked.describe(shown)
        return
    device = asked.model.device or "cuda"
    if ":" in device:
        raise WrongUsage(f"--device {device} names one card, and each worker of --engine ray gets one; leave it out")
    with RayWorkers(own.where, asked.worker, gpu=device == "cuda", note=say, quiet=is_quiet()) as workers:
        say(f"Ray: up to {counted(workers.count, 'worker')}")
        yield workers


def _folder(
    own: Caption,
    path: Path,
    captioners: Describe | RayWorkers,
    captions: Captions,
    note: Callable[[FolderReport], None],
) -> int:
    """Caption a folder; how many clips failed."""
    report = caption_folder(
        path,
        captioners.captioner(path) if isinstance(captioners, Describe) else captioners,
        captions,
        recursive=not own.no_recursive,
        shard=own.part,
        on_clip=lambda _, __, clip, how_far: say(f"{how_far}: {clip}"),
        on_stop=note,
    )
    if not is_stream(own.json):
        show(str(report))
    note(report)
    return len(report.failed)


def _clip(own: Caption, path: Path, describe: Describe, results: list[dict[str, Any]]) -> int:
    """Caption a clip, or films; how many failed."""
    if own.cutting.is_on:
        return _film(own, path, describe, results)
    text = describe.captions.worded(describe([describe.read(path)], [path], path.parent)[0])
    if not is_stream(own.json):
        show(text if len(own.clips) == 1 else f"{path}\t{text}")
    results.append({"clip": str(path), "outcome": "written", "caption": text, "reason": None})
    return 0


def _film(own: Caption, path: Path, describe: Describe, results: list[dict[str, Any]]) -> int:
    """Caption a film, or each of a folder; how many failed."""
    is_folder = os.path.isdir(path)
    films = find_clips(path, recursive=not own.no_recursive, stills=False) if is_folder else [path]
    if not films:
        raise UniViGUError(f"{path}: no videos in this folder; expected files such as mp4, mkv or mov")
    failed = 0
    for film in own.part.part(films):
        out = film.with_suffix(".srt") if is_folder else own.out
        if is_folder and out is not None and os.path.lexists(out) and not describe.captions.overwrite:
            say(f"{out}: is there already and stays; --overwrite replaces it")
            results.append({"clip": str(film), "outcome": "skipped", "caption": None, "reason": None})
            continue
        try:
            results.extend(_captioned(own, film, out, describe))
        except UniViGUError as error:
            if not is_folder:
                raise
            describe.shown.close()
            complain(error)
            results.append({"clip": str(film), "outcome": "failed", "caption": None, "reason": str(error)})
            failed += 1
    return failed


def _captioned(own: Caption, film: Path, out: Path | None, describe: Describe) -> Iterator[dict[str, Any]]:
    """Caption a film; what ``--json`` says of each part."""
    is_quiet = is_stream(own.json)

    def tell(line: Line) -> None:
        if out is not None:
            say(str(line))
        elif not is_quiet:
            show(str(line) if len(own.clips) == 1 else f"{film}\t{line}")

    lines = caption_film(
        film,
        lambda done: read_ahead(film, own.cutting, describe.spec, describe.footage, done=done, ahead=describe.together),
        describe.shots,
        together=describe.together,
        out=out,
        facts=None if out is None else describe.facts(own.cutting),
        on_line=tell,
        note=lambda text: say(f"{film}: {text}"),
    )
    if out is not None:
        show(f"{out}: {counted(len(lines), 'caption')}")
    for row in rows_of(lines):
        yield {"clip": str(film), "outcome": "written", "reason": None, **row}


def _require_plain(own: Caption, captions: Captions) -> None:
    """Raise WrongUsage for settings that captions of clips have, and those of a film have not."""
    for name in ("existing", "format", "file_suffix", "backup", "clip_seeds", "review") if own.cutting.is_on else ():
        if getattr(captions, name) != fields_of(Captions)[name].default:
            raise WrongUsage(f"--{name.replace('_', '-')} does not go with --shots or --every; leave it out")


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
                words, unreadable = survey(path, captions, recursive=not own.no_recursive, shard=own.part)
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
