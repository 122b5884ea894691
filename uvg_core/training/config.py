"""The configuration of a training run: one YAML file, validated before any work. Every section below is a settings
class (see ``settings.py``); a key that none of them knows is an error that names the nearest one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import BeforeValidator, Discriminator, Field, Tag

from ..config import SOURCES, TEXT_FLOWS, V2T_ATTENTION, RunConfig
from ..data.settings import Buckets, Data
from ..errors import UniViGUError
from ..settings import Flag, Number, OneOf, PathText, Text, Whole, from_dict, setting, settings, shown
from ..yaml_file import read_yaml

STAGES = ("generate", "recall", "refine", "distill")
TRAINABLE = ("all", "text", "lora")
TIMES = ("uniform", "logit_normal", "shifted")
DISCRETE_LOSSES = ("cross_entropy", "generalised_kl")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
PRECISIONS = ("fp32", "bf16", "fp16")
MATCHING = ("trajectory", "distribution")

_Path = Annotated[PathText, MinLen(1)]
_A_PATH = "text: a path"
_SOURCES = "a path, or a list of sources, each a path or entries such as path and repeats"
_BETA = Field(ge=0, le=0.999999)
_Limits = tuple[Annotated[Whole, Field(ge=0)], Annotated[Whole, Field(ge=0)]]
_LIMITS = "2 values in square brackets, each a whole number of 0 or more, the smaller first"


def _fraction(help: str, default: float) -> Any:
    return setting(help, default=default, ge=0, le=1, expected="a number: a share from 0 to 1")


def _positive(help: str, default: float, low: float = 1e-12, high: float = 1e6) -> Any:
    return setting(help, default=default, ge=low, le=high, expected="a number above 0")


def _steps(help: str, default: int | None, low: int = 0) -> Any:
    return setting(help, default=default, ge=low, le=10**9, expected="a whole number of steps")


@settings
class Jobs:
    """Shares of the three jobs; they are normalised. The ``generate`` stage only knows text-to-video."""

    text_to_video: Number = setting("Share of text-to-video: a clip is generated from its text.", default=0.4, ge=0)
    video_to_text: Number = setting("Share of video-to-text: a clip is captioned.", default=0.3, ge=0)
    joint: Number = setting("Share of joint: a clip and its text are generated together.", default=0.3, ge=0)

    def __post_init__(self) -> None:
        if not sum(vars(self).values()) > 0:
            raise UniViGUError("jobs: every share is 0; give at least one job a share above 0")


@settings
class Dropout:
    """How often each job loses its prompt condition, 0 to 1.

    Without its condition text-to-video and joint see the empty prompt, as guidance does; video-to-text sees zeros, as
    the captioner does. In Knowledge Recall the condition *is* the target, and only its dropping makes the text stream
    look at the video (paper, section 3.3).
    """

    text_to_video: Number = setting("How often it is replaced by the empty prompt.", default=0.1, ge=0, le=1)
    video_to_text: Number = setting("How often it is replaced by zeros.", default=0.7, ge=0, le=1)
    joint: Number = setting("How often it is replaced by the empty prompt.", default=0.2, ge=0, le=1)


@settings
class Times:
    """How a stream's noise level sigma is drawn.

    ``uniform`` on 0..1; ``logit_normal``: sigmoid of a normal variable with ``mean`` and ``std`` (arXiv 2403.03206,
    section 3.1); ``shifted``: uniform, bent by the samplers' schedule with ``shift``. ``uniform_share`` of the draws
    are uniform whatever the kind, so that no time is forgotten.
    """

    kind: Annotated[str, OneOf(*TIMES)] = setting("Distribution of the noise level.", default="uniform")
    mean: Number = setting(
        "Mean of logit_normal before the sigmoid; above 0 means more noise.", default=0.0, ge=-100, le=100
    )
    std: Number = _positive("Standard deviation of logit_normal before the sigmoid.", 1.0, 1e-6, 100)
    shift: Number = _positive("Shift of shifted; 1 is no shift, higher values mean more noise.", 3.0, 1e-3, 1000)
    uniform_share: Number = _fraction("Share of draws that are uniform, whatever the kind.", 0.0)


@settings
class Loss:
    """Weights of the streams' losses; the video's is a mean squared error, the text's nats a token.

    ``discrete``: loss of the discrete flow, ``cross_entropy`` or ``generalised_kl`` (arXiv 2412.03487). ``anchor``:
    weight of the rounding cross-entropy beside the velocity error of the embedding flow. ``padding``: weight of
    padding behind a text's end, against 1 for a real token.
    """

    video: Number = setting("Weight of the mean squared velocity error of the video.", default=1.0, ge=0)
    text: Number = setting("Weight of the text loss, in nats per token.", default=0.25, ge=0)
    discrete: Annotated[str, OneOf(*DISCRETE_LOSSES)] = setting("Loss of the discrete flow.", default="cross_entropy")
    anchor: Number = setting("Weight of the rounding cross-entropy in the embedding flow's loss.", default=0.2, ge=0)
    padding: Number = setting("Weight of the padding after a text, relative to 1 for a token.", default=1.0, ge=0)


@settings
class Optimizer:
    """``adamw``, ``adamw8bit`` (needs bitsandbytes) or ``muon`` (matrices by Muon, the rest by AdamW).

    The rate climbs for ``warmup`` steps, then falls along a cosine to ``final`` times ``rate`` at step ``horizon``, the
    last one by default: a run with fewer steps ends at a high rate, for another to continue from.
    """

    kind: Annotated[str, OneOf(*OPTIMIZERS)] = setting("The optimizer.", default="adamw")
    rate: Number = _positive("Peak learning rate.", 1e-4)
    muon_rate: Number = _positive("Peak learning rate of the matrices that Muon trains.", 0.01)
    betas: tuple[Annotated[Number, _BETA], Annotated[Number, _BETA]] = setting(
        "Betas of AdamW.", default=(0.9, 0.98), expected="2 values in square brackets, each a number from 0 to below 1"
    )
    weight_decay: Number = setting(
        "Weight decay of everything but vectors.", default=0.01, ge=0, le=100, expected="a number of 0 or more"
    )
    warmup: Whole = _steps("Warmup steps before the rate is reached.", 100)
    final: Number = _fraction("Final learning rate, as a share of rate.", 0.02)
    horizon: Whole | None = _steps("Step at which the cosine ends; None means the last step.", None, 1)
    clip: Number = _positive("Maximum norm of the gradient.", 1.0)
    ema: Number = setting(
        "Decay of the averaged weights, which are used for samples and saved; 0 turns averaging off.",
        default=0.999,
        ge=0,
        le=0.999999,
        expected="a decay from 0 (none) to below 1",
    )


@settings
class Lora:
    """Low-rank updates (arXiv 2106.09685) of the attention and of both experts; ``alpha / rank`` scales them."""

    rank: Whole = setting("Rank of the updates.", default=16, ge=1, le=4096)
    alpha: Number = _positive("The updates are scaled by alpha / rank.", 16.0, 1e-6)
    dropout: Number = setting(
        "Dropout on the input of the updates.", default=0.0, ge=0, le=0.99, expected="a probability below 1"
    )
    start: PathText | None = setting("LoRA file to start from; None starts a new one.", default=None)


@settings
class Distill:
    """The stage ``distill``: a student that needs few passes and no guidance. Each of its passes learns the way that
    the starting network, guided (arXiv 2210.03142), covers in ``substeps`` Euler steps (arXiv 2202.00512).

    With ``matching: distribution``, the passes of text-to-video that ``own_states`` names learn to give clips such as
    the guided teacher's instead (DMD2, arXiv 2405.14867)."""

    passes: Whole = setting("Passes of the student per clip.", default=4, ge=1, le=1000)
    joint_passes: Whole = setting("Passes of the student per clip in joint runs.", default=8, ge=1, le=1000)
    substeps: Whole = setting("Guided steps of the teacher per pass of the student.", default=6, ge=1, le=1000)
    guidance: Number | None = setting("The teacher's guidance scale; None is the checkpoint's.", default=None, ge=0)
    own_states: Number = _fraction(
        "Share of passes that start where the student's own ones lead, not from a noisy clip.", 0.5
    )
    matching: Annotated[str, OneOf(*MATCHING)] = setting(
        "What these passes learn: the teacher's trajectory, or its distribution of clips.", default="trajectory"
    )
    critic_rate: Number = _positive(
        "Learning rate of the critic that matching: distribution trains beside the student, relative to the rate.", 2.0
    )

    def recipe(self, run: RunConfig) -> RunConfig:
        """How the student is run."""
        return run.distilled(self.passes, self.joint_passes)


