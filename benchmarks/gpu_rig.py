"""Where ``on_a_gpu.py`` tries its claims: a card, the CPU, or a fake card, and what a job asks of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from measuring import Job, kernels
from networks import meta_network, random_network
from torch import Tensor

from uvg_core.config import ModelConfig
from uvg_core.model import PassOptions, UniViGU, VideoCache
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
    beside_core: list[int]  # latent frames and sides of the passes beside core's Wan


FULL = ModelConfig()
RELEASED = Scale(FULL, (21, 60, 104), 256, 512, 3, replace(FULL, num_layers=2, vocab_size=32_000), [12, 32, 32])
REHEARSAL = Scale(SMALL, (2, 8, 8), 16, 8, 2, replace(SMALL, dim=384, num_heads=3), [1, 4, 4])


@dataclass(frozen=True)
class Counts:
    """Of one job: bytes at its peak beside what was there before, waits for the card, kernels."""

    peak: int
    waits: int
    launches: int


@dataclass(eq=False)
class Rig:
    """Where claims are tried: ``kind`` is cuda, cpu or fake."""

    kind: str
    scale: Scale
    card: Any = None  # a fake one
    models: dict[ModelConfig, UniViGU] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.kind == "cpu" else "cuda")

    def network(self, blocks: int | None = None) -> UniViGU:
        """The network at this scale in bfloat16 with random weights; the last one made is kept."""
        config = self.scale.config if blocks is None else replace(self.scale.config, num_layers=blocks)
        if config not in self.models:
            self.clear()
            fake = self.kind == "fake"
            made = self.card.takes(meta_network(config)) if fake else random_network(config, self.device)
            self.models[config] = made
        return self.models[config]

    def clear(self) -> None:
        """Give back the memory of the network."""
        self.models.clear()
        torch.cuda.empty_cache()

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """Noise and context."""
        scale, device = self.scale, self.device
        noise = torch.zeros(1, scale.config.in_dim, *scale.size, device=device).normal_()
        return noise, torch.zeros(1, scale.context, scale.config.text_dim, device=device).normal_()

    def words(self, rows: int = 1) -> Tensor:
        return torch.randint(self.scale.config.vocab_size, (rows, self.scale.text))  # on the CPU, as tokenizers give it

    def one_pass(self, model: UniViGU, rows: int = 1, logits: int = 0) -> Job:
        """A pass over ``rows`` clips with their texts, with logits of the first ``logits`` of them."""
        noise, context = (given.expand(rows, *given.shape[1:]) for given in self.inputs)
        words, clock = self.words(rows).to(self.device), torch.zeros(rows, device=self.device)
        options = PassOptions(want_logits=slice(0, logits) if logits else False)
        return partial(torch.no_grad()(model.forward), noise, words, clock + 500, clock, context, options=options)

    def count(self, job: Job) -> Counts:
        """Run a job and count what it asked of the device. Raises NotRun on a CPU, once the job has run."""
        if self.kind == "fake":
            self.card.begin()
            job()
            return Counts(self.card.beside, sum(self.card.waits.values()), sum(self.card.launches.values()))
        job()  # workspaces, autotuning and pinned memory are there from here on
        if self.kind == "cpu":
            raise NotRun("waits, kernels and memory are a card's")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                job()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        peak = torch.cuda.max_memory_allocated() - before
        return Counts(peak, sum("synchroniz" in str(one.message) for one in heard), kernels(job))

    def counted_jobs(self) -> dict[str, Callable[[UniViGU, int], Any]]:
        """The jobs by name, as functions of the network and a number of steps."""
        (noise, context), words, text = self.inputs, self.words(), self.scale.text

        def guided(model: UniViGU) -> GuidedDenoiser:
            return GuidedDenoiser(model, context, torch.zeros_like(context), guidance_scale=5.0)

        def caption(policy: str, place: str | None, model: UniViGU, steps: int) -> Any:
            settings = Sampling(steps=steps, text_length=text, video_cache=policy)
            cache = VideoCache(place=place, fp8=True) if place else None
            return video_to_text(GuidedDenoiser(model), noise, settings, cache=cache)

        return {
            "text to video": lambda model, steps: text_to_video(
                guided(model), noise, Sampling(steps=steps), text=words
            ),
            "video to text, exact": partial(caption, "off", None),
            "video to text, static": partial(caption, "static", None),
            "video to text, float8 cache on the card": partial(caption, "static", "device"),
            "video to text, cache on the host": partial(caption, "static", "host"),
            "joint": lambda model, steps: joint(guided(model), noise, Sampling(steps=steps, text_length=text)),
            "ranking": lambda model, steps: caption_likelihood(
                GuidedDenoiser(model), noise, self.words(2), Ranking(samples=steps, batch=2, video_cache="off")
            ),
        }
