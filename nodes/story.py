"""Films of several shots: Story Sampler."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.vae import latent_shape
from ..uvg_core.media.video import fit_pixels
from ..uvg_core.media.video.footage import FOOTAGE
from ..uvg_core.pipeline.story import Story, Told, tell
from ..uvg_core.sampling import Sampling, Size, State
from ..uvg_core.settings import Flag, Text, setting, settings
from . import widgets
from .comfy.conditioning import tokenizer_of
from .comfy.latents import require_video_vae
from .comfy.network import network_of, run_facts
from .comfy.sampling import with_shift
from .comfy.showing import Progress, said
from .comfy.telling import HostDrawing
from .media import ENLARGE, as_pixels, enlarging, sized
from .types import Node, output, schema
from .widgets import read, widget


@settings
class Telling:
    """What a film tells."""

    story: Text = setting(
        "One prompt a line, each for a shot; or YAML with shots, where each may have seconds, a seed and a cut.",
        default="",
    )
    write_captions: Flag = setting(
        "The model writes the caption of each shot while it draws it; the prompts may be brief then.", default=False
    )


class UniViGUStory(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Story Sampler",
            "A film of several shots. Each goes on from the last frames of the one before, so that a film can be "
            "longer than the model's clips.",
            search_aliases=["story", "long video", "extend video", "continue video", "multi-shot", "storyboard"],
            inputs=[
                widgets.model(),
                widgets.clip("Encodes the prompts, from Load Uni-ViGU."),
                widgets.vae(),
                widget(Telling, "story", multiline=True),
                widget(Telling, "write_captions"),
                widgets.seed(),
                widget(Sampling, "steps", max=1000),
                widget(Sampling, "guidance", max=100, step=0.1, round=0.01),
                widget(Sampling, "shift", max=100, step=0.1, round=0.01, advanced=True),
                *widgets.size(advanced=True),
                io.Image.Input("start_image", optional=True, tooltip="The picture that the film begins with."),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What guidance leads away from; without it, the empty prompt."
                ),
            ],
            outputs=[
                output(io.Image, "images", "The frames of the film, for Create Video."),
                output(
                    io.String,
                    "captions",
                    "A caption for each run of the model, or else the prompt of each shot.",
                    is_output_list=True,
                ),
                output(io.Float, "fps", "Frames a second that the checkpoint was trained with, for Create Video."),
                output(io.Float, "enlarge", ENLARGE),
            ],
            hidden=[io.Hidden.unique_id],
            says=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        seed: int,
        start_image: Tensor | None = None,
        negative: list[Any] | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        telling, config = read(Telling, inputs), network_of(model).config
        story = Story.parse(telling.story)
        if config.text_flow == "embedding":
            raise UniViGUError(
                "Story Sampler does not work with checkpoints of the embedding text flow; take a checkpoint of the "
                "discrete text flow"
            )
        require_video_vae(vae)
        spec, first = read(Size, inputs).spec(run_facts(model), FOOTAGE), None
        if start_image is not None:
            pixels = as_pixels(start_image[:1])
            spec = spec.suited(*pixels.shape[1:3])
            first = fit_pixels(pixels, spec)[0][:1]
        run = sized(run_facts(model), Size(height=spec.height, width=spec.width, frames=spec.frames))
        sampling = read(Sampling, {**inputs, "seed": seed}).resolved(run, joint=telling.write_captions)
        assert sampling.shift is not None
        progress = Progress(cls.hidden.unique_id, with_shift(model, sampling.shift), sampling.steps or 1)
        tokenizer, told = tokenizer_of(clip), list[Told]()

        def where() -> str:
            return f"shot {len(told) + 1} of {len(story.shots)}"

        def watch(step: int, state: State) -> None:
            progress.video(step, state.steps, state.estimate, state.latent)
            progress.text(f"{where()}: {tokenizer.text(state.tokens[0])}")

        shape = latent_shape(run.frames, run.height, run.width, config.in_dim)
        draw = HostDrawing(model, clip, vae, shape, sampling, negative, telling.write_captions, watch)
        progress.text(where(), last=True)
        for shot in tell(story, draw, fps=run.fps, frames=run.frames, seed=sampling.seed, first=first):
            told.append(shot)
            if len(told) < len(story.shots):
                progress.text(where(), last=True)
        words = [text for shot in told for text in (shot.texts if telling.write_captions else (shot.prompt,))]
        film = torch.cat([shot.pixels for shot in told]).float() / 255
        return io.NodeOutput(film, words, run.fps, enlarging(run.height, run.width), ui=said("\n".join(words)))
