"""A tiny release checkpoint beside a Wan2.1 folder in diffusers layout, for tests of the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_networks import random_network

from recipes.worlds.tokenizer import train_tokenizer
from recipes.worlds.vae import initialise, small_wan_vae
from uvg_core import ModelConfig
from uvg_core.checkpoint.keys import from_native
from uvg_core.media.text_encoder import build_encoder

SIZES = {"d_model": 20, "num_heads": 2, "d_kv": 10, "d_ff": 24, "num_layers": 2, "relative_attention_num_buckets": 8}
SIZE = ["--height", "32", "--width", "48", "--frames", "5"]


def make_files(root: Path) -> list[str]:
    """The arguments that point at a checkpoint and its Wan folder."""
    torch.manual_seed(0)
    config = ModelConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1, text_dim=20, vocab_size=400)
    weights = random_network(config).state_dict()
    names = {name: from_native(name, "release") for name in weights}
    assert None not in names.values()
    released = {f"_fsdp_wrapped_module.{names[name]}": weight for name, weight in weights.items()}
    left = {"args": argparse.Namespace(out=root), "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save({"model": released, "step": 7, **left}, root / "uni-vigu.pth")

    wan = root / "wan"
    (wan / "tokenizer").mkdir(parents=True)
    (wan / "tokenizer" / "spiece.model").write_bytes(train_tokenizer())
    vae = small_wan_vae(4)
    initialise(vae)
    vae.save_pretrained(wan / "vae")
    encoder = build_encoder({**SIZES, "vocab_size": 400}).state_dict()
    encoder.pop("encoder.embed_tokens.weight", None)
    (wan / "text_encoder").mkdir()
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(encoder)}
    for shard in set(shards.values()):
        save_file({n: encoder[n].contiguous() for n in encoder if shards[n] == shard}, wan / "text_encoder" / shard)
    (wan / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return ["--model", str(root / "uni-vigu.pth"), "--wan", str(wan), "--device", "cpu"]