@settings
class Tokens:
    """Fewest and most tokens of a text, its end counted; others are left out. None: what the checkpoint's own lengths
    allow (the paper: prompts 0-128, detailed captions 128-256)."""

    prompt: _Limits | None = setting("Fewest and most tokens of a prompt.", default=None, expected=_LIMITS)
    detail: _Limits | None = setting("Fewest and most tokens of a detailed caption.", default=None, expected=_LIMITS)

    def __post_init__(self) -> None:
        for name, limits in vars(self).items():
            if limits is not None and limits[0] > limits[1]:
                raise UniViGUError(f"tokens.{name} is {list(limits)}; expected {_LIMITS}")


@settings
class Clip:
    """Sizes of the clips and texts that are trained on. None: the checkpoint's own (832x480, 81 frames at 16 fps, 256
    and 512 for a Wan base).
    """

    height: Whole | None = setting("Pixels, a multiple of 16.", default=None)
    width: Whole | None = setting("Pixels, a multiple of 16.", default=None)
    frames: Whole | None = setting("One more than a multiple of 4.", default=None)
    fps: Number | None = setting("Frames per second.", default=None)
    text_length: Whole | None = setting("Length of the text stream in tokens.", default=None)
    context_length: Whole | None = setting("Length of the prompt condition in tokens.", default=None)

    def __post_init__(self) -> None:
        try:
            RunConfig(**{name: value for name, value in vars(self).items() if value is not None})
        except UniViGUError as error:
            raise UniViGUError(f"clip.{error}") from None


