"""How long a run takes by card, from arithmetic: no card was there.

    python benchmarks/times_by_card.py [--share 0.6]

The operations of every pass are counted by torch on a network of the released size without weights (multiply-adds of
matrix products and attention, two each), and divided by ``--share`` of what the card's tensor cores do at most in
bfloat16. It prints the table of docs/costs.md. Not counted: the text encoder, the VAE, loading, and weights that come
from the machine's memory at every step because they do not fit on the card.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from networks import meta_network
from torch.utils.flop_counter import FlopCounterMode

from uvg_core import ModelConfig, RunConfig, UniViGU
from uvg_core.media.vae import latent_shape
from uvg_core.model import PassOptions, VideoCache

# 10^12 operations a second: dense bfloat16 with sums in float32, at the boost clock, of NVIDIA's whitepapers on Ada and
# Blackwell; the 3060, which none of them lists, from 28 multiprocessors, 512 operations a clock each, 1.777 GHz.
CARDS = {"RTX 3060": 25.5, "RTX 4070": 58.3, "RTX 4090": 165.2, "RTX 5090": 209.5}
PROMPT = 64  # tokens of the text stream in text-to-video: of the prompt


@dataclass(frozen=True)
class Passes:
    """Operations of single passes at a size: text-to-video's, a caption's with the clip and with a cache of it, and the
    two of a guided joint step together."""

    video: int
    caption: int
    cached: int
    joint: int


def operations(network: UniViGU, frames: int, run: RunConfig) -> Passes:
    """Counted on the meta device: nothing is computed."""
    latent = torch.empty(latent_shape(frames, run.height, run.width), device="meta", dtype=torch.bfloat16)
    context = torch.empty(1, run.context_length, network.config.text_dim, device="meta", dtype=torch.bfloat16)
    no_prompt = context[:, :1]
    noisy, clean = torch.full((1,), 500.0, device="meta"), torch.zeros(1, device="meta")

    def count(length: int, times: tuple[torch.Tensor, torch.Tensor], prompt: torch.Tensor, options: PassOptions) -> int:
        text = torch.zeros(1, length, dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counted:
            network(latent, text, *times, prompt, options=options)
        return int(counted.get_total_flops())

    cache = VideoCache(fp8=False, place="device", free_bytes=lambda _: float("inf"))
    words, cached = PassOptions(want_velocity=False), PassOptions(want_velocity=False, cache=cache)
    no_words = PassOptions(want_logits=False)
    caption = count(run.text_length, (clean, noisy), no_prompt, words)
    count(run.text_length, (clean, noisy), no_prompt, cached)  # fills it
    return Passes(
        video=count(PROMPT, (noisy, clean), context, no_words),
        caption=caption,
        cached=count(run.text_length, (clean, noisy), no_prompt, cached),
        joint=count(run.text_length, (noisy, noisy), context, PassOptions())
        + count(run.text_length, (noisy, noisy), context, no_words),
    )


def jobs() -> dict[str, int]:
    """Operations of whole runs with the released model, by what they are."""
    run = RunConfig()
    network = meta_network(ModelConfig())
    small, full = operations(network, 33, run), operations(network, run.frames, run)
    size = f"{run.width}x{run.height}"
    return {
        f"first try: {size}, 33 frames, 8 guided steps": 8 * 2 * small.video,
        f"text to video: {size}, {run.frames} frames, {run.steps} guided steps": run.steps * 2 * full.video,
        f"caption, exact: every one of {run.text_steps} steps looks at the clip": run.text_steps * full.caption,
        "caption, static: one looks at it": full.caption + (run.text_steps - 1) * full.cached,
        f"joint: {run.frames} frames, {run.steps} guided steps": run.steps * full.joint,
    }


def shown(seconds: float) -> str:
    """Two digits: more would be a claim."""
    if seconds < 99.5:
        return f"{float(f'{seconds:.2g}'):g} s"
    minutes = seconds / 60
    return f"{float(f'{minutes:.2g}'):g} min"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.6, help="of a card's peak that is reached (0.6)")
    share = parser.parse_args().share
    print(f"| By arithmetic, not measured | 10¹² operations | {' | '.join(CARDS)} |")
    print("| --- " * (2 + len(CARDS)) + "|")
    for job, count in jobs().items():
        times = (shown(count / 1e12 / (peak * share)) for peak in CARDS.values())
        print(f"| {job} | {count / 1e12:,.0f} | {' | '.join(times)} |")


if __name__ == "__main__":
    main()
