"""Training the small Wan VAE of the embedded model, first on pictures and then on clips."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvg_core.checkpoint.torch_file import read_saved
from uvg_core.io import written_whole
from uvg_core.media.vae import pixels_to_video

from .drawing import REACH, Placement, coverage, draw, place
from .grammar import World, random_world
from .vae import calibrate, decode_latent, encode_moments, initialise, small_wan_vae

KL_WEIGHT = 3e-5
SAVE_EVERY = 250  # steps after which an interrupted run can go on


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
        boxes.append(_boxes(world, placed, side, tight))
    return pixels_to_video(torch.stack(clips)), torch.stack(boxes)[:, None].float()


def _boxes(world: World, placed: list[Placement], side: int, tight: bool) -> Tensor:
    """True inside the box around any object, ``[T,S,S]``."""
    axis = (torch.arange(side) + 0.5) / side
    boxes = []
    for shape, at in zip(world.shapes, placed, strict=True):
        columns, rows = ((axis - at.centres[..., None]).abs() <= REACH * at.radii[:, None, None]).unbind(1)
        if tight:
            painted = coverage(shape.kind, at, side) > 0
            columns, rows = _between(painted.any(1)), _between(painted.any(2))
        boxes.append(rows[:, :, None] & columns[:, None])
    return torch.stack(boxes).any(0)


def _between(marked: Tensor) -> Tensor:
    """True from the first to the last True of every row."""
    return (marked.cumsum(1) > 0) & (marked.flip(1).cumsum(1).flip(1) > 0)


class Reconstruction(NamedTuple):
    """Peak signal-to-noise ratio in dB over a set of clips: whole pictures, and inside the objects' tight boxes."""

    psnr: float
    psnr_boxes: float


@torch.no_grad()
def reconstruction(vae: Any, *, side: int, frames: int, clips: int = 64, seed: int = 7) -> Reconstruction:
    """How well held-out worlds come back from the latents' means, as 8-bit pictures would show them (clamped)."""
    generator = torch.Generator().manual_seed(seed)
    errors, areas = torch.zeros(2, dtype=torch.float64), torch.tensor([clips, 0.0])
    for start in range(0, clips, 16):
        video, boxes = random_clips(min(16, clips - start), side, frames, generator, held_out=True, tight=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoded = decode_latent(vae, encode_moments(vae, video)[:, :16])
        error = ((decoded.float().clamp(-1, 1) - video) / 2).square()
        errors += torch.stack([error.mean() * len(video), (error.mean(1, keepdim=True) * boxes).sum()])
        areas[1] += boxes.sum()
    return Reconstruction(*(-10 * (errors / areas).log10()).tolist())


def train_vae(
    out: Path,
    *,
    width: int = 16,
    side: int = 48,
    frames: int = 9,
    picture_steps: int = 1500,
    clip_steps: int = 2250,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> Any:
    """Train, save the diffusers state dict to ``out`` and return the VAE.

    The first ``picture_steps`` see single pictures (they are cheap), the next ``clip_steps`` whole clips of ``frames``
    frames and ``side`` x ``side`` pixels. A run that was interrupted goes on from ``out`` with ``.part`` behind its
    name."""
    steps = picture_steps + clip_steps
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = small_wan_vae(width).train()
    initialise(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.97), weight_decay=0.0, fused=True)
    first, unfinished = 0, out.with_name(f"{out.name}.part")
    if unfinished.exists():
        state = read_saved(unfinished)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        first = state["step"]
    passes = [torch.compile(run) for run in (encode_moments, decode_latent)]
    started = time.time()
    for step in range(first, steps):
        # A short warm-up, then a cosine down to almost nothing.
        rate = 1.5e-3 * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        pictures, done = step < picture_steps, step + 1
        video, boxes = random_clips(32 if pictures else 8, side, 1 if pictures else frames, generator)
        loss, error, divergence = _losses(vae, passes, video, boxes, generator)
        (loss + KL_WEIGHT * divergence).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        descend(optimizer, rate)
        if done % 50 == 0:
            psnr = -10 * (error / 4).log10().item()
            each = (time.time() - started) / (done - first)
            say(f"vae {done}/{steps}  {each:.2f} s  loss {loss:.5f}  psnr {psnr:.2f} dB  kl {divergence:.2f}")
        if done % SAVE_EVERY == 0:
            if not pictures:
                now = reconstruction(vae.eval(), side=side, frames=frames, clips=32)
                vae.train()
                say(f"vae {done}/{steps}  held out: {now.psnr:.2f} dB, in boxes {now.psnr_boxes:.2f} dB")
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            with written_whole(unfinished) as part:
                torch.save({**state, "generator": generator.get_state()}, part)
    calibrate(vae.eval(), random_clips(128, side, frames, generator)[0])
    with written_whole(out) as part:
        torch.save(vae.state_dict(), part)
    unfinished.unlink(missing_ok=True)
    return vae


def descend(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One step at this learning rate; the gradients are used up."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _losses(
    vae: Any, passes: list[Callable[..., Tensor]], video: Tensor, boxes: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of the pictures, their mean squared error, and the divergence of the latents from a standard normal."""
    encode, decode = passes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, logvar = encode(vae, video).float().chunk(2, 1)
        logvar = logvar.clamp(-12, 4)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = decode(vae, mean + noise * (0.5 * logvar).exp()).float()
    error = (decoded - video).square()
    # The objects fill a tenth of the picture: weigh their boxes up, or the background is all that is learned.
    weight = 1 + 4 * boxes
    loss = (weight * (error + 0.1 * F.smooth_l1_loss(decoded, video, reduction="none", beta=0.1))).mean()
    return loss, error.mean(), 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
