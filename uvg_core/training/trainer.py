"""The training loop, for every stage, on one CPU, one GPU or many of them.

A step takes ``batch`` x processes x ``accumulate`` clips. What is drawn for each is a function of its position alone
(``plan.py``), and losses are means over the whole global batch: one process and many give the same curve, and a
continued run goes on as if it had never stopped.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CheckpointConfig, RunConfig
from ..data.shards import Sample, Shards
from ..errors import UniViGUError
from ..model import UniViGU
from . import checkpoints
from .config import TrainConfig
from .distill import Distillation
from .metrics import MetricsLogger, StepMetrics
from .objective import Objective
from .optimizers import Average, faster, make_optimizers, rate_at
from .plan import Batch, Collator, Order, SamplePlan, plan_sample, repeated, stream_of
from .start import CRITIC, choose_trainable, save_lora, save_network
from .state import RunState

Say = Callable[[str], object]
# Gets a step's metrics and the trainer; returns True to stop here. What has been learnt is kept.
Watch = Callable[[StepMetrics, "Trainer"], bool | None]
# Settings of a card that say how clips were drawn; and rules of the network, where they were changed.
_CARD = ("trains", "seed", "steps", "detail_share", "empty_text", "joint_shared", "precision")
_RULES = ("v2t_attention", "kappa_exponent")


@dataclass(frozen=True)
class Callbacks:
    """What a run reports to.

    watch           called after every step on every process
    say             gets lines for people, on the main process
    decode          latents ``[1,16,F,h,w]`` -> pixels, for the samples that are kept; None keeps captions only
    tokens_to_text  ids -> words, for the same
    """

    watch: Watch | None = None
    say: Say = print
    decode: Callable[[Tensor], Tensor] | None = None
    tokens_to_text: Callable[[Tensor], str] | None = None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: steps done of all, and the file that holds what was learnt (None on other processes)."""

    step: int
    steps: int
    file: Path | None

    @property
    def finished(self) -> bool:
        return self.step == self.steps


