"""What a run writes about itself: ``losses.jsonl``, TensorBoard's files, and samples of all three jobs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CheckpointConfig, RunConfig
from ..data.shards import Sample, Shards
from ..errors import UniViGUError
from ..io import write_text, written_whole
from ..model import UniViGU
from ..sampling import GuidedDenoiser, Sampling, joint, text_to_video, video_to_text
from ..sampling.loop import Callback
from .config import TrainConfig
from .plan import SamplePlan

log = logging.getLogger(__name__)

BUCKETS = 4  # of sigma, from clean to noise
SAMPLE_STEPS = 12


@dataclass(frozen=True)
class StepMetrics:
    """One step's numbers: weighted loss; mean losses of each stream, of each job and of each quarter of sigma.

    A mean over no clips is NaN, and absent from the file."""

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
        video, text = losses[:, 0].tolist(), losses[:, 1].tolist()
        groups: dict[str, list[float]] = {}
        for plan, of_video, of_text in zip(plans, video, text, strict=True):
            for stream, makes, loss, sigma in (
                ("video", plan.makes_video, of_video, plan.sigma_video),
                ("text", plan.makes_text, of_text, plan.sigma_text),
            ):
                if makes:
                    quarter = min(BUCKETS - 1, int(sigma * BUCKETS))
                    for name in (stream, f"{stream}/{plan.job}", f"{stream}/sigma_{quarter / BUCKETS:.2f}"):
                        groups.setdefault(name, []).append(loss)
        means = {name: sum(values) / len(values) for name, values in groups.items()}
        mean_video, mean_text = means.pop("video", math.nan), means.pop("text", math.nan)
        parts = ((config.loss.video, mean_video), (config.loss.text, mean_text))
        loss = sum(weight * mean for weight, mean in parts if not math.isnan(mean))
        return cls(step, loss, mean_video, mean_text, means, **numbers)

    def to_json(self) -> str:
        numbers = {name: value for name, value in asdict(self).items() if name != "means"}
        flat = {**numbers, **self.means}
        return json.dumps({n: float(f"{v:.6g}") if isinstance(v, float) else v for n, v in flat.items() if v == v})


@dataclass(frozen=True)
class Drawn:
    """What the network makes of one clip of the data. ``clips``: latents ``[1,C,F,H,W]``, the truth's own and those
    made by each job; ``texts``: ids ``[L]`` in the same way, None where the truth has none."""

    truth: Sample
    clips: dict[str, Tensor]
    texts: dict[str, Tensor | None]


@torch.no_grad()
def draw_samples(
    model: UniViGU, data: Shards, config: TrainConfig, run: RunConfig, step: int, callback: Callback | None = None
) -> Drawn:
    """All three jobs (one in the stage ``generate``) on one clip of the data, another at every ``step``, in the run's
    precision. ``callback`` as in ``sampling/loop.py``."""
    device = next(model.parameters()).device
    # What learns is in float32 among weights that may not be: they only work together under autocast.
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)
    with torch.autocast(device.type, dtype, enabled=config.precision != "fp32"):
        return _drawn(model, data, config.stage, run, step, callback)


def _drawn(model: UniViGU, data: Shards, stage: str, run: RunConfig, step: int, callback: Callback | None) -> Drawn:
    device = next(model.parameters()).device
    truth = data[step % len(data)]
    has_detail = truth.detail_states is not None
    states = truth.detail_states if has_detail else truth.prompt_states
    told = truth.detail_ids if has_detail else truth.prompt_ids
    assert states is not None

    def context(states: Tensor) -> Tensor:
        rows = torch.zeros(1, run.context_length, model.config.text_dim)
        rows[0, : len(states)] = states
        return rows.to(device)

    noise = torch.randn((1, *truth.latent.shape), generator=torch.Generator().manual_seed(step)).to(device)
    null = context(data.empty_states)
    sampling = Sampling(steps=SAMPLE_STEPS, seed=step, text_length=run.text_length).resolved(run)
    text = None if stage == "generate" or told is None else told[None].to(device)
    clips: dict[str, Tensor] = {"truth": truth.latent[None]}
    texts: dict[str, Tensor | None] = {"truth": told}
    prompted = GuidedDenoiser.of(model, context(states), null, sampling)
    clips["text_to_video"] = text_to_video(prompted, noise, sampling, text=text, callback=callback)
    if stage != "generate":
        reading = replace(sampling, temperature=run.text_temperature)
        clip = truth.latent[None].to(device)
        texts["video_to_text"] = video_to_text(GuidedDenoiser(model), clip, reading, callback=callback)[0]
        briefed = GuidedDenoiser.of(model, context(truth.prompt_states), null, sampling)
        both = joint(briefed, noise, sampling, callback=callback)
        clips["joint"], texts["joint"] = both.video, both.text[0]
    return Drawn(truth, clips, texts)


class MetricsLogger:
    """Writes entries and samples into the run's folder; kept by the main process alone."""

    def __init__(
        self,
        config: TrainConfig,
        facts: CheckpointConfig,
        decode: Callable[[Tensor], Tensor] | None,
        tokens_to_text: Callable[[Tensor], str] | None,
    ) -> None:
        self.config, self.facts, self.decode, self.tokens_to_text = config, facts, decode, tokens_to_text
        self.path = config.out_folder / "losses.jsonl"
        self._board: Any = None
        self._begins: int | None = None  # the first step that is written from here on
        self._recent: list[StepMetrics] = []

    @property
    def board(self) -> Any:
        """TensorBoard's writer; None where tensorboard is not installed."""
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                log.warning("tensorboard is not installed: losses are written to %s only", self.path)
                self._board = False
            else:
                self._board = SummaryWriter(  # type: ignore[no-untyped-call]
                    str(self.config.out_folder / "tensorboard"), purge_step=self._begins
                )
        return self._board or None

    def write(self, entry: StepMetrics) -> str:
        """Keep an entry; the line to show, or nothing between two of them."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(entry.to_json() + "\n")
        except OSError as error:
            raise UniViGUError(
                f"{self.path}: could not be written ({error.strerror}); checkpoints stay. Free some space and --resume"
            ) from None
        self._recent.append(entry)
        every = self.config.keep.log_every
        if not every or entry.step % every:
            return ""
        recent, self._recent = self._recent, []
        shown = {name: _mean([getattr(e, name) for e in recent]) for name in ("loss", "video", "text", "seconds")}
        if self.board is not None:
            names = sorted({name for e in recent for name in e.means})
            shown_too = {name: _mean([e.means[name] for e in recent if name in e.means]) for name in names}
            learning = {"rate": entry.rate, "gradient": _mean([e.gradient for e in recent])}
            for name, value in {**shown, **shown_too, **learning}.items():
                if value == value:
                    self.board.add_scalar(name if "/" in name else f"all/{name}", value, entry.step)
            self.board.flush()
        words = [f"{name} {shown[name]:.4f}" for name in ("loss", "video", "text") if shown[name] == shown[name]]
        return f"step {entry.step}/{self.config.steps}  {'  '.join(words)}  {shown['seconds']:.2f} s"

    def rewind(self, step: int) -> None:
        """Drop entries after ``step``: they belong to a part of the run that was lost and is done again."""
        self._begins = step + 1
        if self.path.exists():
            lines = self.path.read_text("utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def sample(self, step: int, model: UniViGU, data: Shards) -> None:
        """One clip of the data: generated from its text, captioned, and both at once from its prompt.

        Pictures go to ``samples/`` and TensorBoard, words to TensorBoard and ``samples/step_N.txt``."""
        drawn = draw_samples(model, data, self.config, self.facts.run, step)
        self._keep(step, drawn.truth, drawn.clips, {name: self._words(ids) for name, ids in drawn.texts.items()})

    def _words(self, ids: Tensor | None) -> str:
        return "" if ids is None or self.tokens_to_text is None else self.tokens_to_text(ids.cpu())

    def _keep(self, step: int, truth: Sample, clips: dict[str, Tensor], words: dict[str, str]) -> None:
        folder = self.config.out_folder / "samples"
        folder.mkdir(exist_ok=True)
        words_of_jobs = "".join(f"{name}: {text}\n" for name, text in words.items())
        write_text(folder / f"step_{step:08d}.txt", f"{truth.name}\n{words_of_jobs}")
        if self.board is not None:
            self.board.add_text("samples", words_of_jobs.replace("\n", "  \n"), step)
        if self.decode is None:
            return
        strips = torch.cat([_strip(self.decode(latent.float().cpu())) for latent in clips.values()])
        if self.board is not None:
            self.board.add_image("samples", strips, step, dataformats="HWC")
        from PIL import Image

        with written_whole(Path(folder) / f"step_{step:08d}.png") as path:
            Image.fromarray(strips.numpy()).save(path)


def _strip(pixels_THWC: Tensor, most: int = 8) -> Tensor:
    """Frames side by side ``[H,n*W,3]``, evenly spread."""
    picks = torch.linspace(0, len(pixels_THWC) - 1, min(most, len(pixels_THWC))).round().long()
    return torch.cat(list(pixels_THWC[picks]), 1).cpu()


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else math.nan


def _step_of(line: str) -> float:
    """The step of a line of ``losses.jsonl``; infinity for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
