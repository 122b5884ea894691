"""Time and memory of one text step: ours, and as solvers of discrete flows are usually written.

    python benchmarks/text_step.py [--turns 5]      Linux

256 tokens of the released vocabulary, every turn in a process of its own, in turn (A B A B); memory is the process's
peak above what it held before, the float32 logits (0.24 GiB) not among it. Numbers go into
benchmarks/numbers/text_step.json.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import torch
import torch.nn.functional as F
from measuring import GIB, alone, reset_peak, resident
from saved import save
from torch import Tensor

from uvg_core.flow.discrete import MixturePath, draw_clean_tokens, jump_step

LENGTH, VOCABULARY = 256, 256_300
KINDS = {
    "closed form": "closed form, logits reduced in chunks (`flow/text.py`)",
    "dense": "dense: rates and one-hots as [L, V] tensors, float64",
}


def dense_step(logits: Tensor, tokens: Tensor, tau: float, step: float) -> Tensor:
    """The same step with rate matrices."""
    posterior = torch.softmax(logits.float(), -1)
    clean = torch.multinomial(posterior.double(), 1)[:, 0]
    target = F.one_hot(clean, VOCABULARY)
    rates = target.double() / (1 - tau)
    rates = torch.where(F.one_hot(tokens, VOCABULARY).bool(), torch.zeros((), dtype=torch.float64), rates)
    intensity = rates.sum(-1)
    jumps = torch.rand(LENGTH) < 1 - torch.exp(-step * intensity)
    moved = torch.multinomial(rates[jumps], 1)[:, 0] if bool(jumps.any()) else clean[:0]
    return tokens.masked_scatter(jumps, moved)


def measure(kind: str) -> None:
    """In a process of its own: print what one step took, as JSON."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(LENGTH, VOCABULARY, generator=generator)
    tokens = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
    draw_clean_tokens(logits[:1, :64], generator=generator)  # code pages are not what is measured
    before = reset_peak()
    started = time.perf_counter()
    if kind == "dense":
        dense_step(logits, tokens, 0.5, 0.02)
    else:
        clean = draw_clean_tokens(logits, generator=generator)
        jump_step(tokens, clean, MixturePath().bridge_jump(0.5, 0.52), generator)
    seconds = time.perf_counter() - started
    print(json.dumps({"bytes": resident("VmHWM") - before, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--measure", choices=list(KINDS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    turns: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(args.turns):
        for kind, taken in turns.items():
            taken.append(alone(__file__, kind))
    found = {kind: {what: [one[what] for one in taken] for what in taken[0]} for kind, taken in turns.items()}
    for kind, one in found.items():
        print(f"{KINDS[kind]:56s} {median(one['bytes']) / GIB:6.2f} GiB more   {median(one['seconds']):6.2f} s")
    save("text_step", found)


if __name__ == "__main__":
    main()
