"""Clips in: Encode Video for Uni-ViGU, Caption Folder."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import InputImpl, io

from ..uvg_core.config import RunConfig
from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.video import ClipInfo, ClipSpec, fit_pixels, probe, read_clip
from ..uvg_core.pipeline.folders import caption_folder
from . import comfy as bridge
from .latents import sized
from .samplers import Captioning, describe, video_cache_input
from .types import CATEGORY


def size_inputs() -> list[Any]:
    """The widgets that fit a clip to the model."""
    return [
        io.Int.Input(
            "width",
            display_name="width (0 = auto)",
            default=0,
            min=0,
            max=8192,
            step=16,
            tooltip="Pixels, a multiple of 16. 0: what the checkpoint was trained with.",
        ),
        io.Int.Input(
            "height",
            display_name="height (0 = auto)",
            default=0,
            min=0,
            max=8192,
            step=16,
            tooltip="Pixels, a multiple of 16. 0: what the checkpoint was trained with.",
        ),
        io.Int.Input(
            "frames",
            display_name="frames (0 = auto)",
            default=0,
            min=0,
            max=1025,
            tooltip="At most this many (4n+1); a shorter clip gives as many as it has. 0: what the checkpoint was "
            "trained with.",
        ),
        io.Float.Input(
            "fps",
            display_name="fps (-1 = auto)",
            default=-1.0,
            min=-1.0,
            max=240.0,
            step=0.5,
            tooltip="Frames a second, from the start on. -1: what the checkpoint was trained with; 0 spreads the "
            "frames evenly over the whole clip instead.",
        ),
    ]


def fitting(run: RunConfig | None, width: int, height: int, frames: int, fps: float) -> ClipSpec:
    """What those widgets say with a checkpoint that was trained as ``run`` says, as ``read_clip`` and ``fit_pixels``
    take it. Raises UniViGUError off the model's grid, and where a checkpoint is asked for and none is known."""
    if run is None and (not (width and height and frames) or fps < 0):
        raise UniViGUError(
            "the size of the clip is left to the checkpoint, and this VAE does not say which one: connect MODEL to the "
            "input model, take the VAE of Load Uni-ViGU, or set width, height, frames and fps"
        )
    size = sized(run or RunConfig(), width=width, height=height, frames=frames)
    rate = size.fps if fps < 0 else fps or None
    return ClipSpec(size.frames, size.height, size.width, rate, at_most=True)


class UniViGUEncodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGUEncodeVideo",
            display_name="Encode Video for Uni-ViGU",
            category=CATEGORY,
            description="Samples, retimes, resizes and crops a clip to what the model reads, encodes it, and says what "
            "it did. Only the frames needed are decoded.",
            search_aliases=["vae encode video"],
            inputs=[
                io.MultiType.Input("video", types=[io.Video, io.Image], tooltip="A video, or a batch of images."),
                io.Vae.Input("vae"),
                *size_inputs(),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Says what 0 (auto) means. Needed only with a VAE that is not from Load Uni-ViGU.",
                ),
            ],
            outputs=[io.Latent.Output(), io.String.Output(display_name="note")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, video: Any, vae: Any, width: int, height: int, frames: int, fps: float, model: Any | None = None
    ) -> io.NodeOutput:
        bridge.require_video_vae(vae)
        run = bridge.facts_of_vae(vae) if model is None else bridge.run_facts(model)
        images = isinstance(video, torch.Tensor)
        spec = fitting(run, width, height, frames, 0.0 if images and fps < 0 else fps)  # images have no rate
        pixels, note = fit_pixels(as_pixels(video), spec) if images else read(video, spec)
        bridge.Progress(cls.hidden.unique_id).text(note, last=True)
        return io.NodeOutput({"samples": bridge.encode_pixels(vae, pixels)}, note)


def read(video: Any, spec: ClipSpec) -> tuple[torch.Tensor, str]:
    """The frames of a VIDEO as ``read_clip`` gives them, and the note on what was done."""
    if isinstance(video, InputImpl.VideoFromComponents) or edited(video):  # a file of it would only lose
        parts = video.get_components()
        return fit_pixels(as_pixels(parts.images), spec, rate=float(parts.frame_rate))
    start, seconds = video.get_active_trim_window()
    with file_of(video) as path:
        clip = read_clip(path, spec, start=start, seconds=seconds or None)
    return clip.pixels, clip.note


def edited(video: Any) -> bool:
    """Whether a VIDEO shows other pixels than its file: newer ComfyUI notes down crops and sizes, and carries them out
    as the frames are decoded."""
    told = getattr(video, "has_pending_frame_edits", None)
    if told is not None:
        return bool(told())
    if not hasattr(video, "as_cropped"):
        return False
    return bool(InputImpl.VideoFromFile(video.get_stream_source()).get_dimensions() != video.get_dimensions())


