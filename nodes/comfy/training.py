"""The bridge to ComfyUI for training: uvg_core's trainer on what is connected to a node.

Clips and texts go through ComfyUI's VAE and CLIP, the trainer learns on a copy of MODEL's network, and the node shows
loss and samples while it does. Nodes run in inference mode, in which nothing can be learnt: it is left here, and every
tensor that crosses the border is copied.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import shutil
import tempfile
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...uvg_core.config import CheckpointConfig, RunConfig
from ...uvg_core.data.build import build_shards, shard_clips
from ...uvg_core.data.encoders import Encoders
from ...uvg_core.data.folder import tally
from ...uvg_core.data.shards import Shards
from ...uvg_core.data.sources import Source
from ...uvg_core.errors import UniViGUError
from ...uvg_core.media.sheet import SheetRow, draw_sheet
from ...uvg_core.model import UniViGU
from ...uvg_core.training.config import TrainConfig
from ...uvg_core.training.metrics import StepMetrics, draw_samples
from ...uvg_core.training.objective import plain_attention
from ...uvg_core.training.run import make_accelerator
from ...uvg_core.training.start import lora_weights, require_vocabulary, save_lora
from ...uvg_core.training.trainer import Callbacks, Trainer
from .conditioning import encode_prompt, tokenizer_of
from .latents import decode_latent, encode_pixels, require_video_vae
from .network import latent_format_of, network_of, weights_of
from .saving import output_file, save_checkpoint, value_of
from .showing import Progress

log = logging.getLogger(__name__)

LARGE = 500_000_000  # weights of a network from which on blocks are recomputed in the backward pass
SHOWN_STEPS = 20  # whose mean loss is shown


@dataclass(frozen=True)
class Learnt:
    """What a run gives: the LoRA in ComfyUI's names, or the file of the network that was trained; the loss of every
    step; a picture of every sample."""

    lora: dict[str, Tensor] | None
    file: Path | None
    losses: list[float]
    samples: list[Any]


def blocked(message: str | None) -> Any:
    """An output that there is nothing for: what is connected to it does not run; None does not even say so."""
    return ExecutionBlocker(message)


def require_parts(model: Any, clip: Any, vae: Any, trains: str) -> None:
    """Raise UniViGUError where MODEL, CLIP and VAE do not belong together, or a package is missing that training needs
    and the other nodes do not."""
    require_video_vae(vae)
    require_vocabulary(network_of(model).config, tokenizer_of(clip).size, "MODEL and CLIP")
    for name in ("accelerate", "peft") if trains == "lora" else ("accelerate",):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UniViGUError(
                f"training needs the package {name} ({error}); install it into ComfyUI's Python with pip install {name}"
            ) from None


def best_precision() -> str:
    """bf16 where the device computes in it, else fp32."""
    device = comfy.model_management.get_torch_device()
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


@dataclass(frozen=True)
class Target:
    """What is trained, and where it goes. ``run``: sizes of the clips. ``prefix``, ``all_in_one``: of the file that a
    trained network is written to, and of the one that what was learnt goes to when the run is cancelled or breaks
    off."""

    model: Any
    clip: Any
    vae: Any
    run: RunConfig
    prefix: str
    all_in_one: bool

    @property
    def parts(self) -> tuple[Any, Any]:
        """CLIP and VAE that go into the file."""
        return (self.clip, self.vae) if self.all_in_one else (None, None)


def train(target: Target, source: Source, config: TrainConfig, progress: Progress) -> Learnt:
    """Train a copy of MODEL's network, with the LoRAs that are on it; MODEL stays as it is. First ``require_parts``.
    ``config.out`` is not used."""
    weights = weights_of(network_of(target.model).config).values()
    config = replace(
        config,
        device="cpu" if comfy.model_management.get_torch_device().type == "cpu" else None,
        checkpointing=sum(weight.numel() for weight in weights) > LARGE,
    )
    keeper = _Keeper(target, config)
    keeper.require_room()
    temp = Path(folder_paths.get_temp_directory())
    temp.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="uni_vigu_", dir=temp) as folder:
        config = replace(config, out=folder)
        encoders = _encoders(target.model, target.clip, target.vae, target.run)
        data = _encoded(source, encoders, config, target.run, progress)
        with torch.inference_mode(False), torch.enable_grad():
            return _learn(target, data, config, keeper, progress)


# -------------------------------------------------------------------------------------------------------------- data


def _encoders(model: Any, clip: Any, vae: Any, run: RunConfig) -> Encoders:
    """ComfyUI's VAE and CLIP as training wants them, with conditions as our prompt node makes them."""
    tokenizer = tokenizer_of(clip)
    cancelled = comfy.model_management.throw_exception_if_processing_interrupted
    latent_format = latent_format_of(model)
    # With the release's states padding says something too, else all that follows a text is zeros.
    plain = getattr(getattr(clip.cond_stage_model, "umt5xxl", None), "zero_out_masked", True)

    def latent(pixels_BTHWC: Tensor) -> Tensor:
        rows = []
        for pixels in pixels_BTHWC:
            cancelled()
            rows.append(latent_format.process_in(encode_pixels(vae, pixels)).float().cpu())
        return torch.cat(rows)

    def states(texts: list[str]) -> Tensor:
        rows = []
        for text in texts:
            cancelled()
            # A caption means what it says: brackets in it are no weights.
            literal = text.replace("(", "\\(").replace(")", "\\)")
            rows.append(encode_prompt(clip, literal, "")[0][0].float().cpu())
        return torch.cat(rows)

    def rows(text: str) -> int:
        return len(tokenizer.ids(text)) if plain else run.context_length

    return Encoders(latent, states, tokenizer.ids, rows, "of this run")


