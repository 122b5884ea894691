"""Train Uni-ViGU inside ComfyUI: uvg_core's trainer on the MODEL, CLIP, VAE and clips that are connected to the node.

Nodes run in inference mode, in which nothing can be trained: training leaves it, on copies of all tensors.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import tempfile
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.cli_args import args
from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor

from ...uvg_core.config import CheckpointConfig, RunConfig
from ...uvg_core.data.build import build_shards, shard_clips
from ...uvg_core.data.encoders import Encoders
from ...uvg_core.data.left_out import tally
from ...uvg_core.data.shards import Shards
from ...uvg_core.data.sources import Source
from ...uvg_core.errors import UniViGUError
from ...uvg_core.media.sheet import SheetRow, draw_sheet
from ...uvg_core.model import UniViGU
from ...uvg_core.settings import Flag, Text, setting, settings
from ...uvg_core.training.config import TrainConfig
from ...uvg_core.training.metrics import StepMetrics, draw_samples
from ...uvg_core.training.objective import plain_attention
from ...uvg_core.training.run import make_accelerator
from ...uvg_core.training.start import lora_weights, require_vocabulary, save_lora
from ...uvg_core.training.trainer import Callbacks, Trainer
from .conditioning import encode_prompt, tokenizer_of
from .latents import decode_latent, encode_pixels, require_video_vae
from .network import latent_format_of, network_of, weights_of
from .paths import shown
from .saving import output_file, save_checkpoint, value_of
from .showing import Progress

log = logging.getLogger(__name__)

LARGE = 500_000_000  # weights of a network from which on blocks are recomputed in the backward pass
RECENT_STEPS = 20  # whose mean losses are shown
LOSSES = ("loss", "video", "text")


def require_components(model: Any, clip: Any, vae: Any, trains: str) -> None:
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


def encoders(model: Any, clip: Any, vae: Any, run: RunConfig) -> Encoders:
    """ComfyUI's VAE and CLIP as training wants them, with conditions as Uni-ViGU Prompt makes them."""
    tokenizer, latent_format = tokenizer_of(clip), latent_format_of(model)
    plain = clip.cond_stage_model.umt5xxl.zero_out_masked  # else, as in the release, padding carries information too

    def latent(pixels: Tensor) -> Tensor:
        throw_exception_if_processing_interrupted()
        return torch.cat([latent_format.process_in(encode_pixels(vae, one)).float().cpu() for one in pixels])

    def states(texts: list[str]) -> Tensor:
        throw_exception_if_processing_interrupted()
        literal = [text.replace("(", "\\(").replace(")", "\\)") for text in texts]  # brackets in captions: no weights
        return torch.cat([encode_prompt(clip, text, "")[0][0].float().cpu() for text in literal])

    def rows(text: str) -> int:
        return len(tokenizer.ids(text)) if plain else run.context_length

    return Encoders(latent, states, tokenizer.ids, rows, "of this run")


def training_copy(model: Any, config: TrainConfig) -> UniViGU:
    """A network of its own with MODEL's weights, LoRAs and all, on the CPU; call it outside of inference mode.

    Weights that do not learn stay in 16 bits where the run computes in 16 bits.
    """
    network, on_cpu = network_of(model), config.device == "cpu"
    comfy.model_management.load_models_gpu([model])
    stored = model.model_state_dict_for_saving(network, "diffusion_model.")
    half = config.precision != "fp32" and config.trains != "all" and not on_cpu
    copy = UniViGU(
        network.config,
        attention=plain_attention if on_cpu else None,
        device="meta",
        dtype=torch.bfloat16 if half else torch.float32,
    )
    with torch.no_grad():
        weights = {name: value_of(stored, name).to(empty.dtype, copy=True) for name, empty in copy.named_parameters()}
    copy.load_state_dict(weights, strict=True, assign=True)
    return copy.train()


@settings
class OutputFile:
    """Where a trained network goes."""

    filename_prefix: Text = setting(
        "Of the checkpoint, and of what is kept when you cancel: in output/loras, output/diffusion_models or "
        "output/checkpoints.",
        default="uni_vigu_trained",
    )
    all_in_one: Flag = setting("Puts CLIP and VAE into the checkpoint as well.", default=True)


