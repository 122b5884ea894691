"""What a run would read, and the memory and disk that it would take, said before anything starts."""

from __future__ import annotations

import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

from ..checkpoint import Overrides
from ..checkpoint.config import model_config
from ..checkpoint.detect import open_checkpoint
from ..config import CheckpointConfig, ModelConfig
from ..content import remembered
from ..data.folder import Survey
from ..data.sources import Source, Together
from ..errors import counted
from ..media.vae import latent_shape
from ..model import UniViGU
from ..model.memory import pass_bytes, total_memory, video_tokens
from ..pipeline.components import Components
from ..progress import Report
from . import checkpoints
from .config import TrainConfig
from .distill import is_copied
from .plan import repeats_of
from .run import (
    components,
    in_float32,
    make_accelerator,
    make_source,
    require_memory,
    require_packages,
    require_whole_weights,
)
from .start import choose_trainable, starting_facts
from .trainer import Say, clips_a_step

_LOOKED_AT = 256  # clips whose texts tell how long texts are
_HALF, _FLOAT = 2, 4  # bytes


def check(config: TrainConfig, *, resume: bool = False, say: Say = print, progress: Report | None = None) -> bool:
    """Say what will be read, what is left out and why, how many epochs the steps are, and what memory and disk they
    take; nothing is encoded, trained or written. Returns whether all clips are used and everything fits.

    Raises UniViGUError for what ``train`` would refuse before its first step."""
    accelerator = make_accelerator(config)
    if not accelerator.is_main_process:
        return True
    together = clips_a_step(config, accelerator)
    checkpoints.require_startable(config, together, resume)
    require_packages(config)
    require_whole_weights(config, accelerator)
    facts = starting_facts(config)
    require_memory(config, facts, accelerator.device)
    parts = components(config, facts, accelerator, progress)
    with remembered(config.cache_folder / "contents.json"):
        source = make_source(config, parts, say, progress)
    surveys = [one for one in _parts(source) if isinstance(one, Survey)]
    for line in _data_lines(config, source, together):
        say(line)
    network = _network(config, facts, parts)
    say(_memory_line(config, network, facts, accelerator))
    line, fits = _disk_line(config, network, source, facts, parts)
    say(line)
    return fits and not any(one.left_out for one in surveys)


def _parts(source: Source) -> tuple[Source, ...]:
    return tuple(source.sources) if isinstance(source, Together) else (source,)


def _data_lines(config: TrainConfig, source: Source, together: int) -> list[str]:
    parts = _parts(source)
    counts = {number: len(one) for number, one in enumerate(parts)}
    repeats = repeats_of(config, counts)
    epoch = sum(max(1, round(counts[number] * repeats[number])) for number in counts)
    lines = []
    if len(parts) > 1 or repeats != [1.0]:
        named = zip(config.sources, repeats, counts.values(), strict=True)
        lines += [f"{data.path}: {count} x {times:.3g} per epoch" for data, times, count in named]
    sizes: dict[tuple[int, int, int], int] = {}
    for one in parts:
        for index in range(len(one) if isinstance(one, Survey) else 0):
            size = one.group(index)  # type: ignore[attr-defined]
            sizes[size] = sizes.get(size, 0) + 1
    if len(sizes) > 1:
        listed = ", ".join(f"{n} of {w}x{h} x {f}" for (f, h, w), n in sorted(sizes.items()))
        lines.append(f"sizes (width x height x frames; each step uses one): {listed}")
        if few := sum(n < together for n in sizes.values()):
            lines.append(
                f"{few} of {len(sizes)} sizes have fewer than the {together} clips of a step: some clips are used twice"
            )
    epochs = config.steps * together / epoch
    steps = f"{counted(config.steps, 'step')} of {counted(together, 'clip')}"
    lines.append(f"{steps}: {epochs:.3g} epochs of {counted(epoch, 'clip')}")
    return lines


def _network(config: TrainConfig, facts: CheckpointConfig, parts: Components) -> UniViGU:
    """The network that would be trained, without its weights."""
    checkpoint = open_checkpoint(config.model)
    model: ModelConfig = facts.model
    if checkpoint.is_wan:
        flows = Overrides(text_flow=config.text_flow, source=config.source)
        model, _ = model_config(checkpoint, flows, parts.tokenizer.size)
    network = UniViGU(model, device="meta")
    return choose_trainable(network, config)  # a LoRA to start from is looked at, too


