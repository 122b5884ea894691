"""Does a checkpoint work here, and how is it meant to be run: what a person pastes into a bug report.

Meant for the released weights, which this project has never seen. ``evidence.py`` decides; this is the report.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checkpoint import convert, inspect_checkpoint
from ..config import CheckpointConfig, RunConfig
from ..errors import UniViGUError
from ..io import PACK
from ..media.tokenizer import Tokenizer
from ..media.vae import SPATIAL, TEMPORAL, latent_shape, to_latent_space
from ..media.video import ClipSpec, read_clip
from ..model import PassOptions, UniViGU
from ..sampling import GuidedDenoiser, Ranking, Sampling, Size, text_to_video, video_to_text
from ..sampling.settings import SIZE
from ..sampling.start import as_text_content, require_ids
from .components import LARGE_BYTES
from .evidence import Predict, Sample, Verdict, weigh
from .pipeline import Pipeline, given

CLIPS = PACK / "samples" / "check"
# The first that fits what the checkpoint reads: the release's example, or the embedded model's own world.
KNOWN_PROMPTS = (
    "A golden retriever runs across a sunlit grassy field filled with tiny wildflowers.",
    "a large red circle moves right quickly on a navy background",
)
FEW_STEPS = 4
# How much of a clip the losses are taken on: frames, and video tokens on a CPU and on other devices.
MOST_FRAMES = 17
MOST_TOKENS = {"cpu": 1000}
USUAL_TOKENS = 8000
Result = TypeVar("Result")


@dataclass(frozen=True)
class ReferenceClip:
    """A clip of real footage and what is to be seen in it, in as many words as a model's texts hold."""

    path: Path
    caption: str

    def pixels(self, frames: int, height: int, width: int) -> Tensor:
        """uint8 ``[T,H,W,3]``."""
        return read_clip(self.path, ClipSpec(frames, height, width)).pixels