@settings
class Keep:
    """How often, in steps, something is written, and how much of it stays; 0 for never (but the end always is)."""

    checkpoint_every: Whole = setting("Steps between checkpoints.", default=500, ge=0, le=10**9)
    checkpoints: Whole = setting("How many of the newest checkpoints to keep.", default=2, ge=1, le=10**9)
    log_every: Whole = setting("Steps between log lines.", default=10, ge=0, le=10**9)
    sample_every: Whole = setting("Steps between samples.", default=0, ge=0, le=10**9)


def _with_video_defaults(value: Any) -> Any:
    """Entries of ``video_times`` that are not given keep that section's defaults, not those of ``Times``."""
    return {"kind": "shifted", "uniform_share": 0.5, **value} if isinstance(value, dict) else value


def _as_list(value: Any) -> Any:
    """``data`` as a list of sources, unless it is one path; a source that is a path needs no entries."""
    if isinstance(value, str):
        return value
    values = [value] if isinstance(value, dict | Data) else value
    if not isinstance(values, list | tuple) or not values:
        return value
    return tuple({"path": one} if isinstance(one, str) else one for one in values)


_Sources = Annotated[
    Annotated[_Path, Tag("")] | Annotated[tuple[Data, ...], MinLen(1), Tag(" ")],
    Discriminator(lambda value: "" if isinstance(value, str) else " "),
    BeforeValidator(_as_list),
]


def sources_of(data: Any) -> tuple[Data, ...]:
    """The sources that the entry ``data`` of a configuration names, also as it stands in a checkpoint."""
    listed = (data,) if isinstance(data, str) else _as_list(data)
    if not isinstance(listed, tuple) or not all(isinstance(one, str | dict | Data) for one in listed):
        raise UniViGUError(f"data is {shown(data)}; expected {_SOURCES}")
    entries = ({"path": one} if isinstance(one, str) else one for one in listed)
    return tuple(from_dict(Data, one) if isinstance(one, dict) else one for one in entries)


