"""Captions with and without keeping the clip between the steps: how right they are, and what they cost.

    python benchmarks/captions.py accuracy [--model FILE] [--only static ...]   the embedded model, held-out worlds
    python benchmarks/captions.py time [--frames 81] [--blocks 1 2]             the released width, random weights

``time`` measures single passes at one or two depths and works out the 30 blocks from their difference (on a GPU give
``--blocks 30``); and what each holds at its peak: on CUDA by the allocator, on the CPU by all tensors alive. A caption
is the sum of its passes (drawing the words is left out; a pass of ``refresh`` that looks at the clip counts as one of
``static``). Numbers go into benchmarks/numbers/captions_*.json, a table to the terminal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import MIB, Job, in_turn, peak, random_weights
from quality import digest
from saved import read, save

from recipes.worlds.evaluation import Evaluator
from uvg_core.config import ModelConfig
from uvg_core.model import PassOptions, UniViGU, VideoCache
from uvg_core.pipeline.pipeline import Pipeline

CACHES = ("off", "static", "static, float8", "refresh=2", "refresh=4", "refresh=8", "refresh=8, float8", "refresh=16")
REFRESH = (2, 4, 8, 16)
STEPS = (4, 8, 16, 50)
RELEASED_BLOCKS, RELEASED_STEPS, TEXT = 30, 50, 256
TURNS = 3


def accuracy(args: argparse.Namespace) -> dict[str, Any]:
    """Every way of keeping the clip, at several numbers of steps."""
    torch.set_num_threads(1)
    evaluator = Evaluator(Pipeline(args.model, device="cpu"), clips=args.clips, quick=True)
    rule = evaluator.pipe.config.model.v2t_attention
    of = {"weights_sha256": digest(args.model), "v2t_attention": rule, "clips": args.clips}
    known = read(f"captions_accuracy_{rule}")
    same = all(known.get(name) == value for name, value in of.items())
    found: dict[str, Any] = {**of, "settings": known["settings"] if same else {}}
    plain = UniViGU.video_cache
    for steps in STEPS:
        for kept in args.only:
            policy, _, kind = kept.partition(", ")

            def made(model: UniViGU, kind: str = kind, **settings: Any) -> VideoCache | None:
                return plain(model, **{**settings, "fp8": bool(kind)})

            UniViGU.video_cache = made  # type: ignore[method-assign, assignment]
            started = time.perf_counter()
            try:
                tally = evaluator.video_to_text(steps, video_cache=policy).to_json()
            finally:
                UniViGU.video_cache = plain  # type: ignore[method-assign, assignment]
            seconds = time.perf_counter() - started
            found["settings"][f"{kept}, {steps} steps"] = {**tally, "seconds": round(seconds, 2)}
            print(f"{kept:18s} {steps:3d} steps  {100 * tally['mean']:5.1f} %  {seconds:6.1f} s", flush=True)
    return found


def passes(blocks: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of single passes: seconds, medians of turns that alternate; bytes held at the peak beside weights and cache, a
    filling pass's cache included; of the caches: their bytes."""
    device = torch.device(args.device)
    model = random_weights(ModelConfig(num_layers=blocks), device)
    size = ((args.frames - 1) // 4 + 1, args.height // 8, args.width // 8)
    video = torch.randn(1, 16, *size, device=device)
    text = torch.randint(model.config.vocab_size, (1, TEXT), device=device)
    clock, context = torch.zeros(1, device=device), torch.zeros(1, 1, model.config.text_dim, device=device)
    caches = {"bfloat16": VideoCache(fp8=False), "float8": VideoCache(fp8=True)}
    if device.type == "cuda":
        caches["float8 on the host"] = VideoCache(fp8=True, place="host")

    def run(cache: VideoCache | None = None) -> None:
        model(video, text, clock, clock + 500, context, options=PassOptions(want_velocity=False, cache=cache))

    def fill(cache: VideoCache) -> None:
        cache.clear()
        run(cache)

    jobs: dict[str, Job] = {"full": run}
    for name, cache in caches.items():
        jobs[f"fill, {name}"] = partial(fill, cache)
        jobs[f"text, {name}"] = partial(run, cache)
    peaks: dict[str, float] = {name: peak(job, device) for name, job in jobs.items()}
    times = in_turn(jobs, args.turns, device)
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "peak": peaks,
        "kept": {name: cache.nbytes for name, cache in caches.items()},
    }


@torch.no_grad()
def timing(args: argparse.Namespace) -> dict[str, Any]:
    """The cost of a caption at the released size from that of its passes."""
    measured = {blocks: passes(blocks, args) for blocks in args.blocks}
    low, high = min(measured), max(measured)

    def at_full_depth(what: str) -> dict[str, float]:
        """From two depths where 30 blocks were not measured."""
        few, many = measured[low][what], measured[high][what]
        if high == RELEASED_BLOCKS or low == high:
            return many
        return {name: few[name] + (RELEASED_BLOCKS - low) * (many[name] - few[name]) / (high - low) for name in many}

    seconds, kept = at_full_depth("seconds"), at_full_depth("kept")
    # Blocks take turns with their memory; what grows with their number is the cache alone.
    peaks = dict(measured[high]["peak"])
    for name in kept:
        if "host" not in name:
            peaks[f"fill, {name}"] += kept[name] - measured[high]["kept"][name]
    exact = RELEASED_STEPS * seconds["full"]
    rows = {"off": exact}
    for name in kept:
        look, step = seconds[f"fill, {name}"], seconds[f"text, {name}"]
        rows[f"static, {name}"] = look + (RELEASED_STEPS - 1) * step
        for refresh in REFRESH:
            looks = -(-RELEASED_STEPS // refresh)
            rows[f"refresh={refresh}, {name}"] = looks * look + (RELEASED_STEPS - looks) * step
    for name, total in rows.items():
        print(f"{name:32s} {total:10.1f} s   {exact / total:6.1f}")
    for name in seconds:
        print(f"{name:32s} {seconds[name]:10.2f} s a pass   {peaks[name] / MIB:8.0f} MiB at its peak")
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "size": [args.frames, args.height, args.width],
        "measured": {str(blocks): found for blocks, found in measured.items()},
        "passes": {"seconds": seconds, "peak": peaks, "kept": kept},
        "caption": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("accuracy")
    sub.add_argument("--clips", type=int, default=512)
    sub.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "models" / "uvg_tiny.safetensors")
    sub.add_argument("--only", nargs="+", choices=CACHES, default=list(CACHES))
    sub.set_defaults(run=accuracy)
    sub = commands.add_parser("time")
    for name, default in (("frames", 81), ("height", 480), ("width", 832), ("turns", TURNS)):
        sub.add_argument(f"--{name}", type=int, default=default)
    sub.add_argument("--blocks", type=int, nargs="+", default=[1, 2])
    sub.add_argument("--device", default="cpu")
    sub.set_defaults(run=timing)
    args = parser.parse_args()
    found = args.run(args)
    save(f"captions_{args.command}_{args.device if args.command == 'time' else found['v2t_attention']}", found)


if __name__ == "__main__":
    main()
