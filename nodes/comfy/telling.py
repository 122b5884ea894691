"""Clips of a story inside ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...uvg_core.flow.schedule import video_sigmas
from ...uvg_core.media.vae import with_ends
from ...uvg_core.pipeline.story import Window
from ...uvg_core.sampling import Sampling, State, joint
from .conditioning import encode_prompt, tokenizer_of, with_tokens_of
from .latents import decode_latent, empty_latent, encode_pixels
from .sampling import Conditions, Core, prepare_noise, run_job, sample_with_core, with_shift


@dataclass(frozen=True)
class HostDrawing:
    """How ComfyUI draws the clips of a story: a ``Draw`` of uvg_core's. ``shape``: of their latents; ``sampling``:
    resolved; ``joint``: each with its caption; ``watch``: called in a joint run."""

    model: Any
    clip: Any
    vae: Any
    shape: tuple[int, ...]
    sampling: Sampling
    negative: list[Any] | None = None
    joint: bool = False
    watch: Callable[[int, State], object] | None = None

    def __call__(self, prompt: str, begin: Tensor | None, seed: int) -> Window:
        """See ``Draw``."""
        latent = {"samples": empty_latent(self.shape)}
        if begin is not None:
            clean, free = with_ends(latent["samples"], partial(encode_pixels, self.vae), begin)
            latent = {"samples": clean, "noise_mask": free}
        negative = encode_prompt(self.clip, "", "") if self.negative is None else self.negative
        positive = encode_prompt(self.clip, prompt, None)
        conditions = Conditions(positive, with_tokens_of(positive, negative), self.sampling.guidance_scale)
        if self.joint:
            samples, text = self._jointly(latent, conditions, seed)
        else:
            samples, text = sample_with_core(self.model, latent, conditions, self.sampling, Core(), seed), ""
        return Window(decode_latent(self.vae, samples), text)

    def _jointly(self, latent: dict[str, Any], conditions: Conditions, seed: int) -> tuple[Tensor, str]:
        steps, shift, free = self.sampling.steps, self.sampling.shift, latent.get("noise_mask")
        assert steps is not None
        assert shift is not None
        seeded = replace(self.sampling, seed=seed)

        def job(denoise: Any, noise: Any, clean: Any) -> tuple[Any, Any]:
            kept = None if free is None else (clean, free.to(noise))
            return joint(denoise, noise, seeded, kept=kept, callback=self.watch)

        samples, tokens = run_job(
            with_shift(self.model, shift),
            job,
            conditions,
            seeded,
            noise=prepare_noise(latent, seed),
            latent=latent["samples"],
            sigmas=video_sigmas(steps, shift),
        )
        if free is not None:  # to the network's space and back is not quite where it was
            samples = torch.where(free > 0, samples, latent["samples"].to(samples))
        return samples, tokenizer_of(self.clip).text(tokens.cpu()[0])
