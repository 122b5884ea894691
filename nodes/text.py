"""Words out, and clips held against words: Text Decoder, Rank Captions, Rank Clips, Uni-Flow Trajectory."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.chart import draw_ranking
from ..uvg_core.media.sheet import GROUND, SheetRow, draw_sheet
from ..uvg_core.sampling import Judging, Ranking
from ..uvg_core.settings import OneOf, Text, Whole, setting, settings
from . import widgets
from .comfy.captions import AT_ONCE, GeneratedText, RecordedStep, rank
from .comfy.conditioning import tokenizer_of
from .comfy.judging import judge, unit_of
from .comfy.latents import clips_of, decode_latent, require_video_latent
from .comfy.network import network_of
from .comfy.showing import Progress, said
from .media import as_image
from .types import Node, UvgText, output, schema
from .widgets import read, widget


class UniViGUTextDecoder(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = "Tokens, from Video-to-Text Denoise, Joint Sampler or Split Uni-ViGU Latent."
        return schema(
            cls,
            "Text Decoder",
            "Tokens to words: one text per clip of the batch.",
            inputs=[UvgText.Input("text", tooltip=tooltip), widgets.clip()],
            outputs=[output(io.String, "text", "A list with one text per clip.", is_output_list=True)],
        )

    @classmethod
    def execute(cls, text: GeneratedText, clip: Any) -> io.NodeOutput:
        return io.NodeOutput(text.words(tokenizer_of(clip)))


class UniViGURankCaptions(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Rank Captions",
            "Which of these texts fits the clip best? Scores are minus the text flow's loss; all texts "
            "meet the same noise.",
            says=True,
            search_aliases=["classify video", "text video matching"],
            inputs=[
                widgets.model(),
                widgets.clip(),
                widgets.clean_latent(),
                io.String.Input("texts", multiline=True, default="", tooltip="One text a line."),
                widget(Ranking, "samples", max=1000),
                widgets.seed(Ranking),
                widget(Ranking, "stop_when_sure", step=0.01, optional=True, advanced=True),
            ],
            outputs=[
                output(io.String, "best", "The text that fits best."),
                output(io.String, "scores", "All texts, best first, with score and share."),
                output(io.Image, "plot", "The scores as a picture."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, latent: dict[str, Any], texts: str, **inputs: Any) -> io.NodeOutput:
        ranking, video = read(Ranking, inputs, batch=AT_ONCE), latent["samples"]
        require_video_latent(video, network_of(model).config)
        if len(video) != 1:
            raise UniViGUError(f"found {len(video)} clips; texts are ranked for one at a time")
        candidates = [line.strip() for line in texts.splitlines() if line.strip()]
        if not candidates:
            raise UniViGUError("there is no text to rank; write one text per line")
        progress = Progress(cls.hidden.unique_id, steps=ranking.samples)
        found = rank(model, clip, video, candidates, ranking, partial(progress, "ranking"))
        scores, shares = found.tolist(), found.softmax(0).tolist()
        order = sorted(range(len(candidates)), key=lambda n: -scores[n])
        best = candidates[order[0]]
        lines = "\n".join(f"{scores[n]:9.3f}  {shares[n]:6.1%}  {candidates[n]}" for n in order)
        plot = as_image(draw_ranking(candidates, scores, shares, "Which text fits the clip"))
        return io.NodeOutput(best, lines, plot, ui=said(lines))


class UniViGURankClips(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Rank Clips",
            "Which clip of a batch fits a prompt best? The model judges by how likely each clip makes the text; all "
            "clips meet the same noise.",
            says=True,
            search_aliases=["best of", "choose clip", "judge clips", "score video"],
            inputs=[
                widgets.model(),
                widgets.clip(),
                io.Latent.Input("latent", tooltip="A batch of clips, from a sampler or Latent Batch."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the clips should show, in as much detail as the model's own captions.",
                ),
                widget(Judging, "samples", optional=True, advanced=True),
            ],
            outputs=[
                io.Latent.Output(display_name="best", tooltip="The clip that fits best."),
                io.Latent.Output(display_name="ranked", tooltip="All clips, best first."),
                output(io.String, "scores", "A line for each clip, best first: its score and its place in the batch."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, latent: dict[str, Any], prompt: str, **inputs: Any) -> io.NodeOutput:
        judging, video = read(Judging, inputs), latent["samples"]
        require_video_latent(video, network_of(model).config)
        if not prompt.strip():
            raise UniViGUError("there is no prompt to judge the clips by; write what they should show")
        tokens = torch.tensor([tokenizer_of(clip).ids(prompt)])
        progress = Progress(cls.hidden.unique_id, steps=judging.samples * len(video))
        scores = judge(model, video, tokens, judging, partial(progress, "judging")).tolist()
        order = sorted(range(len(video)), key=lambda row: -scores[row])
        lines = "\n".join(f"{scores[row]:9.3f} {unit_of(model)}  batch index {row}" for row in order)
        return io.NodeOutput(clips_of(latent, order[:1]), clips_of(latent, order), lines, ui=said(lines))


@settings
class Sheet:
    """How recorded steps are drawn."""

    title: Text = setting("A line on top, for example the prompt.", default="")
    layout: Annotated[str, OneOf("one sheet", "one picture a step")] = setting(
        "One picture a step makes an animation with Create Video.", default="one sheet"
    )
    columns: Whole = setting("Frames shown of each step.", default=9, ge=1, le=64)
    cell: Whole = setting("Pixels of a frame.", default=96, ge=32, le=512)

    def drawn(self, rows: list[SheetRow]) -> Tensor:
        """An IMAGE of one picture."""
        return as_image(draw_sheet(rows, title=self.title, columns=self.columns, cell=self.cell))


class UniViGUTrajectory(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Uni-Flow Trajectory",
            "How text, and the clip of a joint run, took shape: the recorded steps as pictures.",
            inputs=[
                UvgText.Input(
                    "text", tooltip="From Joint Sampler or Video-to-Text Denoise, with their recorded steps."
                ),
                widgets.clip(),
                widgets.vae("Shows the clip of a joint run beside the text.", optional=True),
                *[widget(Sheet, name, optional=True) for name in ("title", "layout", "columns")],
                widget(Sheet, "cell", step=8, optional=True, advanced=True),
            ],
            outputs=[io.Image.Output(tooltip="One picture, or one for each step.")],
        )

    @classmethod
    def execute(cls, text: GeneratedText, clip: Any, vae: Any | None = None, **inputs: Any) -> io.NodeOutput:
        if not text.record:
            raise UniViGUError(
                "no steps were recorded; set record of Joint Sampler or Video-to-Text Denoise to 8, say, and run again"
            )
        sheet, tokenizer = read(Sheet, inputs), tokenizer_of(clip)

        def row(step: RecordedStep) -> SheetRow:
            pixels = None if vae is None or step.latent is None else decode_latent(vae, step.latent.float())
            label = f"step {step.step}/{step.steps} · t {step.sigma:.2f}"
            return SheetRow(label, pixels, tokenizer.text(step.tokens[0]))

        rows = [row(step) for step in text.record]
        if sheet.layout == "one sheet":
            return io.NodeOutput(sheet.drawn(rows))
        pictures = [sheet.drawn([row]) for row in rows]
        height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
        canvas = (torch.tensor(GROUND) / 255).expand(len(pictures), height, width, 3).clone()
        for page, picture in zip(canvas, pictures, strict=True):
            page[: picture.shape[1], : picture.shape[2]] = picture[0]
        return io.NodeOutput(canvas)
