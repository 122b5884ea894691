"""The recipe of the embedded model: tokenizer, VAE, then network and text encoder together, on little worlds.

    python -m uvg_core.training.embedded WORKDIR [--minutes 60] [--vae-minutes 17] [--out models/uvg_tiny.safetensors]

Everything is kept in WORKDIR, so that a run that was cut off goes on: a VAE that is there is used, latents that are
there are used, and training resumes from ``last.pt``.

Each clip of a batch draws one of the three jobs; they differ only in which stream is clean (time 0):

* text-to-video: the text stream is the prompt, padded and masked (or empty: plain Wan behaviour);
* video-to-text: the video stream is the clip, the condition mostly zeros;
* joint: both streams noisy, on the shared clock of the joint sampler or at independent times.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checkpoint import save_model
from ..checkpoint.vae_keys import vae_to_original
from ..codec.latents import to_latent_space
from ..codec.text import TextEncoder, Tokenizer, build_encoder
from ..config import ModelConfig, RunConfig
from ..flow.schedule import shift_sigmas
from ..flow.text import MixturePath, corrupt, source_tokens, token_log_likelihood
from ..flow.time import model_time_from_sigma
from ..flow.video import interpolate, velocity_target
from ..model import UniViGU
from .tokenizer import train_tokenizer
from .vae import encode_moments, small_wan_vae, train_vae
from .worlds import World, all_worlds, render

VAE_WIDTH = 16
PLACEMENTS = 8
ENCODER = {
    "d_model": 128,
    "num_heads": 4,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "relative_attention_num_buckets": 32,
}
RUN = RunConfig(
    height=48,
    width=48,
    frames=9,
    fps=8.0,
    text_length=16,
    context_length=32,
    steps=24,
    text_steps=16,
    shift=3.0,
    guidance_scale=3.0,
)
JOBS = {"t2v": 0.5, "joint": 0.3, "v2t": 0.2}
TEXT_WEIGHT = 0.25


@dataclass(frozen=True)
class Data:
    """Latents ``[N,16,F,h,w]`` (normalised) and the world each of them shows."""

    latents: Tensor
    worlds: list[World]


def cached_data(folder: Path, vae: Any) -> Data:
    """Render and encode every world at ``PLACEMENTS`` random places, once."""
    generator = torch.Generator().manual_seed(1)
    worlds = [world for world in all_worlds() for _ in range(PLACEMENTS)]
    path = folder / "latents.pt"
    if not path.exists():
        parts = []
        for start in range(0, len(worlds), 64):
            clips = [
                render(w, side=RUN.height, frames=RUN.frames, generator=generator) for w in worlds[start : start + 64]
            ]
            video = torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                mean = encode_moments(vae, video)[:, :16]
            parts.append(to_latent_space(mean.float(), "normalised"))
        torch.save(torch.cat(parts), path)
    return Data(torch.load(path, weights_only=True), worlds)


def random_prompt(world: World, u: float) -> str:
    """One of the ways to ask for a world, from the whole truth to the brief prompt."""
    if u < 0.55:
        return world.caption
    if u < 0.7:
        return f"{world.brief} on a {world.background} background"
    if u < 0.85:
        return f"{world.brief} moves {world.motion}"
    return world.brief


def initialise(model: UniViGU) -> None:
    """Fresh weights: Xavier for linear layers, open gates, output heads at zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("modulation"):
                parameter.zero_()
                if parameter.shape[1] == 6:
                    parameter[:, [2, 5]] = 1.0
            elif "norm" in name:
                nn.init.ones_(parameter) if name.endswith("weight") else nn.init.zeros_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name == "token_embedding.weight":
                nn.init.normal_(parameter, std=1.0)
            elif ".head." in f".{name}" and name.endswith("head.weight"):
                nn.init.zeros_(parameter)
            elif "time_projection" in name:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention as two matrix products: on a CPU its backward pass is several times faster than the fused one's at a
    few dozen tokens."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask[:, None]
    return rearrange(scores.softmax(-1).to(v.dtype) @ v, "b h n d -> b n (h d)")