@settings
class TrainConfig:
    """One run. In the command's YAML file each field is a key of the same name.

    ``generate`` trains plain text-to-video, the base; ``recall`` has the prompt as the target text, ``refine`` the
    detailed caption; ``distill`` makes both streams need few passes and no guidance. ``trains: text`` trains the text
    expert, token embedding, text head and text clock: the generator stays bit for bit. Losses are always computed in
    float32.
    """

    stage: Annotated[str, OneOf(*STAGES)] = setting("generate, recall, refine or distill.")
    model: _Path = setting("Checkpoint to start from: a Uni-ViGU file, or a Wan2.1 base.", expected=_A_PATH)
    data: _Sources = setting(
        "Clips: a folder with .txt files beside them, a manifest, shards, or a list of these; worlds:N renders N small "
        "worlds.",
        expected=_SOURCES,
        entries=Data,
    )
    out: _Path = setting("Folder of the run: checkpoints, logs, samples and the trained file.", expected=_A_PATH)
    steps: Whole = setting("Optimizer steps.", ge=1, le=10**9)
    wan: PathText | None = setting("Wan2.1 folder with the VAE, text encoder and tokenizer.", default=None)
    cache: PathText | None = setting("Folder of the shards; None means OUT/cache. Stages can share it.", default=None)
    trains: Annotated[str, OneOf(*TRAINABLE)] = setting("What is trained: all, text or lora.", default="all")
    text_half: Annotated[str, OneOf("keep", "fresh")] = setting(
        "fresh starts the text half as copies of the video's weights, as from a Wan base.", default="keep"
    )
    text_flow: Annotated[str, OneOf(*TEXT_FLOWS)] | None = setting(
        "Text flow of a text half that starts fresh; None uses the checkpoint's.", default=None
    )
    source: Annotated[str, OneOf(*SOURCES)] | None = setting(
        "Noise of the discrete flow of a text half that starts fresh; None uses the checkpoint's.", default=None
    )
    v2t_attention: Annotated[str, OneOf(*V2T_ATTENTION)] | None = setting(
        "one_way: a clean video does not see the text; None uses the checkpoint's.", default=None
    )
    kappa_exponent: Number | None = setting(
        "Exponent of the discrete path; above 1, words form later. None uses the checkpoint's.",
        default=None,
        ge=0.01,
        le=100,
    )
    seed: Whole = setting("Seed of order, jobs, times, noise and fresh weights.", default=0, ge=0, le=2**63 - 1)
    batch: Whole = setting("Clips per batch on each process.", default=8, ge=1, le=10**9)
    accumulate: Whole = setting("Batches per optimizer step.", default=1, ge=1, le=10**9)
    detail_share: Number = _fraction("How often the detailed caption replaces the prompt.", 0.0)
    empty_text: Number = _fraction("How often text-to-video runs without a text stream.", 0.2)
    joint_shared: Number = _fraction(
        "How often the joint job draws one time for both streams instead of one for each.", 0.7
    )
    hold_share: Number = _fraction(
        "How often parts of a clip that forms are given clean (its beginning, both ends, inside or outside of a "
        "box): the checkpoint then fills in clips.",
        0.0,
    )
    embedding_std: Number = _positive("Standard deviation of a fresh token embedding.", 0.02, 1e-6)
    precision: Annotated[str, OneOf(*PRECISIONS)] = setting("Precision of the forward pass.", default="fp32")
    compiled: Flag = setting("Compile the network with torch.compile.", default=False)
    checkpointing: Flag = setting("Recompute blocks in the backward pass to save memory.", default=False)
    device: Text | None = setting("cpu trains on the CPU; None leaves the choice to accelerate.", default=None)
    two_objects: Number = _fraction("Share of worlds with two objects.", 0.0)
    jobs: Jobs = setting("Shares of the three jobs.", factory=Jobs)
    dropout: Dropout = setting("How often each job loses its prompt condition.", factory=Dropout)
    video_times: Annotated[Times, BeforeValidator(_with_video_defaults)] = setting(
        "How the video's noise level is drawn.", factory=lambda: Times("shifted", uniform_share=0.5)
    )
    text_times: Times = setting("How the text's noise level is drawn.", factory=Times)
    loss: Loss = setting("Weights of the losses.", factory=Loss)
    optimizer: Optimizer = setting("Optimizer and learning rate.", factory=Optimizer)
    lora: Lora = setting("Settings of the LoRA, for trains: lora.", factory=Lora)
    distill: Distill = setting("Settings of the student, for stage: distill.", factory=Distill)
    clip: Clip = setting("Sizes of the clips and texts to train on.", factory=Clip)
    buckets: Buckets = setting("Sizes beside the model's own.", factory=Buckets)
    tokens: Tokens = setting("How long texts may be.", factory=Tokens)
    keep: Keep = setting("How often files are written, and how many are kept.", factory=Keep)

    def __post_init__(self) -> None:
        if self.stage == "generate" and self.trains == "text":
            raise UniViGUError(
                "stage: generate with trains: text trains nothing, because generate does not use the text half. "
                "Set trains to all or lora, or stage to recall or refine"
            )
        if self.stage == "distill" and self.trains == "text":
            raise UniViGUError(
                "stage: distill with trains: text trains nothing that draws clips. Set trains to lora or all"
            )
        if self.stage == "distill" and self.distill.matching == "distribution" and self.trains != "lora":
            raise UniViGUError(
                f"distill.matching is distribution, but trains is {self.trains}: the student and its critic are LoRAs "
                "over one network. Set trains to lora, or distill.matching to trajectory"
            )
        if self.hold_share and (self.stage == "distill" or self.trains != "all"):
            raise UniViGUError(
                f"hold_share is {self.hold_share}, but a network that fills in clips is trained as a whole and not "
                "distilled. Set trains to all and another stage, or hold_share to 0"
            )
        if self.lora.start is not None and self.trains != "lora":
            raise UniViGUError(
                f"lora.start is {self.lora.start}, but trains is {self.trains}: the LoRA would not be read. Set trains "
                "to lora, or remove lora.start"
            )
        weights = [one.weight for one in self.sources]
        if None in weights and any(weights):
            raise UniViGUError(
                "data: some sources have a weight and others do not; set it for all of them, or for none"
            )

    @property
    def sources(self) -> tuple[Data, ...]:
        return sources_of(self.data)

    @property
    def data_named(self) -> str:
        """The paths of the data, for messages."""
        return ", ".join(one.path for one in self.sources)

    @property
    def out_folder(self) -> Path:
        return Path(self.out)

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache) if self.cache else self.out_folder / "cache"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a YAML file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


