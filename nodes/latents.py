"""Latents of one or two streams: Empty Uni-ViGU Latent, Split Uni-ViGU Latent."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.vae import latent_shape
from ..uvg_core.sampling import Sampling, Size
from . import widgets
from .comfy.captions import GeneratedText
from .comfy.latents import empty_latent, nearest_words, nested, streams_of
from .comfy.network import network_of, run_facts
from .media import ENLARGE, enlarging, sized
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
            ],
            outputs=[
                io.Latent.Output(tooltip="The empty clip, for the samplers."),
                output(io.Float, "fps", "Frames a second that the checkpoint was trained with, for Create Video."),
                output(io.Float, "enlarge", ENLARGE),
            ],
        )

    @classmethod
    def execute(cls, model: Any, batch_size: int, **inputs: Any) -> io.NodeOutput:
        size, sampling = read(Size, inputs), read(Sampling, inputs)
        config = network_of(model).config
        run = sized(run_facts(model), size)
        video = empty_latent((batch_size, *latent_shape(run.frames, run.height, run.width, config.in_dim)[1:]))
        enlarge = enlarging(run.height, run.width)
        if config.text_flow != "embedding":
            return io.NodeOutput({"samples": video}, run.fps, enlarge)
        text = empty_latent((batch_size, config.dim, sampling.text_length or run.text_length))
        return io.NodeOutput({"samples": nested(video, text)}, run.fps, enlarge)


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
