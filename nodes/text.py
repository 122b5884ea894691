"""Words out: Text Decoder, Rank Captions, Uni-Flow Trajectory."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.chart import draw_ranking
from ..uvg_core.media.sheet import GROUND, SheetRow, draw_sheet
from ..uvg_core.sampling import Ranking, caption_likelihood
from ..uvg_core.sampling.rank import padded
from . import comfy as bridge
from .samplers import AT_ONCE, seed_input
from .types import CATEGORY, GeneratedText, UvgText


class UniViGUTextDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGUTextDecoder",
            display_name="Text Decoder",
            category=CATEGORY,
            description="Tokens to words: one text per clip of the batch.",
            inputs=[UvgText.Input("text"), io.Clip.Input("clip")],
            outputs=[io.String.Output(display_name="text", is_output_list=True)],
        )

    @classmethod
    def execute(cls, text: GeneratedText, clip: Any) -> io.NodeOutput:
        tokenizer = bridge.tokenizer_of(clip)
        return io.NodeOutput([tokenizer.text(row) for row in text.tokens])


class UniViGURankCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGURankCaptions",
            display_name="Rank Captions",
            category=CATEGORY,
            description="Which of these texts fits the clip best? Scores are minus the text flow's loss; all texts "
            "meet the same noise.",
            search_aliases=["classify video", "text video matching"],
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Latent.Input("latent", tooltip="A clean video latent, from Encode Video for Uni-ViGU."),
                io.String.Input("texts", multiline=True, default="", tooltip="One text a line."),
                io.Int.Input("samples", default=16, min=1, max=1000, tooltip="More are steadier and take longer."),
                seed_input(),
            ],
            outputs=[
                io.String.Output(display_name="best"),
                io.String.Output(display_name="scores"),
                io.Image.Output(display_name="plot"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, latent: dict[str, Any], texts: str, samples: int, seed: int
    ) -> io.NodeOutput:
        config, run, tokenizer = bridge.network_of(model).config, bridge.run_facts(model), bridge.tokenizer_of(clip)
        video = latent["samples"]
        bridge.require_video_latent(video, config)
        if len(video) != 1:
            raise UniViGUError(f"found {len(video)} clips; texts are ranked for one at a time")
        candidates = [line.strip() for line in texts.splitlines() if line.strip()]
        if not candidates:
            raise UniViGUError("there is no text to rank; write one text a line")
        ids = padded([tokenizer.ids(text) for text in candidates], run.pad_token, run.text_length)
        ranking = Ranking(samples=samples, seed=seed % 2**63, batch=AT_ONCE)
        progress = bridge.Progress(cls.hidden.unique_id, steps=samples)
        found: list[Tensor] = []

        def job(denoise: bridge.HostDenoiser, noise: Tensor, clean: Tensor) -> Tensor:
            found.append(caption_likelihood(denoise, clean, ids, ranking, callback=progress.step).cpu())
            return clean

        bridge.run_on_clip(model, job, video, seed=seed, text_length=ids.shape[1])
        scores, shares = found[0].tolist(), found[0].softmax(0).tolist()
        order = sorted(range(len(candidates)), key=lambda n: -scores[n])
        best = candidates[order[0]]
        lines = "\n".join(f"{scores[n]:9.3f}  {shares[n]:6.1%}  {candidates[n]}" for n in order)
        progress.text(best, last=True)
        plot = as_image(draw_ranking(candidates, scores, shares, "Which text fits the clip"))
        return io.NodeOutput(best, lines, plot)


class UniViGUTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGUTrajectory",
            display_name="Uni-Flow Trajectory",
            category=CATEGORY,
            description="How text, and the clip of a joint run, took shape: the recorded steps as pictures.",
            inputs=[
                UvgText.Input("text"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae", optional=True, tooltip="Shows the clip of a joint run beside the text."),
                io.String.Input("title", default="", optional=True),
                io.Combo.Input(
                    "layout",
                    options=["one sheet", "one picture a step"],
                    default="one sheet",
                    optional=True,
                    tooltip="One picture a step makes an animation with Create Video.",
                ),
                io.Int.Input("columns", default=9, min=1, max=64, optional=True, tooltip="Frames shown of each step."),
                io.Int.Input("cell", default=96, min=32, max=512, step=8, optional=True, tooltip="Pixels of a frame."),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(
        cls,
        text: GeneratedText,
        clip: Any,
        vae: Any | None = None,
        title: str = "",
        layout: str = "one sheet",
        columns: int = 9,
        cell: int = 96,
    ) -> io.NodeOutput:
        if not text.record:
            raise UniViGUError(
                "no steps were recorded; set record of Joint Sampler or Video-to-Text Denoise to 8, say, and run again"
            )
        tokenizer = bridge.tokenizer_of(clip)
        rows = []
        for step in text.record:
            pixels = None if vae is None or step.latent is None else bridge.decode_latent(vae, step.latent.float())
            clock = f"t {step.sigma:.2f}"
            rows.append(SheetRow(f"step {step.step}/{step.steps} · {clock}", pixels, tokenizer.text(step.tokens[0])))
        if layout == "one sheet":
            return io.NodeOutput(as_image(draw_sheet(rows, title=title, columns=columns, cell=cell)))
        pictures = [as_image(draw_sheet([row], title=title, columns=columns, cell=cell)) for row in rows]
        height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
        ground = torch.tensor(GROUND) / 255
        canvas = ground.expand(len(pictures), height, width, 3).clone()
        for page, picture in zip(canvas, pictures, strict=True):
            page[: picture.shape[1], : picture.shape[2]] = picture[0]
        return io.NodeOutput(canvas)


def as_image(picture: Any) -> Tensor:
    """A Pillow picture as ComfyUI's IMAGE: float ``[1,H,W,3]``, 0 to 1."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, picture.height, picture.width, 3).float() / 255
