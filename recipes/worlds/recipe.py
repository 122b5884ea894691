"""The recipe of the embedded model, from nothing to ``models/uvg_tiny.safetensors``.

    python -m recipes.worlds.recipe WORKDIR [--only PART] [--out models/uvg_tiny.safetensors [--numbers JSON]]

Seven parts, each kept in WORKDIR: the VAE, the text encoder (both then frozen), the three stages of training and two
longer refinements after them, with the configurations in ``configs/worlds/``. A part that is there is used, one that
was cut off goes on. The finished model is written in float16; ``--numbers`` puts what ``benchmarks/quality.py``
measured into its metadata.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uvg_core.checkpoint import load_model, read_config, save_model
from uvg_core.checkpoint.read import open_weights
from uvg_core.checkpoint.vae_keys import vae_to_original
from uvg_core.config import ModelConfig, RunConfig
from uvg_core.io import written_whole
from uvg_core.media.tokenizer import Tokenizer
from uvg_core.model import UniViGU
from uvg_core.training.checkpoints import newest
from uvg_core.training.config import TrainConfig, load_config
from uvg_core.training.run import train

from . import encoder as text_encoder
from . import vae as video_vae
from . import world as worlds
from .tokenizer import train_tokenizer

VAE_WIDTH = 16
RUN = RunConfig(
    height=48,
    width=48,
    frames=9,
    fps=4.0,  # every second frame of the little worlds
    text_length=24,
    context_length=32,
    steps=24,
    text_steps=16,
    shift=3.0,
    guidance_scale=5.0,
    text_temperature=0.0,
    text_states="umT5",
    checked="built with the pack, on normalised latents and umT5 states",
)
SIZES: dict[str, Any] = {"dim": 192, "ffn_dim": 768, "num_heads": 6, "num_layers": 6}
RUNS = ("generate", "recall", "refine", "refine_longer", "refine_video")
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "worlds"
Say = Callable[[str], object]


def initialise(model: UniViGU, seed: int = 0) -> None:
    """Fresh weights: Xavier for linear layers, open gates, output heads at zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("modulation"):
                parameter.zero_()
                if parameter.shape[1] == 6:
                    parameter[:, [2, 5]] = 1.0
            elif "norm" in name:
                nn.init.ones_(parameter) if name.endswith("weight") else nn.init.zeros_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name == "token_embedding.weight":
                nn.init.normal_(parameter, std=1.0)
            elif ".head." in f".{name}" and name.endswith("head.weight"):
                nn.init.zeros_(parameter)
            elif "time_projection" in name:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))


def make_vae(folder: Path, say: Say) -> Any:
    """The trained VAE of WORKDIR, trained first where it is missing."""
    path = folder / "vae.pt"
    if not path.exists():
        video_vae.train_vae(path, width=VAE_WIDTH, side=RUN.height, frames=RUN.frames, say=say)
    vae = video_vae.small_wan_vae(VAE_WIDTH)
    vae.load_state_dict(torch.load(path, weights_only=True))
    return vae.eval().requires_grad_(False)


def make_encoder(folder: Path, tokenizer: Tokenizer, say: Say) -> nn.Module:
    """The trained text encoder of WORKDIR, trained first where it is missing."""
    path = folder / "encoder.pt"
    if not path.exists():
        trained = text_encoder.train_encoder(tokenizer, say=say)
        with written_whole(path) as part:
            torch.save(trained.state_dict(), part)
    encoder = text_encoder.build_encoder({**text_encoder.SIZES, "vocab_size": tokenizer.size})
    encoder.load_state_dict(torch.load(path, weights_only=True))
    return encoder


def make_start(folder: Path, say: Say, sizes: dict[str, Any] = SIZES) -> Path:
    """``start.safetensors``: an untrained network beside its VAE, text encoder and tokenizer, in float32."""
    path = folder / "start.safetensors"
    if path.exists():
        return path
    tokenizer = Tokenizer(train_tokenizer(), RUN)
    vae, encoder = make_vae(folder, say), make_encoder(folder, tokenizer, say)
    model = UniViGU(ModelConfig(**sizes, text_dim=text_encoder.SIZES["d_model"], vocab_size=tokenizer.size))
    initialise(model)
    extra: dict[str, Tensor] = {f"vae.{vae_to_original(name)}": weight for name, weight in vae.state_dict().items()}
    for name, weight in encoder.state_dict().items():
        if name != "encoder.embed_tokens.weight":  # tied to shared.weight
            extra[f"text_encoders.umt5xxl.transformer.{name}"] = weight
    extra["text_encoders.spiece_model"] = torch.frombuffer(bytearray(tokenizer.proto), dtype=torch.uint8)
    card = {
        "data": f"little worlds, version {worlds.VERSION}",
        "recipe": "python -m recipes.worlds.recipe",
        "seed": 0,
    }
    save_model(model, path, run=RUN, card=card, extra=extra)
    return path


