"""Train the small Wan VAE of the embedded model: Wan's architecture at a fraction of its width.

After training, the two 1x1x1 convolutions at the latent are rescaled so that the latents, *normalised with Wan's own
per-channel mean and standard deviation*, have mean 0 and one common scale. The file therefore works wherever Wan's
latents are expected, and channels that carry little are not blown up to unit variance.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..codec.latents import WAN_LATENT_MEAN, WAN_LATENT_STD
from .worlds import World, all_worlds, render


def small_wan_vae(width: int) -> Any:
    """A Wan 2.1 VAE of another base width: 16 latent channels, 4x in time, 8x in space."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=width, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[])


def encode_moments(vae: Any, video: Tensor) -> Tensor:
    """Mean and log-variance ``[B,32,F,H/8,W/8]``; all frames after the first in one causal chunk, differentiable."""
    vae.clear_cache()
    first = vae.encoder(video[:, :, :1], feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx)
    if video.shape[2] > 1:
        vae._enc_conv_idx = [0]
        rest = vae.encoder(video[:, :, 1:], feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx)
        first = torch.cat([first, rest], 2)
    vae.clear_cache()
    return vae.quant_conv(first)


def decode_latent(vae: Any, latent: Tensor) -> Tensor:
    """Pixels ``[B,3,T,H,W]``, about -1..1 and not clamped: a clamp would stop the gradient. Chunks as above."""
    vae.clear_cache()
    x = vae.post_quant_conv(latent)
    first = vae.decoder(x[:, :, :1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=True)
    if latent.shape[2] > 1:
        vae._conv_idx = [0]
        first = torch.cat([first, vae.decoder(x[:, :, 1:], feat_cache=vae._feat_map, feat_idx=vae._conv_idx)], 2)
    vae.clear_cache()
    return first


def random_batch(worlds: list[World], count: int, side: int, frames: int, generator: torch.Generator) -> Tensor:
    """Random clips ``[B,3,T,S,S]`` in -1..1."""
    picks = torch.randint(len(worlds), (count,), generator=generator).tolist()
    clips = [render(worlds[i], side=side, frames=frames, generator=generator) for i in picks]
    return torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def calibrate(vae: Any, video: Tensor, scale: float = 1.0) -> None:
    """Fold the change of latent coordinates described in the module's docstring into the 1x1x1 convolutions."""
    with torch.no_grad():
        mean_latent = encode_moments(vae, video)[:, :16]
        centre = mean_latent.mean((0, 2, 3, 4))
        spread = mean_latent.var((0, 2, 3, 4)).sum().div(16).sqrt() / scale
        target_mean = torch.tensor(WAN_LATENT_MEAN)
        target_std = torch.tensor(WAN_LATENT_STD)
        gain = target_std / spread  # new = (old - centre) * gain + target_mean
        vae.quant_conv.weight[:16] *= gain.view(-1, 1, 1, 1, 1)
        vae.quant_conv.bias[:16] = (vae.quant_conv.bias[:16] - centre) * gain + target_mean
        vae.quant_conv.bias[16:] += 2 * gain.log()  # the log-variances follow their means
        weight = vae.post_quant_conv.weight.clone()
        vae.post_quant_conv.weight.copy_(weight / gain.view(1, -1, 1, 1, 1))
        vae.post_quant_conv.bias += (weight.flatten(1) * (centre - target_mean / gain)).sum(1)


def initialise(vae: Any) -> None:
    """Start as a network that carries the picture through: narrow and deep, it hardly learns from torch's default.

    Convolutions keep the variance of their input, residual branches start at zero, biases too - except at the two
    inputs, where a constant direction lets brightness survive the RMS norms. Time: earlier frames have no weight yet,
    halving picks the mean of two frames and doubling repeats one, so that a video starts as independent pictures.
    """
    with torch.no_grad():
        for name, layer in vae.named_modules():
            if not isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                continue
            weight, bias = layer.weight, layer.bias
            assert bias is not None
            if name.endswith("conv_in"):
                nn.init.normal_(bias, std=0.5)
            else:
                nn.init.zeros_(bias)
            if name.endswith("time_conv"):
                weight.zero_()
                halves = weight.shape[0] == weight.shape[1]
                for out in range(weight.shape[0]):
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


def train_vae(
    out: Path,
    *,
    width: int = 16,
    side: int = 48,
    frames: int = 9,
    minutes: float = 16.0,
    seed: int = 0,
    go_on: bool = False,
) -> Any:
    """Train for ``minutes`` and save the diffusers state dict to ``out``; prints PSNR in dB as it goes.

    The first 40 % of the time sees single pictures only (they are cheap), the rest clips. ``go_on`` starts from what
    ``out`` holds, with clips from the beginning."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    worlds = list(all_worlds())
    vae = small_wan_vae(width).train()
    if go_on:
        vae.load_state_dict(torch.load(out, weights_only=True))
    else:
        initialise(vae)
    peak = 2e-3 if go_on else 3e-3
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.0)
    start, step = time.time(), 0
    while (spent := (time.time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 30) * (0.5 + 0.5 * math.cos(math.pi * spent)) + 1e-6
        pictures = spent < 0.4 and not go_on
        video = random_batch(worlds, 16 if pictures else 4, side, 1 if pictures else frames, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean, logvar = encode_moments(vae, video).float().chunk(2, 1)
            logvar = logvar.clamp(-12, 4)
            latent = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
            decoded = decode_latent(vae, latent).float()
        error = decoded - video
        # The object fills a tenth of the picture: weigh its pixels up, or the background is all that is learned.
        ground = video[..., :1, :1]
        weight = 1 + 4 * ((video - ground).abs().amax(1, keepdim=True) > 0.05).float()
        reconstruction = (weight * (error.abs() + error.square())).mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction + 3e-4 * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            psnr = -10 * (error.square().mean() / 4).log10().item()
            print(
                f"vae {step:5d}  {60 * minutes * spent:5.0f}s  loss {loss.item():.4f}  psnr {psnr:5.2f} dB  "
                f"kl {divergence.item():.3f}",
                flush=True,
            )
            torch.save(vae.state_dict(), out)
        step += 1
    calibrate(vae, random_batch(worlds, 64, side, frames, generator))
    torch.save(vae.state_dict(), out)
    return vae
