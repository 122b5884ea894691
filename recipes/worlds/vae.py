"""The small Wan VAE of the embedded model: Wan's architecture at a fraction of its width.

After training, the two 1x1x1 convolutions at the latent are rescaled so that the latents, *normalised with Wan's own
per-channel mean and standard deviation*, have mean 0 and one common scale. The file therefore works wherever Wan's
latents are expected, and channels that carry little are not blown up to unit variance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from uvg_core.media.vae import WAN_LATENT_MEAN, WAN_LATENT_STD


def small_wan_vae(width: int) -> Any:
    """A Wan 2.1 VAE of another base width: 16 latent channels, 4x in time, 8x in space."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=width)


def _causal(tower: Any, x: Tensor, **first: bool) -> Tensor:
    """A tower over the first frame and then over all others in one chunk; differentiable."""
    cache: list[Any] = [None] * 64  # what each causal convolution keeps of the first frame; no tower has more of them
    parts = [tower(x[:, :, :1], feat_cache=cache, feat_idx=[0], **first)]
    if x.shape[2] > 1:
        parts.append(tower(x[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    return torch.cat(parts, 2)


def encode_moments(vae: Any, video: Tensor) -> Tensor:
    """Mean and log-variance ``[B,32,F,H/8,W/8]``."""
    moments: Tensor = vae.quant_conv(_causal(vae.encoder, video))
    return moments


def decode_latent(vae: Any, latent: Tensor) -> Tensor:
    """Pixels ``[B,3,T,H,W]``, about -1..1 and not clamped: a clamp would stop the gradient."""
    return _causal(vae.decoder, vae.post_quant_conv(latent), first_chunk=True)


@torch.no_grad()
def calibrate(vae: Any, video: Tensor, scale: float = 1.0) -> None:
    """Fold the change of latent coordinates described in the module's docstring into the 1x1x1 convolutions.

    ``video``: clips ``[B,3,T,H,W]`` in -1..1 whose latents shall have mean 0 and the standard deviation ``scale``."""
    latent = encode_moments(vae, video)[:, :16]
    centre = latent.mean((0, 2, 3, 4))
    spread = latent.var((0, 2, 3, 4)).sum().div(16).sqrt() / scale
    target_mean, gain = torch.tensor(WAN_LATENT_MEAN), torch.tensor(WAN_LATENT_STD) / spread
    # new = (old - centre) * gain + target_mean
    vae.quant_conv.weight[:16] *= gain.view(-1, 1, 1, 1, 1)
    vae.quant_conv.bias[:16] = (vae.quant_conv.bias[:16] - centre) * gain + target_mean
    vae.quant_conv.bias[16:] += 2 * gain.log()  # the log-variances follow their means
    weight = vae.post_quant_conv.weight.clone()
    vae.post_quant_conv.weight.copy_(weight / gain.view(1, -1, 1, 1, 1))
    vae.post_quant_conv.bias += (weight.flatten(1) * (centre - target_mean / gain)).sum(1)


@torch.no_grad()
def initialise(vae: Any) -> None:
    """Start as a network that carries the picture through: narrow and deep, it hardly learns from torch's default.

    Convolutions keep the variance of their input, residual branches start at zero, biases too - except at the two
    inputs, where a constant direction lets brightness survive the RMS norms. Time: earlier frames have no weight yet,
    halving picks the mean of two frames and doubling repeats one, so that a video starts as independent pictures.
    """
    for name, layer in vae.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            continue
        weight, bias = layer.weight, layer.bias
        assert bias is not None
        nn.init.zeros_(bias)
        if name.endswith("conv_in"):
            nn.init.normal_(bias, std=0.5)
        if name.endswith("time_conv"):
            weight.zero_()
            out = torch.arange(weight.shape[0])
            halves = weight.shape[0] == weight.shape[1]
            weight[out, out % weight.shape[1], -1] = 0.5 if halves else 1.0
            weight[out, out % weight.shape[1], -2] = 0.5 if halves else 0.0
            continue
        in_time = weight.ndim == 5 and weight.shape[2] == 3
        fan_in = weight[0, :, -1].numel() if in_time else weight[0].numel()
        nn.init.normal_(weight, std=fan_in**-0.5)
        if in_time:
            weight[:, :, :-1] = 0
        if name.endswith("conv2"):
            weight.zero_()
    # The log-variances start small: drowned in noise at first, the latent would never be used at all.
    half = vae.quant_conv.weight.shape[0] // 2
    vae.quant_conv.weight[half:] = 0
    vae.quant_conv.bias[half:] = -5