def _encoded(source: Source, encoders: Encoders, config: TrainConfig, run: RunConfig, progress: Progress) -> Shards:
    """The clips as shards, in memory. Those that cannot be read to the end are left out, and it is said."""

    def report(what: str, done: int, total: int) -> None:
        progress.step(done, total)
        progress.text(f"{what}: {done} of {total}")

    cache = Path(config.out) / "cache"
    shards = build_shards(source, encoders, cache, per_shard=shard_clips(run), progress=report, say=log.debug)
    if shards.left_out:
        lost = f"{len(shards.left_out)} of {len(source)} clips cannot be read and are left out"
        note = "\n".join([lost, *tally(shards.left_out)])
        log.warning("%s", note)
        progress.text(note, last=True)
    with torch.inference_mode(False):
        return Shards(cache, in_memory=True)


# ---------------------------------------------------------------------------------------------------------- learning


def training_copy(model: Any, config: TrainConfig) -> UniViGU:
    """A network of its own with MODEL's weights, LoRAs and all, on the CPU; call it outside of inference mode.

    Weights that do not learn stay in 16 bits where the run computes in 16 bits.
    """
    network = network_of(model)
    comfy.model_management.load_models_gpu([model])
    stored = model.model_state_dict_for_saving(network, "diffusion_model.")
    half = config.precision != "fp32" and config.trains != "all"
    on_cpu = config.device == "cpu"
    copy = UniViGU(
        network.config,
        attention=plain_attention if on_cpu else None,
        device="meta",
        dtype=torch.bfloat16 if half and not on_cpu else torch.float32,
    )
    with torch.no_grad():
        weights = {name: value_of(stored, name).to(empty.dtype, copy=True) for name, empty in copy.named_parameters()}
    copy.load_state_dict(weights, strict=True, assign=True)
    return copy.train()


