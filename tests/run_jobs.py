"""The jobs by keywords, as tests like to call them: settings, conditions and inputs side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import uvg_core
from uvg_core import GuidedDenoiser, JointResult, Ranking, Sampling
from uvg_core.sampling.rank import padded
from uvg_core.settings import fields_of

GUIDANCE = ("context", "null_context", "guidance_scale", "guidance_end")


def parted(network: Any, options: dict[str, Any]) -> tuple[GuidedDenoiser, Sampling, dict[str, Any]]:
    """The denoiser, the settings, and what is left of the keywords."""
    options = {"text_length" if name == "length" else name: value for name, value in options.items()}
    seed = options.get("seed")
    if seed is not None and not isinstance(seed, int):
        options["seeds"] = options.pop("seed")
    guidance = {name: options.pop(name) for name in GUIDANCE if name in options}
    settings = {name: options.pop(name) for name in fields_of(Sampling) if name in options}
    return GuidedDenoiser(network, **guidance), Sampling(**settings), options


def text_to_video(network: Any, *, noise: Tensor, **options: Any) -> Tensor:
    denoise, settings, rest = parted(network, options)
    return uvg_core.text_to_video(denoise, noise, settings, **rest)


def video_to_text(network: Any, *, video: Tensor, **options: Any) -> Tensor:
    denoise, settings, rest = parted(network, options)
    return uvg_core.video_to_text(denoise, video, settings, **rest)


def joint(network: Any, *, noise: Tensor, **options: Any) -> JointResult:
    denoise, settings, rest = parted(network, options)
    return uvg_core.joint(denoise, noise, settings, **rest)


def caption_likelihood(network: Any, *, video: Tensor, texts: Any, **options: Any) -> Tensor:
    pad, length = options.pop("pad_token", 0), options.pop("length", None)
    denoise = GuidedDenoiser(network, options.pop("context", None))
    settings = Ranking(**{name: options.pop(name) for name in fields_of(Ranking) if name in options})
    return uvg_core.caption_likelihood(denoise, video, padded(texts, pad, length), settings, **options)


def fill_template(network: Any, tokenizer: Any, template: str, *, video: Tensor, **options: Any) -> Tensor:
    given = {name: options.pop(name) for name in ("samples", "batch") if name in options}
    ranking = Ranking(**{"samples": 8, **given})
    denoise, settings, rest = parted(network, options)
    return uvg_core.fill_template(denoise, tokenizer, template, video, settings, ranking=ranking, **rest)
