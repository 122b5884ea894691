"""The path of a full-size release checkpoint, on files of the real sizes and key names with random weights.

    python benchmarks/full_size.py --dir D       D needs about 20 GB; Linux

Makes the release's ``.pth`` (3.05B parameters, bf16, FSDP prefixes) and a Wan2.1 folder in diffusers layout (the VAE at
full width; the text encoder at full width with --encoder-layers of its 24 layers), then runs the commands of this
project on them, each in a process of its own, and prints time and peak memory. The words and pictures are noise: the
released weights themselves have never been seen here. Numbers go into benchmarks/numbers/full_size.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from load_memory import make_file
from measuring import GIB
from safetensors.torch import save_file
from saved import save

from recipes.worlds.tokenizer import train_tokenizer
from recipes.worlds.vae import initialise, small_wan_vae
from uvg_core.media.text_encoder import build_encoder

UMT5_XXL = {"vocab_size": 256384, "d_model": 4096, "num_heads": 64, "d_kv": 64, "d_ff": 10240,
            "relative_attention_num_buckets": 32}  # fmt: skip
VAE_WIDTH = 96


def make_wan_folder(folder: Path, layers: int) -> None:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "spiece.model").write_bytes(train_tokenizer())
    vae = small_wan_vae(VAE_WIDTH)
    initialise(vae)
    vae.save_pretrained(folder / "vae")
    del vae
    (folder / "text_encoder").mkdir()
    with torch.device("meta"):
        shapes = build_encoder({**UMT5_XXL, "num_layers": layers}).state_dict()
    weights = {
        name: (torch.randn(shape.shape) * 0.02).bfloat16()
        for name, shape in shapes.items()
        if name != "encoder.embed_tokens.weight"
    }
    save_file(weights, folder / "text_encoder" / "model.safetensors")


def run(label: str, *arguments: str) -> dict[str, float]:
    """Run a command of the project; print its time, peak memory and last line, and return the former two."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, "-m", "uvg_core", *arguments], stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.strip() and "%|" not in line]
    if status:
        sys.exit(f"{label} failed:\n" + "\n".join(lines))
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss * 1024
    print(f"{label:38s} {seconds:7.1f} s   peak {peak / GIB:5.2f} GiB   {lines[-1][:90]}", flush=True)
    return {"seconds": seconds, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--encoder-layers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the files there for another run")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.dir / "uvg-full-size"
    released, wan = folder / "uni-vigu.pth", folder / "wan"
    if args.make:
        make_file(released, "release-pth")
        make_wan_folder(wan, args.encoder_layers)
        return
    native, clip = folder / "uni-vigu-bf16.safetensors", folder / "clip.mp4"
    try:
        if not wan.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            # In a process of its own: a child's peak starts from its parent's.
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--make"], check=True)
        size = ["--height", "64", "--width", "64", "--frames", "5"]
        quick = ["--wan", str(wan), "--device", "cpu", *size, "--steps", "2"]
        ours, theirs, words = ["--model", str(native)], ["--model", str(released)], ["--length", "16"]
        joint, fp8 = str(folder / "joint.mp4"), str(folder / "fp8.safetensors")
        commands = {
            "`inspect` the `.pth`": ["inspect", str(released)],
            "`convert` to bf16": ["convert", str(released), str(native), "--dtype", "bf16"],
            "`inspect` the result": ["inspect", str(native)],
            "`generate`, 2 steps with guidance": ["generate", "a red circle", *ours, *quick, "-o", str(clip)],
            "`caption` with the `.pth`, 2 steps, 16 tokens": ["caption", str(clip), *theirs, *quick, *words],
            "`joint`, 2 steps with guidance, 16 tokens": ["joint", "a red circle", *ours, *quick, *words, "-o", joint],
            "`convert` to fp8": ["convert", str(released), fp8, "--dtype", "fp8"],
        }
        save("full_size", {name: run(name, *command) for name, command in commands.items()})
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
