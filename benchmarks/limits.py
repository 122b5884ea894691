"""Both jobs at the released size within a card's memory: fp8 weights, 480x832, 81 frames, ComfyUI's own offload.

    python benchmarks/limits.py --dir D [--gb 8] [--job text_to_video video_to_text] [--steps 3]

Needs a CUDA GPU, a ComfyUI where the tests find one, and about 10 GB in D. The card is made small twice over: torch may
take no more (``set_per_process_memory_fraction``), and ComfyUI is told to leave the rest alone (``--reserve-vram``).
What is measured is the offload of ComfyUI's ModelPatcher (as with ``--disable-dynamic-vram``): dynamic VRAM, which
ComfyUI's own start-up puts in its place on some cards, keeps weights where torch neither counts nor limits them.
Random weights: the results are noise, time and memory are real. Numbers go into benchmarks/numbers/limits.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GB = 1e9
SIZE = (21, 60, 104)  # latent frames, height, width
CACHES = ("auto", "refresh=10", "static")


def measure(model: str, gb: float, job: str, steps: int) -> list[dict[str, Any]]:
    """Inside ComfyUI: peak memory and seconds."""
    import time

    import comfy.model_management
    import torch
    from check_made import bridge, pack_module, run

    device = torch.device("cuda", torch.cuda.current_device())
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gb * GB / total), device)
    network = bridge.load_network(model, "default", None)
    g = torch.Generator().manual_seed(0)
    states = torch.randn(1, 512, 4096, generator=g)
    words = torch.randint(32_000, (1, 256), generator=g)
    prompt = [[states, {bridge.TEXT_TOKENS: words}]]
    latent = {"samples": torch.zeros(1, 16, *SIZE)}
    modes = pack_module("uvg_core.sampling.modes")
    found = []

    def timed(name: str, act: Any) -> None:
        comfy.model_management.soft_empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        act()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        found.append({"job": job, "how": name, "steps": steps, "seconds": seconds, "gb": gb,
                      "allocated": torch.cuda.max_memory_allocated(device),
                      "reserved": torch.cuda.max_memory_reserved(device),
                      "device": torch.cuda.get_device_name(device)})  # fmt: skip

    if job == "text_to_video":
        inputs = {"positive": prompt, "negative": prompt, "latent": latent, "seed": 0, "steps": steps, "guidance": 5.0}
        inputs |= {"shift": 3.0, "sampler": "euler", "scheduler": "uniform", "denoise": 1.0}
        for name in ("loading included", "loaded"):
            timed(name, lambda: run("UniFlowSampler", model=network, **inputs))
        return found
    for kept in CACHES:

        def caption(kept: str = kept) -> None:
            def describe(guided: Any, noise: Any, video: Any) -> Any:
                modes.video_to_text(guided, video=video, length=256, steps=steps, temperature=0.0, video_cache=kept)
                return video

            bridge.run_on_clip(network, describe, torch.randn(1, 16, *SIZE), seed=0, steps=steps, text_length=256)

        timed(f"video_cache {kept}", caption)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--gb", type=float, default=8.0)
    parser.add_argument("--job", nargs="+", default=["text_to_video", "video_to_text"])
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    import torch

    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here: nothing to measure")
    from in_comfyui_host import Inside, find_comfyui, options_for
    from measuring import GIB
    from saved import read, save

    model = args.dir / "uni-vigu-fp8.safetensors"
    if not model.exists():
        whole = args.dir / "uni-vigu-bf16.safetensors"
        make = f"import load_memory as m; from pathlib import Path; m.make_file(Path({str(whole)!r}), 'native')"
        subprocess.run([sys.executable, "-c", make], check=True, cwd=HERE)  # in a process of its own: it takes memory
        convert = ["-m", "uvg_core", "convert", str(whole), str(model), "--dtype", "fp8"]
        subprocess.run([sys.executable, *convert], check=True, cwd=HERE.parent)
        whole.unlink()
    total = torch.cuda.get_device_properties(0).total_memory
    spare = f"{max(0.5, (total - args.gb * GB) / GIB):.2f}"  # in ComfyUI's unit
    options = (*options_for("cuda"), "--reserve-vram", spare)
    known: list[dict[str, Any]] = read("limits") or []
    for job in args.job:
        with tempfile.TemporaryDirectory() as folder, Inside(find_comfyui(), Path(folder) / "base", options) as inside:
            told = inside.call(
                "../../../benchmarks/limits",
                "measure",
                timeout=3600,
                model=str(model),
                gb=args.gb,
                job=job,
                steps=args.steps,
            )
        for one in told:
            print(
                f"{job:14s} {one['how']:24s} {one['seconds']:8.1f} s for {args.steps} steps   "
                f"{one['allocated'] / GB:5.2f} GB allocated, {one['reserved'] / GB:5.2f} GB taken of {args.gb:g}",
                flush=True,
            )
        known = [old for old in known if (old["job"], old["gb"]) != (job, args.gb)] + told
        save("limits", known)


if __name__ == "__main__":
    main()
