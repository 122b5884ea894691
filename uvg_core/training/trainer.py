"""The training loop, for every stage, on one CPU, one GPU or many of them.

    python -m uvg_core train CONFIG.yaml [--resume]

A step takes ``batch`` x processes x ``accumulate`` clips. What is drawn for each is a function of its position alone
(``plan.py``), and losses are means over the whole global batch: one process and many give the same curve, and a
continued run goes on as if it had never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CheckpointConfig
from ..data.shards import Shards
from ..errors import UniViGUError
from ..model import UniViGU
from . import checkpoints
from .average import Average
from .config import TrainConfig
from .metrics import MetricsLogger, StepMetrics
from .objective import Objective
from .optimizers import make_optimizers, rate_at
from .plan import Batch, Collator, Order, SamplePlan, plan_sample, stream_of
from .requirements import clips_a_step, require_usable_texts
from .start import choose_trainable, save_lora, save_network

Say = Callable[[str], object]


@dataclass(frozen=True)
class Step:
    """What a finished step tells whoever watches: numbers of the whole global batch.

    ``video``, ``text``: mean losses of the clips that make them (NaN where none does); ``seconds``: of this step.
    ``average``: gives the averaged network for the length of a block, to sample from.
    """

    step: int
    steps: int
    loss: float
    video: float
    text: float
    rate: float
    gradient: float
    seconds: float
    average: Callable[[], Any] = field(repr=False, compare=False)


# Returns True to stop here; what has been learnt is kept.
Watch = Callable[[Step], bool | None]
# Takes what was learnt, weights by name on the CPU; gives the file that it wrote, if any.
Save = Callable[[dict[str, Tensor]], Path | None]


@dataclass(frozen=True)
class Callbacks:
    """What a run reports to, and where its results go.

    watch           called after every step on every process
    say             gets lines for people, on the main process
    decode          latents ``[1,16,F,h,w]`` -> pixels, for the samples that are kept; None keeps captions only
    tokens_to_text  ids -> words, for the same
    save            takes what was learnt, in place of all that is written into the run's folder, checkpoints too: for a
                    network that did not come from a file, and a run that cannot be resumed
    """

    watch: Watch | None = None
    say: Say = print
    decode: Callable[[Tensor], Tensor] | None = None
    tokens_to_text: Callable[[Tensor], str] | None = None
    save: Save | None = None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: steps done of all, and the file that holds what was learnt (None on other processes)."""

    step: int
    steps: int
    file: Path | None
    checkpoint: Path | None = None

    @property
    def finished(self) -> bool:
        return self.step == self.steps


