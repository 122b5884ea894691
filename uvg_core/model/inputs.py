"""Inputs of the network: what they must be, and the features of a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UniViGUError

PERIOD = 10000.0


def time_features(time_B: Tensor, dim: int) -> Tensor:
    """Sinusoidal features ``[B,dim]`` of times 0..1000, float32, cosines before sines (as Wan2.1)."""
    half = dim // 2
    time_B = time_B.float()
    frequency = torch.pow(PERIOD, -torch.arange(half, device=time_B.device).to(time_B).div(half))
    angle = torch.outer(time_B, frequency)
    return torch.cat([angle.cos(), angle.sin()], 1)


def check_inputs(
    config: ModelConfig,
    video: Tensor,
    text: Tensor,
    times: dict[str, Tensor],
    context: Tensor,
    text_mask: Tensor | None,
) -> None:
    """Raise UniViGUError for an input of ``UniViGU.forward`` that does not fit the network."""
    if video.ndim != 5 or video.shape[1] != config.in_dim:
        raise UniViGUError(
            f"video latent has shape {list(video.shape)}; expected [batch, {config.in_dim}, frames, height, width]"
        )
    for name, size, patch in zip(("frames", "height", "width"), video.shape[2:], config.patch_size, strict=True):
        if size == 0 or size % patch:
            raise UniViGUError(
                f"video latent has {name} {size}, which is off the model's grid: use a multiple of {patch} "
                f"(in pixels: sides that are multiples of {8 * config.patch_size[1]}, 4n+1 frames)"
            )
    if context.ndim != 3 or context.shape[-1] != config.text_dim:
        raise UniViGUError(
            f"prompt condition has shape {list(context.shape)}; expected [batch, rows, {config.text_dim}]: "
            "it comes from a text encoder of another width; load the encoder this checkpoint was trained with"
        )
    _check_text(config, text)
    for name, given in {"text stream": text, "prompt condition": context, **times}.items():
        if given.shape[0] != video.shape[0]:
            raise UniViGUError(
                f"the {name} has a batch of {given.shape[0]}, the video one of {video.shape[0]}; expected the same"
            )
    if text_mask is not None and text_mask.shape != text.shape[:2]:
        raise UniViGUError(f"text mask has shape {list(text_mask.shape)}; the text stream has {list(text.shape[:2])}")


def _check_text(config: ModelConfig, text: Tensor) -> None:
    if config.text_flow == "embedding":
        expected = f"vectors [batch, tokens, {config.dim}]"
        fits = text.is_floating_point() and text.ndim == 3 and text.shape[-1] == config.dim
        fits = fits or (text.ndim == 2 and not text.shape[1])  # an empty stream is of either kind
    else:
        expected, fits = "token ids [batch, tokens]", text.ndim == 2 and not text.is_floating_point()
    if not fits:
        raise UniViGUError(
            f"text stream has shape {list(text.shape)} ({text.dtype}); this checkpoint's text flow is "
            f"{config.text_flow}: expected {expected}"
        )
