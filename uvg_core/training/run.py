"""One training run, from its configuration to the written file: data, network, trainer."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CheckpointConfig, RunConfig
from ..content import remembered
from ..data.build import build_shards, shard_clips
from ..data.encoders import Encoders
from ..data.folder import TextLimits, survey
from ..data.settings import Data
from ..data.shards import Shards
from ..data.sources import Source, Together, digest, fingerprints
from ..errors import UniViGUError
from ..io import make_folder, require_writable
from ..locks import Claims, owned
from ..media.vae import SPATIAL, TEMPORAL, LatentCodec
from ..model.memory import pass_bytes, require_room, video_tokens
from ..pipeline.component_files import Places
from ..pipeline.components import Components
from ..progress import Report
from . import checkpoints
from .config import TrainConfig
from .distill import is_copied
from .objective import plain_attention
from .optimizers import require_bitsandbytes
from .start import require_peft, require_vocabulary, starting_facts, starting_network
from .trainer import Callbacks, Say, Trainer, TrainResult, Watch, clips_a_step


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    say: Say = print,
    progress: Report | None = None,
    watch: Watch | None = None,
    accept_changes: bool = False,
) -> TrainResult:
    """One run, from the data to the written file (see ``TrainConfig``).

    Raises UniViGUError before any work for settings, files or packages that cannot do the job."""
    accelerator = make_accelerator(config)
    accept = (lambda _: None) if accept_changes else None
    startable = partial(checkpoints.require_startable, config, clips_a_step(config, accelerator), resume, accept=accept)
    startable()
    require_packages(config)
    require_whole_weights(config, accelerator)
    with _owned_by_us(config, accelerator):
        facts = starting_facts(config)
        require_memory(config, facts, accelerator.device)
        parts = components(config, facts, accelerator, progress)
        data = open_data(config, parts, accelerator, require=startable, say=say, progress=progress)
        model = starting_network(
            config,
            vocab_size=parts.tokenizer.size,
            attention=plain_attention if accelerator.device.type == "cpu" else None,
            dtype=torch.float32 if in_float32(config, accelerator) else None,
        )

        def decode(latent: Tensor) -> Tensor:
            with parts.using("vae") as vae:
                return LatentCodec(vae, model.config.latent_space).decode(latent.to(parts.device))[0]

        callbacks = Callbacks(watch, say, decode, parts.tokenizer.text)
        trainer = Trainer(config, model, data, replace(facts, model=model.config), accelerator, callbacks)
        return trainer.run(resume, accept_changes)


def components(
    config: TrainConfig, facts: CheckpointConfig, accelerator: Any, progress: Report | None = None
) -> Components:
    """VAE, text encoder and tokenizer of a run. Raises UniViGUError where the vocabulary is not the network's."""
    parts = Components(
        config.model,
        Places(wan=None if config.wan is None else Path(config.wan)),
        device=accelerator.device,
        progress=progress if accelerator.is_main_process else None,
        config=facts,
    )
    if facts.model.vocab_size and config.text_half == "keep":
        require_vocabulary(facts.model, parts.tokenizer.size, config.model)
    return parts


def in_float32(config: TrainConfig, accelerator: Any) -> bool:
    """Whether weights that do not learn are kept in float32, too."""
    on_cpu = accelerator.device.type == "cpu"
    return config.trains == "all" or config.precision == "fp32" or on_cpu or is_sharded(accelerator)


@contextmanager
def _owned_by_us(config: TrainConfig, accelerator: Any) -> Iterator[None]:
    """No other training may write into the run's folder meanwhile. Raises UniViGUError while one does."""
    if not accelerator.is_main_process:
        yield
        return
    make_folder(config.out_folder, "choose another folder for out")
    for name in ("lora.safetensors" if config.trains == "lora" else "model.safetensors", "losses.jsonl"):
        require_writable(config.out_folder / name)
    make_folder(config.cache_folder, "choose another for the cache")
    reader = config.cache_folder / f"{socket.gethostname()} {os.getpid()}"  # a name of its own: several may read
    with owned(config.out_folder, "a training run"), Claims(config.cache_folder) as cache, cache.claimed(str(reader)):
        yield


def is_sharded(accelerator: Any) -> bool:
    """Whether each process holds only a part of the weights (FSDP)."""
    return "FSDP" in str(accelerator.distributed_type)


def require_packages(config: TrainConfig) -> None:
    """Raise UniViGUError for a package that the run needs and that is not installed."""
    if config.trains == "lora":
        require_peft()
    if config.optimizer.kind == "adamw8bit":
        require_bitsandbytes()
    if config.optimizer.kind == "muon" and not hasattr(torch.optim, "Muon"):
        raise UniViGUError(
            f"optimizer.kind is muon, which torch {torch.__version__} does not include; update torch, or use adamw"
        )