class Trainer:
    """Network and text encoder, their average, and the loop over mixed batches."""

    def __init__(
        self,
        folder: Path,
        data: Data,
        tokenizer: Tokenizer,
        *,
        seed: int = 0,
        batch: int = 64,
        peak_rate: float = 1.5e-3,
    ) -> None:
        torch.manual_seed(seed)
        config = ModelConfig(
            dim=192, ffn_dim=768, num_heads=6, num_layers=6, text_dim=ENCODER["d_model"], vocab_size=tokenizer.size
        )
        self.folder, self.data, self.tokenizer, self.batch, self.peak_rate = folder, data, tokenizer, batch, peak_rate
        self.model = UniViGU(config, attention=plain_attention)
        initialise(self.model)
        self.encoder = TextEncoder(build_encoder({**ENCODER, "vocab_size": tokenizer.size}), tokenizer)
        self.parts = nn.ModuleDict({"model": self.model, "encoder": self.encoder.encoder}).train()
        self.average = copy.deepcopy(self.parts).eval().requires_grad_(False)
        matrices = [p for p in self.parts.parameters() if p.ndim > 1]
        vectors = [p for p in self.parts.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
            lr=peak_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.spent = 0, 0.0
        self.path = MixturePath(config.kappa_exponent)
        self.forward: Any = self.model
        captions = [world.caption for world in data.worlds]
        self.captions = tokenizer.stream(captions, RUN.text_length)[0]

    def batch_loss(self) -> tuple[Tensor, dict[str, float]]:
        """Loss of one random batch and its parts."""
        g, count = self.generator, self.batch
        picks = torch.randint(len(self.data.worlds), (count,), generator=g)
        u = torch.rand(8, count, generator=g)
        is_t2v = u[0] < JOBS["t2v"]
        is_v2t = u[0] >= 1 - JOBS["v2t"]
        is_joint = ~is_t2v & ~is_v2t

        # Times: half of the videos are drawn on the samplers' shifted schedule, half evenly.
        sigma = torch.where(u[1] < 0.5, shift_sigmas(u[2], RUN.shift), u[2])
        sigma_video = torch.where(is_v2t, torch.zeros(()), sigma)
        tau = torch.where(is_joint & (u[3] < 0.7), 1 - sigma, u[4])
        tau = torch.where(is_t2v, torch.ones(()), tau)

        # Prompts and conditions. Dropped conditions: the empty prompt (guidance) or zeros (captioning).
        prompts = [random_prompt(self.data.worlds[i], float(r)) for i, r in zip(picks.tolist(), u[5], strict=True)]
        drop = torch.where(is_v2t, torch.tensor(0.85), torch.where(is_t2v, torch.tensor(0.2), torch.tensor(0.1)))
        dropped = u[6] < drop
        context = self.encoder(["" if d else p for d, p in zip(dropped.tolist(), prompts, strict=True)])
        zeros = is_v2t & dropped
        context = context * (~zeros)[:, None, None]

        # Text stream: the prompt where the text is clean, the caption on its way from noise elsewhere.
        prompt_ids, prompt_mask = self.tokenizer.stream(prompts, RUN.text_length)
        captions = self.captions[picks]
        source = source_tokens(tuple(captions.shape), vocab_size=self.tokenizer.size, mask_token=None, generator=g)
        text = torch.where(is_t2v[:, None], prompt_ids, corrupt(captions, tau, self.path, source, g))
        mask = torch.where(is_t2v[:, None], prompt_mask, torch.ones_like(prompt_mask))
        mask = mask & ~(is_t2v & (u[7] < 0.2))[:, None]  # an empty text stream: plain Wan behaviour

        latents = self.data.latents[picks]
        noise = torch.randn(latents.shape, generator=g)
        video = interpolate(latents, noise, sigma_video[:, None, None, None, None])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            velocity, logits = self.forward(
                video, text, model_time_from_sigma(sigma_video), model_time_from_sigma(1 - tau), context, mask
            )
        makes_video, makes_text = (~is_v2t).float(), (~is_t2v).float()
        video_error = F.mse_loss(velocity.float(), velocity_target(latents, noise), reduction="none").mean((1, 2, 3, 4))
        text_error = -token_log_likelihood(logits, captions).mean(1)
        video_loss = (video_error * makes_video).sum() / makes_video.sum()
        text_loss = (text_error * makes_text).sum() / makes_text.sum()
        parts = {
            "video": video_loss.item(),
            "text": text_loss.item(),
            "v2t": (text_error * is_v2t).sum().item() / max(1, int(is_v2t.sum())),
        }
        return video_loss + TEXT_WEIGHT * text_loss, parts

    def run(self, minutes: float, compile_forward: bool = True) -> None:
        """Train until ``minutes`` of training time are spent in all (over every sitting); saves ``last.pt``."""
        if compile_forward:
            self.forward = torch.compile(self.model)
        started, before = time.time(), self.spent
        means: dict[str, float] = {}
        while (progress := self.spent / (60 * minutes)) < 1:
            for group in self.optimizer.param_groups:
                warm = min(1.0, (self.step + 1) / 200)
                group["lr"] = self.peak_rate * warm * min(1.0, max(0.02, (1 - progress) / 0.6))
            loss, parts = self.batch_loss()
            if not math.isfinite(loss.item()):
                raise ValueError(f"the loss is {loss.item()} at step {self.step}; last.pt holds the last good state")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            decay = min(0.998, 1 - 10 / (self.step + 10))
            with torch.no_grad():
                for mean, now in zip(self.average.parameters(), self.parts.parameters(), strict=True):
                    mean.lerp_(now, 1 - decay)
            self.spent = before + time.time() - started
            for key, value in parts.items():
                means[key] = value if key not in means else 0.95 * means[key] + 0.05 * value
            if self.step % 50 == 0:
                shown = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
                print(f"step {self.step:6d}  {self.spent:6.0f}s  {shown}", flush=True)
            if self.step % 250 == 0:
                self.save()
        self.save()

    def save(self) -> None:
        """Write the whole state, so that a cut-off run goes on."""
        state = {
            "parts": self.parts.state_dict(),
            "average": self.average.state_dict(),
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "spent": self.spent,
            "generator": self.generator.get_state(),
        }
        torch.save(state, self.folder / "last.part.pt")
        (self.folder / "last.part.pt").replace(self.folder / "last.pt")

    def resume(self) -> None:
        """Go on from ``last.pt`` where there is one."""
        path = self.folder / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.parts.load_state_dict(state["parts"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.spent = state["step"], state["spent"]


def export(trainer: Trainer, vae: Any, out: Path) -> None:
    """Write the averaged weights, VAE, text encoder and tokenizer as one ComfyUI all-in-one file, in float16."""
    half = torch.float16
    extra = {f"vae.{vae_to_original(name)}": w.to(half) for name, w in vae.state_dict().items()}
    for name, weight in trainer.average["encoder"].state_dict().items():
        if name != "encoder.embed_tokens.weight":  # tied to shared.weight
            extra[f"text_encoders.umt5xxl.transformer.{name}"] = weight.to(half)
    extra["text_encoders.spiece_model"] = torch.frombuffer(bytearray(trainer.tokenizer.proto), dtype=torch.uint8)
    card = {
        "data": "little worlds, version 1: one object, 3 kinds, 8 colours, 2 sizes, 4 motions, 4 backgrounds",
        "recipe": "python -m uvg_core.training.embedded",
        "seed": 0,
        "steps": trainer.step,
        "training_minutes": round(trainer.spent / 60, 1),
    }
    model = trainer.average["model"]
    assert isinstance(model, UniViGU)
    save_model(model, out, run=RUN, card=card, dtype=half, extra=extra)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m uvg_core.training.embedded", description=__doc__.split("\n")[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0, help="training time of the network in all")
    parser.add_argument("--vae-minutes", type=float, default=17.0)
    parser.add_argument("--out", type=Path, default=None, help="write the finished model here")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")

    vae_path = args.workdir / "vae.pt"
    if vae_path.exists():
        vae = small_wan_vae(VAE_WIDTH)
        vae.load_state_dict(torch.load(vae_path, weights_only=True))
    else:
        vae = train_vae(vae_path, width=VAE_WIDTH, side=RUN.height, frames=RUN.frames, minutes=args.vae_minutes)
    vae.eval().requires_grad_(False)
    trainer = Trainer(args.workdir, cached_data(args.workdir, vae), Tokenizer(train_tokenizer(), RUN))
    trainer.resume()
    trainer.run(args.minutes, compile_forward=not args.no_compile)
    if args.out is not None:
        export(trainer, vae, args.out)


if __name__ == "__main__":
    main()
