"""Clips in, and out with their captions: Encode Video for Uni-ViGU, Caption Folder, Save Captioned Video."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..uvg_core.data.sources import digest
from ..uvg_core.errors import UniViGUError
from ..uvg_core.io import read_text, write_new
from ..uvg_core.media.video import as_srt, caption_tags, container_suffix, fit_pixels, read_clip, write_captioned
from ..uvg_core.pipeline.folders import caption_folder
from ..uvg_core.sampling import Sampling, Size
from ..uvg_core.settings import Flag, Text, setting, settings
from . import widgets
from .comfy.captions import describe
from .comfy.latents import encode_pixels, facts_of_vae, require_video_vae
from .comfy.network import run_facts
from .comfy.paths import shown
from .comfy.saving import output_file, place_in_output, workflow_tags
from .comfy.showing import Progress, said
from .media import (
    Folder,
    Rate,
    as_pixels,
    content_or_none,
    copied_from,
    fitting,
    size_widgets,
)
from .media import read as read_video
from .types import Node, output, schema
from .widgets import read, widget


class UniViGUEncodeVideo(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = "Says what 0 (auto) means. Needed only with a VAE that is not from Load Uni-ViGU."
        return schema(
            cls,
            "Encode Video for Uni-ViGU",
            "Samples, retimes, resizes and crops a clip to what the model reads, encodes it, and says what "
            "it did. Only the frames needed are decoded.",
            search_aliases=["vae encode video"],
            inputs=[
                io.MultiType.Input("video", types=[io.Video, io.Image], tooltip="A video, or a batch of images."),
                widgets.vae(),
                *size_widgets(),
                widgets.model(tooltip, optional=True),
            ],
            outputs=[
                io.Latent.Output(tooltip="The clip, clean, for Video-to-Text Denoise and Rank Captions."),
                output(io.String, "note", "Which frames were taken, and how they were resized and cropped."),
            ],
            says=True,
        )

    @classmethod
    def execute(cls, video: Any, vae: Any, model: Any | None = None, **inputs: Any) -> io.NodeOutput:
        require_video_vae(vae)
        size, fps = read(Size, inputs), read(Rate, inputs).fps
        run = facts_of_vae(vae) if model is None else run_facts(model)
        if isinstance(video, torch.Tensor):
            pixels, note = fit_pixels(as_pixels(video), fitting(run, size, max(fps, 0.0)))  # images have no rate
        else:
            pixels, note = read_video(video, fitting(run, size, fps))
        note = shown(note)
        return io.NodeOutput({"samples": encode_pixels(vae, pixels)}, note, ui=said(note))


REMEMBERED = 1000  # prompts about folders


class _Work:
    """Folders whose captions are done, by what a prompt asked for. What the node writes changes a folder, and is no
    reason to caption it again; whatever else changes is."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[dict[str, Any], str, str]] = {}  # widgets, the folder's state, its fingerprint
        self._numbers = count()

    def asked(self, inputs: Mapping[str, Any], state: Mapping[str, str]) -> str:
        """The fingerprint of a folder: the one that it had while its state is still the one that it was left in."""
        asked = {name: value for name, value in inputs.items() if isinstance(value, (str, int, float))}
        key, now = digest(asked), digest(state)
        _, before, mark = self._asked.pop(key, ({}, "", ""))
        if now != before:
            mark = f"{now} {next(self._numbers)}"
        self._asked[key] = asked, now, mark
        for oldest in list(self._asked)[:-REMEMBERED]:
            del self._asked[oldest]
        return mark

    def finished(self, inputs: Mapping[str, Any], before: Mapping[str, str], written: Mapping[str, str]) -> None:
        """The folder was as ``before`` and has got the texts ``written``: whoever asked for this has it."""
        after = digest({**before, **written})
        for key, (asked, state, mark) in self._asked.items():
            if state == digest(before) and asked.items() <= inputs.items():
                self._asked[key] = asked, after, mark


work = _Work()


@settings
class Files:
    """What is written beside the clips of a folder."""

    overwrite: Flag = setting("Off: clips that have a .txt already are skipped.", default=False)
    prefix: Text = setting('In front of every caption, e.g. "mystyle, ".', default="")
    template: Text = setting("Text with blanks (___) to fill in; empty for free captions.", default="")


