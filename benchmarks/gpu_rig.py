"""Where ``on_a_gpu.py`` tries its claims: a card, the CPU, or a fake card, and what a job asks of it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from measuring import kernels, peak, random_weights
from torch import Tensor

from uvg_core.config import ModelConfig
from uvg_core.model import UniViGU, VideoCache
from uvg_core.sampling import GuidedDenoiser, Ranking, Sampling, caption_likelihood, joint, text_to_video, video_to_text

SMALL = ModelConfig(dim=256, ffn_dim=512, num_heads=4, num_layers=2, text_dim=64, vocab_size=1000)


class NotRun(Exception):
    """Why a claim cannot be tried here."""


@dataclass(frozen=True)
class Scale:
    """How large things are: the released model at 832x480x81, or a rehearsal."""

    config: ModelConfig
    size: tuple[int, int, int]  # latent frames, height, width
    text: int
    context: int
    turns: int
    compared: ModelConfig  # what is held against the CPU
    beside_core: tuple[int, int]  # latent frames and sides of the passes beside core's Wan


FULL = ModelConfig()
RELEASED = Scale(FULL, (21, 60, 104), 256, 512, 3, replace(FULL, num_layers=2, vocab_size=32_000), (12, 32))
REHEARSAL = Scale(SMALL, (2, 8, 8), 16, 8, 2, replace(SMALL, dim=384, num_heads=3), (1, 4))


@dataclass(frozen=True)
class Counts:
    """Of one job: bytes at its peak beside what was there before, waits for the card, kernels."""

    peak: int
    waits: int | None = None
    launches: int | None = None


@dataclass
class Rig:
    """Where claims are tried: ``kind`` is cuda, cpu or fake."""

    kind: str
    scale: Scale
    card: Any = None  # a fake one
    models: dict[ModelConfig, UniViGU] = field(default_factory=dict)
    beside_core: list[dict[str, Any]] = field(default_factory=list)
    inside: Any = None  # a process in ComfyUI
    opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.kind == "cpu" else "cuda")

    def timed_only_here(self) -> None:
        if self.kind == "fake":
            raise NotRun("a fake card computes nothing")

    def network(self, blocks: int | None = None) -> UniViGU:
        """The network at this scale in bfloat16 with random weights; the last one made is kept."""
        config = self.scale.config if blocks is None else replace(self.scale.config, num_layers=blocks)
        if config not in self.models:
            self.models.clear()
            self.free()
            if self.kind == "fake":
                made = self.card.takes(UniViGU(config, device="meta", dtype=torch.bfloat16))
                self.models[config] = made.eval().requires_grad_(False)
            else:
                self.models[config] = random_weights(config, self.device)
        return self.models[config]

    def close(self) -> None:
        """Let go of networks and processes."""
        self.models.clear()
        self.inside = None
        self.opened.close()
        self.free()

    def free(self) -> None:
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Noise, context and null context."""
        scale, device, width = self.scale, self.device, self.scale.config.text_dim
        return {
            "noise": torch.zeros(1, scale.config.in_dim, *scale.size, device=device).normal_(),
            "context": torch.zeros(1, scale.context, width, device=device).normal_(),
            "null_context": torch.zeros(1, scale.context, width, device=device),
        }

    def words(self, rows: int = 1) -> Tensor:
        return torch.randint(self.scale.config.vocab_size, (rows, self.scale.text))  # on the CPU, as tokenizers give it

    def count(self, job: Callable[[], Any]) -> Counts:
        """Run a job and count what it asked of the device."""
        if self.kind == "fake":
            self.card.begin()
            job()
            return Counts(self.card.beside, sum(self.card.waits.values()), sum(self.card.launches.values()))
        if self.kind == "cpu":
            return Counts(peak(job, self.device))
        job()  # workspaces, autotuning and pinned memory are there from here on
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                job()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchroniz" in str(one.message) for one in heard)
        return Counts(peak(job, self.device), waits, kernels(job))

    def counted_jobs(self) -> dict[str, Callable[[UniViGU, int], Any]]:
        """The jobs by name, as functions of the network and a number of steps."""
        given, words, text = self.inputs, self.words(), self.scale.text
        noise, conditions = given["noise"], (given["context"], given["null_context"])

        def guided(model: UniViGU) -> GuidedDenoiser:
            return GuidedDenoiser(model, *conditions, guidance_scale=5.0)

        def caption(policy: str, model: UniViGU, steps: int, cache: VideoCache | None = None) -> Any:
            settings = Sampling(steps=steps, text_length=text, video_cache=policy)
            return video_to_text(GuidedDenoiser(model), noise, settings, cache=cache)

        def kept(place: str, model: UniViGU, steps: int) -> Any:
            return caption("static", model, steps, VideoCache(place=place, fp8=True))

        return {
            "text to video": lambda model, steps: text_to_video(
                guided(model), noise, Sampling(steps=steps), text=words
            ),
            "video to text, exact": partial(caption, "off"),
            "video to text, static": partial(caption, "static"),
            "video to text, float8 cache on the card": partial(kept, "device"),
            "video to text, cache on the host": partial(kept, "host"),
            "joint": lambda model, steps: joint(guided(model), noise, Sampling(steps=steps, text_length=text)),
            "ranking": lambda model, steps: caption_likelihood(
                GuidedDenoiser(model), noise, self.words(2), Ranking(samples=steps, batch=2, video_cache="off")
            ),
        }
