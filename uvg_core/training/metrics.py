"""What a run writes about itself: ``losses.jsonl``, TensorBoard's files, and samples of all three jobs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..config import CheckpointConfig, RunConfig
from ..data.shards import Sample, Shards
from ..errors import UniViGUError
from ..io import read_text, write_text, written_whole
from ..model import UniViGU
from ..sampling import GuidedDenoiser, Sampling, joint, text_to_video, video_to_text
from ..sampling.loop import Callback
from .config import TrainConfig
from .plan import SamplePlan, padded_states

log = logging.getLogger(__name__)

BUCKETS = 4  # of sigma, from clean to noise
SAMPLE_STEPS = 12
STRIP = 8  # frames of a clip in the picture of a sample


@dataclass(frozen=True)
class StepMetrics:
    """One step's numbers: weighted loss; mean losses of each stream, of each job and of each quarter of sigma.

    Over the whole global batch; ``seconds``: of this step. A mean over no clips is NaN, and absent from the file."""

    step: int
    loss: float
    video: float
    text: float
    means: dict[str, float]
    rate: float
    gradient: float
    seconds: float

    @classmethod
    def of(
        cls, step: int, config: TrainConfig, plans: Sequence[SamplePlan], losses: Tensor, **numbers: float
    ) -> StepMetrics:
        """From the losses ``[clips,2]`` of a step, in the order of its plans."""
        groups: dict[str, list[float]] = {"video": [], "text": []}
        for plan, (video, text) in zip(plans, losses.tolist(), strict=True):
            for stream, makes, loss, sigma in (
                ("video", plan.makes_video, video, plan.sigma_video),
                ("text", plan.makes_text, text, plan.sigma_text),
            ):
                if makes:
                    quarter = min(BUCKETS - 1, int(sigma * BUCKETS)) / BUCKETS
                    for name in (stream, f"{stream}/{plan.job}", f"{stream}/sigma_{quarter:.2f}"):
                        groups.setdefault(name, []).append(loss)
        means = {name: _mean(values) for name, values in groups.items()}
        video, text = means.pop("video"), means.pop("text")
        weighted = config.loss.video * video, config.loss.text * text
        return cls(step, sum(part for part in weighted if not math.isnan(part)), video, text, means, **numbers)

    def to_json(self) -> str:
        flat = {**asdict(self), **self.means}
        del flat["means"]
        return json.dumps({n: float(f"{v:.6g}") if isinstance(v, float) else v for n, v in flat.items() if v == v})


@dataclass(frozen=True)
class Drawn:
    """What the network makes of one clip of the data. ``clips``: latents ``[1,C,F,H,W]``, the truth's own and those
    made by each job; ``texts``: ids ``[L]`` in the same way."""

    truth: Sample
    clips: dict[str, Tensor]
    texts: dict[str, Tensor]


@torch.no_grad()
def draw_samples(
    model: UniViGU, data: Shards, config: TrainConfig, run: RunConfig, step: int, callback: Callback | None = None
) -> Drawn:
    """All three jobs (one in the stage ``generate``) on one clip of the data, another at every ``step``, in the run's
    precision. ``callback`` as in ``sampling/loop.py``."""
    device = next(model.parameters()).device
    truth = data[step % len(data)]
    states, ids = truth.detail_states, truth.detail_ids
    if states is None or ids is None:
        states, ids = truth.prompt_states, truth.prompt_ids

    def guided(states: Tensor) -> GuidedDenoiser:
        context, null = (padded_states(one, model.config, run)[None].to(device) for one in (states, data.empty_states))
        return GuidedDenoiser.of(model, context, null, sampling)

    noise = torch.randn((1, *truth.latent.shape), generator=torch.Generator().manual_seed(step)).to(device)
    is_student = config.stage == "distill"  # which is drawn from as it is used
    sampling = Sampling(steps=None if is_student else SAMPLE_STEPS, seed=step)
    recipe = config.distill.recipe(run) if is_student else run
    both_at, sampling = sampling.resolved(recipe, joint=True), sampling.resolved(recipe)
    text = None if config.stage == "generate" else ids[None].to(device)
    clips, texts = {"truth": truth.latent[None]}, {"truth": ids}
    # What learns is in float32 among weights that may not be: they only work together under autocast.
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)
    with torch.autocast(device.type, dtype, enabled=config.precision != "fp32"):
        clips["text_to_video"] = text_to_video(guided(states), noise, sampling, text=text, callback=callback)
        if config.stage != "generate":
            reading = replace(sampling, steps=SAMPLE_STEPS, temperature=run.text_temperature)
            clip = truth.latent[None].to(device)
            texts["video_to_text"] = video_to_text(GuidedDenoiser(model), clip, reading, callback=callback)[0]
            both = joint(guided(truth.prompt_states), noise, both_at, callback=callback)
            clips["joint"], texts["joint"] = both.video, both.text[0]
    return Drawn(truth, clips, texts)


class MetricsLogger:
    """Writes metrics and samples into the run's folder; kept by the main process alone."""

    def __init__(
        self,
        config: TrainConfig,
        facts: CheckpointConfig,
        decode: Callable[[Tensor], Tensor] | None,
        tokens_to_text: Callable[[Tensor], str] | None,
    ) -> None:
        self.config, self.facts, self.decode, self.tokens_to_text = config, facts, decode, tokens_to_text
        self.path = config.out_folder / "losses.jsonl"
        self._begins: int | None = None  # the first step that is written from here on
        self._recent: list[StepMetrics] = []

    @cached_property
    def board(self) -> Any:
        """TensorBoard's writer; None where tensorboard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.warning("tensorboard is not installed: losses are written to %s only", self.path)
            return None
        folder = self.config.out_folder / "tensorboard"
        return SummaryWriter(str(folder), purge_step=self._begins)  # type: ignore[no-untyped-call, unused-ignore]

    def write(self, metrics: StepMetrics) -> str:
        """Keep a step's metrics; the line to show, or nothing between two of them."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(metrics.to_json() + "\n")
        except OSError as error:
            raise UniViGUError(
                f"{self.path}: could not be written ({error.strerror}); the checkpoints are kept. Free some space and "
                "continue with --resume"
            ) from None
        self._recent.append(metrics)
        every = self.config.keep.log_every
        if not every or metrics.step % every:
            return ""
        recent, self._recent = self._recent, []
        shown = {name: _mean([getattr(one, name) for one in recent]) for name in ("loss", "video", "text", "seconds")}
        if self.board is not None:
            names = sorted({name for one in recent for name in one.means})
            values = {name: _mean([one.means.get(name, math.nan) for one in recent]) for name in names}
            values |= {f"all/{name}": value for name, value in shown.items()}
            values |= {"all/rate": metrics.rate, "all/gradient": _mean([one.gradient for one in recent])}
            for name, value in values.items():
                if not math.isnan(value):
                    self.board.add_scalar(name, value, metrics.step)
            self.board.flush()
        losses = [f"{name} {value:.4f}" for name, value in shown.items() if name != "seconds" and not math.isnan(value)]
        return f"step {metrics.step}/{self.config.steps}  {'  '.join(losses)}  {shown['seconds']:.2f} s"

    def rewind(self, step: int) -> None:
        """Drop entries after ``step``: they belong to a part of the run that was lost and is done again."""
        self._begins = step + 1
        if self.path.exists():
            lines = read_text(self.path, most=2**30).splitlines()
            write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))

    def sample(self, step: int, model: UniViGU, data: Shards) -> None:
        """One clip of the data: generated from its text, captioned, and both at once from its prompt.

        Pictures go to ``samples/`` and TensorBoard, words to TensorBoard and ``samples/step_N.txt``."""
        drawn = draw_samples(model, data, self.config, self.facts.run, step)
        to_text = self.tokens_to_text or (lambda _: "")
        lines = "".join(f"{name}: {to_text(ids.cpu())}\n" for name, ids in drawn.texts.items())
        folder = self.config.out_folder / "samples"
        folder.mkdir(exist_ok=True)
        write_text(folder / f"step_{step:08d}.txt", f"{drawn.truth.name}\n{lines}")
        if self.board is not None:
            self.board.add_text("samples", lines.replace("\n", "  \n"), step)
        if self.decode is None:
            return
        strips = torch.cat([_strip(self.decode(latent.float().cpu())) for latent in drawn.clips.values()])
        if self.board is not None:
            self.board.add_image("samples", strips, step, dataformats="HWC")
        from PIL import Image

        with written_whole(folder / f"step_{step:08d}.png") as path:
            Image.fromarray(strips.numpy()).save(path)


def _strip(pixels_THWC: Tensor) -> Tensor:
    """Frames side by side ``[H,n*W,3]``, evenly spread."""
    picks = torch.linspace(0, len(pixels_THWC) - 1, min(STRIP, len(pixels_THWC))).round().long()
    return torch.cat(list(pixels_THWC[picks]), 1).cpu()


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _step_of(line: str) -> float:
    """The step of a line of ``losses.jsonl``; infinity for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
