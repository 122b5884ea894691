"""How a pass grows with frames, resolution, text and batch, against the number of its operations.

    python benchmarks/growth.py [--blocks 1 3] [--turns 5] [--scale 1] [--device cpu]

Full width, random weights, bfloat16; operations are counted by torch (multiply-adds of matrix products and attention,
two each). Two depths give the time of a block, free of what is done once a pass. Numbers go into
benchmarks/numbers/growth_DEVICE.json.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from captions import random_weights
from measuring import in_turn
from saved import save
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from uvg_core.model import UniViGU

# What grows: (latent frames, height and width, text tokens, batch); the first of each is the common one.
SERIES: dict[str, list[tuple[int, int, int, int]]] = {
    "frames": [(n, 32, 256, 1) for n in (1, 2, 4, 8, 16)],
    "side": [(4, n, 256, 1) for n in (16, 24, 32, 48, 64)],
    "text": [(4, 32, n, 1) for n in (0, 64, 256, 512, 1024)],
    "batch": [(4, 32, 256, n) for n in (1, 2, 4)],
}
# torch counts attention on GPUs only.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ON_CPU = {CPU_ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}


def measure(
    models: list[UniViGU], size: tuple[int, int, int, int], turns: int, device: torch.device
) -> list[tuple[float, int]]:
    """Of each network, in turn: the median time of a pass, and its operations."""
    frames, side, text, rows = size
    video = torch.randn(rows, 16, frames, side, side, device=device)
    words = torch.randint(models[0].config.vocab_size, (rows, text), device=device)
    clock, context = torch.full((rows,), 500.0, device=device), torch.randn(rows, 512, 4096, device=device)
    jobs = {
        str(len(model.blocks)): partial(model, video, words, clock, clock, context, want_logits=False)
        for model in models
    }
    operations: list[int] = []
    for job in jobs.values():
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counted:
            job()
        operations.append(int(counted.get_total_flops()))
    times = in_turn(jobs, turns, device).values()
    return [(statistics.median(taken), count) for taken, count in zip(times, operations, strict=True)]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs=2, default=[1, 3])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1, help="times as high and wide: 3 comes near the released size")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    models = [random_weights(blocks, device) for blocks in args.blocks]
    depth = args.blocks[1] - args.blocks[0]
    found: dict[str, Any] = {}
    for name, sizes in SERIES.items():
        for frames, side, text, rows in sizes:
            size = (frames, side * args.scale, text, rows)
            (low, few), (high, many) = measure(models, size, args.turns, device)
            tokens = size[0] * (size[1] // 2) ** 2 + size[2]
            row = {"size": size, "tokens": tokens, "seconds": (high - low) / depth, "operations": (many - few) / depth}
            found.setdefault(name, []).append(row)
            rate = row["operations"] / row["seconds"] / 1e9
            print(f"{name:7s} {size!s:20s} {1000 * row['seconds']:9.1f} ms a block   {rate:7.0f} G/s", flush=True)
    save(f"growth_{args.device}", found)


if __name__ == "__main__":
    main()