class Trainer:
    """One run: a network, shards to read, a configuration, a folder.

    Args:
        model: as ``starting_network`` gives it; what learns is chosen here. data: its shards.
        facts: what the written file will say of itself (sizes of a run, card).
        accelerator: Hugging Face's; made by whoever starts the run, once per process.
        writes: False writes nothing into the run's folder, checkpoints neither: for a network that did not come from a
            file, and a run that cannot be resumed. ``learnt`` gives the weights.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: UniViGU,
        data: Shards,
        facts: CheckpointConfig,
        accelerator: Any,
        callbacks: Callbacks | None = None,
        *,
        writes: bool = True,
    ) -> None:
        callbacks = callbacks or Callbacks()
        self.config, self.data, self.facts, self.accelerator = config, data, facts, accelerator
        self.watch, self.writes = callbacks.watch, writes
        self.say: Say = callbacks.say if accelerator.is_main_process else lambda _: None
        require_usable_texts(config, data, facts.run)
        self.network = choose_trainable(model, config)
        self.collate = Collator(model.config, facts.run, config, data.empty_states)
        objective = (
            Distillation(model, config, facts.run, data.empty_states)
            if config.stage == "distill"
            else Objective(model, config.loss, checkpointing=config.checkpointing)
        )
        if config.compiled:
            model.compile()
        optimizers = make_optimizers(_learning(model), config.optimizer)
        if critic := _learning(model, critic=True):
            optimizers += make_optimizers(critic, faster(config.optimizer, config.distill.critic_rate))
        self.objective, *self.optimizers = accelerator.prepare(objective, *optimizers)
        self.average: Average | None = None
        if config.optimizer.ema:
            self.average = Average(_learning(self._bare), config.optimizer.ema)
        self.state = RunState(accelerator, self.objective, tuple(self.optimizers), self.average)
        self.order = Order(repeated(config, data), config.seed, config.stage, self.global_batch)
        self.step = 0
        self._checkpoint: Path | None = None  # the newest one
        self._starts_from = checkpoints.starts_from(config) if writes else ""
        is_logged = accelerator.is_main_process and writes
        self.logger = MetricsLogger(config, facts, callbacks.decode, callbacks.tokens_to_text) if is_logged else None

    @property
    def _bare(self) -> UniViGU:
        """The network without what accelerate wraps it in."""
        model: UniViGU = self.accelerator.unwrap_model(self.objective).model
        return model

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    # One step

    @property
    def global_batch(self) -> int:
        return clips_a_step(self.config, self.accelerator)

    def _prepared(self, step: int) -> tuple[list[SamplePlan], list[Batch]]:
        """The plans of a whole step, the same on every process, and this process's batch of each accumulation step."""
        size, accelerator = self.config.batch, self.accelerator
        shift, first = self.facts.run.shift, step * self.global_batch
        plans = [plan_sample(self.config, first + i, shift) for i in range(self.global_batch)]
        batches = []
        for part in range(self.config.accumulate):
            start = (part * accelerator.num_processes + accelerator.process_index) * size
            own = plans[start : start + size]
            batches.append(self.collate([self._sample(plan.position) for plan in own], own))
        return plans, batches

    def _sample(self, position: int) -> Sample:
        """The clip at a position, with one of its prompts."""
        drawn = torch.rand((), generator=stream_of(self.config.seed, self.config.stage, "wording", position))
        return self.data.sample(self.order.clip(position), float(drawn))

    def _learn(self, plans: list[SamplePlan], batches: list[Batch]) -> tuple[Tensor, float]:
        """Losses of the step's clips ``[clips,2]`` (video, text) in the order of the plans, and the gradient's norm."""
        config, accelerator = self.config, self.accelerator
        if config.trains == "lora" and config.lora.dropout:  # the only randomness that is not drawn with the plans
            stream = stream_of(config.seed, config.stage, "dropout", self.step, accelerator.process_index)
            torch.manual_seed(stream.initial_seed())
        # Each process's backward pass is averaged over processes and accumulation steps: undone by this factor.
        scale = accelerator.num_processes * config.accumulate
        video_clips = max(1, sum(plan.makes_video for plan in plans))
        text_clips = max(1, sum(plan.makes_text for plan in plans))
        rows: list[Tensor] = []
        norm = 0.0
        for batch in batches:
            with accelerator.accumulate(self.objective):
                batch = batch.to(accelerator.device)
                losses = self.objective(batch)
                loss = config.loss.video * (losses.video * batch.makes_video).sum() / video_clips
                loss = loss + config.loss.text * (losses.text * batch.makes_text).sum() / text_clips
                gathered = accelerator.gather(torch.stack([losses.video, losses.text], 1).detach().float())
                bad = (~gathered.isfinite().all(1)).nonzero()[:, 0] + sum(map(len, rows))
                if len(bad):
                    raise self._broken("the loss is not a number", [plans[i] for i in bad.tolist()])
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

    def _broken(self, what: str, plans: list[SamplePlan]) -> UniViGUError:
        names = list(dict.fromkeys(self.data[self.order.clip(plan.position)].name for plan in plans))
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        found = f"step {self.step + 1}: {what}, for these clips: {shown}. Training stopped before this step changed "
        if not self.writes:
            return UniViGUError(f"{found}anything. Check these clips, or lower the learning rate")
        last = checkpoints.newest(self.config.out_folder)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint has been written yet"
        return UniViGUError(
            f"{found}anything; {kept}. Check these clips, lower optimizer.rate, or use precision bf16 or fp32, and "
            "continue with --resume --accept-changes"
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
                for group in self._groups:
                    group["lr"] = rate * group["peak_lr"]
                plans, batches = coming.result()
                if self.step + 1 < config.steps:
                    coming = pool.submit(self._prepared, self.step + 1)
                losses, norm = self._learn(plans, batches)
                if self.average is not None:
                    self.average.update()
                self.step += 1
                numbers = {"rate": rate * config.optimizer.rate, "gradient": norm}
                seconds = time.perf_counter() - started
                stopped = self._after(StepMetrics.of(self.step, config, plans, losses, seconds=seconds, **numbers))
        if self.writes:
            self._write_checkpoint()
        return TrainResult(self.step, config.steps, self.write() if self.writes else None)

    def _after(self, metrics: StepMetrics) -> bool:
        """Log, checkpoint and whoever watches; whether to stop."""
        keep = self.config.keep
        if self.logger is not None:
            if line := self.logger.write(metrics):
                self.say(line)
            if keep.sample_every and self.step % keep.sample_every == 0:
                with self.averaged() as model:
                    self.logger.sample(self.step, model, self.data)
        is_due = keep.checkpoint_every and self.step % keep.checkpoint_every == 0
        if self.writes and is_due and self.step < self.config.steps:
            self._write_checkpoint()
        if self.watch is None:
            return False
        # One process that wants to stop stops all of them.
        wants = torch.tensor([float(bool(self.watch(metrics, self)))], device=self.accelerator.device)
        return bool(self.accelerator.reduce(wants) > 0)

    @contextmanager
    def averaged(self) -> Iterator[UniViGU]:
        """The network with averaged weights (where there are any), in eval mode, for the length of a block."""
        model = self._bare.eval()
        try:
            with self.average.in_place() if self.average else nullcontext():
                yield model
        finally:
            model.train()

    # Checkpoints and results

    def _begin(self, resume: bool, accept_changes: bool) -> None:
        folder = self.config.out_folder
        accept = self.say if accept_changes else None
        last = checkpoints.require_startable(self.config, self.global_batch, resume, self.data.fingerprints, accept)
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
        if last is not None:
            settings = [{name: value for name, value in group.items() if name != "params"} for group in self._groups]
            checkpoints.load(last, self.state)
            for group, values in zip(self._groups, settings, strict=True):  # this run's, not the checkpoint's
                group.update(values)
            self.step, self._checkpoint = step, last
            self.say(f"{folder}: continuing from step {self.step} of {self.config.steps}")
        elif resume:
            self.say(f"{folder}: found no checkpoint; starting from the beginning")
        if self.logger is not None:
            self.logger.rewind(self.step)

    def _write_checkpoint(self) -> None:
        """Write the whole state under a temporary name, rename it, and let the oldest go."""
        if self._checkpoint is not None and checkpoints.step_of(self._checkpoint) == self.step:
            return  # writing it again would put the only copy at risk
        config = self.config
        facts = {
            "step": self.step,
            "global_batch": self.global_batch,
            "data": self.data.fingerprints[0],
            "starts_from": self._starts_from,
            "config": config.to_dict(),
        }
        self._checkpoint = checkpoints.write(config.out_folder, self.state, facts, config.keep.checkpoints)

    def learnt(self) -> dict[str, Tensor]:
        """The averaged weights by name, on the CPU: the whole network's, or those of its LoRA."""
        with self.averaged():
            state = self.accelerator.get_state_dict(self.objective)
            wanted = [name for name in state if self.config.trains != "lora" or "lora_" in name]
            # Copied here: what comes back shares memory with the weights, which are put back at the block's end.
            return {name.removeprefix("model."): state[name].detach().clone().cpu() for name in wanted}

    def write(self) -> Path | None:
        """Write what was learnt as ``model.safetensors`` or ``lora.safetensors``; the file, on the main process."""
        config, state, card = self.config, self.learnt(), self.card()
        if not self.accelerator.is_main_process:
            return None
        if config.trains == "lora":
            path = config.out_folder / "lora.safetensors"
            save_lora(path, state, config.lora, {"uvg_training": json.dumps(card)})
            return path
        path = config.out_folder / "model.safetensors"
        # The second run of a stage in a model's life is told of as "refine 2".
        names = (config.stage if number == 1 else f"{config.stage} {number}" for number in count(1))
        entry = next(name for name in names if name not in self.facts.card)
        card = {**self.facts.card, entry: card}
        save_network(path, state, config, CheckpointConfig(self._bare.config, self.recipe, card))
        return path

    @property
    def recipe(self) -> RunConfig:
        """How the network that was trained is run."""
        config = self.config
        return config.distill.recipe(self.facts.run) if config.stage == "distill" else self.facts.run

    def card(self) -> dict[str, Any]:
        """What a file says about how it was trained."""
        plain = self.config.to_dict()
        return {
            **{name: plain[name] for name in _CARD},
            # Not where they lie: files are passed on.
            "data": ", ".join(re.split(r"[\\/]", one.path)[-1] for one in self.config.sources),
            "step": self.step,
            "global_batch": self.global_batch,
            "clips": len(self.data),
            **{name: plain[name] for name in ("jobs", "dropout", "loss", "video_times")},
            "optimizer": self.config.optimizer.kind,
            "rate": self.config.optimizer.rate,
            **{name: plain[name] for name in _RULES if plain[name] is not None},
            **({"hold_share": plain["hold_share"]} if plain["hold_share"] else {}),
            **({"distill": plain["distill"]} if self.config.stage == "distill" else {}),
        }


def clips_a_step(config: TrainConfig, accelerator: Any) -> int:
    """How many clips all processes take together for one step."""
    return config.batch * config.accumulate * int(accelerator.num_processes)


def require_usable_texts(config: TrainConfig, data: Shards, run: RunConfig) -> None:
    """Raise UniViGUError for clips without the texts that the stage needs, or texts that the model cannot hold."""
    if config.stage == "refine" and data.details < len(data):
        raise UniViGUError(
            f"{config.data_named}: {len(data) - data.details} of {len(data)} clips have no detailed caption, which the "
            "stage refine needs; add clip.detail.txt files, or set stage: recall"
        )
    longest = {"prompt": data.longest_prompt}
    if config.stage in ("refine", "distill") or config.detail_share:
        longest["detailed caption"] = data.longest_detail
    for what, tokens in longest.items():
        if config.stage != "generate" and tokens > run.text_length:
            raise UniViGUError(
                f"{config.data_named}: the longest {what} has {tokens} tokens, but the model's text stream has "
                f"{run.text_length}; exclude longer texts with tokens, or raise clip.text_length"
            )


def _learning(model: UniViGU, *, critic: bool = False) -> dict[str, torch.nn.Parameter]:
    """Weights that learn, without those of a critic, or these alone."""
    learning = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    return {name: weight for name, weight in learning if (f".{CRITIC}." in name) == critic}