class UniViGUCaptionFolder(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Caption Folder",
            "Writes a .txt beside every clip of a folder, as trainers expect them.",
            search_aliases=["batch caption", "dataset caption"],
            is_output_node=True,
            not_idempotent=True,
            says=True,
            inputs=[
                widgets.model(),
                widgets.clip(),
                widgets.vae(),
                *widgets.each(Folder),
                *widgets.each(Files),
                *size_widgets(),
                *widgets.captioning(),
                widgets.video_cache(),
            ],
            outputs=[
                output(
                    io.String,
                    "captions",
                    "A list of all captions in the folder, those that were there before included.",
                    is_output_list=True,
                ),
                output(io.String, "report", "How many clips were captioned, skipped and failed, and why."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str | float:
        """What the clips and texts hold: another state of the folder is other work, unless this node made it."""
        if inputs.get("folder") is None or inputs.get("subfolders") is None:  # connected, and not known yet
            return math.nan
        return work.asked(inputs, read(Folder, inputs).state())

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, **inputs: Any) -> io.NodeOutput:
        require_video_vae(vae)
        folder, files, sampling = read(Folder, inputs), read(Files, inputs), read(Sampling, inputs)
        spec = fitting(run_facts(model), read(Size, inputs), read(Rate, inputs).fps)
        progress, before = Progress(cls.hidden.unique_id), folder.state()
        unforeseen: list[Exception] = []  # such as too little memory: worth another try though nothing has changed

        def caption(file: Path) -> str:
            def show(step: int, steps: int, words: str) -> None:
                progress.text(f"{file.name}\n{words}")

            try:
                latent = encode_pixels(vae, read_clip(file, spec).pixels)
                _, text = describe(model, clip, latent, sampling, template=files.template, report=show)
            except Exception as error:
                unforeseen.extend([] if isinstance(error, UniViGUError) else [error])
                raise
            progress.text(f"{file.name}\n{text}")
            return text

        with folder.opened() as path:
            report = caption_folder(
                path,
                caption,
                overwrite=files.overwrite,
                prefix=files.prefix,
                recursive=folder.subfolders,
                on_clip=lambda index, total, _: progress("captioning", index, total),
            )
            if report.failed and not (report.written or report.skipped):
                raise UniViGUError(str(report))
            captions = texts_of(sorted([*report.written, *report.skipped]))
            if not (report.busy or unforeseen):
                work.finished(inputs, before, {str(file): content_or_none(file) for file in report.written})
        words = shown(str(report))
        return io.NodeOutput(captions, words, ui=said(words))


def texts_of(files: Iterable[Path]) -> list[str]:
    """The texts that can be read; those of links that lead out cannot."""
    texts = []
    for file in files:
        with suppress(FileNotFoundError, UniViGUError):
            texts.append(read_text(file))
    return texts


@settings
class Captioned:
    """Where a clip goes, and how its caption goes with it."""

    filename_prefix: Text = setting("In the output folder; a number is added.", default="video/uni_vigu")
    tags: Flag = setting("The caption as the title and the comment of the file.", default=True)
    subtitles: Flag = setting("The caption as a track of subtitles, over the whole of the clip.", default=True)
    txt: Flag = setting("A .txt of the same name beside it, as trainers expect it.", default=False)
    srt: Flag = setting("The subtitles as an .srt of the same name, for players that show no track.", default=False)


class UniViGUSaveCaptionedVideo(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Save Captioned Video",
            "Saves a video with its caption in the file: as tags, as subtitles, or as text beside it. Pictures and "
            "sound of a video file are copied, not encoded again.",
            search_aliases=["save video", "export video", "subtitles", "srt", "mov_text", "embed caption"],
            is_output_node=True,
            inputs=[
                io.Video.Input("video", tooltip="The video to save."),
                io.String.Input(
                    "caption",
                    multiline=True,
                    default="",
                    tooltip="What it shows: from Text Decoder, or by hand. Empty: the video alone.",
                ),
                widget(Captioned, "filename_prefix"),
                *[
                    widget(Captioned, name, optional=True, advanced=name in ("txt", "srt"))
                    for name in ("tags", "subtitles", "txt", "srt")
                ],
            ],
            outputs=[
                io.Video.Output(tooltip="The input video, unchanged."),
                output(io.String, "file", "The path of the file."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            says=True,
        )

    @classmethod
    def execute(cls, video: Any, caption: str, **inputs: Any) -> io.NodeOutput:
        own = read(Captioned, inputs)
        tags = workflow_tags(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        with copied_from(video) as clip:
            path = output_file(own.filename_prefix, "", container_suffix(clip) or "")
            tags |= caption_tags(caption) if own.tags else {}
            cues = write_captioned(path, clip, caption, subtitles=own.subtitles, tags=tags)
        if own.txt and cues:
            write_new(path.with_suffix(".txt"), caption.strip() + "\n")
        if own.srt and cues:
            write_new(path.with_suffix(".srt"), as_srt(cues))
        name, folder = place_in_output(path)
        saved = ui.PreviewVideo([ui.SavedResult(name, folder, io.FolderType.output)])
        words = said(f"saved {path}" if cues else f"saved {path} without a caption")
        return io.NodeOutput(video, shown(str(path)), ui={**saved.as_dict(), **words})
