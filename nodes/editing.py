"""Clips that follow their words: Edit by Words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..uvg_core.config import ModelConfig
from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.vae import SPATIAL, TEMPORAL
from ..uvg_core.pipeline.wording import changes_of, reworded
from ..uvg_core.sampling import Editing, Sampling, State
from ..uvg_core.settings import Text, setting, settings
from . import widgets
from .comfy.captions import describe
from .comfy.editing import Words, edit_clip, has_text_stream
from .comfy.latents import decode_latent, masks_of, require_video_latent, video_mask
from .comfy.network import network_of, run_facts
from .comfy.sampling import with_shift
from .comfy.showing import Progress, blocked, said
from .types import Node, output, schema
from .widgets import read, widget

TOLERANCE = 0.02  # of the shape of a mask, beside the clip's
NO_PICTURE = "Edit by Words shows both clips where its input vae is connected: connect VAE of Load Uni-ViGU to it"


@settings
class Wording:
    """How the words of a clip change."""

    caption: Text = setting(
        "What the clip shows. Empty: the model's own words, which the node shows after the run.", default=""
    )
    change: Text = setting(
        "Words of the caption to change, one old=new a line, such as red=blue or moves left slowly=stays still.",
        default="",
    )
    new_caption: Text = setting("The whole caption as it should be, in place of change.", default="")

    def __post_init__(self) -> None:
        if self.change.strip() and self.new_caption.strip():
            raise UniViGUError("change and new_caption are both filled in; empty one of them")
        self._changes()

    def _changes(self) -> dict[str, str]:
        return changes_of([line for line in self.change.splitlines() if line.strip()])

    def captions(self, describe: Callable[[], str]) -> tuple[str, str]:
        """The caption of the clip, from ``describe`` where none is given, and what becomes of it."""
        old = self.caption.strip() or describe()
        if self.change.strip():
            return old, reworded(old, self._changes())
        new = self.new_caption.strip()
        if new.split() == old.split():
            raise UniViGUError(f"new_caption is the caption that the clip already has: {old}")
        if not new:
            raise UniViGUError(
                f"nothing is to change; write old=new into change, such as red=blue, or the whole caption as it should "
                f"be into new_caption. The caption is: {old}"
            )
        return old, new


class UniViGUEdit(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Edit by Words",
            "Changes a clip as words of its caption change: red=blue makes the red thing blue and keeps the rest. "
            "Works with plain Wan 2.1 models too, where caption is filled in.",
            search_aliases=[
                "flowedit",
                "video to video",
                "v2v",
                "vid2vid",
                "prompt to prompt",
                "edit video",
                "rewrite",
            ],
            inputs=[
                widgets.model("The model, from Load Uni-ViGU, or a Wan 2.1 text-to-video model."),
                widgets.clip("Encodes both captions, from Load Uni-ViGU."),
                io.Latent.Input("latent", tooltip="The clip, from Encode Video for Uni-ViGU or from a sampler."),
                *widgets.each(Wording, multiline=True),
                widget(Editing, "strength", step=0.01),
                widgets.seed(),
                widget(Sampling, "steps", max=1000),
                widget(Sampling, "guidance", max=100, step=0.1, round=0.01),
                widget(Sampling, "shift", max=100, step=0.1, round=0.01, advanced=True),
                widgets.vae("Shows both clips side by side.", optional=True),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the clip may change: one picture, or one for each frame, of the clip's shape.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What guidance leads away from; without it, the empty prompt."
                ),
                widget(Sampling, "guidance_end", step=0.05, optional=True, advanced=True),
                widget(Editing, "source_guidance", max=100, step=0.1, round=0.01, optional=True, advanced=True),
                widget(Editing, "draws", max=100, optional=True, advanced=True),
            ],
            outputs=[
                io.Latent.Output(tooltip="The edited clip, for VAE Decode."),
                output(io.Image, "both", "The clip before and after, side by side. Needs the input vae."),
                output(io.String, "caption", "What the clip shows."),
                output(io.String, "new_caption", "What the edited clip shows."),
            ],
            hidden=[io.Hidden.unique_id],
            says=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        latent: dict[str, Any],
        vae: Any | None = None,
        mask: Tensor | None = None,
        negative: list[Any] | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        wording, editing = read(Wording, inputs), read(Editing, inputs)
        sampling = read(Sampling, inputs).resolved(run_facts(model))
        video = _clip_of(model, latent)
        free = _free(mask, latent, video)
        assert sampling.steps is not None
        assert sampling.shift is not None
        progress = Progress(cls.hidden.unique_id, with_shift(model, sampling.shift), sampling.steps)

        def words() -> str:
            return _described(model, clip, video, sampling.seed, progress)

        def watch(step: int, state: State) -> None:
            progress.video(step, state.steps, state.estimate, state.latent)

        captions = wording.captions(words)
        shown = [f"from: {captions[0]}\nto: {captions[1]}"]
        progress.text(shown[0], last=True)
        encoded = Words.encoded(model, clip, captions, negative)
        edited = edit_clip(model, video, encoded, sampling, editing, free=free, watch=watch)
        both = blocked(NO_PICTURE) if vae is None else _side_by_side(vae, video, edited)
        return io.NodeOutput({**latent, "samples": edited}, both, *captions, ui=said(*shown))


def _clip_of(model: Any, latent: dict[str, Any]) -> Tensor:
    """The one clip of a LATENT ``[1,16,F,h,w]``."""
    video = latent["samples"]
    require_video_latent(video, network_of(model).config if has_text_stream(model) else ModelConfig())
    if len(video) != 1:
        raise UniViGUError(
            f"found {len(video)} clips; they are edited one at a time: take one with Get Latent From Batch"
        )
    if not bool(video.any()):
        raise UniViGUError("the latent is empty; connect the clip to edit, with Encode Video for Uni-ViGU")
    return video


def _free(mask: Tensor | None, latent: dict[str, Any], video: Tensor) -> Tensor | None:
    """Where the clip may change, by the input ``mask`` or else by the latent's own; None for everywhere. Raises
    UniViGUError for one of another shape, and for one that lets nothing change."""
    given = masks_of(latent)[0] if mask is None else mask
    if given is None:
        return None
    (rows, columns), (height, width) = given.shape[-2:], (SPATIAL * side for side in video.shape[-2:])
    if mask is not None and abs(columns * height / (rows * width) - 1) > TOLERANCE:
        raise UniViGUError(
            f"the mask is {columns}x{rows}, of another shape than the clip, which is {width}x{height}; expected a mask "
            "of the clip's shape, of any size"
        )
    free = video_mask(given, video)
    if not bool(free.any()):
        raise UniViGUError("the mask is black everywhere, so nothing may change; paint white what may")
    return free.clamp(0, 1)


def _described(model: Any, clip: Any, video: Tensor, seed: int, progress: Progress) -> str:
    """The model's own caption, of as much of the clip as it takes at once."""
    if not has_text_stream(model):
        raise UniViGUError(
            "caption is empty, and plain Wan writes no captions; write what the clip shows into caption, or take a "
            "Uni-ViGU model"
        )

    def report(step: int, steps: int, words: str) -> None:
        progress("captioning", step, steps)
        progress.text(words)

    window = (run_facts(model).frames - 1) // TEMPORAL + 1
    _, text = describe(model, clip, video[:, :, :window], Sampling(seed=seed), report=report)
    if not text.strip():
        raise UniViGUError("the model's caption came out empty; write what the clip shows into caption")
    return text


def _side_by_side(vae: Any, *latents: Tensor) -> Tensor:
    """Clips as one IMAGE, frame by frame, with a white line between them."""
    clips = [decode_latent(vae, latent).float() / 255 for latent in latents]
    line = clips[0].new_ones(*clips[0].shape[:2], 2 * max(1, clips[0].shape[2] // 48), 3)
    return torch.cat([clips[0], line, *clips[1:]], 2)
