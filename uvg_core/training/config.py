"""The configuration of a training run: one YAML file, validated before any work.

    stage: recall
    model: models/base.safetensors
    data: clips/
    out: runs/recall
    steps: 2000

Every section below is a frozen dataclass; a key that none of them knows is an error that names the nearest one.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import types
import typing
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from ..config import SOURCES, TEXT_FLOWS, V2T_ATTENTION, RunConfig, shown
from ..errors import UniViGUError

STAGES = ("generate", "recall", "refine")
TRAINABLE = ("all", "text", "lora")
TIMES = ("uniform", "logit_normal", "shifted")
DISCRETE_LOSSES = ("cross_entropy", "generalised_kl")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
PRECISIONS = ("fp32", "bf16", "fp16")

Section = TypeVar("Section")


def _require(name: str, value: Any, low: float, high: float, expected: str) -> None:
    if not low <= value <= high or math.isinf(value):
        raise UniViGUError(f"{name} is {shown(value)}; expected {expected}")


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UniViGUError(f"{name} is {shown(value)}; expected one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Jobs:
    """Shares of the three jobs; they are normalised. The ``generate`` stage only knows text-to-video."""

    text_to_video: float = 0.4
    video_to_text: float = 0.3
    joint: float = 0.3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _require(f"jobs.{name}", value, 0, float("inf"), "a share of 0 or more")
        if not sum(asdict(self).values()) > 0:
            raise UniViGUError("jobs: every share is 0; give at least one job a share above 0")


@dataclass(frozen=True)
class Dropout:
    """How often each job loses its prompt condition, 0 to 1.

    Without its condition text-to-video and joint see the empty prompt, as guidance does; video-to-text sees zeros, as
    the captioner does. In Knowledge Recall the condition *is* the target, and only its dropping makes the text stream
    look at the video (paper, section 3.3).
    """

    text_to_video: float = 0.1
    video_to_text: float = 0.7
    joint: float = 0.2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _require(f"dropout.{name}", value, 0, 1, "a probability from 0 to 1")


@dataclass(frozen=True)
class Times:
    """How a stream's noise share sigma is drawn.

    ``uniform`` on 0..1; ``logit_normal``: sigmoid of a normal variable with ``mean`` and ``std`` (arXiv 2403.03206,
    section 3.1); ``shifted``: uniform, bent by the samplers' schedule with ``shift``. ``uniform_share`` of the draws
    are uniform whatever the kind, so that no time is forgotten.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 3.0
    uniform_share: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("kind of times", self.kind, TIMES)
        _require("mean of times", self.mean, -100, 100, "a number from -100 to 100")
        _require("std of times", self.std, 1e-6, 100, "a number above 0")
        _require("shift of times", self.shift, 1e-3, 1000, "a number above 0")
        _require("uniform_share of times", self.uniform_share, 0, 1, "a share from 0 to 1")


@dataclass(frozen=True)
class Loss:
    """Weights of the streams' losses; the video's is a mean squared error, the text's nats a token.

    ``discrete``: loss of the discrete flow, ``cross_entropy`` or ``generalised_kl`` (arXiv 2412.03487). ``anchor``:
    weight of the rounding cross-entropy beside the velocity error of the embedding flow. ``padding``: weight of
    padding behind a text's end, against 1 for a real token.
    """

    video: float = 1.0
    text: float = 0.25
    discrete: str = "cross_entropy"
    anchor: float = 0.2
    padding: float = 1.0

    def __post_init__(self) -> None:
        _require_choice("loss.discrete", self.discrete, DISCRETE_LOSSES)
        for name in ("video", "text", "anchor", "padding"):
            _require(f"loss.{name}", getattr(self, name), 0, float("inf"), "a weight of 0 or more")


@dataclass(frozen=True)
class Optimizer:
    """``adamw``, ``adamw8bit`` (needs bitsandbytes) or ``muon`` (matrices by Muon, the rest by AdamW).

    The rate climbs for ``warmup`` steps, then falls along a cosine to ``final`` times ``rate`` at step ``horizon``, the
    last one by default: a run with fewer steps ends at a high rate, for another to go on from.
    ``muon_rate`` is the rate of Muon's matrices. ``clip``: greatest norm of the gradient. ``ema``: decay of the
    averaged weights, which are what is sampled from and saved; 0 keeps none.
    """

    kind: str = "adamw"
    rate: float = 1e-4
    muon_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: int = 100
    final: float = 0.02
    horizon: int | None = None
    clip: float = 1.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        _require_choice("optimizer.kind", self.kind, OPTIMIZERS)
        for name in ("rate", "muon_rate", "clip"):
            _require(f"optimizer.{name}", getattr(self, name), 1e-12, 1e6, "a number above 0")
        _require("optimizer.ema", self.ema, 0, 0.999999, "a decay from 0 (none) to below 1")
        _require("optimizer.final", self.final, 0, 1, "a share of the rate from 0 to 1")
        _require("optimizer.warmup", self.warmup, 0, 10**9, "a number of steps")
        if self.horizon is not None:
            _require("optimizer.horizon", self.horizon, 1, 10**9, "a number of steps")
        _require("optimizer.weight_decay", self.weight_decay, 0, 100, "0 or more")
        for beta in self.betas:
            _require("optimizer.betas", beta, 0, 0.999999, "two numbers from 0 to below 1")


