"""Full-size files inside a real ComfyUI: time and peak memory of each job.

    python benchmarks/in_comfyui.py --dir D       D needs about 12 GB; Linux, with a ComfyUI where the tests find one

Makes the release's ``.pth`` (3.05B parameters, bf16), a umT5-XXL text encoder in ComfyUI's layout (full width and
vocabulary, --encoder-layers of its 24 layers) and a Wan VAE of full width, starts a ComfyUI server on the CPU with this
pack, and runs text-to-video, video-to-text and joint through its API, in turn. Peak memory is the server process's.
The words and pictures are noise: the released weights themselves have never been seen here. Numbers go into
benchmarks/numbers/in_comfyui.json.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from full_size import UMT5_XXL, VAE_WIDTH
from in_comfyui_host import Server, find_comfyui, load_client
from load_memory import make_file, random_weight
from measuring import GIB, resident
from safetensors.torch import save_file
from saved import save

from recipes.worlds.tokenizer import train_tokenizer
from recipes.worlds.vae import initialise, small_wan_vae
from uvg_core.checkpoint.vae_keys import vae_to_original
from uvg_core.media.text_encoder import build_encoder


def make_files(models: Path, layers: int) -> None:
    make_file(models / "diffusion_models" / "uni-vigu.pth", "release-pth")
    with torch.device("meta"):
        shapes = build_encoder({**UMT5_XXL, "num_layers": layers}).state_dict()
    encoder = {n: random_weight(s.shape) for n, s in shapes.items() if n != "encoder.embed_tokens.weight"}
    encoder["spiece_model"] = torch.frombuffer(bytearray(train_tokenizer()), dtype=torch.uint8)
    save_file(encoder, models / "text_encoders" / "umt5_xxl.safetensors")
    vae = small_wan_vae(VAE_WIDTH)
    initialise(vae)
    weights = {vae_to_original(name): tensor.bfloat16() for name, tensor in vae.state_dict().items()}
    save_file(weights, models / "vae" / "wan_2.1_vae.safetensors")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graphs(side: int, frames: int, steps: int) -> dict[str, dict[str, Any]]:
    """One graph per job; nodes shared between them are cached by ComfyUI, as in a real session."""
    size = {"width": side, "height": side, "frames": frames}
    common = {
        "load": node(
            "UniViGULoader",
            checkpoint="uni-vigu.pth",
            text_encoder="umt5_xxl.safetensors",
            vae="wan_2.1_vae.safetensors",
            latent_space="from the checkpoint",
            text_states="umT5",
            weight_dtype="default",
        ),
        "positive": node("UniViGUTextEncode", clip=["load", 1], text="a red circle"),
        "negative": node("UniViGUTextEncode", clip=["load", 1], text=""),
        "empty": node("UniViGUEmptyLatent", model=["load", 0], **size, text_length=0, batch_size=1),
    }
    prompts = {"model": ["load", 0], "positive": ["positive", 0], "negative": ["negative", 0], "latent": ["empty", 0]}
    recipe = {"seed": 0, "steps": steps, "guidance": 5.0, "shift": 3.0}
    sample = node("UniFlowSampler", **prompts, **recipe, sampler="euler", scheduler="uniform", denoise=1.0)
    decode = node("VAEDecode", samples=["sample", 0], vae=["load", 2])
    caption = node(
        "VideoToTextDenoise",
        model=["load", 0],
        clip=["load", 1],
        latent=["sample", 0],
        length=256,
        steps=steps,
        seed=0,
        temperature=1.0,
        top_p=1.0,
        stop_when_stable=0,
        text_update="bridge",
    )
    words = node("UniViGUTextDecoder", text=["caption", 0], clip=["load", 1])
    joint = node("JointSampler", **prompts, text_length=256, **recipe)
    joint_words = node("UniViGUTextDecoder", text=["joint", 1], clip=["load", 1])
    return {
        "text-to-video": {
            **common, "sample": sample, "decode": decode, "out": node("PreviewImage", images=["decode", 0])
        },
        "video-to-text": {
            **common, "sample": sample, "caption": caption, "words": words,
            "out": node("PreviewAny", source=["words", 0]),
        },
        "joint": {
            **common, "joint": joint, "words": joint_words, "out": node("PreviewAny", source=["words", 0])
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--encoder-layers", type=int, default=2)
    parser.add_argument("--side", type=int, default=128, help="pixels; full size is 832x480")
    parser.add_argument("--frames", type=int, default=9, help="full size is 81")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_files(args.make, args.encoder_layers)
        return
    models = args.dir / "uvg-in-comfyui" / "models"
    for kind in ("diffusion_models", "text_encoders", "vae"):
        (models / kind).mkdir(parents=True, exist_ok=True)
    if not (models / "vae" / "wan_2.1_vae.safetensors").is_file():
        # In a process of its own: making the files takes memory that is not to be counted.
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--make", str(models)], check=True)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        jobs = run(Server(find_comfyui(), Path(folder)), models, graphs(args.side, args.frames, args.steps))
    files = sum(file.stat().st_size for file in models.rglob("*") if file.is_file())
    save("in_comfyui", {"size": [args.frames, args.side, args.side], "files": files, "jobs": jobs})


def run(server: Server, models: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds of each job, and the server's peak until then."""
    found = {}
    shutil.rmtree(server.base / "models")
    (server.base / "models").symlink_to(models.resolve(), target_is_directory=True)
    with server:
        client = load_client().Client(server.url)
        for name, graph in jobs.items():
            started = time.perf_counter()
            result = client.run(graph)
            seconds = time.perf_counter() - started
            said = next(iter(result.texts.values()), [f"{len(result.files)} pictures"])[0]
            found[name] = {"seconds": seconds, "peak": resident("VmHWM", server.pid)}
            print(
                f"{name:14s} {seconds:7.1f} s   peak {found[name]['peak'] / GIB:5.2f} GiB   {said[:60]!r}", flush=True
            )
    return found


if __name__ == "__main__":
    main()