def measure_vae(folder: Path, say: Say) -> dict[str, float]:
    """How well the VAE of WORKDIR gives held-out worlds back, in dB."""
    vae = make_vae(folder, say)
    found = video_vae.reconstruction(vae, side=RUN.height, frames=RUN.frames, clips=256)
    say(f"VAE on 256 held-out worlds: {found.psnr:.2f} dB, inside the objects' boxes {found.psnr_boxes:.2f} dB")
    return {"vae_psnr": round(found.psnr, 2), "vae_psnr_boxes": round(found.psnr_boxes, 2)}


def run_config(name: str, folder: Path, model: Path) -> TrainConfig:
    """The configuration of one of ``RUNS`` with this recipe's paths."""
    paths = {"model": str(model), "out": str(folder / name), "cache": str(folder / "cache")}
    return load_config(CONFIGS / f"{name}.yaml", **paths)


def run_one(name: str, folder: Path, model: Path, say: Say) -> Path:
    """Train one of ``RUNS`` to its end; one that is finished is used, one that was cut off goes on."""
    config = run_config(name, folder, model)
    written = config.out_folder / "model.safetensors"
    last = newest(config.out_folder)
    if last is not None and last.name.endswith(f"{config.steps:08d}") and written.exists():
        return written
    outcome = train(config, resume=last is not None, say=say)
    assert outcome.file is not None
    return outcome.file


def export(trained: Path, out: Path, measured: dict[str, Any]) -> None:
    """All parts of ``trained`` in float16, with what was ``measured`` in the card."""
    card, weights = read_config(trained).card, open_weights(trained)
    parts = [name for name in weights.tensors if name.startswith(("vae.", "text_encoders."))]
    extra = {name: weights.read(name) for name in parts}
    extra = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in extra.items()}
    save_model(load_model(trained), out, run=RUN, card={**card, **measured}, dtype=torch.float16, extra=extra)


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """Means in percent by number of objects and question, of a file that ``benchmarks/quality.py`` wrote."""
    found: dict[str, Any] = {"clips": measured["clips"]}
    for objects in ("objects_1", "objects_2"):
        answers = measured.get(objects, {})
        shares = {name: answers[name]["mean"] for name in ("understanding", "generation") if name in answers}
        if "joint" in answers:
            shares["joint agreement"] = answers["joint"]["agreement"]["mean"]
        if "ranking" in answers:
            shares["ranking"] = answers["ranking"]["share"]
        found[objects] = {name: round(100 * share, 1) for name, share in shares.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.worlds.recipe", description=__doc__.split("\n")[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--only", choices=("start", *RUNS), help="stop after this part")
    parser.add_argument("--out", type=Path, default=None, help="write the finished model here, in float16")
    parser.add_argument("--numbers", type=Path, default=None, help="quality_NAME.json, for the metadata of --out")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        print(line, flush=True)

    model = make_start(args.workdir, say)
    for name in RUNS:
        if args.only == "start":
            return
        model = run_one(name, args.workdir, model, say)
        say(f"{name}: {model}")
        if args.only == name:
            return
    if args.out is not None:
        measured: dict[str, Any]
        if args.numbers is None:
            say("no --numbers: the file will not say how good the model is")
            measured = measure_vae(args.workdir, say)
        else:
            numbers = json.loads(args.numbers.read_text("utf-8"))
            vae = numbers["objects_1"]["vae"]  # as the page of results has it
            measured = {"vae_psnr": vae["whole"], "vae_psnr_boxes": vae["boxes"], "right_percent": summary(numbers)}
        export(model, args.out, measured)
        say(f"written: {args.out}")


if __name__ == "__main__":
    main()
