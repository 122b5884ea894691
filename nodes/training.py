"""Learning from clips: Load Training Clips, Train Uni-ViGU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comfy_api.latest import InputImpl, io

from ..uvg_core.config import RunConfig
from ..uvg_core.data.folder import TextLimits, survey, too_short
from ..uvg_core.data.left_out import (
    DETAIL_LENGTH,
    NO_CAPTION,
    NO_DETAIL,
    PROMPT_LENGTH,
    UNREADABLE,
    LeftOut,
    tally,
)
from ..uvg_core.data.settings import Data
from ..uvg_core.data.sources import TrainingClip, digest
from ..uvg_core.data.windows import is_long
from ..uvg_core.errors import UniViGUError, printable
from ..uvg_core.media.video.footage import FOOTAGE, Footage
from ..uvg_core.progress import Report
from ..uvg_core.sampling import Size
from ..uvg_core.training.config import TRAINABLE, Keep, Lora, Optimizer, TrainConfig
from . import widgets
from .comfy.conditioning import tokenizer_of
from .comfy.network import network_of, run_facts
from .comfy.paths import shown
from .comfy.showing import Progress, blocked, said
from .comfy.training import OutputFile, TrainingRun, best_precision, require_components
from .media import Folder, Visits, as_image, footage_widgets, info_of, sized
from .media import read as read_video
from .types import LoraModel, LossMap, Node, output, schema
from .widgets import read, widget

log = logging.getLogger(__name__)

WARMUP = 100  # steps at most, a tenth of the run at most
ANY_LENGTH = TextLimits((0, 10**6), (0, 10**6))  # that the model reads: which are long enough is for users to say
ANY_SPEED = 1e4  # how much faster a clip may get that is longer than what is seen of it


visits = Visits()


class UniViGULoadClips(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Load Training Clips",
            "The clips of a folder with their texts: clip.mp4, its prompt clip.txt, its detailed caption "
            "clip.detail.txt. Says what it left out, and why.",
            says=True,
            search_aliases=["load video dataset", "training data"],
            inputs=[
                widgets.model("Says how long clips and texts may be."),
                widgets.clip("The CLIP, from Load Uni-ViGU: it counts the tokens."),
                *widgets.each(Folder),
                io.Boolean.Input(
                    "need_details",
                    default=False,
                    tooltip="Leaves out clips without a detailed caption: the stage refine cannot use them.",
                ),
                widget(
                    Size,
                    "frames",
                    max=1025,
                    advanced=True,
                    tooltip="Clips that are shorter are left out. 0: what the checkpoint was trained with.",
                ),
                *footage_widgets("start", "seconds"),
            ],
            outputs=[
                output(
                    io.Video, "videos", "The clips; they are read from disk when they are needed.", is_output_list=True
                ),
                output(io.String, "prompts", "The text of clip.txt, one for each clip.", is_output_list=True),
                output(
                    io.String,
                    "details",
                    "The text of clip.detail.txt; empty for a clip without one.",
                    is_output_list=True,
                ),
                output(io.String, "report", "How many clips there are, which were left out, and why."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """What the clips and texts hold: another state of the folder is other data."""
        return visits.mark(inputs)

    @classmethod
    def execute(cls, model: Any, clip: Any, **inputs: Any) -> io.NodeOutput:
        network_of(model)  # raises for another model
        folder, run = read(Folder, inputs), sized(run_facts(model), read(Size, inputs))
        start, seconds = (footage := read(Footage, inputs)).start, footage.seconds
        progress = Progress(cls.hidden.unique_id)
        visits.begun(inputs, (folder, None))
        with folder.opened(reads=True) as path:
            found = survey(
                Data(str(path), fastest=ANY_SPEED, start=start, seconds=seconds),
                run,
                tokenizer_of(clip).ids,
                limits=ANY_LENGTH,
                need_detail=inputs["need_details"],
                recursive=folder.subfolders,
                progress=progress,
            )
        report = shown(str(found).removeprefix(f"{found.folder}: "))
        log.info("%s", report)
        videos = [
            InputImpl.VideoFromFile(str(pair.path), start_time=start, duration=seconds or 0) for pair in found.usable
        ]
        texts = [pair.prompt for pair in found.usable], [pair.detail or "" for pair in found.usable]
        return io.NodeOutput(videos, *texts, report, ui=said(report))


@dataclass(frozen=True)
class ConnectedClips:
    """The lists that are connected to a node, as a source of training clips (see ``Source``)."""

    videos: Sequence[Any]
    prompts: Sequence[str]
    details: Sequence[str]
    run: RunConfig
    footage: Footage = FOOTAGE

    def __post_init__(self) -> None:
        for name, texts in (("prompts", self.prompts), ("details", self.details)):
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
        video = self.videos[index]
        place = None if isinstance(video, InputImpl.VideoFromComponents) else video.get_stream_source()
        return Path(place).name if isinstance(place, str) else f"clip {index + 1}"

    def item(self, index: int) -> TrainingClip:
        run, video = self.run, self.videos[index]
        # A caption speaks of the whole clip: of one that is longer, frames of all of it are seen.
        fps = None if is_long(info_of(video).duration, run.frames, run.fps) else run.fps
        spec = replace(self.footage.spec(run.frames, run.height, run.width), fps=fps)
        pixels, note = read_video(video, spec)
        log.info("%s", printable(note))  # retimed, resized, cropped
        return TrainingClip(pixels, self.prompts[index].strip(), self.details[index].strip() or None, self.name(index))

    def require_usable(self, tokens: Callable[[str], list[int]], need_details: bool, progress: Report) -> None:
        """Raise UniViGUError that names every clip that cannot be trained on, before any of them is decoded."""
        faults = []
        for index in range(len(self)):
            progress("checking the clips", index, len(self))
            faults.append(self._fault(index, tokens, need_details))
        found = [fault for fault in faults if fault is not None]
        if found:
            raise UniViGUError(
                f"{len(found)} of {len(self)} clips cannot be trained on. Fix them, or use Load Training Clips, "
                "which leaves such clips out\n" + "\n".join(tally(found))
            )

    def _fault(self, index: int, tokens: Callable[[str], list[int]], need_details: bool) -> LeftOut | None:
        name, most = self.name(index), min(self.run.text_length, self.run.context_length)
        prompt, detail = self.prompts[index].strip(), self.details[index].strip()
        if not prompt:
            return LeftOut(name, NO_CAPTION)
        if need_details and not detail:
            return LeftOut(name, NO_DETAIL)
        for text, reason in ((prompt, PROMPT_LENGTH), (detail, DETAIL_LENGTH)):
            if len(tokens(text)) > most:
                return LeftOut(name, f"{reason} (at most {most})", f"{len(tokens(text))} tokens")
        try:
            return too_short(name, info_of(self.videos[index]), self.run)
        except UniViGUError as error:
            return LeftOut(name, UNREADABLE, str(error))


def train_config(inputs: Mapping[str, Any]) -> TrainConfig:
    """The run that the node's inputs stand for; what they do not say is as everywhere."""
    rank = read(Lora, inputs).rank
    return read(
        TrainConfig,
        inputs,
        model="MODEL",
        data="the connected clips",
        out="nowhere",
        # Where details are learnt, half of the clips are generated from them; recall learns the prompt itself.
        detail_share=0.5 if inputs["stage"] in ("refine", "distill") else 0.0,
        precision=best_precision(),
        optimizer=read(Optimizer, inputs, warmup=min(WARMUP, inputs["steps"] // 10)),
        lora=Lora(rank=rank, alpha=float(rank)),
        keep=read(Keep, inputs, checkpoint_every=0, log_every=0),
    )


class UniViGUTrain(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        side = "Pixels that clips are resized and cropped to. 0: what the checkpoint was trained with."
        return schema(
            cls,
            "Train Uni-ViGU",
            "Trains on clips and their texts, both streams at once. Loss and samples show in the node; "
            "what was learnt is kept when you cancel.",
            search_aliases=["train lora", "fine-tune", "knowledge recall", "capability refinement"],
            is_output_node=True,
            is_input_list=True,
            says=True,
            inputs=[
                widgets.model("Stays as it is: a copy of it learns."),
                widgets.clip("The CLIP, from Load Uni-ViGU."),
                widgets.vae(),
                io.Video.Input("videos", tooltip="A list of clips, from Load Training Clips or core's folder loaders."),
                io.String.Input("prompts", force_input=True, tooltip="One for each clip."),
                io.String.Input(
                    "details",
                    force_input=True,
                    optional=True,
                    tooltip="One detailed caption for each clip; the stage refine needs them.",
                ),
                widget(
                    TrainConfig,
                    "stage",
                    default="recall",
                    tooltip="recall: the text stream learns to say the prompt. refine: told the prompt, it learns to "
                    "say the detailed caption. generate: text to video alone. distill: a LoRA that needs 4 passes and "
                    "no guidance.",
                ),
                widget(
                    TrainConfig,
                    "trains",
                    options=list(reversed(TRAINABLE)),
                    default="lora",
                    tooltip="lora: a LoRA for both halves. text: the text half; the generator stays bit for bit. all: "
                    "every weight. text and all are written to a checkpoint.",
                ),
                widget(TrainConfig, "steps", default=500, max=10**6, tooltip="How long to train."),
                widget(TrainConfig, "batch", default=4, max=1024, tooltip="Clips a step."),
                widget(
                    Optimizer,
                    "learning_rate",
                    min=1e-8,
                    max=1,
                    step=1e-5,
                    round=1e-8,
                    tooltip="It climbs at first and falls towards the end. For uvg_tiny 0.002.",
                ),
                widget(Lora, "rank", max=512, tooltip="Of the LoRA."),
                # No control that draws another one after each run: it would train anew whenever the graph runs.
                widget(
                    TrainConfig, "seed", control_after_generate=False, tooltip="The same seed gives the same result."
                ),
                widget(
                    Keep,
                    "sample_every",
                    default=100,
                    max=10**6,
                    tooltip="Steps between samples: a clip generated, captioned, and both at once. 0: none.",
                ),
                widget(OutputFile, "filename_prefix"),
                widget(OutputFile, "all_in_one", advanced=True),
                widget(
                    TrainConfig,
                    "accumulate",
                    max=1024,
                    advanced=True,
                    tooltip="This many batches make one step: for large batches in little memory.",
                ),
                widget(Size, "width", step=16, advanced=True, tooltip=side),
                widget(Size, "height", step=16, advanced=True, tooltip=side),
                widget(
                    Size,
                    "frames",
                    max=1025,
                    advanced=True,
                    tooltip="Of each clip (4n+1); of a longer one, spread over all of it. 0: what the checkpoint was "
                    "trained with.",
                ),
                widget(
                    Data,
                    "fit",
                    optional=True,
                    advanced=True,
                    tooltip="For clips of another shape: crop cuts off what goes beyond the size, pad adds bars, "
                    "stretch distorts.",
                ),
                *footage_widgets("crop", "background"),
            ],
            outputs=[
                output(
                    LoraModel,
                    "lora",
                    "The LoRA, for Load LoRA Model and Save LoRA Weights; with text and all there is none.",
                ),
                output(LossMap, "loss", "The loss of every step, for Plot Loss Graph."),
                output(io.Int, "steps", "How many steps there were."),
                output(io.String, "checkpoint", "The path of the file that text and all write; empty with lora."),
                output(io.Image, "samples", "A picture of each sample.", is_output_list=True),
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
        **lists: list[Any],
    ) -> io.NodeOutput:
        inputs = {name: values[0] for name, values in lists.items()}
        require_components(model[0], clip[0], vae[0], inputs["trains"])
        config, progress = train_config(inputs), Progress(cls.hidden.unique_id)
        sizes = sized(run_facts(model[0]), read(Size, inputs))
        clips = ConnectedClips(videos, prompts, details or [""] * len(videos), sizes, read(Footage, inputs))
        clips.require_usable(tokenizer_of(clip[0]).ids, config.stage == "refine", progress)
        run = TrainingRun(model[0], clip[0], vae[0], sizes, config, read(OutputFile, inputs), progress)
        run.train(clips)
        lora = run.lora or blocked(
            f"Train Uni-ViGU trained {config.trains}, and there is no LoRA; what it learnt is in {shown(str(run.file))}"
        )
        samples = [as_image(picture) for picture in run.pictures] or blocked(None)
        file = shown(str(run.file or ""))
        return io.NodeOutput(lora, {"loss": run.losses}, config.steps, file, samples, ui=said("\n".join(run.notes)))
