"""One forward pass at full width: ours and core ComfyUI's Wan, same machine, weights and token counts.

    python benchmarks/forward.py [--blocks 1 3] [--frames 12] [--side 32] [--turns 7] [--device cpu] [--dtype bfloat16]

Needs a ComfyUI where the tests find one. All run in one process, with torch's attention, in turn (A B A B); medians,
and the median of the ratios to core's turn by turn. "Equal tokens": ours with V video and T text tokens against core's
with V + T video tokens; two depths give the time of a block. Numbers go into benchmarks/numbers/forward_DEVICE.json.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from measuring import comfyui, ratio_of, save

WIDTH = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "text_dim": 4096}
# What a pass is compared with: core's Wan on as many tokens.
BASES = {"ours, no text": "core", "ours, video and text": "core, equal tokens"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--side", type=int, default=32, help="latent height and width; a token is 2x2 of it")
    parser.add_argument("--frames", type=int, default=12, help="latent frames; one more makes up for the text")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    settings = {"width": WIDTH, "video": [args.frames, args.side, args.side], "turns": args.turns}
    settings |= {"device": args.device, "dtype": args.dtype}
    measured: dict[int, dict[str, Any]] = {}
    with comfyui(args.device) as call:
        for blocks in args.blocks:
            measured[blocks] = call("passes", timeout=3600, blocks=blocks, **settings)
            times = measured[blocks]["seconds"]
            print(f"{blocks} blocks; ours without text is core's within {measured[blocks]['difference from core']:g}")
            for name, values in times.items():
                ratio = ratio_of(values, times[BASES.get(name, name)])
                print(f"  {name:24s} {1000 * median(values):9.1f} ms   x {ratio:.3f}", flush=True)
    text = (args.side // 2) ** 2
    found = {"video": args.frames * text, "text": text, "dtype": args.dtype, "blocks": measured}
    low, high = min(measured), max(measured)
    if low < high:
        seconds = [{name: median(taken) for name, taken in measured[n]["seconds"].items()} for n in (low, high)]
        found["block"] = block = {name: (seconds[1][name] - seconds[0][name]) / (high - low) for name in seconds[0]}
        for name, one in block.items():
            print(f"a block: {name:24s} {1000 * one:9.1f} ms   x {one / block['core, equal tokens']:.3f}")
    save(f"forward_{args.device}", found)


if __name__ == "__main__":
    main()