def look_at(video: Any) -> ClipInfo:
    """What a VIDEO holds, without decoding it; raises UniViGUError like ``probe``."""
    if isinstance(video, InputImpl.VideoFromComponents):
        parts = video.get_components()
        (count, height, width), rate = parts.images.shape[:3], float(parts.frame_rate)
        return ClipInfo(Path("images"), width, height, rate, count, count / rate, 0)
    if edited(video):
        (width, height), seconds = video.get_dimensions(), video.get_duration()
        rate, count = float(video.get_frame_rate()), video.get_frame_count()
        return ClipInfo(Path("video"), width, height, rate, count, seconds, 0)
    start, seconds = video.get_active_trim_window()
    with file_of(video) as path:
        info = probe(path)
    return replace(info, duration=min(info.duration - start, seconds or info.duration))


def as_pixels(images: torch.Tensor) -> torch.Tensor:
    """ComfyUI's IMAGE, float ``[T,H,W,C]`` from 0 to 1, as uint8 RGB."""
    return (images[..., :3] * 255).round().clamp(0, 255).to(torch.uint8)


@contextmanager
def file_of(video: Any) -> Iterator[Path]:
    """A file with the content of a VIDEO, for as long as the block runs: it is read from disk frame by frame."""
    source = video.get_stream_source()
    if isinstance(source, str):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        path.write_bytes(source.getbuffer())
        yield path


def folder_of(text: str) -> Path:
    """The folder that a widget names, also in quotes, as Windows copies paths; relative to the input folder."""
    return bridge.input_directory() / text.strip().strip('"')


def folder_inputs() -> list[Any]:
    """The widgets that name a folder of clips."""
    return [
        io.String.Input(
            "folder", default="", tooltip="A folder of clips; a relative path starts at ComfyUI's input folder."
        ),
        io.Boolean.Input("subfolders", default=True),
    ]


def required_folder(text: str) -> Path:
    """The folder that the widget names. Raises UniViGUError where it is empty."""
    if not text.strip():
        raise UniViGUError("the widget folder is empty; write the path of a folder with clips")
    return folder_of(text)


def state_of(text: str) -> str:
    """Changes when a file in the folder that a widget names does."""
    path = folder_of(text)
    state = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else []:
        facts = file.stat()
        state.update(f"{file}|{facts.st_size}|{facts.st_mtime_ns}\n".encode())
    return state.hexdigest()


class UniViGUCaptionFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGUCaptionFolder",
            display_name="Caption Folder",
            category=CATEGORY,
            description="Writes a .txt beside every clip of a folder, as trainers expect them.",
            search_aliases=["batch caption", "dataset caption"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                *folder_inputs(),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Off: clips that have a .txt already are skipped."
                ),
                io.String.Input("prefix", default="", tooltip='In front of every caption, e.g. "mystyle, ".'),
                io.String.Input(
                    "template", default="", tooltip="Text with blanks (___) to fill in; empty for free captions."
                ),
                *size_inputs(),
                *Captioning.inputs(),
                video_cache_input(),
            ],
            outputs=[
                io.String.Output(display_name="captions", is_output_list=True),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_: Any) -> str:
        """The clips and texts that are there: another state of the folder is other work."""
        return state_of(folder)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        folder: str,
        subfolders: bool,
        overwrite: bool,
        prefix: str,
        template: str,
        width: int,
        height: int,
        frames: int,
        fps: float,
        **options: Any,
    ) -> io.NodeOutput:
        bridge.require_video_vae(vae)
        spec = fitting(bridge.run_facts(model), width, height, frames, fps)
        path = required_folder(folder)
        captioning = Captioning(**options)
        progress = bridge.Progress(cls.hidden.unique_id)

        def caption(file: Path) -> str:
            latent = bridge.encode_pixels(vae, read_clip(file, spec).pixels)

            def show(words: str) -> None:
                progress.text(f"{file.name}\n{words}")

            return describe(model, clip, latent, captioning, template=template, show=show).text

        def on_clip(index: int, total: int, file: Path) -> None:
            progress.step(index, total)

        report = caption_folder(
            path, caption, overwrite=overwrite, prefix=prefix, recursive=subfolders, on_clip=on_clip
        )
        progress.text(str(report), last=True)
        if report.failed and not (report.written or report.skipped):
            raise UniViGUError(str(report))
        captions = sorted([*report.written, *report.skipped])
        return io.NodeOutput([file.read_text(encoding="utf-8") for file in captions], str(report))