def reference_clips(tokenizer: Tokenizer, run: RunConfig) -> list[ReferenceClip]:
    """The clips in ``samples/check``. Raises UniViGUError where they are missing."""
    try:
        captions: dict[str, str] = json.loads((CLIPS / "captions.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UniViGUError(
            f"{CLIPS}: the clips for the check are missing ({error}); they are part of this pack: download it again"
        ) from None
    room = min(run.text_length, run.context_length)
    found = []
    for name, caption in captions.items():
        words = caption.split()
        while len(words) > 1 and len(tokenizer.ids(" ".join(words))) > room:
            words.pop()
        found.append(ReferenceClip(CLIPS / name, " ".join(words)))
    return found


def loss_size(run: RunConfig, size: Size, large: bool, device: torch.device) -> tuple[int, int, int]:
    """Frames, height and width that the losses are taken at: the checkpoint's own with fewer frames, and smaller where
    a pass would take too long. ``size`` has the last word."""
    frames = given(size.frames, min(run.frames, MOST_FRAMES))
    height, width = given(size.height, run.height), given(size.width, run.width)
    if large and size.height is None and size.width is None:
        tokens = ((frames - 1) // TEMPORAL + 1) * height * width / (2 * SPATIAL) ** 2
        scale = min(1.0, MOST_TOKENS.get(device.type, USUAL_TOKENS) / tokens) ** 0.5
        height, width = (max(16, round(side * scale / 16) * 16) for side in (height, width))
    latent_shape(frames, height, width)
    return frames, height, width


def thoroughness(large: bool) -> dict[str, int]:
    """Options of ``weigh``: small networks see little difference, and are fast."""
    return {"draws": 1, "at_once": 1} if large else {"draws": 4, "at_once": 8}


def environment(device: torch.device) -> list[str]:
    """Versions and the device, a line each."""
    packages = []
    for name in ("torch", "diffusers", "transformers"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"no {name}")
    where = str(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        where = f"{torch.cuda.get_device_name(device)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    return [
        f"pack          {pack_version()}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"packages      {', '.join(packages)}",
        f"device        {where}, {torch.get_num_threads()} threads",
    ]


def pack_version() -> str:
    """From ``pyproject.toml``: the pack is often a folder, not an installed package."""
    try:
        found = re.search(r'^version.*?"(.*?)"', (PACK / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def measured(what: str, device: torch.device, job: Callable[[], Result]) -> tuple[Result, str]:
    """What ``job`` gives, and a line with its time and, where it can be told, its peak of memory."""
    on_card, memory = device.type == "cuda", ""
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    result = job()
    if on_card:
        torch.cuda.synchronize(device)
        memory = f", peak {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB on the card"
    seconds = time.perf_counter() - began
    if not on_card and sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        memory = f", the process has had {peak / 1e9:.2f} GB at most"
    return result, f"{what}: {seconds:.1f} s{memory}"


def not_finite(tensor: Tensor) -> str:
    """``all finite``, or how many values are not."""
    bad = int((~tensor.isfinite()).sum())
    return "all finite" if not bad else f"{bad} of {tensor.numel()} values not finite"


def rounded_times(network: UniViGU, rounding: str) -> Predict:
    """The network's velocity with its text held clean, and with its times rounded so."""
    config = replace(network.config, time_rounding=rounding)

    def predict(video: Tensor, ids: Tensor, mask: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        kept, network.config = network.config, config
        try:
            require_ids(network.config, ids)
            text, still = as_text_content(network, ids), torch.zeros_like(time)
            found: Tensor | None = network(
                video, text, time, still, condition, mask, PassOptions(want_logits=False)
            ).velocity
        finally:
            network.config = kept
        assert found is not None
        return found

    return predict


@dataclass(kw_only=True)
class Check(ABC):
    """The check of a checkpoint, whatever runs it: this package's pipeline, or ComfyUI.

    ``lines`` yields the report as it forms; afterwards ``report`` holds its lines, and ``verdict`` what was found.
    ``large``: whether passes take long. ``remedy``: what may help where a known prompt gives a flat picture.
    """

    device: torch.device
    tokenizer: Tokenizer
    run: RunConfig
    large: bool
    size: Size = SIZE
    remedy: str
    verdict: Verdict | None = None
    report: list[str] = field(default_factory=list)

    @abstractmethod
    def about(self) -> Iterator[str]:
        """Lines on the checkpoint and what it runs in. Raises UniViGUError where its components do not work."""

    @abstractmethod
    def raw_latents(self, clips: Sequence[Tensor]) -> Sequence[Tensor]:
        """Clips of one size, uint8 ``[T,H,W,3]`` -> latents ``[1,16,F,h,w]`` as the VAE gives them."""

    @abstractmethod
    def conditions_by_states(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """Prompt conditions ``[K,S,E]`` by kind of text states."""

    @abstractmethod
    def weigh(self, samples: list[Sample], **options: int) -> Verdict:
        """``evidence.weigh`` on the network."""

    @abstractmethod
    def apply(self, verdict: Verdict, checked: str) -> Iterator[str]:
        """Run as found from here on; lines with advice. ``checked``: who has checked."""

    @abstractmethod
    def generate(self, prompt: str) -> tuple[Tensor, Tensor]:
        """A clip in a few steps, uint8 ``[T,H,W,3]``, and its latent."""

    @abstractmethod
    def caption(self, raw: Tensor) -> str:
        """The caption of a clip ``[1,16,F,h,w]`` in a few steps."""

    @abstractmethod
    def rank(self, raw: Tensor, texts: list[str]) -> Tensor:
        """Scores ``[K]`` of texts for a clip, higher is better."""

    def lines(self) -> Iterator[str]:
        """Raises UniViGUError at the first thing that does not work."""
        for line in self._lines():
            self.report.append(line)
            yield line

    def _lines(self) -> Iterator[str]:
        yield from environment(self.device)
        yield from self.about()
        frames, height, width = loss_size(self.run, self.size, self.large, self.device)
        samples, captions = self.samples(frames, height, width)
        options = thoroughness(self.large)
        verdict, line = measured(
            f"losses at {width}x{height}x{frames}", self.device, lambda: self.weigh(samples, **options)
        )
        self.verdict = verdict
        yield line
        yield f"errors on {len(samples)} clips of real footage, relative to what their mean and variance alone give:"
        yield from (f"  {name:<22} {error:.3f}" for name, error in verdict.errors.items())
        yield f"skill         {verdict.skill:.2f} (0 for weights at random)"
        yield from map(str, verdict.answers)
        yield from self.apply(verdict, f"check of {pack_version()}")
        yield from self._jobs(samples[0].raw, captions)

    def samples(self, frames: int, height: int, width: int) -> tuple[list[Sample], list[str]]:
        """The clips in ``samples/check`` through the VAE and the text encoder, and their captions."""
        clips = reference_clips(self.tokenizer, self.run)
        captions = [clip.caption for clip in clips]
        by_states = self.conditions_by_states([*captions, ""])
        raw = self.raw_latents([clip.pixels(frames, height, width) for clip in clips])
        unprompted = {kind: states[-1:] for kind, states in by_states.items()}
        samples = []
        for k, clip in enumerate(clips):
            prompted = {kind: states[k : k + 1] for kind, states in by_states.items()}
            samples.append(Sample(clip.path.stem, raw[k], self.tokenizer.ids(clip.caption), prompted, unprompted))
        return samples, captions

    def _jobs(self, raw: Tensor, captions: list[str]) -> Iterator[str]:
        """One of each job as found, with times."""
        fitting = (text for text in KNOWN_PROMPTS if len(self.tokenizer.ids(text)) <= self.run.context_length)
        prompt, texts = next(fitting, "a"), list(dict.fromkeys(captions))
        (pixels, latent), line = measured(
            f"text to video, {FEW_STEPS} steps", self.device, lambda: self.generate(prompt)
        )
        spread = pixels.float().std().item()
        if spread < 1:
            raise UniViGUError(
                f"a prompt the model should know gave a flat picture (standard deviation {spread:.2f} of 255); "
                f"{self.remedy}"
            )
        yield f"{line}; latent {not_finite(latent)}"
        yield f"ok  “{prompt}” gave {list(pixels.shape)} with a standard deviation of {spread:.1f} of 255"
        caption, line = measured(f"video to text, {FEW_STEPS} steps", self.device, lambda: self.caption(raw))
        yield f"{line}; “{caption[:200]}”"
        scores, line = measured(f"likelihood of {len(texts)} captions", self.device, lambda: self.rank(raw, texts))
        place = int((scores > scores[0]).sum()) + 1
        yield f"{line}; the clip's own ranks {place} of {len(texts)}, {not_finite(scores)}"


class PipelineCheck(Check):
    """The check of what a pipeline runs."""

    def __init__(self, pipe: Pipeline, size: Size = SIZE) -> None:
        self.pipe, self.path = pipe, pipe.components.path
        super().__init__(
            device=pipe.device,
            tokenizer=pipe.tokenizer,
            run=pipe.config.run,
            large=self.path.is_file() and self.path.stat().st_size > LARGE_BYTES,
            size=size,
            remedy=f"try --latent-space raw or normalised, and --dtype bf16 or fp32, for {self.path}",
        )

    def about(self) -> Iterator[str]:
        """The file, what it states, and a pass of every part on random numbers."""
        pipe, config, dtype = self.pipe, self.pipe.config, self.pipe.components.network_dtype
        file = inspect_checkpoint(self.path)
        stored, size = ", ".join(file.dtypes), file.checkpoint.weights.nbytes / 1e9
        yield f"file          {self.path.name}, {size:.2f} GB, {file.checkpoint.layout} names, {stored}"
        yield f"runs in       {'as stored' if dtype is None else str(dtype).removeprefix('torch.')}"
        yield from (f"LoRA          {lora}" for lora in pipe.loras)
        space = f"{config.model.latent_space} latents{' (assumed)' if 'latent_space' in file.assumed else ''}"
        states = f"{pipe.components.text_states} states{'' if config.run.text_states else ' (assumed)'}"
        yield f"stated        {space}, {states}; checked: {config.run.checked or 'never'}"
        with pipe.network() as network:
            yield from self._passes(network)
        if config.model.in_dim != 16:
            raise UniViGUError(f"{self.path}: {config.model.in_dim} latent channels; expected Wan's 16")

    def _passes(self, network: UniViGU) -> Iterator[str]:
        config = network.config  # loading is strict: every key and shape is right from here on
        count = sum(p.numel() for p in network.parameters())
        blocks = f"{config.num_layers} blocks of width {config.dim}"
        yield f"ok  keys and shapes: {count / 1e9:.3f}B parameters, {blocks}"
        generator = torch.Generator().manual_seed(0)
        latent = torch.randn(1, config.in_dim, 2, 8, 8, generator=generator).to(self.device)
        context = torch.randn(1, 8, config.text_dim, generator=generator).to(self.device)
        tokens = torch.randint(config.vocab_size, (1, 8), generator=generator).to(self.device)
        text = tokens if config.text_flow == "discrete" else torch.randn(1, 8, config.dim).to(self.device)
        clock = torch.full((1,), 500.0, device=self.device)
        with torch.no_grad():
            velocity, logits = network(latent, text, clock, clock, context)
        for name, part in (("velocity", velocity), ("logits", logits)):
            assert part is not None
            if not bool(part.isfinite().all()):
                raise UniViGUError(
                    f"{self.path}: the {name} of a forward pass is not finite ({not_finite(part)}); try "
                    "--dtype bf16 or fp32"
                )
            yield f"ok  {name} finite: {list(part.shape)}, standard deviation {part.float().std().item():.3f}"
        text_to_video(GuidedDenoiser(network, context), latent, Sampling(steps=2))
        video_to_text(GuidedDenoiser(network), latent, Sampling(steps=2, text_length=4))
        yield "ok  two steps of each sampler"

    def raw_latents(self, clips: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.pipe.raw_latents(clips)

    def conditions_by_states(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        return self.pipe.conditions_by_states(prompts)

    def weigh(self, samples: list[Sample], **options: int) -> Verdict:
        null, components = self.pipe.null_condition, self.pipe.components

        def job(network: UniViGU) -> Verdict:
            exact, rounded = (rounded_times(network, rounding) for rounding in ("none", "bfloat16"))
            return weigh(exact, rounded, samples, null=null, progress=components.progress, **options)

        return components.on_network(job)

    def apply(self, verdict: Verdict, checked: str) -> Iterator[str]:
        pipe, config = self.pipe, self.pipe.config
        stated = config.model.latent_space, pipe.components.text_states
        found = verdict.space.best or stated[0], verdict.states.best or stated[1]
        if found != stated:
            yield (
                f"differs       stated are {stated[0]} latents and {stated[1]} states, "
                f"found {found[0]} and {found[1]}. The rest of the check uses what was found. Store that in a file "
                "with --write FILE, or pass it with --latent-space and --text-states"
            )
        model, run = verdict.applied(config.model, config.run, checked)
        pipe.run_as(replace(config, model=model, run=run))

    def generate(self, prompt: str) -> tuple[Tensor, Tensor]:
        pixels = self.pipe.generate(prompt, size=self.size, sampling=Sampling(steps=FEW_STEPS))
        assert self.pipe.sampled is not None
        return pixels, self.pipe.sampled.latent

    def caption(self, raw: Tensor) -> str:
        return self.pipe.caption(self._latent(raw), sampling=Sampling(steps=FEW_STEPS))

    def rank(self, raw: Tensor, texts: list[str]) -> Tensor:
        return self.pipe.rank(self._latent(raw), texts, Ranking(samples=1))

    def _latent(self, raw: Tensor) -> Tensor:
        return to_latent_space(raw, self.pipe.config.model.latent_space)

    def write(self, path: Path, dtype: str | None, progress: Callable[[int, int], object] | None = None) -> None:
        """The checkpoint, LoRAs merged, as a native file that says what was found, in ``dtype`` of ``convert``."""
        assert self.verdict is not None
        config: CheckpointConfig = self.pipe.config
        convert(
            self.pipe.components.path,
            path,
            dtype=dtype,
            on_progress=progress,
            loras=self.pipe.loras,
            overrides=replace(
                self.pipe.components.overrides,
                latent_space=config.model.latent_space,
                time_rounding=config.model.time_rounding,
                text_states=config.run.text_states,
                checked=config.run.checked,
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """The lines, and the verdict in numbers."""
        return {"lines": self.report, "verdict": None if self.verdict is None else self.verdict.to_json()}
