"""Latents of one stream and of two, and what turns them into pixels and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.ldm.wan.vae
import comfy.model_management
import comfy.nested_tensor
import comfy.taesd.taehv
import torch
from torch import Tensor

from ...uvg_core.config import ModelConfig, RunConfig
from ...uvg_core.errors import UniViGUError
from ...uvg_core.flow.embedding import nearest_tokens
from .network import network_of

WAN_VAE_WIDTH = 96
RUN, DTYPES = "uni_vigu_run", "uni_vigu_dtypes"  # attachments of a VAE


def require_video_latent(samples: Any, config: ModelConfig) -> None:
    """Raise UniViGUError unless ``samples`` are a video latent ``[B,16,F,H,W]`` of this model."""
    if getattr(samples, "is_nested", False):
        raise UniViGUError(
            "found a latent with a text stream (nested); expected the video alone: take it out with Split Uni-ViGU "
            "Latent"
        )
    if samples.ndim != 5 or samples.shape[1] != config.in_dim:
        raise UniViGUError(
            f"found a latent of shape {list(samples.shape)}; expected [batch, {config.in_dim}, frames, height/8, "
            "width/8]: it was made for another model. Make it with Empty Uni-ViGU Latent, or with Encode Video for "
            "Uni-ViGU and the VAE of Load Uni-ViGU"
        )


def nested(video: Tensor, text: Tensor) -> Any:
    """A latent of two streams."""
    return comfy.nested_tensor.NestedTensor((video, text))


def streams_of(latent: Mapping[str, Any]) -> list[Tensor]:
    """Video ``[B,C,F,H,W]`` and, in a nested latent, text ``[B,D,L]``."""
    samples = latent["samples"]
    return samples.unbind() if getattr(samples, "is_nested", False) else [samples]


def masks_of(latent: Mapping[str, Any]) -> list[Tensor | None]:
    """The masks of video and text of a LATENT, None where all of a stream is free. ComfyUI means the video by a mask
    that is not nested."""
    mask = latent.get("noise_mask")
    if mask is None:
        return [None, None]
    return [*(mask.unbind() if getattr(mask, "is_nested", False) else [mask]), None][:2]


def clips_of(latent: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Clips of a LATENT, by their places, each with its mask and its place in the batch that noise is drawn for."""
    count = len(latent["samples"])
    known = latent.get("batch_index") or range(count)
    found = {**latent, "samples": latent["samples"][list(rows)], "batch_index": [known[row] for row in rows]}
    mask = latent.get("noise_mask")
    if mask is not None and mask.shape[0] == count:
        found["noise_mask"] = mask[list(rows)]
    return found


def video_mask(mask: Tensor, video: Tensor) -> Tensor:
    """A mask, as core's nodes make it, for a video latent ``[B,C,F,h,w]``: ``[B or 1,1,F,h,w]``. A place of the latent
    is as free as the freest of its pixels, so that nothing of what is to change is kept.

    Raises UniViGUError for a number of frames that is neither the clip's nor the latent's."""
    frames, rows, columns = video.shape[2:]
    pixels = 4 * (frames - 1) + 1
    if mask.ndim < 5:
        mask = mask.reshape(1, 1, -1, *mask.shape[-2:])
    count = mask.shape[2]
    if count not in (1, frames, pixels) or mask.shape[0] not in (1, len(video)) or mask.shape[1] != 1:
        raise UniViGUError(
            f"found a mask of {count} frames for {mask.shape[0]} clip(s); expected 1 frame, {pixels} as the clip has, "
            f"or {frames} as its latent has, for 1 clip or {len(video)}"
        )
    if count == pixels:  # the first frame alone, then four at a time
        mask = torch.cat([mask[:, :, :1].expand(-1, -1, 4, -1, -1), mask[:, :, 1:]], 2)
    pooled = torch.nn.functional.adaptive_max_pool3d(mask.float(), (min(count, frames), rows, columns))
    return pooled.expand(-1, -1, frames, -1, -1)