class Trainer:
    """One run: a network, shards to read, a configuration, a folder.

    Args:
        model: as ``starting_network`` gives it; what learns is chosen here. data: its shards.
        facts: what the written file will say of itself (sizes of a run, card).
        accelerator: Hugging Face's; made by whoever starts the run, once per process.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: UniViGU,
        data: Shards,
        facts: CheckpointConfig,
        accelerator: Any,
        callbacks: Callbacks | None = None,
    ) -> None:
        callbacks = callbacks or Callbacks()
        self.config, self.data, self.facts, self.accelerator = config, data, facts, accelerator
        self.watch, self.save = callbacks.watch, callbacks.save
        self.say: Say = callbacks.say if accelerator.is_main_process else lambda _: None
        require_usable_texts(config, data, facts.run)
        self.network = choose_trainable(model, config)
        self.collate = Collator(model.config, facts.run, config, data.empty_states)
        objective = Objective(model, config.loss, checkpointing=config.checkpointing)
        if config.compiled:
            model.compile()
        learns = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        optimizers = make_optimizers(learns, config.optimizer)
        self.objective, *self.optimizers = accelerator.prepare(objective, *optimizers)
        self.average = self._average()
        self.order = Order(len(data), config.seed, config.stage)
        self.step = 0
        self._kept: Path | None = None  # the newest checkpoint
        is_logged = accelerator.is_main_process and self.save is None
        self.logger = MetricsLogger(config, facts, callbacks.decode, callbacks.tokens_to_text) if is_logged else None

    def _average(self) -> Average | None:
        if not self.config.optimizer.ema:
            return None
        bare = self.accelerator.unwrap_model(self.objective).model
        learns = {name: weight for name, weight in bare.named_parameters() if weight.requires_grad}
        average = Average(learns, self.config.optimizer.ema)
        self.accelerator.register_for_checkpointing(average)
        return average

    # One step

    @property
    def global_batch(self) -> int:
        return clips_a_step(self.config, self.accelerator)

    def _prepared(self, step: int) -> tuple[list[SamplePlan], list[Batch]]:
        """The plans of a whole step, the same on every process, and this process's batch of each accumulation step."""
        size, accelerator = self.config.batch, self.accelerator
        plans = [plan_sample(self.config, step * self.global_batch + i) for i in range(self.global_batch)]
        batches = []
        for part in range(self.config.accumulate):
            start = (part * accelerator.num_processes + accelerator.process_index) * size
            own = plans[start : start + size]
            batches.append(self.collate([self.data[self.order.clip(plan.position)] for plan in own], own))
        return plans, batches

    def _learn(self, plans: list[SamplePlan], batches: list[Batch]) -> tuple[Tensor, float]:
        """Losses of the step's clips ``[clips,2]`` (video, text) in the order of the plans, and the gradient's norm."""
        config, accelerator = self.config, self.accelerator
        if config.trains == "lora" and config.lora.dropout:  # the only randomness that is not drawn with the plans
            stream = stream_of(config.seed, config.stage, "dropout", self.step, accelerator.process_index)
            torch.manual_seed(stream.initial_seed())
        makes_video = max(1, sum(plan.makes_video for plan in plans))
        makes_text = max(1, sum(plan.makes_text for plan in plans))
        # Each process's backward pass is averaged over processes and accumulation steps: undone by this factor.
        scale = accelerator.num_processes * config.accumulate
        rows: list[Tensor] = []
        norm = 0.0
        for batch in batches:
            with accelerator.accumulate(self.objective):
                batch = batch.to(accelerator.device)
                losses = self.objective(batch)
                loss = config.loss.video * (losses.video * batch.makes_video).sum() / makes_video
                loss = loss + config.loss.text * (losses.text * batch.makes_text).sum() / makes_text
                gathered = accelerator.gather(torch.stack([losses.video, losses.text], 1).detach().float())
                first = sum(map(len, rows))
                self._require_finite(gathered, plans[first : first + len(gathered)])
                rows.append(gathered.cpu())
                accelerator.backward(loss * scale)
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(self.objective.parameters(), config.optimizer.clip))
                    # In float16 the loss's scale is found by trial: steps that overflow are skipped by the scaler.
                    if not math.isfinite(norm) and config.precision != "fp16":
                        raise self._broken(f"the gradient's norm is {norm}", plans)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
        return torch.cat(rows), norm

    def _require_finite(self, losses: Tensor, plans: list[SamplePlan]) -> None:
        bad = ~losses.isfinite().all(1)
        if bool(bad.any()):
            raise self._broken("the loss is not a number", [plans[i] for i in bad.nonzero()[:, 0].tolist()])

    def _broken(self, what: str, plans: list[SamplePlan]) -> UniViGUError:
        names = list(dict.fromkeys(self.data[self.order.clip(plan.position)].name for plan in plans))
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        found = f"step {self.step + 1}: {what}, for these clips: {shown}. Training stopped before this step changed "
        if self.save is not None:
            return UniViGUError(f"{found}anything. Look at the clips, or lower the learning rate")
        last = checkpoints.newest(self.config.out_folder)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
        return UniViGUError(
            f"{found}anything; {kept}. Look at the clips, lower optimizer.rate, or use precision bf16 or fp32, and go "
            "on with --resume --accept-changes"
        )

    # The run

    def run(self, resume: bool = False, accept_changes: bool = False) -> TrainResult:
        """Train to the end, or until ``watch`` says stop; both write what has been learnt. ``accept_changes``: go on
        with other settings than the run had before.

        Raises UniViGUError for a folder that holds another run, a loss that is not a number, or a full disk: the
        last good checkpoint stays."""
        self._begin(resume, accept_changes)
        config, stopped = self.config, False
        self.objective.train()
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._prepared, self.step)
            while self.step < config.steps and not stopped:
                started = time.perf_counter()
                rate = rate_at(config.optimizer, self.step, config.steps)
                for optimizer in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["peak_lr"]
                plans, batches = coming.result()
                if self.step + 1 < config.steps:
                    coming = pool.submit(self._prepared, self.step + 1)
                losses, norm = self._learn(plans, batches)
                if self.average is not None:
                    self.average.update()
                self.step += 1
                stopped = self._after(plans, losses, norm, rate, time.perf_counter() - started)
        checkpoint = self._checkpoint()
        return TrainResult(self.step, config.steps, self.write(), checkpoint)

    def _after(self, plans: list[SamplePlan], losses: Tensor, norm: float, rate: float, seconds: float) -> bool:
        """MetricsLogger, checkpoint and whoever watches; whether to stop."""
        config, keep = self.config, self.config.keep
        rate *= config.optimizer.rate
        entry = StepMetrics.of(self.step, config, plans, losses, rate=rate, gradient=norm, seconds=seconds)
        if self.logger is not None:
            line = self.logger.write(entry)
            if line:
                self.say(line)
            if keep.sample_every and self.step % keep.sample_every == 0:
                with self.averaged() as model:
                    self.logger.sample(self.step, model, self.data)
        if keep.checkpoint_every and self.step % keep.checkpoint_every == 0 and self.step < config.steps:
            self._checkpoint()
        if self.watch is None:
            return False
        finished = Step(
            self.step, config.steps, entry.loss, entry.video, entry.text, rate, norm, seconds, average=self.averaged
        )
        # One process that wants to stop stops all of them.
        wants = torch.tensor([float(bool(self.watch(finished)))], device=self.accelerator.device)
        return bool(self.accelerator.reduce(wants) > 0)

    @contextmanager
    def averaged(self) -> Iterator[UniViGU]:
        """The network with averaged weights (where there are any), in eval mode, for the length of a block."""
        model: UniViGU = self.accelerator.unwrap_model(self.objective).model
        model.eval()
        try:
            if self.average is None:
                yield model
            else:
                with self.average.in_place():
                    yield model
        finally:
            model.train()

    # What is kept

    def _begin(self, resume: bool, accept_changes: bool) -> None:
        folder = self.config.out_folder
        accept = self.say if accept_changes else None
        last = checkpoints.require_startable(self.config, self.global_batch, resume, self.data.fingerprint, accept)
        step = -1 if last is None else checkpoints.step_of(last)
        found = set(self.accelerator.gather(torch.tensor([step], device=self.accelerator.device)).tolist())
        if len(found) > 1:  # each process would train another network
            raise UniViGUError(
                f"{folder}: the processes found different checkpoints (steps {sorted(found)}, -1 for none): out and "
                "cache must be folders that all machines share"
            )
        if self.accelerator.is_main_process:
            checkpoints.prepare(folder)
        self.accelerator.wait_for_everyone()
        if last is None:
            if resume:
                self.say(f"{folder}: there is no checkpoint to go on from; starting at the beginning")
            if self.logger is not None:
                self.logger.rewind(0)
            return
        settings = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in self.optimizers
        ]
        checkpoints.load(last, self.accelerator)
        for optimizer, groups in zip(self.optimizers, settings, strict=True):  # this run's, not the checkpoint's
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.update(values)
        self.step = checkpoints.step_of(last)
        self._kept = last
        if self.logger is not None:
            self.logger.rewind(self.step)
        self.say(f"{folder}: going on from step {self.step} of {self.config.steps}")

    def _checkpoint(self) -> Path | None:
        """Write the whole state under a temporary name, rename it, and let the oldest go."""
        config = self.config
        if self.save is not None:
            return None
        if self._kept is not None and checkpoints.step_of(self._kept) == self.step:
            return self._kept  # writing it again would put the only copy at risk
        facts = {
            "step": self.step,
            "global_batch": self.global_batch,
            "data": self.data.fingerprint,
            "config": config.to_dict(),
        }
        self._kept = checkpoints.write(config.out_folder, self.accelerator, facts, config.keep.checkpoints)
        return self._kept

    def learnt(self) -> dict[str, Tensor]:
        """The averaged weights by name, on the CPU: the whole network's, or those of its LoRA."""
        with self.averaged():
            state = self.accelerator.get_state_dict(self.objective)
            wanted = [name for name in state if self.config.trains != "lora" or "lora_" in name]
            # Copied here: what comes back shares memory with the weights, which are put back at the block's end.
            return {name.removeprefix("model."): state[name].detach().clone().cpu() for name in wanted}

    def write(self) -> Path | None:
        """What was learnt, given to ``save``, or as ``model.safetensors`` or ``lora.safetensors``; on the main process,
        the file's path."""
        config, state = self.config, self.learnt()
        if not self.accelerator.is_main_process:
            return None
        if self.save is not None:
            return self.save(state)
        card = {**self.facts.card, self._entry(): self.card()}
        if config.trains == "lora":
            path = config.out_folder / "lora.safetensors"
            save_lora(path, state, config.lora, {"uvg_training": json.dumps(self.card())})
        else:
            path = config.out_folder / "model.safetensors"
            bare = self.accelerator.unwrap_model(self.objective).model
            save_network(path, state, config, CheckpointConfig(bare.config, self.facts.run, card))
        return path

    def _entry(self) -> str:
        """Where the card tells of this run: ``refine``, or ``refine 2`` for the second such run of a model's life."""
        name, number = self.config.stage, 1
        while name in self.facts.card:
            number += 1
            name = f"{self.config.stage} {number}"
        return name

    def card(self) -> dict[str, Any]:
        """What a file says about how it was trained."""
        config = self.config
        names = ("trains", "seed", "steps", "detail_share", "empty_text", "joint_shared", "precision", "data")
        rules = {name: getattr(config, name) for name in ("v2t_attention", "kappa_exponent")}
        return {
            **{name: getattr(config, name) for name in names},
            "step": self.step,
            "global_batch": self.global_batch,
            "clips": len(self.data),
            "jobs": asdict(config.jobs),
            "dropout": asdict(config.dropout),
            "loss": asdict(config.loss),
            "video_times": asdict(config.video_times),
            "optimizer": config.optimizer.kind,
            "rate": config.optimizer.rate,
            **{name: value for name, value in rules.items() if value is not None},
        }
