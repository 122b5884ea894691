"""Editing by words inside ComfyUI, with Uni-ViGU and with core's Wan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.model_base
import torch
from torch import Tensor

from ...uvg_core.config import ModelConfig
from ...uvg_core.errors import UniViGUError
from ...uvg_core.media.vae import TEMPORAL
from ...uvg_core.sampling import Editing, Sampling, State, Worded, edit, edit_sigmas
from .conditioning import encode_prompt, tokenizer_of
from .network import HostedNetwork, run_facts
from .sampling import Conditions, HostDenoiser, guided_until, run_job, with_shift

OLD = "old words"  # beside the positive prompt, the new words


def has_text_stream(model: Any) -> bool:
    """Whether a MODEL is a Uni-ViGU, else it is core's Wan 2.1. Raises UniViGUError for other ones."""
    if isinstance(model.model.diffusion_model, HostedNetwork):
        return True
    channels = getattr(model.model.latent_format, "latent_channels", 0)
    if not isinstance(model.model, comfy.model_base.WAN21) or channels != ModelConfig().in_dim:
        raise UniViGUError(
            f"found a MODEL of another kind ({type(model.model).__name__}), expected a Uni-ViGU or Wan 2.1: load the "
            "checkpoint with Load Uni-ViGU or Load Diffusion Model"
        )
    return False


class Words(NamedTuple):
    """Both captions of an edit as CONDITIONING and, for the text stream, as ids ``[1,L]``, None without one; and what
    guidance leads away from."""

    conditions: tuple[list[Any], list[Any]]
    texts: tuple[Tensor | None, Tensor | None]
    negative: list[Any]

    @classmethod
    def encoded(cls, model: Any, clip: Any, captions: tuple[str, str], negative: list[Any] | None = None) -> Words:
        """``captions``: what describes the clip and what shall; ``negative``: None is the empty prompt."""
        old, new = (encode_prompt(clip, text, "") for text in captions)
        tokenizer, has_stream = tokenizer_of(clip), has_text_stream(model)
        before, after = (torch.tensor([tokenizer.ids(text)]) if has_stream else None for text in captions)
        return cls((old, new), (before, after), encode_prompt(clip, "", "") if negative is None else negative)


def edit_clip(
    model: Any,
    latent: Tensor,
    words: Words,
    sampling: Sampling,
    editing: Editing,
    *,
    free: Tensor | None = None,
    watch: Callable[[int, State], object] | None = None,
) -> Tensor:
    """A clip's clean latent ``[1,16,F,h,w]`` in the VAE's space -> that of the clip as its words have changed.

    ``sampling``: resolved. ``free``: see ``edit``. A clip with more latent frames than the model was trained with is
    edited in windows that overlap."""
    assert sampling.shift is not None
    sigmas = torch.tensor(edit_sigmas(sampling, editing.strength))
    if len(sigmas) == 1:  # no strength, and ComfyUI would not begin
        return latent
    window = (run_facts(model).frames - 1) // TEMPORAL + 1

    def job(denoise: HostDenoiser, _: Tensor, clean: Tensor) -> tuple[Tensor, None]:
        sides = (denoise.under(OLD, editing.source_guidance), denoise)
        old, new = (Worded(side, text, window=window) for side, text in zip(sides, words.texts, strict=True))
        kept = None if free is None else free.to(clean)
        return edit(clean, old, new, sampling, editing, free=kept, callback=watch), None

    (old, new), scale = words.conditions, sampling.guidance_scale
    edited, _ = run_job(
        guided_until(with_shift(model, sampling.shift), sampling.guidance_end, sigmas),
        job,
        Conditions(new, words.negative, scale, {OLD: old}),
        sampling,
        noise=torch.zeros_like(latent),
        latent=latent,
        sigmas=sigmas,
    )
    # To the network's space and back is not quite where it was.
    return edited if free is None else torch.where(free > 0, edited, latent.to(edited))
