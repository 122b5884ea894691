"""Train the small Wan VAE of the embedded model: Wan's architecture at a fraction of its width.

After training, the two 1x1x1 convolutions at the latent are rescaled so that the latents, *normalised with Wan's own
per-channel mean and standard deviation*, have mean 0 and one common scale. The file therefore works wherever Wan's
latents are expected, and channels that carry little are not blown up to unit variance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvg_core.io import written_whole
from uvg_core.media.vae import WAN_LATENT_MEAN, WAN_LATENT_STD

from .world import REACH, Placing, World, coverage, draw, place, random_world


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


def random_clips(
    count: int, side: int, frames: int, generator: torch.Generator, *, held_out: bool = False, tight: bool = False
) -> tuple[Tensor, Tensor]:
    """Random clips ``[B,3,T,S,S]`` in -1..1, a third of them with two objects, and where the objects' boxes are:
    ``[B,1,T,S,S]`` in 0 and 1. ``held_out``: the combinations and the handwriting that are kept for testing. Boxes are
    as wide as the widest kind of that size, or ``tight`` around what is painted."""
    clips, boxes = [], []
    for _ in range(count):
        objects = 1 + int(torch.rand((), generator=generator) < 1 / 3)
        world = random_world(generator, objects=objects, held_out=held_out)
        placed = place(world, frames, generator, split="test" if held_out else "train")
        clips.append(draw(world, placed, side))
        boxes.append(_tight_boxes(world, placed, side) if tight else _boxes(placed, side))
    return torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1, torch.stack(boxes)[:, None]


def _boxes(placed: list[Placing], side: int) -> Tensor:
    """1 inside the box around any object, ``[T,S,S]``."""
    axis = (torch.arange(side) + 0.5) / side
    inside = torch.zeros(len(placed[0].radii), side, side)
    for at in placed:
        near = (axis - at.centres[..., None]).abs() <= REACH * at.radii[:, None, None]
        inside = torch.maximum(inside, (near[:, 1, :, None] & near[:, 0, None, :]).float())
    return inside


def _tight_boxes(world: World, placed: list[Placing], side: int) -> Tensor:
    """1 inside the smallest box around any object's painted pixels, ``[T,S,S]``."""
    inside = torch.zeros(len(placed[0].radii), side, side)
    for thing, at in zip(world.things, placed, strict=True):
        painted = coverage(thing, at, side) > 0
        rows, columns = _between(painted.any(2)), _between(painted.any(1))
        inside = torch.maximum(inside, (rows[:, :, None] & columns[:, None]).float())
    return inside


def _between(marked: Tensor) -> Tensor:
    """True from the first to the last True of every row."""
    counts = marked.int()
    return (counts.cumsum(1) > 0) & (counts.flip(1).cumsum(1).flip(1) > 0)


@dataclass(frozen=True)
class Reconstruction:
    """Peak signal-to-noise ratio in dB over a set of clips: whole pictures, and inside the objects' tight boxes."""

    psnr: float
    psnr_boxes: float


@torch.no_grad()
def reconstruction(vae: Any, *, side: int, frames: int, clips: int = 64, seed: int = 7) -> Reconstruction:
    """How well held-out worlds come back from the latents' means, as 8-bit pictures would show them (clamped)."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(2, dtype=torch.float64)
    inside = 0.0
    for start in range(0, clips, 16):
        video, boxes = random_clips(min(16, clips - start), side, frames, generator, held_out=True, tight=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoded = decode_latent(vae, encode_moments(vae, video)[:, :16])
        error = ((decoded.float().clamp(-1, 1) - video) / 2).square()
        total += torch.stack([error.mean() * len(video), (error.mean(1, keepdim=True) * boxes).sum()]).double()
        inside += float(boxes.sum())
    return Reconstruction(-10 * math.log10(float(total[0]) / clips), -10 * math.log10(float(total[1]) / inside))


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
        # The log-variances start small: drowned in noise at first, the latent would never be used at all.
        half = vae.quant_conv.weight.shape[0] // 2
        vae.quant_conv.weight[half:] = 0
        vae.quant_conv.bias[half:] = -5


KL_WEIGHT = 3e-5
KEPT_EVERY = 250  # steps after which a run that is cut off can go on


def _rate(step: int, steps: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6


def train_vae(
    out: Path,
    *,
    width: int = 16,
    side: int = 48,
    frames: int = 9,
    picture_steps: int = 1500,
    clip_steps: int = 2250,
    seed: int = 0,
    compiled: bool = True,
    say: Callable[[str], object] = print,
) -> Any:
    """Train, save the diffusers state dict to ``out`` and return the VAE.

    The first ``picture_steps`` see single pictures (they are cheap), the next ``clip_steps`` whole clips. A run that
    was cut off goes on from ``out`` with ``.part`` behind its name.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = small_wan_vae(width).train()
    initialise(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.97), weight_decay=0.0, fused=True)
    step = 0
    cut_off = out.with_name(f"{out.name}.part")
    if cut_off.exists():
        state = torch.load(cut_off, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        step = state["step"]
    wrap = torch.compile if compiled else lambda function: function
    encode, decode = wrap(encode_moments), wrap(decode_latent)
    steps, started, first = picture_steps + clip_steps, time.time(), step
    while step < steps:
        pictures = step < picture_steps
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps, 1.5e-3)
        video, boxes = random_clips(32 if pictures else 8, side, 1 if pictures else frames, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean, logvar = encode(vae, video).float().chunk(2, 1)
            logvar = logvar.clamp(-12, 4)
            noise = torch.randn(mean.shape, generator=generator)
            decoded = decode(vae, mean + noise * (0.5 * logvar).exp()).float()
        error = decoded - video
        # The objects fill a tenth of the picture: weigh their boxes up, or the background is all that is learned.
        weight = 1 + 4 * boxes
        loss = (weight * (error.square() + 0.1 * F.smooth_l1_loss(decoded, video, reduction="none", beta=0.1))).mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        optimizer.zero_grad(set_to_none=True)
        (loss + KL_WEIGHT * divergence).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            psnr = -10 * (error.square().mean() / 4).log10().item()
            each = (time.time() - started) / (step - first)
            say(f"vae {step}/{steps}  {each:.2f} s  loss {loss:.5f}  psnr {psnr:.2f} dB  kl {divergence:.2f}")
        if step % KEPT_EVERY == 0:
            if not pictures:
                now = reconstruction(vae.eval(), side=side, frames=frames, clips=32)
                vae.train()
                say(f"vae {step}/{steps}  held out: {now.psnr:.2f} dB, in boxes {now.psnr_boxes:.2f} dB")
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            with written_whole(cut_off) as part:
                torch.save({**state, "generator": generator.get_state()}, part)
    calibrate(vae.eval(), random_clips(128, side, frames, generator)[0])
    with written_whole(out) as part:
        torch.save(vae.state_dict(), part)
    cut_off.unlink(missing_ok=True)
    return vae
