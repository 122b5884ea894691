"""Captions with and without keeping the clip between the steps: how right they are, and what they cost.

    python benchmarks/captions.py accuracy [--model FILE] [--clips 512]             the embedded model, held-out worlds
    python benchmarks/captions.py ranking [--seed 0] [--clips 512]                  fixed draws against stop_when_sure
    python benchmarks/captions.py folder [--clips 128] [--turns 3]                 a folder, clips alone and together
    python benchmarks/captions.py film [--minutes 1 30]                            a film, shot by shot: memory and time
    python benchmarks/captions.py time [--frames 81] [--blocks 1 2] [--turns 3]     the released width, on the CPU

``time`` measures single passes with random weights at one or two depths and works out the 30 blocks from their
difference. A caption is the sum of its passes (drawing the words is left out; a pass of ``refresh`` that looks at the
clip counts as one of ``static``). Numbers go into benchmarks/numbers/captions_*.json, a table to the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partialmethod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import av
import torch
from measuring import GIB, ROOT, digest, in_turn, save
from networks import caption_passes, random_network

from recipes.worlds.answers import wilson
from recipes.worlds.drawing import draw
from recipes.worlds.drawing import place as place_objects
from recipes.worlds.evaluation import Evaluator
from recipes.worlds.grammar import random_world
from uvg_core.config import ModelConfig
from uvg_core.media.video import Clip, write_video
from uvg_core.media.video.footage import FOOTAGE
from uvg_core.model import UniViGU, VideoCache
from uvg_core.pipeline.folders import Captioner, Captions, caption_folder
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.pipeline.together import Together
from uvg_core.sampling import Ranking, Size

CACHES = {"off": ("off", False), "static": ("static", False), "static, float8": ("static", True)}
CACHES["refresh=8"] = ("refresh=8", False)  # video_cache, and whether it is kept in float8
REFRESH = (8, 16)
STEPS = (4, 8, 16, 50)
RANKINGS = {
    "1 draw": Ranking(samples=1),
    "sure 0.9": Ranking(samples=16, stop_when_sure=0.9),
    "sure 0.95": Ranking(samples=16, stop_when_sure=0.95),
    "16 draws": Ranking(samples=16),
}
RELEASED_BLOCKS, RELEASED_STEPS, TEXT = 30, 50, 256
CPU = torch.device("cpu")


def new_cache(_: UniViGU, in_float8: bool, **settings: Any) -> VideoCache:
    """In place of ``UniViGU.video_cache``, which chooses float8 by itself."""
    return VideoCache(**{**settings, "fp8": in_float8})


def accuracy(args: argparse.Namespace) -> None:
    """Every way of keeping the clip, at several numbers of steps."""
    torch.set_num_threads(1)
    evaluator = Evaluator(Pipeline(args.model, device="cpu"), clips=args.clips, quick=True)
    rule = evaluator.pipe.config.model.v2t_attention
    settings: dict[str, Any] = {}
    for steps in STEPS:
        for name, (policy, in_float8) in CACHES.items():
            started = time.perf_counter()
            with mock.patch.object(UniViGU, "video_cache", partialmethod(new_cache, in_float8)):
                found = evaluator.video_to_text(steps, video_cache=policy).to_json()
            seconds = time.perf_counter() - started
            settings[f"{name}, {steps} steps"] = {**found, "seconds": round(seconds, 2)}
            print(f"{name:18s} {steps:3d} steps  {100 * found['mean']:5.1f} %  {seconds:6.1f} s", flush=True)
    of = {"weights_sha256": digest(args.model), "v2t_attention": rule, "clips": args.clips}
    save(f"captions_accuracy_{rule}", {**of, "settings": settings})


def ranking(args: argparse.Namespace) -> None:
    """How often the true caption is first among ten, and how many draws a caption takes on average."""
    torch.set_num_threads(1)
    pipe, found = Pipeline(args.model, device="cpu"), {}
    for objects in (1, 2):
        evaluator = Evaluator(pipe, clips=args.clips, objects=objects, seed=args.seed)
        for name, draws in RANKINGS.items():
            evaluator.passes = 0
            first = evaluator.ranking(draws)
            a_text = (evaluator.passes / len(first) - 1) / 10  # but for the pass that looks at the clip
            share = sum(first) / len(first)
            low, high = wilson(share, len(first))
            found[f"{objects} objects, {name}"] = {"first": [share, low, high], "draws": round(a_text, 2)}
            print(f"{objects}  {name:12s} {share:.1%} ({low:.1%} to {high:.1%})  {a_text:.2f} draws", flush=True)
    save("captions_ranking", {"weights_sha256": digest(args.model), "clips": args.clips, "seed": args.seed, **found})


def folder(args: argparse.Namespace) -> None:
    """A folder of 256x256 clips, captioned one at a time and several at a time: clips a second, decoding included."""
    pipe = Pipeline(args.model, device="cpu")
    spec = Size().spec(pipe.config.run, FOOTAGE)

    def describe(clips: Sequence[Clip], paths: Sequence[Path]) -> list[str]:
        return pipe.captions(pipe.encode_clips([clip.pixels for clip in clips]), [0] * len(paths))

    def read(path: Path) -> Clip:
        return FOOTAGE.read(path, spec)

    captioners: dict[str, Callable[[], Captioner]] = {
        "alone": lambda: Captioner(lambda path: describe([read(path)], [path])[0]),
        "together": lambda: Together(read, describe, pipe.together()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in captioners}
    texts: dict[str, object] = {}
    with TemporaryDirectory() as place:
        generator = torch.Generator().manual_seed(0)
        for number in range(args.clips):
            world = random_world(generator, objects=1 + number % 2)
            pixels = draw(world, place_objects(world, 9, generator, split="test"), 256)
            write_video(Path(place) / f"{number:04}.mp4", pixels, 4)
        for turn in range(args.turns + 1):
            for name, make in captioners.items():
                started = time.perf_counter()
                report = caption_folder(place, make(), Captions(overwrite=True))
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - started)
                texts[name] = report.captions
    same = sum(a == b for a, b in zip(texts["alone"], texts["together"], strict=True))  # type: ignore[call-overload]
    rates = {name: args.clips / median(taken) for name, taken in seconds.items()}
    print(f"{rates}, {rates['together'] / rates['alone']:.1f} times; {same} of {args.clips} captions are the same")
    found = {"clips": args.clips, "threads": torch.get_num_threads(), "clips_a_second": rates, "same": same}
    save("captions_folder", {"weights_sha256": digest(args.model), **found})


def film(args: argparse.Namespace) -> None:
    """Synthetic films of several lengths, 12 frames a second of 256x256 pixels, a cut every 2 to 6 seconds: what
    ``caption --shots`` takes in a process of its own, the import of torch and the model included."""
    found = {}
    for minutes in args.minutes:
        with TemporaryDirectory() as place:
            path, out = Path(place) / "film.mp4", Path(place) / "film.json"
            starts, captions = write_film(path, round(60 * minutes))
            command = [sys.executable, "-m", "uvg_core", "caption", str(path), "--shots", "-o", str(out), "--quiet"]
            started = time.perf_counter()
            process = subprocess.Popen([*command, "--model", str(args.model), "--device", "cpu"], cwd=ROOT)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            if status:
                raise SystemExit(f"the command failed with {os.waitstatus_to_exitcode(status)}")
            lines = {round(row["start"], 2): row["caption"] for row in json.loads(out.read_text("utf-8"))}
        right = sum(lines.get(round(at, 2)) == caption for at, caption in zip(starts, captions, strict=True))
        cuts = sum(round(at, 2) in lines for at in starts)
        found[f"{minutes:g}"] = {
            "seconds": round(seconds, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_bytes": usage.ru_maxrss * 1024,
            "shots": len(starts),
            "found": [cuts, len(lines) - cuts],  # right ones, and others
            "captions_right": right,
        }
        print(f"{minutes:g} min: {found[f'{minutes:g}']}", flush=True)
    save("captions_film", {"weights_sha256": digest(args.model), "threads": torch.get_num_threads(), "minutes": found})


def write_film(path: Path, seconds: int) -> tuple[list[float], list[str]]:
    """Write a film of one-object worlds; when its shots begin, and their captions."""
    generator, rate = torch.Generator().manual_seed(seconds), 12
    starts, captions, number, last = list[float](), list[str](), 0, ""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        while number < rate * seconds:
            world = random_world(generator, objects=1)
            if world.background == last:  # the eye would see no cut either
                continue
            frames = int(torch.randint(2 * rate, 6 * rate, (), generator=generator))
            starts.append(number / rate)
            captions.append(world.caption)
            last, number = world.background, number + frames
            for pixels in draw(world, place_objects(world, frames, generator, split="test"), 256):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24")))
        container.mux(stream.encode())
    return starts, captions


def passes(blocks: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of single passes, medians of turns that alternate, and bytes of the caches."""
    model = random_network(ModelConfig(num_layers=blocks), CPU)
    video = torch.randn(1, 16, (args.frames - 1) // 4 + 1, args.height // 8, args.width // 8)
    text = torch.randint(model.config.vocab_size, (1, TEXT))
    caches = {"bfloat16": VideoCache(fp8=False), "float8": VideoCache(fp8=True)}
    jobs = caption_passes(model, video, text, torch.zeros(1, 1, model.config.text_dim), caches)
    for job in jobs.values():
        job()
    return {
        "seconds": {name: median(taken) for name, taken in in_turn(jobs, args.turns, CPU).items()},
        "kept": {name: cache.nbytes for name, cache in caches.items()},
    }


def timing(args: argparse.Namespace) -> None:
    """The cost of a caption at the released size from that of its passes."""
    measured = {blocks: passes(blocks, args) for blocks in args.blocks}
    low, high = min(measured), max(measured)

    def at_full_depth(what: str) -> dict[str, float]:
        few, many = measured[low][what], measured[high][what]
        times = (RELEASED_BLOCKS - low) / (high - low) if low < high else 0
        return {name: few[name] + times * (many[name] - few[name]) for name in many}

    seconds, kept = at_full_depth("seconds"), at_full_depth("kept")
    exact = RELEASED_STEPS * seconds["full"]
    rows = {"off": exact}
    for name, nbytes in kept.items():
        print(f"the cache in {name}: {nbytes / GIB:.2f} GiB")
        look, step = seconds[f"fill, {name}"], seconds[f"text, {name}"]
        for policy, every in {"static": RELEASED_STEPS, **{f"refresh={k}": k for k in REFRESH}}.items():
            looks = -(-RELEASED_STEPS // every)
            rows[f"{policy}, {name}"] = looks * look + (RELEASED_STEPS - looks) * step
    for name, total in rows.items():
        print(f"{name:32s} {total:10.1f} s   {exact / total:6.1f}")
    found = {"device": "cpu", "size": [args.frames, args.height, args.width], "measured": measured}
    save("captions_time_cpu", {**found, "passes": {"seconds": seconds, "kept": kept}, "caption": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for job in (accuracy, ranking):
        sub = commands.add_parser(job.__name__)
        sub.add_argument("--clips", type=int, default=512)
        sub.add_argument("--model", type=Path, default=ROOT / "models" / "uvg_tiny.safetensors")
        sub.set_defaults(run=job)
    sub.add_argument("--seed", type=int, default=0, help="of other worlds and other noise")
    sub = commands.add_parser("folder")
    for name, default in (("clips", 128), ("turns", 3)):
        sub.add_argument(f"--{name}", type=int, default=default)
    sub.add_argument("--model", type=Path, default=ROOT / "models" / "uvg_tiny.safetensors")
    sub.set_defaults(run=folder)
    sub = commands.add_parser("film")
    sub.add_argument("--minutes", type=float, nargs="+", default=[1.0, 30.0])
    sub.add_argument("--model", type=Path, default=ROOT / "models" / "uvg_tiny.safetensors")
    sub.set_defaults(run=film)
    sub = commands.add_parser("time")
    for name, default in (("frames", 81), ("height", 480), ("width", 832), ("turns", 3)):
        sub.add_argument(f"--{name}", type=int, default=default)
    sub.add_argument("--blocks", type=int, nargs="+", default=[1, 2])
    sub.set_defaults(run=timing)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
