"""What ``check`` needs of ComfyUI: a MODEL's losses, a CLIP's states of both kinds, and a verdict put on a MODEL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.latent_formats
import comfy.model_management
import torch
from torch import Tensor

from ...uvg_core.config import TEXT_STATES
from ...uvg_core.errors import UniViGUError
from ...uvg_core.media.text_encoder import as_plain_t5
from ...uvg_core.pipeline.evidence import Predict, Sample, Verdict, weigh
from ...uvg_core.progress import Report
from ...uvg_core.sampling import Sampling
from .conditioning import tokenizer_of
from .model import RawWan, UniViGUModel
from .network import HostedNetwork, config_of, run_facts
from .precision import all_finite
from .sampling import HostDenoiser, run_on_clip

try:
    from comfyui_version import __version__ as COMFYUI
except ImportError:
    COMFYUI = "unknown"


def conditions_by_states(clip: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Prompt conditions ``[K,S,E]`` on the CPU by kind of text states, from one umT5 that is loaded once.

    Raises UniViGUError for another CLIP, and for one that was loaded with the release's states: it lacks the position
    biases that umT5 needs."""
    tokenizer_of(clip)
    encoder = clip.cond_stage_model.umt5xxl
    if not encoder.zero_out_masked:
        raise UniViGUError(
            "found a CLIP that was loaded with text_states release; expected umT5, from which both kinds are computed: "
            "set text_states of Load Uni-ViGU to umT5 for the check"
        )

    def states() -> Tensor:
        return torch.cat([clip.encode_from_tokens(clip.tokenize(text)).float().cpu() for text in texts])

    found = {TEXT_STATES[0]: states()}
    try:
        encoder.zero_out_masked = False
        with as_plain_t5(encoder.transformer):
            found[TEXT_STATES[1]] = states()
    finally:
        encoder.zero_out_masked = True
    return found


def weigh_model(
    model: Any, samples: Sequence[Sample], null: Tensor | None, progress: Report, **options: int
) -> Verdict:
    """``weigh`` on MODEL, with whatever LoRA is on it, loaded by ComfyUI. ``options`` as of ``weigh``."""

    def job(denoise: HostDenoiser, clean: Tensor) -> Verdict:
        device = clean.device

        def sent(by_kind: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {kind: states.to(device) for kind, states in by_kind.items()}

        there = [
            replace(one, raw=one.raw.to(device), prompted=sent(one.prompted), unprompted=sent(one.unprompted))
            for one in samples
        ]
        model.model.float16.start(model.model)
        exact, rounded = (_predictor(denoise.network, model.model, rounding) for rounding in ("none", "bfloat16"))
        return weigh(exact, rounded, there, null=null, progress=progress, **options)

    longest = max(len(one.ids) for one in samples)
    return run_on_clip(model, job, samples[0].raw, Sampling(steps=1, text_length=longest))


def _predictor(host: HostedNetwork, inner: UniViGUModel, rounding: str) -> Predict:
    config = replace(host.config, time_rounding=rounding)

    def predict(video: Tensor, ids: Tensor, mask: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
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


def with_verdict(model: Any, verdict: Verdict, version: str) -> Any:
    """A clone of MODEL that runs as was found, and is saved so. Text states are the CLIP's: its loader sets them."""
    config, run = verdict.applied(config_of(model), run_facts(model), version)
    judged = model.clone()
    judged.add_object_patch("diffusion_model.config", config)
    judged.add_object_patch("run_facts", run)
    if config.latent_space != config_of(model).latent_space:
        formats = {"raw": RawWan, "normalised": comfy.latent_formats.Wan21}
        judged.add_object_patch("latent_format", formats[config.latent_space]())
    return judged