# What may differ between a run and its continuation: where and how often things are written, and how the same sums
# are computed (batch and accumulate: their product with the processes is checked on its own). Everything else changes
# what is learnt.
FREE_AT_RESUME = ("out", "cache", "wan", "device", "batch", "accumulate", "compiled", "checkpointing", "keep")


def changed(old: dict[str, Any], new: dict[str, Any], by_content: Sequence[str] = ()) -> list[str]:
    """``name: old -> new`` for every setting that a continued run may not change. ``by_content``: names of paths, which
    are compared by what lies there, elsewhere."""
    free = {*FREE_AT_RESUME, *by_content}
    since = {
        "buckets": asdict(Buckets()),
        "distill": asdict(Distill()),
        "hold_share": 0.0,
    }  # runs of earlier versions know none
    old = {**{name: value for name, value in since.items() if name in new}, **old}
    before, after = (
        _flat({name: value for name, value in values.items() if name not in free}) for values in (old, new)
    )
    names = sorted(before.keys() | after.keys())
    return [f"{n}: {before.get(n)} -> {after.get(n)}" for n in names if before.get(n) != after.get(n)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries of sections by their names in full: ``optimizer.rate``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def load_config(path: str | Path, **overrides: Any) -> TrainConfig:
    """Read a YAML file; ``overrides`` replace top-level entries. Paths may begin with ``~`` and hold variables of the
    environment. Raises UniViGUError, naming file, line and entry."""
    values = read_yaml(path, "a training configuration")
    try:
        return from_dict(TrainConfig, {**values, **overrides}, expand=True)
    except UniViGUError as error:
        raise values.located(error) from None