@dataclass(frozen=True)
class Lora:
    """Low-rank updates (arXiv 2106.09685) of the attention and of both experts; ``alpha / rank`` scales them."""

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require("lora.rank", self.rank, 1, 4096, "a whole number from 1 to 4096")
        _require("lora.alpha", self.alpha, 1e-6, 1e6, "a number above 0")
        _require("lora.dropout", self.dropout, 0, 0.99, "a probability below 1")


@dataclass(frozen=True)
class Tokens:
    """Fewest and most tokens of a text, its end counted; others are left out. None: what the checkpoint's own lengths
    allow (the paper: prompts 0-128, detailed captions 128-256)."""

    prompt: tuple[int, int] | None = None
    detail: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, limits in asdict(self).items():
            if limits is not None and not 0 <= limits[0] <= limits[1]:
                expected = "two numbers from 0 on, the smaller one first"
                raise UniViGUError(f"tokens.{name} is {shown(list(limits))}; expected {expected}")


@dataclass(frozen=True)
class Clip:
    """Sizes of the clips and texts that are trained on: pixels, frames, frames a second, tokens of the text stream and
    rows of the prompt condition. None: the checkpoint's own (832x480, 81 frames at 16 fps, 256 and 512 for a Wan base).
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: float | None = None
    text_length: int | None = None
    context_length: int | None = None

    def __post_init__(self) -> None:
        stated = {name: value for name, value in asdict(self).items() if value is not None}
        try:
            RunConfig(**stated)
        except UniViGUError as error:
            raise UniViGUError(f"clip.{error}") from None


@dataclass(frozen=True)
class Keep:
    """How often, in steps, something is written, and how much of it stays; 0 for never (but the end always is)."""

    checkpoint_every: int = 500
    checkpoints: int = 2
    log_every: int = 10
    sample_every: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _require(f"keep.{name}", value, int(name == "checkpoints"), 10**9, "a whole number")


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Args:
        stage: ``generate`` (plain text-to-video, the base), ``recall`` (target text = prompt) or ``refine`` (target =
            detailed caption).
        model: checkpoint to start from: a Uni-ViGU file, or a Wan2.1 base. wan: a Wan2.1 folder with VAE, text encoder
            and tokenizer, where the checkpoint does not carry its own.
        data: folder of clips with ``.txt`` beside them; ``worlds:N`` renders N little worlds. cache: folder for the
            shards, by default ``OUT/cache``. Stages of one data set can share it.
        out: folder of the run: checkpoints, logs, samples and, at the end, ``model.safetensors`` or
            ``lora.safetensors``.
        trains: ``all`` | ``text`` (the text expert, token embedding, text head and text clock: the generator stays bit
            for bit) | ``lora``. text_half: ``keep`` | ``fresh`` (start the text half as copies of the video's, as from
            a Wan base). text_flow, source: of a text half that starts fresh; None keeps the checkpoint's.
        v2t_attention: ``joint`` | ``one_way`` (a clean video does not see the text: what captioning makes of it is the
            same at every step, see ``ModelConfig``); kappa_exponent: of the discrete path, above 1 lets words form
            later, when the video beside them can be read. None keeps the checkpoint's.
        steps: optimizer steps. batch: clips a step on one process, times ``accumulate``, times the processes.
        detail_share: how often the detailed caption stands in for the prompt where a job is told what to show (and, in
            recall, as the target too). empty_text: how often text-to-video gets an empty text stream, which keeps the
            plain generator alive.
        joint_shared: how often joint draws one time for both streams, as the joint sampler runs; otherwise two.
        embedding_std: spread of the rows of E where the text half starts fresh.
        precision: of the forward pass (``bf16``: autocast with float32 weights). losses are float32 always.
        compiled: run through torch.compile. checkpointing: recompute blocks in the backward pass to save memory.
    """

    stage: str
    model: str
    data: str
    out: str
    steps: int
    wan: str | None = None
    cache: str | None = None
    trains: str = "all"
    text_half: str = "keep"
    text_flow: str | None = None
    source: str | None = None
    v2t_attention: str | None = None
    kappa_exponent: float | None = None
    seed: int = 0
    batch: int = 8
    accumulate: int = 1
    detail_share: float = 0.0
    empty_text: float = 0.2
    joint_shared: float = 0.7
    embedding_std: float = 0.02
    precision: str = "fp32"
    compiled: bool = False
    checkpointing: bool = False
    device: str | None = None
    two_objects: float = 0.0
    jobs: Jobs = field(default_factory=Jobs)
    dropout: Dropout = field(default_factory=Dropout)
    video_times: Times = field(default_factory=lambda: Times("shifted", uniform_share=0.5))
    text_times: Times = field(default_factory=Times)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: Lora = field(default_factory=Lora)
    clip: Clip = field(default_factory=Clip)
    tokens: Tokens = field(default_factory=Tokens)
    keep: Keep = field(default_factory=Keep)

    def __post_init__(self) -> None:
        _require_choice("stage", self.stage, STAGES)
        _require_choice("trains", self.trains, TRAINABLE)
        _require_choice("text_half", self.text_half, ("keep", "fresh"))
        _require_choice("precision", self.precision, PRECISIONS)
        if self.text_flow is not None:
            _require_choice("text_flow", self.text_flow, TEXT_FLOWS)
        if self.source is not None:
            _require_choice("source", self.source, SOURCES)
        if self.v2t_attention is not None:
            _require_choice("v2t_attention", self.v2t_attention, V2T_ATTENTION)
        if self.kappa_exponent is not None:
            _require("kappa_exponent", self.kappa_exponent, 0.01, 100, "a number from 0.01 to 100")
        for name in ("steps", "batch", "accumulate"):
            _require(name, getattr(self, name), 1, 10**9, "a whole number of 1 or more")
        for name in ("detail_share", "empty_text", "joint_shared", "two_objects"):
            _require(name, getattr(self, name), 0, 1, "a share from 0 to 1")
        _require("seed", self.seed, 0, 2**63 - 1, "a whole number of 0 or more")
        _require("embedding_std", self.embedding_std, 1e-6, 1e6, "a number above 0")
        for name in ("model", "data", "out"):
            if not getattr(self, name):
                raise UniViGUError(f"{name} is empty; expected a path")
        if self.stage == "generate" and self.trains == "text":
            raise UniViGUError(
                "stage generate with trains: text has nothing to learn: the text half takes no part in it. "
                "Train all, or lora, or choose the stage recall or refine"
            )

    @property
    def out_folder(self) -> Path:
        return Path(self.out)

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache) if self.cache else self.out_folder / "cache"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a YAML file."""
        return typing.cast(dict[str, Any], _plain(asdict(self)))


# What may differ between a run and its continuation: where and how often things are written, and how the same sums
# are computed (batch and accumulate: their product with the processes is checked on its own). Everything else changes
# what is learnt.
FREE_AT_RESUME = ("out", "cache", "wan", "device", "batch", "accumulate", "compiled", "checkpointing", "keep")


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``name: old -> new`` for every setting that a continued run may not change."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            if prefix or key not in FREE_AT_RESUME:
                found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return found

    before, after = flat(old), flat(new)
    names = sorted(before.keys() | after.keys())
    return [f"{n}: {before.get(n)} -> {after.get(n)}" for n in names if before.get(n) != after.get(n)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def load_config(path: str | Path, **overrides: Any) -> TrainConfig:
    """Read a YAML file; ``overrides`` replace top-level entries. Raises UniViGUError, naming file and entry."""
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UniViGUError(
            f"{path}: cannot be read ({error.strerror}); pass a training configuration in YAML"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: text that is no UTF-8, dates
        raise UniViGUError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    try:
        if not isinstance(values, dict):
            raise UniViGUError(f"found {shown(values)}; expected entries like 'stage: recall', one a line")
        return from_dict(TrainConfig, {**values, **overrides})
    except UniViGUError as error:
        raise UniViGUError(f"{path}: {error}") from None


def from_dict(kind: type[Section], values: dict[str, Any], where: str = "", usual: Section | None = None) -> Section:
    """Build a section from plain values; entries that are not there keep the value they have in ``usual``, or else
    their default. Raises UniViGUError for unknown keys, missing ones and other types."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise UniViGUError(f"unknown entry {where}{key}; {hint}")
    types_of = typing.get_type_hints(kind)
    missing = [f for f in known.values() if f.default is MISSING and f.default_factory is MISSING]
    for entry in missing:
        if entry.name not in values:
            raise UniViGUError(f"the entry {where}{entry.name} is missing; it has no default")
    given = {key: _typed(types_of[key], value, f"{where}{key}", known[key]) for key, value in values.items()}
    try:
        return kind(**{**(vars(usual) if usual is not None else {}), **given})
    except UniViGUError as error:
        # A section that two entries share does not know which of them it is.
        raise error if where in str(error) else UniViGUError(f"{where.rstrip('.')}: {error}") from None


def _typed(kind: Any, value: Any, name: str, entry: Field[Any]) -> Any:
    """``value`` as ``kind``, or UniViGUError. Whole numbers pass as floats, ``1e-4`` as YAML's text for one too."""
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise UniViGUError(f"{name} is {shown(value)}; expected entries of its own, indented below it")
        assert entry.default_factory is not MISSING
        return from_dict(kind, value, f"{name}.", entry.default_factory())  # type: ignore[arg-type]
    if get_origin(kind) in (types.UnionType, typing.Union):
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if not isinstance(value, (list, tuple)) or len(value) != len(inner):
            raise UniViGUError(f"{name} is {shown(value)}; expected {len(inner)} values in square brackets")
        return tuple(_typed(part, given, name, entry) for part, given in zip(inner, value, strict=True))
    if kind is float and isinstance(value, str):  # YAML reads 1e-4 (no dot) as text
        with contextlib.suppress(ValueError):  # the message below names what was found
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise UniViGUError(f"{name} is {shown(value)}; expected {words[kind]}")
    return value