def _accelerator(config: TrainConfig) -> Any:
    """A new one for every run: accelerate remembers the settings of the first in a process and refuses others."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return make_accelerator(config)


def _learn(target: Target, data: Shards, config: TrainConfig, keeper: _Keeper, progress: Progress) -> Learnt:
    network = training_copy(target.model, config)
    if config.device != "cpu":
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
    accelerator = _accelerator(config)
    watch = _Watch(target, data, config, progress)
    facts = CheckpointConfig(network.config, target.run)
    trainer = Trainer(config, network, data, facts, accelerator, Callbacks(watch, log.info), writes=False)
    try:
        _run(trainer, keeper, progress)
        learnt = trainer.learnt()
        if config.trains == "lora":
            return Learnt(lora_weights(learnt, config.lora), None, watch.losses, watch.pictures)
        progress.text("writing the checkpoint", last=True)
        return Learnt(None, keeper.write(trainer, learnt), watch.losses, watch.pictures)
    finally:
        accelerator.free_memory()
        comfy.model_management.soft_empty_cache()


def _run(trainer: Trainer, keeper: _Keeper, progress: Progress) -> None:
    """Train to the end; where that fails, or is cancelled, what was learnt until then is written."""
    try:
        trainer.run()
    except BaseException as error:  # ComfyUI cancels with one that is no Exception
        if not trainer.step:
            raise
        note = keeper.keep(trainer)
        log.warning("Training ended at step %d of %d: %s", trainer.step, trainer.config.steps, note)
        progress.text(note, last=True)
        if isinstance(error, UniViGUError):
            raise UniViGUError(f"{error}. {note}") from error
        raise


@dataclass
class _Watch:
    """What a run shows after every step; raises where the user has cancelled."""

    target: Target
    data: Shards
    config: TrainConfig
    progress: Progress
    losses: list[float] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    _recent: deque[StepMetrics] = field(default_factory=lambda: deque(maxlen=SHOWN_STEPS))
    _caption: str = ""

    def __call__(self, metrics: StepMetrics, trainer: Trainer) -> None:
        self.losses.append(metrics.loss)
        self._recent.append(metrics)
        step, steps, every = metrics.step, self.config.steps, self.config.keep.sample_every
        self.progress.step(step, steps)
        ends = step == steps
        if every and (ends or step % every == 0):
            self._sample(step, trainer)
        numbers, left = self._lines(step, steps)
        self.progress.text(f"{numbers}\n{left}{self._caption}", last=ends)
        if ends or step % max(1, steps // 10) == 0:
            log.info("%s, %s", numbers, left)

    def _lines(self, step: int, steps: int) -> tuple[str, str]:
        """Mean losses, and the time that is left: two short lines, as wide as a node."""
        numbers = [f"{step}/{steps}"]
        for name in ("loss", "video", "text"):
            known = [value for value in (getattr(one, name) for one in self._recent) if not math.isnan(value)]
            if known:
                numbers.append(f"{name} {sum(known) / len(known):.3f}")
        seconds = sum(one.seconds for one in self._recent) / len(self._recent)
        left = round(seconds * (steps - step))
        return " ".join(numbers), f"{left // 60}:{left % 60:02} left"

    def _sample(self, step: int, trainer: Trainer) -> None:
        def cancelled(*_: object) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()

        with trainer.averaged() as network:
            drawn = draw_samples(network, self.data, self.config, self.target.run, step, cancelled)
        words = tokenizer_of(self.target.clip).text
        rows = []
        for name in dict.fromkeys([*drawn.clips, *drawn.texts]):
            ids, latent = drawn.texts.get(name), drawn.clips.get(name)
            pixels = None if latent is None else self._pixels(latent)
            rows.append(SheetRow(name.replace("_", " "), pixels, "" if ids is None else words(ids.cpu())))
        picture = draw_sheet(rows, title=f"step {step} of {self.config.steps}: {drawn.truth.name}")
        self.pictures.append(picture)
        self.progress.picture(step, self.config.steps, picture)
        caption = drawn.texts.get("video_to_text")
        self._caption = "" if caption is None else f", says: {words(caption.cpu())}"

    def _pixels(self, latent: Tensor) -> Tensor:
        with torch.inference_mode():
            space = latent_format_of(self.target.model)
            return decode_latent(self.target.vae, space.process_out(latent.float().cpu()))


# ----------------------------------------------------------------------------------------------------------- keeping


@dataclass(frozen=True)
class _Keeper:
    """Puts what was learnt into ComfyUI's output folder."""

    target: Target
    config: TrainConfig

    def _path(self) -> Path:
        network = "checkpoints" if self.target.all_in_one else "diffusion_models"
        return output_file(self.target.prefix, "loras" if self.config.trains == "lora" else network)

    def require_room(self) -> None:
        """Raise UniViGUError for a prefix that leads nowhere, or a disk that the file will not fit on: now, and not
        after hours of training."""
        path = self._path()
        if self.config.trains == "lora":
            return
        patchers = [part.patcher for part in self.target.parts if part is not None]
        needed = sum(patcher.model_size() for patcher in (self.target.model, *patchers))
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise UniViGUError(
                f"{path.parent}: the trained model will take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. "
                "Free some space, turn all_in_one off, or train a lora"
            )

    def write(self, trainer: Trainer, state: dict[str, Tensor]) -> Path:
        """A file in the output folder or, where the system refuses, in the system's folder for temporary files.

        Raises UniViGUError where neither can be written."""
        try:
            return self._write(self._path(), trainer, state)
        except (UniViGUError, OSError) as error:
            elsewhere = Path(tempfile.mkdtemp(prefix="uni_vigu_")) / "learnt.safetensors"
            path = self._write(elsewhere, trainer, state)
            log.warning("%s. What was learnt is in %s instead", error, path)
            return path

    def _write(self, path: Path, trainer: Trainer, state: dict[str, Tensor]) -> Path:
        if self.config.trains == "lora":
            save_lora(path, state, self.config.lora, {"uvg_training": json.dumps(trainer.card())})
            return path
        learns = {name for name, weight in trainer.network.named_parameters() if weight.requires_grad}
        learnt = {name: weight for name, weight in state.items() if name in learns}
        with torch.inference_mode():  # written to the end, cancelled or not: nobody is told how far it is
            save_checkpoint(path, self.target.model, *self.target.parts, None, lambda *_: None, learnt)
        return path

    def keep(self, trainer: Trainer) -> str:
        """Write what a run that did not end had learnt; says where it is, or why it is nowhere."""
        state = trainer.learnt()
        if not all(bool(weight.isfinite().all()) for weight in state.values()):
            return "What was learnt holds values that are not numbers, and was not kept"
        try:
            path = self.write(trainer, state)
        except (UniViGUError, OSError) as error:
            return f"What was learnt could not be kept ({error})"
        return f"What was learnt in {trainer.step} of {self.config.steps} steps is in {path}"
