"""How a pass grows with frames, resolution, text and batch, against the number of its operations.

    python benchmarks/growth.py [--blocks 1 3] [--turns 3] [--device cpu]

Full width, random weights, bfloat16; operations are counted by torch (multiply-adds of matrix products and attention,
two each). Two depths give the time of a block, free of what is done once a pass. Numbers go into
benchmarks/numbers/growth_DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from captions import random_weights
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from uvg_core.files import write_text
from uvg_core.model import UniViGU

NUMBERS = Path(__file__).parent / "numbers"
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


def seconds(model: UniViGU, size: tuple[int, int, int, int], turns: int, device: torch.device) -> tuple[float, int]:
    """The median time of a pass, and its operations."""
    frames, side, text, rows = size
    video = torch.randn(rows, 16, frames, side, side, device=device)
    words = torch.randint(model.config.vocab_size, (rows, text), device=device)
    clock, context = torch.full((rows,), 500.0, device=device), torch.randn(rows, 512, 4096, device=device)

    def run() -> None:
        model(video, words, clock, clock, context, want_logits=False)

    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counted:
        run()
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times), int(counted.get_total_flops())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs=2, default=[1, 3])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    models = [random_weights(blocks, device) for blocks in args.blocks]
    depth = args.blocks[1] - args.blocks[0]
    found: dict[str, Any] = {}
    for name, sizes in SERIES.items():
        for size in sizes:
            (low, few), (high, many) = (seconds(model, size, args.turns, device) for model in models)
            tokens = size[0] * (size[1] // 2) ** 2 + size[2]
            row = {"size": size, "tokens": tokens, "seconds": (high - low) / depth, "operations": (many - few) / depth}
            found.setdefault(name, []).append(row)
            rate = row["operations"] / row["seconds"] / 1e9
            print(f"{name:7s} {size!s:20s} {1000 * row['seconds']:9.1f} ms a block   {rate:7.0f} G/s", flush=True)
    NUMBERS.mkdir(exist_ok=True)
    write_text(NUMBERS / f"growth_{args.device}.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
