"""Forward time, memory of one text step, memory of loading: one command, one table.

    python benchmarks/core.py                all three
    python benchmarks/core.py forward text   some of them
    python benchmarks/core.py load --dir D   D needs about 7 GB

Timings are medians of runs in turn on this machine; memory is the peak of a fresh process above what it held before.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from uvg_core import ModelConfig, UniViGU
from uvg_core.flow.text import MixturePath, draw_clean_tokens, jump_step

LENGTH, VOCABULARY = 256, 256_300
GIB = 2**30


def forward_times(blocks: int, repeats: int) -> None:
    """The full width at reduced depth: a 5-frame 240x416 latent (780 tokens) with 256 text tokens, and without text."""
    config = ModelConfig(num_layers=blocks, vocab_size=32_000)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = UniViGU(config, device=device, dtype=torch.bfloat16).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    video = torch.randn(1, 16, 2, 30, 52, device=device)
    text = torch.randint(config.vocab_size, (1, LENGTH), device=device)
    half, context = torch.full((1,), 500.0, device=device), torch.randn(1, 512, 4096, device=device)
    jobs = {
        "video alone (plain Wan)": {"text": None, "want_logits": False},
        "video and text, velocity": {"text": text, "want_logits": False},
        "video and text, both heads": {"text": text},
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for name, options in jobs.items():
                started = time.perf_counter()
                model(video, time_video=half, time_text=half, context=context, **options)
                if device == "cuda":
                    torch.cuda.synchronize()
                if turn:  # the first turn warms up
                    times[name].append(time.perf_counter() - started)
    base = statistics.median(times["video alone (plain Wan)"])
    print(f"\nForward, {blocks} of 30 blocks at full width, bf16, {device}, 780 video and {LENGTH} text tokens")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"  {name:28s} {median * 1000:9.1f} ms   x {median / base:.2f}   ({min(values) * 1000:.1f} best)")


def dense_step(logits: torch.Tensor, tokens: torch.Tensor, tau: float, step: float) -> torch.Tensor:
    """The same step with rate matrices, as solvers of discrete flows are usually written: [L, V] tensors in float64."""
    posterior = torch.softmax(logits.float(), -1)
    clean = torch.multinomial(posterior.double(), 1)[:, 0]
    target = F.one_hot(clean, VOCABULARY)
    rates = target.double() / (1 - tau)
    rates = torch.where(F.one_hot(tokens, VOCABULARY).bool(), torch.zeros((), dtype=torch.float64), rates)
    intensity = rates.sum(-1)
    jumps = torch.rand(LENGTH) < 1 - torch.exp(-step * intensity)
    moved = torch.multinomial(rates[jumps], 1)[:, 0] if bool(jumps.any()) else clean[:0]
    return tokens.masked_scatter(jumps, moved)


def measure_text_step(kind: str) -> None:
    """In a process of its own: print the peak above what the logits already take, and the time."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(LENGTH, VOCABULARY, generator=generator)
    tokens = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
    draw_clean_tokens(logits[:1, :64], generator=generator)  # code pages are not what is measured
    before = reset_peak()
    started = time.perf_counter()
    if kind == "ours":
        clean = draw_clean_tokens(logits, generator=generator)
        jump_step(tokens, clean, MixturePath().bridge_jump(0.5, 0.52), generator)
    else:
        dense_step(logits, tokens, 0.5, 0.02)
    seconds = time.perf_counter() - started
    print(resident("VmHWM") - before, seconds)


def resident(entry: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) * 1024
    raise SystemExit("memory is measured on Linux only")


def reset_peak() -> int:
    """Set the peak back to what is held now, and return that. (A child's peak would start from its parent's.)"""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def text_step_memory() -> None:
    """One text step at L=256, V=256,300: ours against the dense formulation."""
    print(f"\nOne text step, {LENGTH} tokens of {VOCABULARY:,} (the logits themselves: "
          f"{LENGTH * VOCABULARY * 4 / GIB:.2f} GiB in float32)")  # fmt: skip
    for kind, label in (("ours", "closed form in chunks"), ("dense", "dense, float64 and one-hot")):
        done = subprocess.run([sys.executable, __file__, "--measure", kind], capture_output=True, text=True, check=True)
        peak, seconds = (float(value) for value in done.stdout.split())
        print(f"  {label:28s} {peak / GIB:6.2f} GiB more at the peak   {seconds:6.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=["forward", "text", "load", []], default=[])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="for the file of 'load'")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure_text_step(args.measure)
        return
    parts = args.parts or ["forward", "text", "load"]
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    if "forward" in parts:
        forward_times(args.blocks, args.repeats)
    if "text" in parts:
        text_step_memory()
    if "load" in parts:
        print("\nLoading a full-size checkpoint", flush=True)
        script = Path(__file__).with_name("load_memory.py")
        subprocess.run([sys.executable, str(script), "--dir", str(args.dir)], check=True)


if __name__ == "__main__":
    main()