def empty_latent(shape: Sequence[int]) -> Tensor:
    return torch.zeros(tuple(shape), device=comfy.model_management.intermediate_device())


def nearest_words(model: Any, vectors: Tensor) -> Tensor:
    """Token ids ``[B,L]`` of the rows of E nearest to ``vectors`` ``[B,L,D]``, with MODEL loaded for it."""
    network = network_of(model)
    comfy.model_management.load_models_gpu([model])
    vectors = vectors.to(model.load_device)
    return nearest_tokens(network.embed, network.config.token_rows, vectors).cpu()


def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """uint8 ``[T,H,W,3]`` -> latent ``[1,16,F,h,w]`` in the VAE's space."""
    return vae.encode(pixels.float() / 255)


def decode_latent(vae: Any, latent: Tensor) -> Tensor:
    """Latent ``[1,16,F,h,w]`` in the VAE's space -> uint8 ``[T,H,W,3]``."""
    pixels = vae.decode(latent)
    return (pixels.reshape(-1, *pixels.shape[-3:]).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def is_wan_vae(vae: Any) -> bool:
    """Whether VAE speaks Wan 2.1's latents: Wan's own, or a tiny one made for them. (HunyuanVideo's and Cosmos' have 16
    channels as well.)"""
    kinds = (comfy.ldm.wan.vae.WanVAE, comfy.taesd.taehv.TAEHV)
    return isinstance(getattr(vae, "first_stage_model", None), kinds) and vae.latent_channels == 16


def belong_to(vae: Any, run: RunConfig) -> None:
    """Note on a VAE what the checkpoint that it was loaded with wants of clips."""
    vae.patcher.set_attachments(RUN, run)


def facts_of_vae(vae: Any) -> RunConfig | None:
    """What ``belong_to`` noted, None on a VAE of another loader."""
    patcher = getattr(vae, "patcher", None)
    return None if patcher is None else patcher.get_attachment(RUN)


def came_in(vae: Any, dtypes: Mapping[str, torch.dtype]) -> None:
    """Note on a VAE what its file holds its weights in: core may widen them for computing."""
    vae.patcher.set_attachments(DTYPES, dict(dtypes))


def file_dtypes_of(vae: Any) -> dict[str, torch.dtype]:
    """What ``came_in`` noted, nothing on a VAE of another loader."""
    patcher = getattr(vae, "patcher", None)
    return {} if patcher is None else patcher.get_attachment(DTYPES) or {}


def require_video_vae(vae: Any) -> None:
    """Raise UniViGUError unless VAE is one whose latents the network reads."""
    if not is_wan_vae(vae):
        raise UniViGUError(
            f"found a VAE with {getattr(vae, 'latent_channels', 'unknown')} latent channels, expected the Wan 2.1 VAE "
            "(16, video): take the VAE of Load Uni-ViGU, or Load VAE with wan_2.1_vae"
        )


def fit_preview(model: Any, vae: Any) -> None:
    """Give MODEL preview colours of its own where its VAE is not Wan's, whose colours core knows.

    Least squares from latents to the colours of pictures that are made of four plain quarters.
    """
    head = getattr(getattr(vae.first_stage_model, "decoder", None), "head", None)
    if head is None or head[0].gamma.shape[0] == WAN_VAE_WIDTH:
        return
    colours = torch.rand(16, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    latents, targets = [], []
    for quarters in colours:
        latent = vae.encode(quarters.repeat_interleave(32, 0).repeat_interleave(32, 1)[None])
        latents.append(model.model.process_latent_in(latent)[0, :, 0].flatten(1).T)
        targets.append(quarters.repeat_interleave(4, 0).repeat_interleave(4, 1).flatten(0, 1) * 2 - 1)
    rows = torch.cat(latents).cpu().float()
    fitted = torch.linalg.lstsq(torch.cat([rows, torch.ones(len(rows), 1)], 1), torch.cat(targets)).solution
    model.model.latent_format.latent_rgb_factors = fitted[:-1].tolist()
    model.model.latent_format.latent_rgb_factors_bias = fitted[-1].tolist()
