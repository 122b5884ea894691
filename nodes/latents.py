"""Latents of one or two streams: Empty Uni-ViGU Latent, Split Uni-ViGU Latent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..uvg_core.config import RunConfig
from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.vae import latent_shape
from . import comfy as bridge
from .types import CATEGORY, GeneratedText, UvgText

LARGE_ENOUGH = 288  # pixels that a clip is enlarged to for looking at it, where it is less than half as large


def sized(run: RunConfig, *, width: int = 0, height: int = 0, frames: int = 0) -> RunConfig:
    """``run`` with other sizes, 0 for its own. Raises UniViGUError off the model's grid."""
    size = {"frames": frames or run.frames, "height": height or run.height, "width": width or run.width}
    latent_shape(**size)
    return replace(run, **size)


class UniViGUEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGUEmptyLatent",
            display_name="Empty Uni-ViGU Latent",
            category=CATEGORY,
            description="An empty clip; for checkpoints with the embedding text flow, with a text stream beside it.",
            inputs=[
                io.Model.Input("model"),
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
                    tooltip="4n+1: 81 is 5 s at 16 fps. 0: what the checkpoint was trained with.",
                ),
                io.Int.Input(
                    "text_length",
                    display_name="text_length (0 = auto)",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Tokens of the text stream (embedding flow only). 0: what the checkpoint was trained with.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64),
            ],
            outputs=[
                io.Latent.Output(),
                io.Float.Output(display_name="fps"),
                io.Float.Output(display_name="enlarge"),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, width: int, height: int, frames: int, text_length: int, batch_size: int
    ) -> io.NodeOutput:
        config = bridge.network_of(model).config
        run = sized(bridge.run_facts(model), width=width, height=height, frames=frames)
        shape = latent_shape(run.frames, run.height, run.width, config.in_dim)
        video = bridge.empty_latent((batch_size, *shape[1:]))
        enlarge = float(max(1, LARGE_ENOUGH // max(run.width, run.height)))
        if config.text_flow != "embedding":
            return io.NodeOutput({"samples": video}, run.fps, enlarge)
        text = bridge.empty_latent((batch_size, config.dim, text_length or run.text_length))
        return io.NodeOutput({"samples": bridge.nested(video, text)}, run.fps, enlarge)


class UniViGUSplitLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGUSplitLatent",
            display_name="Split Uni-ViGU Latent",
            category=CATEGORY,
            description="Takes a latent of two streams (embedding text flow) apart: the video, and the words nearest "
            "to the text stream's vectors.",
            inputs=[io.Model.Input("model"), io.Latent.Input("latent")],
            outputs=[io.Latent.Output(display_name="video"), UvgText.Output(display_name="text")],
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any]) -> io.NodeOutput:
        config = bridge.network_of(model).config
        streams = bridge.streams_of(latent)
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
        words = bridge.nearest_words(model, text.transpose(1, 2))
        kept = {key: value for key, value in latent.items() if key != "noise_mask"}
        return io.NodeOutput({**kept, "samples": video}, GeneratedText(words))
