"""Both jobs at the released size within a card's memory: fp8 weights, 480x832, 81 frames, ComfyUI's own offload.

    python benchmarks/limits.py --dir D [--gb 8] [--job text_to_video video_to_text] [--steps 3]

Needs a CUDA GPU, a ComfyUI where the tests find one, and 4 GB in D. The card is made small twice over: torch may
take no more (``set_per_process_memory_fraction``), and ComfyUI is told to leave the rest alone (``--reserve-vram``).
What is measured is the offload of ComfyUI's ModelPatcher (as with ``--disable-dynamic-vram``): dynamic VRAM, which
ComfyUI's own start-up puts in its place on some cards, keeps weights where torch neither counts nor limits them.
Random weights: the results are noise, time and memory are real. Numbers go into benchmarks/numbers/limits.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GB = 1e9
SIZE = (21, 60, 104)  # latent frames, height, width
CACHES = ("auto", "refresh=10", "static")


def fp8_file(path: Path, config: Any) -> Path:
    """A native fp8 file with random weights."""
    from functools import partial

    import torch

    from uvg_core.checkpoint.convert import packed
    from uvg_core.checkpoint.quant import METADATA_KEY, quantisation_metadata
    from uvg_core.checkpoint.read import Stored
    from uvg_core.checkpoint.write import write_safetensors
    from uvg_core.config import CheckpointConfig
    from uvg_core.model import UniViGU, sdpa_attention

    pattern = torch.randn(2**20).mul_(0.02).bfloat16()

    def noise(shape: Any) -> Any:
        count = shape.numel()  # a short pattern repeated: drawing 3 billion numbers would take minutes
        return pattern.repeat(-(-count // pattern.numel()))[:count].reshape(shape)

    weights = UniViGU(config, attention=sdpa_attention, device="meta").state_dict()
    pending: dict[str, Any] = {}
    layers = []
    for name, weight in weights.items():
        entries = packed(name, Stored.like(weight.shape, torch.bfloat16), partial(noise, weight.shape), "fp8")
        pending |= entries
        layers += [name.removesuffix(".weight")] if len(entries) > 1 else []
    metadata = {"config": CheckpointConfig(config).to_json(), METADATA_KEY: quantisation_metadata(layers)}
    write_safetensors(path, pending, {**metadata, "format": "pt"})
    return path


def measure(
    model: str,
    gb: float,
    job: str,
    steps: int,
    size: Sequence[int] = SIZE,
    text: int = 256,
    context: int = 512,
    caches: Sequence[str] = CACHES,
) -> list[dict[str, Any]]:
    """Inside ComfyUI: peak memory and seconds, on a card of ``gb`` or, for a rehearsal, on a CPU (its memory is what
    the network's estimate says)."""
    import time

    import comfy.model_management
    import torch
    from check_made import bridge, pack_module, run

    device = comfy.model_management.get_torch_device()
    on_card = device.type == "cuda"
    if on_card:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gb * GB / total), device)
    network = bridge.load_network(model, "default", None)
    config = bridge.network_of(network).config
    g = torch.Generator().manual_seed(0)
    states = torch.randn(1, context, config.text_dim, generator=g)
    words = torch.randint(config.vocab_size, (1, text), generator=g)
    prompt = [[states, {bridge.TEXT_TOKENS: words}]]
    latent = {"samples": torch.zeros(1, config.in_dim, *size)}
    sampling = pack_module("uvg_core.sampling")
    found = []

    def timed(name: str, act: Any) -> None:
        comfy.model_management.soft_empty_cache()
        if on_card:
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        act()
        if on_card:
            torch.cuda.synchronize(device)
        told = network.model_size() + network.model.memory_required(list(latent["samples"].shape))
        found.append({"job": job, "how": name, "steps": steps, "seconds": time.perf_counter() - started, "gb": gb,
                      "allocated": torch.cuda.max_memory_allocated(device) if on_card else told,
                      "reserved": torch.cuda.max_memory_reserved(device) if on_card else told,
                      "device": torch.cuda.get_device_name(device) if on_card else "cpu"})  # fmt: skip

    if job == "text_to_video":
        inputs = {"positive": prompt, "negative": prompt, "latent": latent, "seed": 0, "steps": steps, "guidance": 5.0}
        inputs |= {"shift": 3.0, "sampler": "euler", "scheduler": "uniform", "denoise": 1.0}
        for name in ("loading included", "loaded"):
            timed(name, lambda: run("UniFlowSampler", model=network, **inputs))
        return found
    for kept in caches:

        def caption(kept: str = kept) -> None:
            settings = sampling.Sampling(text_length=text, steps=steps, temperature=0.0, video_cache=kept)
            clip = torch.randn(latent["samples"].shape, generator=g)
            bridge.run_on_clip(
                network, lambda guided, video: sampling.video_to_text(guided, video, settings), clip, settings
            )

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

    from uvg_core.config import ModelConfig

    model = args.dir / "uni-vigu-fp8.safetensors"
    if not model.exists():
        fp8_file(model, ModelConfig())
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