@dataclass
class TrainingRun:
    """One run on a copy of MODEL's network, with the LoRAs that are on it; MODEL stays as it is.

    ``run``: sizes of the clips. ``config.out`` and ``config.device`` are not used. ``train`` fills in the rest:
    ``lora`` in ComfyUI's names, or the ``file`` of the network that was trained; the loss of every step; a picture of
    every sample; ``notes``: what there is to say of it afterwards. A run that is cancelled or breaks off writes what
    was learnt, too.
    """

    model: Any
    clip: Any
    vae: Any
    run: RunConfig
    config: TrainConfig
    output: OutputFile
    progress: Progress
    lora: dict[str, Tensor] | None = None
    file: Path | None = None
    losses: list[float] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _recent: deque[StepMetrics] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    _caption: str = ""

    def train(self, source: Source) -> None:
        """Encode the clips, and train to the end. Raises UniViGUError for a prefix that leads nowhere, too little room
        on the disk, clips that cannot be read, and a loss that is not a number."""
        self._require_room()
        weights = weights_of(network_of(self.model).config).values()
        temp = Path(folder_paths.get_temp_directory())
        temp.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="uni_vigu_", dir=temp) as folder:
            self.config = replace(
                self.config,
                out=folder,
                device="cpu" if comfy.model_management.get_torch_device().type == "cpu" else None,
                checkpointing=sum(weight.numel() for weight in weights) > LARGE,
            )
            data = self.encode(source, Path(folder) / "cache")
            with torch.inference_mode(False), torch.enable_grad():
                self._learn(data)

    def encode(self, source: Source, cache: Path) -> Shards:
        """The clips as shards, in memory, without those that cannot be read to the end."""

        def report(what: str, done: int, total: int) -> None:
            self.progress(what, done, total)
            self.progress.text(f"{what}: {done} of {total}")

        parts = encoders(self.model, self.clip, self.vae, self.run)
        shards = build_shards(source, parts, cache, per_shard=shard_clips(self.run), progress=report, say=log.debug)
        if shards.left_out:
            lost = f"{len(shards.left_out)} of {len(source)} clips cannot be read and are left out"
            self.notes += [shown("\n".join([lost, *tally(shards.left_out)]))]
            log.warning("%s", self.notes[-1])
        with torch.inference_mode(False):
            return Shards(cache, in_memory=True)

    def _learn(self, data: Shards) -> None:
        config = self.config
        network = training_copy(self.model, config)
        if config.device != "cpu":
            comfy.model_management.unload_all_models()
            comfy.model_management.soft_empty_cache()
        accelerator = _accelerator(config)
        facts, callbacks = CheckpointConfig(network.config, self.run), Callbacks(self._watch, log.info)
        trainer = Trainer(config, network, data, facts, accelerator, callbacks, writes=False)
        try:
            self._run(trainer)
            learnt = trainer.learnt()
            if config.trains == "lora":
                self.lora = lora_weights(learnt, config.lora)
            else:
                self.progress.text("writing the checkpoint", last=True)
                self.file = self._write(trainer, learnt)
                self.notes += [f"saved {self.file}"]
        finally:
            accelerator.free_memory()
            comfy.model_management.soft_empty_cache()

    def _run(self, trainer: Trainer) -> None:
        """Train to the end; where that fails, or is cancelled, what was learnt until then is written."""
        try:
            trainer.run()
        except BaseException as error:  # ComfyUI cancels with one that is no Exception
            if not trainer.step:
                raise
            note = self._keep(trainer)
            log.warning("Training ended at step %d of %d: %s", trainer.step, self.config.steps, note)
            self.progress.leave(note)
            if isinstance(error, UniViGUError):
                raise UniViGUError(f"{error}. {note}") from error
            raise

    # What is shown

    def _watch(self, metrics: StepMetrics, trainer: Trainer) -> None:
        """After every step; raises where the user has cancelled."""
        step, steps, every = metrics.step, self.config.steps, self.config.keep.sample_every
        self.losses.append(metrics.loss)
        self._recent.append(metrics)
        self.progress("training", step, steps)
        if every and (step == steps or step % every == 0):
            self._sample(step, trainer)
        means = torch.tensor([[getattr(one, name) for name in LOSSES] for one in self._recent]).nanmean(0).tolist()
        known = [f"{name} {mean:.3f}" for name, mean in zip(LOSSES, means, strict=True) if mean == mean]
        left = sum(one.seconds for one in self._recent) / len(self._recent) * (steps - step)
        minutes, seconds = divmod(round(left), 60)
        # Two short lines, as wide as a node.
        lines = " ".join([f"{step}/{steps}", *known]), f"{minutes}:{seconds:02} left"
        self.progress.text("\n".join(lines) + self._caption, last=step == steps)
        if step == steps:
            self.notes += [lines[0] + self._caption]
        if step == steps or step % max(1, steps // 10) == 0:
            log.info("%s, %s", *lines)

    def _sample(self, step: int, trainer: Trainer) -> None:
        def cancelled(*_: object) -> None:
            throw_exception_if_processing_interrupted()

        words = tokenizer_of(self.clip).text
        with trainer.averaged() as network:
            drawn = draw_samples(network, trainer.data, self.config, self.run, step, cancelled)
        texts = {name: "" if ids is None else words(ids.cpu()) for name, ids in drawn.texts.items()}
        with torch.inference_mode():
            space = latent_format_of(self.model)
            clips = {
                name: decode_latent(self.vae, space.process_out(latent.float().cpu()))
                for name, latent in drawn.clips.items()
            }
        rows = [
            SheetRow(name.replace("_", " "), clips.get(name), texts.get(name, ""))
            for name in dict.fromkeys([*clips, *texts])
        ]
        picture = draw_sheet(rows, title=f"step {step} of {self.config.steps}: {drawn.truth.name}")
        self.pictures.append(picture)
        self.progress.picture(step, self.config.steps, picture)
        self._caption = f", says: {texts['video_to_text']}" if "video_to_text" in texts else ""

    # What is written

    def _path(self) -> Path:
        network = "checkpoints" if self.output.all_in_one else "diffusion_models"
        return output_file(self.output.filename_prefix, "loras" if self.config.trains == "lora" else network)

    def _require_room(self) -> None:
        """Now, and not after hours of training."""
        folder = self._path().parent
        patchers = [self.model, *([self.clip.patcher, self.vae.patcher] if self.output.all_in_one else [])]
        needed, free = sum(patcher.model_size() for patcher in patchers), shutil.disk_usage(folder).free
        if self.config.trains != "lora" and free < needed:
            raise UniViGUError(
                f"{folder}: the trained model will take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. "
                "Free some space, turn all_in_one off, or train a lora"
            )

    def _write(self, trainer: Trainer, learnt: dict[str, Tensor]) -> Path:
        """A file in the output folder or, where the system refuses, in the system's folder for temporary files.

        Raises UniViGUError where neither can be written."""
        try:
            return self._write_to(self._path(), trainer, learnt)
        except (UniViGUError, OSError) as error:
            elsewhere = Path(tempfile.mkdtemp(prefix="uni_vigu_")) / "learnt.safetensors"
            log.warning("%s. What was learnt goes to %s instead", error, elsewhere)
            return self._write_to(elsewhere, trainer, learnt)

    def _write_to(self, path: Path, trainer: Trainer, learnt: dict[str, Tensor]) -> Path:
        if self.config.trains == "lora":
            facts = {} if args.disable_metadata else {"uvg_training": json.dumps(trainer.card())}
            save_lora(path, learnt, self.config.lora, facts)
            return path
        learns = {name for name, weight in trainer.network.named_parameters() if weight.requires_grad}
        changed = {name: weight for name, weight in learnt.items() if name in learns}
        clip, vae = (self.clip, self.vae) if self.output.all_in_one else (None, None)
        with torch.inference_mode():  # written to the end, cancelled or not
            model = self.model.clone()
            model.add_object_patch("run_facts", trainer.recipe)
            save_checkpoint(path, model, clip, vae, learnt=changed)
        return path

    def _keep(self, trainer: Trainer) -> str:
        """Write what a run that did not end had learnt; where it is, or why it is nowhere."""
        learnt = trainer.learnt()
        if not all(bool(weight.isfinite().all()) for weight in learnt.values()):
            return "What was learnt holds values that are not numbers, and was not kept"
        try:
            path = self._write(trainer, learnt)
        except (UniViGUError, OSError) as error:
            return f"What was learnt could not be kept ({error})"
        return f"What was learnt in {trainer.step} of {self.config.steps} steps is in {path}"


def _accelerator(config: TrainConfig) -> Any:
    """A new one for every run: accelerate remembers the settings of the first in a process and refuses others."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return make_accelerator(config)
