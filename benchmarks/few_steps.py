"""Solvers at few steps: text-to-video with the embedded model through ComfyUI's samplers, read back from the pixels.

    python benchmarks/few_steps.py [--clips 256] [--steps 4 8 12 16 24 50] [--solvers euler heun ...]

Needs a ComfyUI where the tests find one. Held-out little worlds, detailed captions, guidance and shift of the
checkpoint. A step of heun is two passes of the network, the last one alone: its rows stand at one more than the passes
they cost. ``--guidance-end 0.5`` and ``--easycache 0.1`` measure what they spare. Numbers go into
benchmarks/numbers/few_steps.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOLVERS = ("euler", "heun", "uni_pc", "uni_pc_bh2", "dpmpp_2m")
STEPS = (4, 8, 12, 16, 24, 50)
PASSES = {"heun": 2}  # of the network a step


def sample(
    file: str, out: str, sampler: str, steps: int, cfg: float, shift: float, scheduler: str, end: float, reuse: float
) -> list[float]:
    """Inside ComfyUI: clips for the prompts in ``file``, their latents into ``out``; returns the seconds, and how
    many rows the network saw for a clip."""
    import time

    import torch
    from check_made import bridge, load_embedded, run
    from worker import pack_module

    asked = torch.load(file, weights_only=True)
    model, started, latents = load_embedded()[0], time.perf_counter(), []
    seen: list[int] = []

    def count(executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(x))
        return executor(x, *args, **kwargs)

    if reuse:
        (model,) = run(
            "EasyCache", model=model, reuse_threshold=reuse, start_percent=0.15, end_percent=0.95, verbose=False
        )
    model = model.clone()
    model.add_wrapper_with_key("diffusion_model", "count", count)  # inside of EasyCache's
    plan = None if scheduler else pack_module("uvg_core.flow.schedule").video_sigmas(steps, shift)
    for start in range(0, len(asked["context"]), 64):
        part = slice(start, start + 64)
        rows = asked["context"][part]
        text = {bridge.TEXT_TOKENS: asked["tokens"][part], bridge.TEXT_MASK: asked["mask"][part]}
        latents.append(
            bridge.sample_with_core(
                bridge.with_shift(model, shift),
                {"samples": torch.zeros(len(rows), 16, *asked["size"])},
                positive=[[rows, text]],
                negative=[[asked["null"].expand(len(rows), -1, -1), text]],
                seed=start,
                steps=steps,
                cfg=cfg,
                sampler=sampler,
                scheduler=scheduler or "simple",
                denoise=1.0,
                sigmas=plan,
                guidance_end=end,
            )
        )
    torch.save(torch.cat(latents), out)
    return [time.perf_counter() - started, sum(seen) / len(asked["context"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=SOLVERS)
    parser.add_argument("--guidance-end", type=float, default=1.0)
    parser.add_argument("--easycache", type=float, default=0.0, help="the threshold of core's EasyCache")
    parser.add_argument("--scheduler", default="", help="one of ComfyUI's, in place of the uniform steps")
    args = parser.parse_args()
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    import torch
    from in_comfyui_host import Inside, find_comfyui
    from saved import read, save

    from recipes.worlds.evaluation import Exam
    from recipes.worlds.vae import decode_latent
    from uvg_core.pipeline.pipeline import Pipeline

    exam = Exam(Pipeline(device="cpu"), clips=args.clips)
    texts = [world.caption for world in exam.worlds if world is not None]
    tokens, mask = exam.pipe.tokenizer.stream(texts, exam.run.text_length)

    def score(latents: torch.Tensor) -> dict[str, Any]:
        frames = []
        with exam.pipe.components.using("vae") as vae, torch.no_grad():
            for chunk in latents.split(32):
                video = (decode_latent(vae, chunk).clamp(-1, 1) + 1) * 127.5
                frames.append(video.round().to(torch.uint8).permute(0, 2, 3, 4, 1))
        return exam.read(torch.cat(frames), exam.worlds).to_json()

    with tempfile.TemporaryDirectory() as folder:
        asked, made = Path(folder) / "asked.pt", Path(folder) / "made.pt"
        torch.save(
            {
                "context": exam.pipe.conditions(texts),
                "null": exam.pipe.conditions([""]),
                "tokens": tokens,
                "mask": mask,
                "size": list(exam.latents.shape[2:]),
            },
            asked,
        )
        with Inside(find_comfyui(), Path(folder) / "base") as inside:
            for solver in args.solvers:
                for passes in args.steps:
                    steps = passes // PASSES.get(solver, 1)
                    seconds, rows = inside.call(
                        "../../../benchmarks/few_steps",
                        "sample",
                        timeout=3600,
                        file=str(asked),
                        out=str(made),
                        sampler=solver,
                        steps=steps,
                        cfg=exam.run.guidance_scale,
                        shift=exam.run.shift,
                        scheduler=args.scheduler,
                        end=args.guidance_end,
                        reuse=args.easycache,
                    )
                    tally = {**score(torch.load(made, weights_only=True)), "seconds": round(seconds, 1)}
                    tally["rows"] = rows  # guidance's pass included
                    share = tally["hits"]["whole"] / tally["trials"]["whole"]
                    print(
                        f"{solver:14s} {passes:3d} passes  {100 * tally['mean']:5.1f} %  "
                        f"everything right {100 * share:5.1f} %  {rows:5.1f} rows a clip  {tally['seconds']} s",
                        flush=True,
                    )
                    known = read("few_steps")
                    tally["clips"] = args.clips
                    name = " ".join(
                        [
                            solver,
                            *([args.scheduler] if args.scheduler else []),
                            *([f"guidance_end {args.guidance_end:g}"] if args.guidance_end < 1 else []),
                            *([f"EasyCache {args.easycache:g}"] if args.easycache else []),
                        ]
                    )
                    known.setdefault("solvers", {}).setdefault(name, {})[str(passes)] = tally
                    save("few_steps", known)


if __name__ == "__main__":
    main()
