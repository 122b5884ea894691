"""Clips in: Encode Video for Uni-ViGU, Caption Folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.video import fit_pixels, read_clip
from ..uvg_core.pipeline.folders import caption_folder
from ..uvg_core.sampling import Sampling, Size
from ..uvg_core.settings import Flag, Text, setting, settings
from . import widgets
from .comfy.captions import describe
from .comfy.latents import encode_pixels, facts_of_vae, require_video_vae
from .comfy.network import run_facts
from .comfy.showing import Progress
from .media import (
    Folder,
    Rate,
    as_pixels,
    fitting,
    size_widgets,
    state_of,
)
from .media import read as read_video
from .types import output, schema
from .widgets import read


class UniViGUEncodeVideo(io.ComfyNode):
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
            hidden=[io.Hidden.unique_id],
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
        Progress(cls.hidden.unique_id).text(note, last=True)
        return io.NodeOutput({"samples": encode_pixels(vae, pixels)}, note)


@settings
class Files:
    """What is written beside the clips of a folder."""

    overwrite: Flag = setting("Off: clips that have a .txt already are skipped.", default=False)
    prefix: Text = setting('In front of every caption, e.g. "mystyle, ".', default="")
    template: Text = setting("Text with blanks (___) to fill in; empty for free captions.", default="")


class UniViGUCaptionFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Caption Folder",
            "Writes a .txt beside every clip of a folder, as trainers expect them.",
            search_aliases=["batch caption", "dataset caption"],
            is_output_node=True,
            not_idempotent=True,
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
    def fingerprint_inputs(cls, folder: str, **_: Any) -> str:
        """The clips and texts that are there: another state of the folder is other work."""
        return state_of(folder)

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, **inputs: Any) -> io.NodeOutput:
        require_video_vae(vae)
        folder, files, sampling = read(Folder, inputs), read(Files, inputs), read(Sampling, inputs)
        spec = fitting(run_facts(model), read(Size, inputs), read(Rate, inputs).fps)
        path, progress = folder.path, Progress(cls.hidden.unique_id)

        def caption(file: Path) -> str:
            def show(step: int, steps: int, words: str) -> None:
                progress.text(f"{file.name}\n{words}")

            latent = encode_pixels(vae, read_clip(file, spec).pixels)
            _, text = describe(model, clip, latent, sampling, template=files.template, report=show)
            progress.text(f"{file.name}\n{text}")
            return text

        report = caption_folder(
            path,
            caption,
            overwrite=files.overwrite,
            prefix=files.prefix,
            recursive=folder.subfolders,
            on_clip=lambda index, total, _: progress("captioning", index, total),
        )
        progress.text(str(report), last=True)
        if report.failed and not (report.written or report.skipped):
            raise UniViGUError(str(report))
        captions = sorted([*report.written, *report.skipped])
        return io.NodeOutput([file.read_text(encoding="utf-8") for file in captions], str(report))
