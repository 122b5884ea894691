"""The check of what ComfyUI has loaded: a MODEL's losses, a CLIP's states of both kinds, and one of each job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.latent_formats
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor

from ...uvg_core.config import TEXT_STATES
from ...uvg_core.errors import UniViGUError
from ...uvg_core.media.null_embedding import read_null_embedding
from ...uvg_core.media.text_encoder import as_plain_t5
from ...uvg_core.media.vae import latent_shape
from ...uvg_core.pipeline.check import FEW_STEPS, Check, loss_size
from ...uvg_core.pipeline.components import LARGE_BYTES
from ...uvg_core.pipeline.evidence import Predict, Sample, Verdict, weigh
from ...uvg_core.progress import Report
from ...uvg_core.sampling import Ranking, Sampling
from .captions import AT_ONCE, describe, rank
from .conditioning import encode_prompt, tokenizer_of, with_tokens_of
from .folders import NO_FILE, file_path
from .latents import decode_latent, empty_latent, encode_pixels, require_video_vae
from .model import RawWan, UniViGUModel
from .network import HostedNetwork, config_of, run_facts
from .precision import all_finite
from .sampling import Conditions, Core, HostDenoiser, run_on_clip, sample_with_core

try:
    from comfyui_version import __version__ as COMFYUI
except ImportError:
    COMFYUI = "unknown"


class NodeCheck(Check):
    """The check of a MODEL, with whatever LoRA is on it; ``model`` is the one that runs as found, afterwards.

    Raises UniViGUError for another MODEL, CLIP or VAE."""

    def __init__(self, model: Any, clip: Any, vae: Any, null_embedding: str, progress: Report) -> None:
        self.model, self.clip, self.vae, self.progress = model, clip, vae, progress
        super().__init__(
            device=model.load_device,
            run=run_facts(model),
            tokenizer=tokenizer_of(clip),
            large=model.model_size() > LARGE_BYTES,
            remedy="try another latent_space, or weight_dtype bf16 or fp32, in Load Uni-ViGU",
        )
        require_video_vae(vae)
        self.config, self.null = config_of(model), None
        if null_embedding != NO_FILE:
            self.null = read_null_embedding(file_path("null_embedding", null_embedding), self.config.text_dim)

    def about(self) -> Iterator[str]:
        inner = self.model.model
        dtypes = f"{inner.get_dtype()}, computing in {inner.get_dtype_inference()}".replace("torch.", "")
        states = self.run.text_states or "umT5 (assumed)"
        yield f"ComfyUI       {COMFYUI}"
        yield f"model         {self.model.model_size() / 1e9:.2f} GB, {dtypes}"
        checked = self.run.checked or "never"
        yield f"stated        {self.config.latent_space} latents, {states} states; checked: {checked}"

    def raw_latents(self, clips: Sequence[Tensor]) -> Sequence[Tensor]:
        return [encode_pixels(self.vae, pixels).cpu().float() for pixels in clips]

    def conditions_by_states(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """From one umT5 that is loaded once. Raises UniViGUError for a CLIP that was loaded with the release's states:
        it lacks the position biases that umT5 needs."""
        encoder = self.clip.cond_stage_model.umt5xxl
        if not encoder.zero_out_masked:
            raise UniViGUError(
                "found a CLIP that was loaded with text_states release; expected umT5, from which both kinds are "
                "computed: set text_states of Load Uni-ViGU to umT5 for the check"
            )

        def states() -> Tensor:
            tokens = map(self.clip.tokenize, prompts)
            return torch.cat([self.clip.encode_from_tokens(one).float().cpu() for one in tokens])

        found = {TEXT_STATES[0]: states()}
        try:
            encoder.zero_out_masked = False
            with as_plain_t5(encoder.transformer):
                found[TEXT_STATES[1]] = states()
        finally:
            encoder.zero_out_masked = True
        return found

    def weigh(self, samples: list[Sample], **options: int) -> Verdict:
        inner = self.model.model

        def job(denoise: HostDenoiser, clean: Tensor) -> Verdict:
            def sent(by_kind: Mapping[str, Tensor]) -> dict[str, Tensor]:
                return {kind: states.to(clean.device) for kind, states in by_kind.items()}

            there = [
                replace(one, raw=one.raw.to(clean.device), prompted=sent(one.prompted), unprompted=sent(one.unprompted))
                for one in samples
            ]
            inner.float16.start(inner)
            exact, rounded = (_predictor(denoise.network, inner, rounding) for rounding in ("none", "bfloat16"))
            return weigh(exact, rounded, there, null=self.null, progress=self.progress, **options)

        longest = max(len(one.ids) for one in samples)
        return run_on_clip(self.model, job, samples[0].raw, Sampling(steps=1, text_length=longest))

    def apply(self, verdict: Verdict, checked: str) -> Iterator[str]:
        """Text states are the CLIP's: its loader sets them."""
        config, run = verdict.applied(self.config, self.run, checked)
        self.model = self.model.clone()
        self.model.add_object_patch("diffusion_model.config", config)
        self.model.add_object_patch("run_facts", run)
        if config.latent_space != self.config.latent_space:
            formats = {"raw": RawWan, "normalised": comfy.latent_formats.Wan21}
            self.model.add_object_patch("latent_format", formats[config.latent_space]())
        if verdict.states.best == "release":
            yield "set text_states of Load Uni-ViGU to release, or save the model and load it again"

    def generate(self, prompt: str) -> tuple[Tensor, Tensor]:
        run, positive = run_facts(self.model), encode_prompt(self.clip, prompt, None)
        negative = with_tokens_of(positive, encode_prompt(self.clip, "", ""))
        conditions = Conditions(positive, negative, run.guidance_scale)
        sampling = Sampling(steps=FEW_STEPS).resolved(run)
        frames, height, width = loss_size(self.run, self.size, self.large, self.device)
        empty = {"samples": empty_latent(latent_shape(frames, height, width))}
        latent = sample_with_core(self.model, empty, conditions, sampling, Core(), seed=0)
        return decode_latent(self.vae, latent), latent

    def caption(self, raw: Tensor) -> str:
        return describe(self.model, self.clip, raw, Sampling(steps=FEW_STEPS))[1]

    def rank(self, raw: Tensor, texts: list[str]) -> Tensor:
        return rank(self.model, self.clip, raw, texts, Ranking(samples=1, batch=AT_ONCE))


def _predictor(host: HostedNetwork, inner: UniViGUModel, rounding: str) -> Predict:
    config = replace(host.config, time_rounding=rounding)

    def predict(video: Tensor, ids: Tensor, mask: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        throw_exception_if_processing_interrupted()
        kept, host.config = host.config, config
        try:
            dtype = inner.get_dtype_inference()
            found = host(video.to(dtype), time, condition.to(dtype), {}, text_tokens=ids, text_mask=mask)
            if dtype == torch.float16 and not all_finite(found):
                inner.float16.widen(inner, tuple(video.shape))
                found = host(video.float(), time, condition.float(), {}, text_tokens=ids, text_mask=mask)
        finally:
            host.config = kept
        assert isinstance(found, Tensor)
        return found

    return predict
