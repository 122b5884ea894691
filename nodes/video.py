"""Clips in, and out with their captions: Encode Video for Uni-ViGU, Caption Folder, Save Captioned Video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..uvg_core.config import RunConfig
from ..uvg_core.errors import UniViGUError, printable
from ..uvg_core.io import write_new
from ..uvg_core.media.video import (
    Clip,
    as_srt,
    caption_tags,
    container_suffix,
    fit_pixels,
    write_captioned,
)
from ..uvg_core.media.video.footage import Footage
from ..uvg_core.pipeline.folders import Captions, caption_folder
from ..uvg_core.pipeline.together import Together
from ..uvg_core.sampling import Sampling, Size
from ..uvg_core.settings import Flag, Text, fields_of, setting, settings
from . import widgets
from .comfy.captions import clips_at_once, describe, describe_together
from .comfy.conditioning import encode_prompt
from .comfy.latents import encode_pixels, facts_of_vae, require_video_vae
from .comfy.network import run_facts
from .comfy.paths import shown
from .comfy.saving import output_file, place_in_output, workflow_tags
from .comfy.showing import Progress, said
from .media import (
    ENLARGE,
    ROWS,
    Folder,
    Rate,
    Visits,
    as_pixels,
    copied_from,
    enlarging,
    fitting,
    footage_widgets,
    info_of,
    size_widgets,
    table_of,
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
                *footage_widgets("fit", "crop", "background"),
            ],
            outputs=[
                io.Latent.Output(tooltip="The clip, clean, for Video-to-Text Denoise and Rank Captions."),
                output(io.String, "note", "Which frames were taken, and how they were resized and cropped."),
                output(io.Float, "fps", "Frames a second that were taken, for Create Video."),
                output(io.Float, "enlarge", ENLARGE),
            ],
            says=True,
        )

    @classmethod
    def execute(cls, video: Any, vae: Any, model: Any | None = None, **inputs: Any) -> io.NodeOutput:
        require_video_vae(vae)
        size, fps, footage = read(Size, inputs), read(Rate, inputs).fps, read(Footage, inputs)
        run = facts_of_vae(vae) if model is None else run_facts(model)
        images = isinstance(video, torch.Tensor)
        spec = fitting(run, size, max(fps, 0.0) if images else fps, footage)  # images have no rate
        pixels, note = fit_pixels(as_pixels(video), spec) if images else read_video(video, spec)
        note = shown(note)
        seconds = 0.0 if images or spec.fps else info_of(video).duration
        rate = spec.fps or (len(pixels) / seconds if seconds else (run or RunConfig()).fps)
        latent = {"samples": encode_pixels(vae, pixels)}
        return io.NodeOutput(latent, note, rate, enlarging(*pixels.shape[1:3]), ui=said(note))


FIRST = ("overwrite", "prefix", "template")  # the widgets that stand before those of the size


visits = Visits()


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
                *(widget(Captions, name) for name in FIRST),
                *size_widgets(),
                *widgets.captioning(),
                widgets.video_cache(),
                *later_widgets(),
                *footage_widgets("start", "seconds", "fit"),
            ],
            outputs=[
                output(
                    io.String,
                    "captions",
                    "A list of all captions in the folder, those that were there before included.",
                    is_output_list=True,
                ),
                output(io.String, "report", "How many clips were captioned, skipped and failed, and why."),
                output(
                    io.String,
                    "files",
                    "The clip of each caption, by its name in the folder.",
                    is_output_list=True,
                ),
                output(io.Image, "table", f"The first {ROWS} clips, each with a frame, its name and its caption."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """What the clips and texts hold: another state of the folder is other work, unless this node made it."""
        return visits.mark(inputs)

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, **inputs: Any) -> io.NodeOutput:
        require_video_vae(vae)
        folder, how, sampling = read(Folder, inputs), read(Captions, inputs), read(Sampling, inputs)
        footage = read(Footage, inputs)
        spec = fitting(run_facts(model), read(Size, inputs), read(Rate, inputs).fps, footage)
        progress, before, where = Progress(cls.hidden.unique_id), visits.begun(inputs, (folder, how)), [""]
        together = 1 if how.template else clips_at_once(model, spec)
        unforeseen: list[Exception] = []  # such as too little memory: worth another try though nothing has changed

        @cache
        def hint() -> list[Any] | None:  # only where a clip is captioned: the text encoder is large
            return encode_prompt(clip, how.hint, None) if how.hint.strip() else None

        def captions(root: Path, clips: Sequence[Clip], files: Sequence[Path]) -> list[str]:
            shown_as = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"

            def show(step: int, steps: int, words: str) -> None:
                progress.text(f"{where[0]}\n{shown_as}\n{words}")

            seeds = [how.seed(sampling.seed, file.relative_to(root)) for file in files]
            try:
                # One by one: of a batch of clips ComfyUI's VAE cuts off the last frames.
                latents = torch.cat([encode_pixels(vae, one.pixels) for one in clips])
                if how.template:
                    seeded = replace(sampling, seed=seeds[0])
                    template: dict[str, Any] = {"hint": hint(), "template": how.template, "report": show}
                    texts = [describe(model, clip, latents, seeded, **template)[1]]
                else:
                    texts = describe_together(model, clip, latents, sampling, seeds, hint=hint(), report=show)
            except Exception as error:
                unforeseen.extend([] if isinstance(error, UniViGUError) else [error])
                raise
            progress.text(f"{where[0]}\n{shown_as}\n{texts[0]}")
            return texts

        def on_clip(index: int, total: int, _: Path, words: str) -> None:
            where[0] = words
            progress("captioning", index, total)

        with folder.opened() as path:
            captioner = Together(partial(footage.read, spec=spec), partial(captions, path), together)
            report = caption_folder(path, captioner, how, recursive=folder.subfolders, on_clip=on_clip)
            if report.failed and not (report.written or report.skipped or report.proposed):
                raise UniViGUError(str(report))
            if not (report.busy or unforeseen):
                visits.finished(inputs, (folder, how), before, report.written)
            names = [printable(file.relative_to(path).as_posix()) for file, _ in report.captions]
            table = table_of(report.captions, names, [footage] * len(names), spec)
        texts = [text for _, text in report.captions]
        words = shown(str(report))
        return io.NodeOutput(texts, words, names, table, ui=said(words))


def later_widgets() -> list[Any]:
    """What Caption Folder has got since it was made."""
    return [
        widget(Captions, name, optional=True, advanced=True, **({"multiline": True} if name == "replace" else {}))
        for name in fields_of(Captions)
        if name not in FIRST
    ]


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
