"""Learning from clips: Load Training Clips, Train Uni-ViGU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import InputImpl, io

from ..uvg_core.config import RunConfig
from ..uvg_core.data.folder import (
    DETAIL_LENGTH,
    NO_CAPTION,
    NO_DETAIL,
    PROMPT_LENGTH,
    UNREADABLE,
    LeftOut,
    TextLimits,
    survey,
    tally,
    too_short,
)
from ..uvg_core.data.sources import TrainingClip, digest
from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.video import ClipSpec
from ..uvg_core.training.config import STAGES, TRAINABLE, Keep, Lora, Optimizer, TrainConfig
from . import comfy as bridge
from .comfy import training as bridge_training
from .latents import sized
from .text import as_image
from .types import CATEGORY
from .video import folder_inputs, look_at, read, required_folder, state_of

log = logging.getLogger(__name__)

WARMUP = 100  # steps at most, a tenth of the run at most
LoraModel, LossMap = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")  # core's own


class UniViGULoadClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGULoadClips",
            display_name="Load Training Clips",
            category=CATEGORY,
            description="The clips of a folder with their texts: clip.mp4, its prompt clip.txt, its detailed caption "
            "clip.detail.txt. Says what it left out, and why.",
            search_aliases=["load video dataset", "training data"],
            inputs=[
                io.Model.Input("model", tooltip="Says how long clips and texts may be."),
                io.Clip.Input("clip"),
                *folder_inputs(),
                io.Boolean.Input(
                    "need_details",
                    default=False,
                    tooltip="Leaves out clips without a detailed caption: the stage refine cannot use them.",
                ),
                io.Int.Input(
                    "frames",
                    display_name="frames (0 = auto)",
                    default=0,
                    min=0,
                    max=1025,
                    advanced=True,
                    tooltip="Clips that are shorter are left out. 0: what the checkpoint was trained with.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="videos", is_output_list=True),
                io.String.Output(display_name="prompts", is_output_list=True),
                io.String.Output(display_name="details", is_output_list=True),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_: Any) -> str:
        """The clips and texts that are there: another state of the folder is other data."""
        return state_of(folder)

    @classmethod
    def execute(
        cls, model: Any, clip: Any, folder: str, subfolders: bool, need_details: bool, frames: int
    ) -> io.NodeOutput:
        bridge.network_of(model)
        path = required_folder(folder)
        progress = bridge.Progress(cls.hidden.unique_id)
        run = sized(bridge.run_facts(model), frames=frames)
        found = survey(
            path,
            run,
            bridge.tokenizer_of(clip).ids,
            limits=most_tokens(run),
            need_detail=need_details,
            recursive=subfolders,
            progress=lambda _, done, total: progress.step(done, total),
        )
        log.info("%s", found)
        report = str(found).removeprefix(f"{found.folder}: ")
        progress.text(report, last=True)
        return io.NodeOutput(
            [InputImpl.VideoFromFile(str(pair.path)) for pair in found.usable],
            [pair.prompt for pair in found.usable],
            [pair.detail or "" for pair in found.usable],
            report,
        )


def most_tokens(run: RunConfig) -> TextLimits:
    """Texts of any length that the model reads: which are long enough is for users to say."""
    most = min(run.text_length, run.context_length)
    return TextLimits((0, most), (0, most))


@dataclass(frozen=True)
class ConnectedClips:
    """The lists that are connected to a node, as a source of training clips (see ``Source``)."""

    videos: Sequence[Any]
    prompts: Sequence[str]
    details: Sequence[str]
    run: RunConfig

    def __post_init__(self) -> None:
        for name in ("prompts", "details"):
            texts = getattr(self, name)
            if len(texts) != len(self.videos):
                raise UniViGUError(
                    f"found {len(self.videos)} videos and {len(texts)} {name}; expected one for each video: connect "
                    "the lists of one loader, such as Load Training Clips"
                )

    def __len__(self) -> int:
        return len(self.videos)

    def key(self, index: int) -> str:
        run = self.run
        texts = [self.prompts[index], self.details[index]]
        return digest([index, self.name(index), *texts, run.frames, run.height, run.width, run.fps])

    def name(self, index: int) -> str:
        place = None
        if not isinstance(self.videos[index], InputImpl.VideoFromComponents):
            place = self.videos[index].get_stream_source()
        return Path(place).name if isinstance(place, str) else f"clip {index + 1}"

    def item(self, index: int) -> TrainingClip:
        run = self.run
        pixels, note = read(self.videos[index], ClipSpec(run.frames, run.height, run.width, run.fps))
        log.info("%s", note)  # retimed, resized, cropped: said where the clip is read
        return TrainingClip(pixels, self.prompts[index].strip(), self.details[index].strip() or None, self.name(index))

    def require_usable(
        self, tokens: Callable[[str], list[int]], need_details: bool, report: Callable[[int, int], object]
    ) -> None:
        """Raise UniViGUError that names every clip that cannot be trained on, before any of them is decoded."""
        faults = []
        for index in range(len(self)):
            report(index, len(self))
            fault = self._fault(index, tokens, need_details)
            if fault is not None:
                faults.append(fault)
        if faults:
            raise UniViGUError(
                "\n".join(
                    [
                        f"{len(faults)} of {len(self)} clips cannot be trained on. Put them right, or take Load "
                        "Training Clips, which leaves such clips out",
                        *tally(faults),
                    ]
                )
            )

    def _fault(self, index: int, tokens: Callable[[str], list[int]], need_details: bool) -> LeftOut | None:
        name, run, limits = self.name(index), self.run, most_tokens(self.run)
        if not self.prompts[index].strip():
            return LeftOut(name, NO_CAPTION)
        if need_details and not self.details[index].strip():
            return LeftOut(name, NO_DETAIL)
        for text, (_, most), reason in (
            (self.prompts[index], limits.prompt, PROMPT_LENGTH),
            (self.details[index], limits.detail, DETAIL_LENGTH),
        ):
            length = len(tokens(text.strip()))
            if length > most:
                return LeftOut(name, f"{reason} (at most {most})", f"{length} tokens")
        try:
            return too_short(name, look_at(self.videos[index]), run)
        except UniViGUError as error:
            return LeftOut(name, UNREADABLE, str(error))


@dataclass(frozen=True)
class Settings:
    """The widgets of the training node."""

    stage: str
    trains: str
    steps: int
    batch: int
    learning_rate: float
    rank: int
    seed: int
    sample_every: int
    filename_prefix: str
    all_in_one: bool
    accumulate: int
    width: int
    height: int
    frames: int

    def config(self) -> TrainConfig:
        """The run that they stand for; what they do not say is as everywhere."""
        return TrainConfig(
            stage=self.stage,
            trains=self.trains,
            model="MODEL",
            data="the connected clips",
            out="nowhere",
            steps=self.steps,
            batch=self.batch,
            accumulate=self.accumulate,
            seed=self.seed,
            # Where details are learnt, half of the clips are generated from them; recall learns what it is told.
            detail_share=0.5 if self.stage == "refine" else 0.0,
            precision=bridge_training.best_precision(),
            optimizer=Optimizer(rate=self.learning_rate, warmup=min(WARMUP, self.steps // 10)),
            lora=Lora(rank=self.rank, alpha=float(self.rank)),
            keep=Keep(checkpoint_every=0, log_every=0, sample_every=self.sample_every),
        )


class UniViGUTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGUTrain",
            display_name="Train Uni-ViGU",
            category=CATEGORY,
            description="Trains on clips and their texts, both streams at once. Loss and samples show in the node; "
            "what was learnt is kept when you cancel.",
            search_aliases=["train lora", "fine-tune", "knowledge recall", "capability refinement"],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="Stays as it is: a copy of it learns."),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                io.Video.Input("videos", tooltip="A list of clips, from Load Training Clips or core's folder loaders."),
                io.String.Input("prompts", force_input=True, tooltip="One for each clip."),
                io.String.Input(
                    "details",
                    force_input=True,
                    optional=True,
                    tooltip="One detailed caption for each clip; the stage refine needs them.",
                ),
                io.Combo.Input(
                    "stage",
                    options=list(STAGES),
                    default="recall",
                    tooltip="recall: the text stream learns to say the prompt. refine: told the prompt, it learns to "
                    "say the detailed caption. generate: text to video alone.",
                ),
                io.Combo.Input(
                    "trains",
                    options=list(reversed(TRAINABLE)),
                    default="lora",
                    tooltip="lora: a LoRA for both halves. text: the text half; the generator stays bit for bit. all: "
                    "every weight. text and all are written to a checkpoint.",
                ),
                io.Int.Input("steps", default=500, min=1, max=1_000_000),
                io.Int.Input("batch", default=4, min=1, max=1024, tooltip="Clips a step."),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-8,
                    max=1.0,
                    step=1e-5,
                    round=1e-8,
                    tooltip="It climbs at first and falls towards the end. For uvg_tiny 0.002.",
                ),
                io.Int.Input("rank", default=16, min=1, max=512, tooltip="Of the LoRA."),
                # No control that draws another one after each run: it would train anew whenever the graph runs.
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False),
                io.Int.Input(
                    "sample_every",
                    default=100,
                    min=0,
                    max=1_000_000,
                    tooltip="Steps between samples: a clip generated, captioned, and both at once. 0: none.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="uni_vigu_trained",
                    tooltip="Of the checkpoint, and of what is kept when you cancel: in output/loras, "
                    "output/diffusion_models or output/checkpoints.",
                ),
                io.Boolean.Input(
                    "all_in_one",
                    default=True,
                    advanced=True,
                    tooltip="Puts CLIP and VAE into the checkpoint as well.",
                ),
                io.Int.Input(
                    "accumulate",
                    default=1,
                    min=1,
                    max=1024,
                    advanced=True,
                    tooltip="This many batches make one step: for large batches in little memory.",
                ),
                io.Int.Input(
                    "width",
                    display_name="width (0 = auto)",
                    default=0,
                    min=0,
                    max=8192,
                    step=16,
                    advanced=True,
                    tooltip="Pixels that clips are resized and cropped to. 0: what the checkpoint was trained with.",
                ),
                io.Int.Input(
                    "height",
                    display_name="height (0 = auto)",
                    default=0,
                    min=0,
                    max=8192,
                    step=16,
                    advanced=True,
                    tooltip="Pixels that clips are resized and cropped to. 0: what the checkpoint was trained with.",
                ),
                io.Int.Input(
                    "frames",
                    display_name="frames (0 = auto)",
                    default=0,
                    min=0,
                    max=1025,
                    advanced=True,
                    tooltip="Of each clip, from its beginning (4n+1). 0: what the checkpoint was trained with.",
                ),
            ],
            outputs=[
                LoraModel.Output(display_name="lora"),
                LossMap.Output(display_name="loss"),
                io.Int.Output(display_name="steps"),
                io.String.Output(display_name="checkpoint"),
                io.Image.Output(display_name="samples", is_output_list=True),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        videos: list[Any],
        prompts: list[str],
        details: list[str] | None = None,
        **widgets: list[Any],
    ) -> io.NodeOutput:
        settings = Settings(**{name: values[0] for name, values in widgets.items()})
        bridge_training.require_parts(model[0], clip[0], vae[0], settings.trains)
        run = sized(bridge.run_facts(model[0]), width=settings.width, height=settings.height, frames=settings.frames)
        clips = ConnectedClips(videos, prompts, details or [""] * len(videos), run)
        progress = bridge.Progress(cls.hidden.unique_id)
        config = settings.config()
        clips.require_usable(bridge.tokenizer_of(clip[0]).ids, config.stage == "refine", progress.step)
        learnt = bridge_training.train(
            model[0],
            clip[0],
            vae[0],
            clips,
            config,
            run,
            prefix=settings.filename_prefix,
            all_in_one=settings.all_in_one,
            progress=progress,
        )
        blocked = bridge_training.blocked
        lora = learnt.lora or blocked(
            f"Train Uni-ViGU trained {settings.trains}, and there is no LoRA; what it learnt is in {learnt.file}"
        )
        samples = [as_image(picture) for picture in learnt.samples] or blocked(None)
        return io.NodeOutput(lora, {"loss": learnt.losses}, settings.steps, str(learnt.file or ""), samples)