def _learning(network: UniViGU) -> int:
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def _frozen_bytes(config: TrainConfig, network: UniViGU, accelerator: Any) -> int:
    frozen = sum(weight.numel() for weight in network.parameters() if not weight.requires_grad)
    return frozen * (_FLOAT if accelerator is None or in_float32(config, accelerator) else _HALF)


def _optimizer_bytes(config: TrainConfig, network: UniViGU) -> int:
    """Of what the optimizer remembers: two numbers a weight, of a byte in eight bits; Muon one for its matrices."""
    learning = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    if config.optimizer.kind == "adamw8bit":
        return 2 * _learning(network)
    matrices = [w for name, w in learning.items() if name.startswith("blocks.") and w.ndim == 2]
    muon = sum(w.numel() for w in matrices) if config.optimizer.kind == "muon" else 0
    return _FLOAT * (2 * _learning(network) - muon)


def _memory_line(config: TrainConfig, network: UniViGU, facts: CheckpointConfig, accelerator: Any) -> str:
    learning, run = _learning(network), facts.run
    _, _, *size = latent_shape(run.frames, run.height, run.width)
    tokens = video_tokens(size, network.config)
    parts = {
        "weights": _frozen_bytes(config, network, accelerator) + _FLOAT * learning,
        "gradients": _FLOAT * learning,
        "optimizer": _optimizer_bytes(config, network),
        "average": _FLOAT * learning if config.optimizer.ema else 0,
        "teacher": _FLOAT * learning if is_copied(config) else 0,
    }
    text = 0 if config.stage == "generate" else run.text_length
    rows = config.batch * (2 if config.stage == "distill" else 1)  # the teacher's pass, guided
    one = pass_bytes(network.config, rows=rows, video=tokens, text=text, itemsize=_HALF, logits=config.batch)
    device = accelerator.device
    return (
        f"memory: {_size(sum(parts.values()))} ("
        + ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
        + f"; {learning / 1e6:,.1f}M trained weights), and at least {_size(one)} for a batch of {config.batch}, "
        f"several times that without checkpointing; {device} has {_size(total_memory(device))}"
    )


def _disk_line(
    config: TrainConfig, network: UniViGU, source: Source, facts: CheckpointConfig, parts: Components
) -> tuple[str, bool]:
    """What will be written, and whether it fits where it goes."""
    state = _FLOAT * _learning(network) * (2 if config.optimizer.ema else 1) + _optimizer_bytes(config, network)
    result = _FLOAT * _learning(network)
    if config.trains != "lora":
        result += _frozen_bytes(config, network, None)
    every = config.keep.checkpoint_every
    kept = min(config.keep.checkpoints, config.steps // every if every else 0) + 1  # one while another is being written
    encoded = _encoded_bytes(source, facts, network.config, parts)
    needs = {config.cache_folder: encoded, config.out_folder: kept * state + result}
    line = (
        f"disk: cache {_size(encoded)}, minus what is already encoded; {counted(kept, 'checkpoint')} of "
        f"{_size(state)}; result {_size(result)}"
    )
    fits, free = True, dict[int, float]()
    for folder, needed in needs.items():
        there = _existing(folder)
        device = os.stat(there).st_dev
        free.setdefault(device, float(shutil.disk_usage(there).free))
        free[device] -= needed
        fits &= free[device] > 0
    return line + ("" if fits else ". NOT ENOUGH FREE SPACE on the disk of out or cache"), fits


def _encoded_bytes(source: Source, facts: CheckpointConfig, model: ModelConfig, parts: Components) -> float:
    """Of the cache: latents, and conditions as long as those of the first texts."""
    run, latents, texts, rows = facts.run, 0.0, 0, 0
    for one in _parts(source):
        for index in range(len(one)):
            size = one.group(index) if isinstance(one, Survey) else (run.frames, run.height, run.width)
            _, channels, *latent = latent_shape(*size)
            latents += 2.0 * channels * latent[0] * latent[1] * latent[2]
            texts += 1
        if isinstance(one, Survey):
            for clip in islice(one.usable, _LOOKED_AT):
                texts_of = (clip.prompt, *clip.others, clip.detail or "", *clip.other_details)
                rows += sum(len(parts.tokenizer.ids(text)) for text in texts_of)
    seen = sum(min(len(one), _LOOKED_AT) for one in _parts(source) if isinstance(one, Survey))
    each = rows / seen if seen else run.text_length
    return latents + texts * each * (2.0 * model.text_dim + 4)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _size(size: float) -> str:
    if size < 1e9:
        return f"{size / 1e6:.3g} MB"
    return f"{size / 1e9:.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"
