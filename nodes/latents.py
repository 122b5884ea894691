"""Latents of one or two streams: Empty Uni-ViGU Latent, Split Uni-ViGU Latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.vae import TEMPORAL, latent_shape, with_ends
from ..uvg_core.media.video import ClipSpec, fit_pixels
from ..uvg_core.media.video.footage import FOOTAGE
from ..uvg_core.sampling import Sampling, Size
from . import widgets
from .comfy.captions import GeneratedText
from .comfy.latents import empty_latent, encode_pixels, nearest_words, nested, require_video_vae, streams_of
from .comfy.network import network_of, run_facts
from .media import ENLARGE, as_pixels, enlarging, sized
from .types import Node, UvgText, output, schema
from .widgets import read, widget


class UniViGUEmptyLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = "Tokens of the text stream (embedding flow only). 0: what the checkpoint was trained with."
        return schema(
            cls,
            "Empty Uni-ViGU Latent",
            "An empty clip; for checkpoints with the embedding text flow, with a text stream beside it.",
            inputs=[
                widgets.model("Says what kind of latent is needed."),
                *widgets.size(),
                widget(Sampling, "text_length", tooltip=tooltip, advanced=True),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Clips at once."),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="The picture that the clip begins with, or several. They stay; the rest is formed.",
                ),
                io.Image.Input(
                    "end_image",
                    optional=True,
                    tooltip="The picture that the clip ends with; it stands still for four frames. Of "
                    "several, the last four, eight ...",
                ),
                widgets.vae("Encodes start_image and end_image: the Wan VAE, from Load Uni-ViGU.", optional=True),
            ],
            outputs=[
                io.Latent.Output(tooltip="The clip to form, for the samplers."),
                output(io.Float, "fps", "Frames a second that the checkpoint was trained with, for Create Video."),
                output(io.Float, "enlarge", ENLARGE),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        batch_size: int,
        start_image: Tensor | None = None,
        end_image: Tensor | None = None,
        vae: Any | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        size, sampling = read(Size, inputs), read(Sampling, inputs)
        config = network_of(model).config
        pictures = [None if images is None else as_pixels(images) for images in (start_image, end_image)]
        shown = next((one for one in pictures if one is not None), None)
        spec = size.spec(run_facts(model), FOOTAGE)
        if shown is not None:  # where the size is left to it, a clip has the shape of its picture
            spec = spec.suited(*shown.shape[1:3])
        run = sized(run_facts(model), Size(height=spec.height, width=spec.width, frames=spec.frames))
        video = empty_latent((batch_size, *latent_shape(run.frames, run.height, run.width, config.in_dim)[1:]))
        latent: dict[str, Any] = {}
        if shown is not None:
            video, latent["noise_mask"] = _with_ends(video, vae, spec, pictures)
        enlarge = enlarging(run.height, run.width)
        if config.text_flow == "embedding":
            text = empty_latent((batch_size, config.dim, sampling.text_length or run.text_length))
            return io.NodeOutput({"samples": nested(video, text), **latent}, run.fps, enlarge)
        return io.NodeOutput({"samples": video, **latent}, run.fps, enlarge)


def _with_ends(
    video: Tensor, vae: Any | None, spec: ClipSpec, pictures: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """The latent with the pictures at its ends, and its mask."""
    if vae is None:
        raise UniViGUError("start_image and end_image are encoded here; connect VAE of Load Uni-ViGU to the input vae")
    require_video_vae(vae)
    first, last = (
        None if images is None else fit_pixels(images, replace(spec, frames=len(images)))[0] for images in pictures
    )
    groups = 1 if last is None else max(1, len(last) // TEMPORAL)
    return with_ends(video, partial(encode_pixels, vae), first, last, groups)


class UniViGUSplitLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Split Uni-ViGU Latent",
            "Takes a latent of two streams (embedding text flow) apart: the video, and the words nearest "
            "to the text stream's vectors.",
            inputs=[
                widgets.model("The model that the latent was sampled with."),
                io.Latent.Input("latent", tooltip="A sampled latent with a text stream."),
            ],
            outputs=[
                output(io.Latent, "video", "The video alone, for VAE Decode."),
                output(UvgText, "text", "The tokens, for Text Decoder."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any]) -> io.NodeOutput:
        config = network_of(model).config
        streams = streams_of(latent)
        if len(streams) != 2:
            raise UniViGUError(
                "found a latent without a text stream; expected one of two streams: make it with Empty Uni-ViGU Latent "
                "from a checkpoint with the embedding text flow"
            )
        video, text = streams
        if text.ndim != 3 or text.shape[1] != config.dim:
            raise UniViGUError(
                f"the latent's text stream has shape {list(text.shape)}; this model expects [batch, {config.dim}, "
                "length]: it was made for another model"
            )
        words = nearest_words(model, text.transpose(1, 2))
        rest = {key: value for key, value in latent.items() if key != "noise_mask"}
        return io.NodeOutput({**rest, "samples": video}, GeneratedText(words))