def require_memory(config: TrainConfig, facts: CheckpointConfig, device: torch.device) -> None:
    """Raise UniViGUError for batches that no memory of the machine holds; by the forward pass alone, in bfloat16."""
    run, model = facts.run, facts.model
    size = ((run.frames - 1) // TEMPORAL + 1, run.height // SPATIAL, run.width // SPATIAL)
    step = config.batch * config.accumulate
    latents = 4.0 * step * model.in_dim * math.prod(size)  # of a step, read ahead
    require_room(latents, torch.device("cpu"), f"a step of {step} clips (batch times accumulate)")
    tokens = video_tokens(size, model)
    needed = pass_bytes(model, rows=config.batch, video=tokens, text=run.text_length, itemsize=2, logits=0)
    require_room(needed, device, f"a batch of {config.batch} clips")


def require_whole_weights(config: TrainConfig, accelerator: Any) -> None:
    """Raise UniViGUError for what needs whole weights where processes hold parts of them."""
    if not is_sharded(accelerator):
        return
    for wanted, what, instead, entry in (
        (config.optimizer.ema, "optimizer.ema", "0", "optimizer.ema"),
        (config.optimizer.kind == "muon", "optimizer.kind", "adamw", "optimizer.kind"),
        (config.keep.sample_every, "keep.sample_every", "0", "keep.sample_every"),
        (is_copied(config), "stage: distill with trains: all", "lora", "trains"),
    ):
        if wanted:
            why = "needs whole weights, and under FSDP every process holds only a part of them"
            raise UniViGUError(f"{what} {why}. Set {entry}: {instead}")


def make_accelerator(config: TrainConfig) -> Any:
    """Hugging Face's accelerator for this process. Raises UniViGUError where accelerate is not installed."""
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError:
        raise UniViGUError("training needs accelerate: pip install -e '.[train]' in the project's folder") from None
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    return Accelerator(
        cpu=on_cpu,
        mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
        gradient_accumulation_steps=config.accumulate,
        # All other processes wait while the main one builds the cache.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )


def open_data(
    config: TrainConfig,
    parts: Components,
    accelerator: Any,
    *,
    require: Callable[[Sequence[str]], object] = lambda _: None,
    say: Say = print,
    progress: Report | None = None,
) -> Shards:
    """The shards of ``config.data``, built by the main process where they are missing or out of date.

    ``require`` gets the fingerprints of the data before anything is built, and raises where they must not be used."""
    data = None
    if accelerator.is_main_process:
        make_folder(config.cache_folder, "choose another for the cache")
        with remembered(config.cache_folder / "contents.json"):
            source, encoders = make_source(config, parts, say, progress), Encoders.from_components(parts)
        require([digest([one, encoders.fingerprint]) for one in fingerprints(source)])
        data = build_shards(
            source,
            encoders,
            config.cache_folder,
            per_shard=shard_clips(parts.config.run),
            in_memory=None,
            progress=progress,
            say=say,
        )
    accelerator.wait_for_everyone()
    return data or Shards(config.cache_folder, in_memory=None)


def make_source(config: TrainConfig, parts: Components, say: Say, progress: Report | None = None) -> Source:
    """What ``config.data`` names: folders, manifests and shards of clips with their texts, little worlds."""
    sources = [_source(config, one, parts, say, progress) for one in config.sources]
    return sources[0] if len(sources) == 1 else Together(sources)


def _source(config: TrainConfig, data: Data, parts: Components, say: Say, progress: Report | None) -> Source:
    run = parts.config.run
    if (other := plugged_in(data.path, config, run)) is not None:
        return other
    usual = TextLimits.of(run)
    found = survey(
        data,
        run,
        parts.tokenizer.ids,
        limits=TextLimits(config.tokens.prompt or usual.prompt, config.tokens.detail or usual.detail),
        need_detail=config.stage == "refine",
        buckets=config.buckets,
        progress=progress,
    )
    say(str(found))
    return found


def plugged_in(data: str, config: TrainConfig, run: RunConfig) -> Source | None:
    """The source that ``data: KIND:ARGUMENT`` names, from the package that registers KIND as an entry point of the
    group ``uvg_core.data``.

    None where no package does: then ``data`` is a path. Raises UniViGUError as the source does."""
    kind, colon, argument = data.partition(":")
    for entry in entry_points(group="uvg_core.data", name=kind) if colon else ():
        source: Source | None = entry.load()(argument, config, run)
        return source
    return None
