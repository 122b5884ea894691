"""The recipe of the embedded model, from nothing to ``models/uvg_tiny.safetensors``: ``python -m recipes.worlds``.

Seven parts, each kept in a working folder: the VAE, the text encoder (both then frozen), the three stages of training
and two longer refinements after them, with the configurations in ``configs/worlds/``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uvg_core.checkpoint import load_model, read_config, save_model
from uvg_core.checkpoint.read import open_weights
from uvg_core.checkpoint.torch_file import read_saved
from uvg_core.checkpoint.vae_keys import vae_to_original
from uvg_core.config import ModelConfig, RunConfig
from uvg_core.io import written_whole
from uvg_core.media.tokenizer import Tokenizer
from uvg_core.model import UniViGU
from uvg_core.training.checkpoints import newest
from uvg_core.training.config import load_config
from uvg_core.training.run import train

from . import encoder as text_encoder
from .grammar import VERSION
from .tokenizer import train_tokenizer
from .vae import small_wan_vae
from .vae_training import reconstruction, train_vae

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


@torch.no_grad()
def initialise(model: UniViGU, seed: int = 0) -> None:
    """Fresh weights: Xavier for linear layers, open gates, output heads at zero."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            parameter.zero_()
            if parameter.shape[1] == 6:
                parameter[:, [2, 5]] = 1.0
        elif "norm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
        elif name.endswith(("bias", "head.weight")):
            nn.init.zeros_(parameter)
        elif name == "token_embedding.weight":
            nn.init.normal_(parameter, std=1.0)
        elif "time_projection" in name:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))


def make_vae(folder: Path, say: Say) -> Any:
    """The trained VAE of the working folder, trained first where it is missing."""
    path = folder / "vae.pt"
    if not path.exists():
        train_vae(path, width=VAE_WIDTH, side=RUN.height, frames=RUN.frames, say=say)
    vae = small_wan_vae(VAE_WIDTH)
    vae.load_state_dict(read_saved(path))
    return vae.eval().requires_grad_(False)


def encoder_weights(folder: Path, tokenizer: Tokenizer, say: Say) -> dict[str, Tensor]:
    """Weights of the trained text encoder of the working folder, trained first where it is missing."""
    path = folder / "encoder.pt"
    if not path.exists():
        with written_whole(path) as part:
            torch.save(text_encoder.train_encoder(tokenizer, say=say).state_dict(), part)
    weights: dict[str, Tensor] = read_saved(path)
    weights.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight
    return weights


def make_start(folder: Path, say: Say) -> Path:
    """``start.safetensors``: an untrained network beside its VAE, text encoder and tokenizer, in float32."""
    path = folder / "start.safetensors"
    if path.exists():
        return path
    tokenizer = Tokenizer(train_tokenizer(), RUN)
    vae, encoder = make_vae(folder, say).state_dict(), encoder_weights(folder, tokenizer, say)
    model = UniViGU(ModelConfig(**SIZES, text_dim=text_encoder.SIZES["d_model"], vocab_size=tokenizer.size))
    initialise(model)
    extra = {f"vae.{vae_to_original(name)}": weight for name, weight in vae.items()}
    extra |= {f"text_encoders.umt5xxl.transformer.{name}": weight for name, weight in encoder.items()}
    extra["text_encoders.spiece_model"] = torch.frombuffer(bytearray(tokenizer.proto), dtype=torch.uint8)
    card = {"data": f"little worlds, version {VERSION}", "recipe": "python -m recipes.worlds", "seed": 0}
    save_model(model, path, run=RUN, card=card, extra=extra)
    return path


def run_one(name: str, folder: Path, model: Path, say: Say) -> Path:
    """Train one of ``RUNS`` to its end; one that is finished is used, one that was interrupted goes on."""
    paths = {"model": str(model), "out": str(folder / name), "cache": str(folder / "cache")}
    config = load_config(CONFIGS / f"{name}.yaml", **paths)
    written = config.out_folder / "model.safetensors"
    last = newest(config.out_folder)
    if last is not None and last.name.endswith(f"{config.steps:08d}") and written.exists():
        return written
    trained = train(config, resume=last is not None, say=say).file
    assert trained is not None
    return trained


def export(trained: Path, out: Path, measured: dict[str, Any]) -> None:
    """All components of ``trained`` in float16, with what was ``measured`` in the card."""
    card, weights = read_config(trained).card, open_weights(trained)
    extra = {name: weights.read(name) for name in weights.tensors if name.startswith(("vae.", "text_encoders."))}
    extra = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in extra.items()}
    save_model(load_model(trained), out, run=RUN, card={**card, **measured}, dtype=torch.float16, extra=extra)


def measure_vae(folder: Path, say: Say) -> dict[str, Any]:
    """How well the VAE of the working folder gives held-out worlds back, in dB, for the card."""
    whole, boxes = reconstruction(make_vae(folder, say), side=RUN.height, frames=RUN.frames, clips=256)
    say(f"VAE on 256 held-out worlds: {whole:.2f} dB, inside the objects' boxes {boxes:.2f} dB")
    return {"vae_psnr": round(whole, 2), "vae_psnr_boxes": round(boxes, 2)}
