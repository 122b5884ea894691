"""Files of weights, and the JSON beside them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from lora_cases import DOWN_UP, Q_NAME, Case, Q
from safetensors.torch import save_file
from tiny_networks import TINY, random_network

from mutants import Parser, overwritten, prefixed, wrong, wrong_json
from uvg_core.checkpoint import Lora, LoraChoice, inspect_checkpoint, load_model
from uvg_core.checkpoint.read import open_weights
from uvg_core.media.null_embedding import read_null_embedding


def _weights() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in random_network().state_dict().items()}


def _make_native(folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file(_weights(), path, {"config": json.dumps({"transformer": {"num_heads": 2}, "run": {"text_length": 8}})})
    return path


def _make_torch(folder: Path) -> Path:
    small = {name: tensor for name, tensor in _weights().items() if tensor.numel() < 3000}
    torch.save({"model": small, "step": 3, "optimizer": {"state": {0: torch.zeros(3)}}}, folder / "model.pth")
    return folder / "model.pth"


def _make_shards(folder: Path) -> Path:
    weights, shards = _weights(), {}
    for number in (0, 1):
        file = f"diffusion_pytorch_model-{number + 1}-of-2.safetensors"
        names = sorted(weights)[number::2]
        save_file({name: weights[name] for name in names}, folder / file)
        shards |= dict.fromkeys(names, file)
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2, "eps": 1e-6}))
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    return index


def _make_config(folder: Path) -> Path:
    save_file(_weights(), folder / "diffusion_pytorch_model.safetensors")
    facts = {"num_attention_heads": 2, "eps": 1e-6, "text_flow": "discrete", "masked_source": False, "dim": TINY.dim}
    (folder / "config.json").write_text(json.dumps(facts))
    return folder / "config.json"


def _lora(folder: Path, peft: bool) -> Path:
    case = Case(_weights(), torch.Generator().manual_seed(1))
    if peft:
        case.pair(f"base_model.model.{Q}", Q)
        case.stem = "adapter_model"
        case.config = {
            "lora_alpha": 4,
            "r": 4,
            "alpha_pattern": {"self_attn.q": 2},
            "rank_pattern": {r"blocks\.\d+": 4},
        }
        case.write(folder)
        return folder / "adapter_config.json"
    case.pair(Q_NAME, Q, DOWN_UP, scale=0.5)
    case.put(f"{Q_NAME}.alpha", torch.tensor(2.0))
    case.metadata = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 4, "transformer.r": 4})}
    return case.write(folder)


def _read_model(path: Path) -> object:
    inspected = str(inspect_checkpoint(path if path.name != "config.json" else path.parent))
    load_model(path if path.name != "config.json" else path.parent)
    return inspected


def _read_torch(path: Path) -> object:
    weights = open_weights(path)
    for name in weights.tensors:
        weights.read(name)
    return weights.ignored


def _read_lora(path: Path) -> object:
    file = path.with_name("adapter_model.safetensors") if path.suffix == ".json" else path
    lora = Lora(LoraChoice(file), TINY)
    for name in lora.patches:
        lora.apply(name, torch.zeros(48, 48))
    return str(lora)


def lie_in_safetensors(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    stated = header.get("__metadata__") or {}
    key = next(iter(stated), None)
    if key and not random.randrange(3):
        stated[key] = json.dumps(wrong(json.loads(stated[key]), random))
    else:
        for _ in range(random.choice([1, 3])):
            header = wrong(header, random)
    return prefixed(json.dumps(header).encode()) + data[8 + length :]


def lie_in_zip(data: bytes, random: Random) -> bytes:
    """The same archive with a pickle whose numbers lie, or with members gone, cut, compressed, doubled."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    out, method = io.BytesIO(), zipfile.ZIP_STORED
    number = next(k for k, (name, _) in enumerate(members) if name.endswith("data.pkl"))
    name, inside = members[number]
    match random.randrange(8):
        case 0:
            del members[random.randrange(len(members))]
        case 1:
            method = zipfile.ZIP_DEFLATED
        case 2:
            other = random.randrange(len(members))
            members[other] = members[other][0], members[other][1][: random.randrange(9)]
        case 3:
            members += [(f"{name}{k}", b"") for k in range(random.choice([1, 5000]))]
        case _:
            spans = [(k, k + random.choice([1, 1, 2, 4])) for k in range(len(inside) - 4)]
            for _ in range(random.choice([1, 2, 6])):
                inside = bytes(overwritten(inside, spans, random))
            members[number] = name, inside
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, inside in members:
            archive.writestr(name, inside)
    return out.getvalue()


def _make_null(folder: Path) -> Path:
    torch.save({"context": torch.ones(1, 5, 20), "prompt": ""}, folder / "null.pt")
    return folder / "null.pt"


PARSERS = {
    "checkpoint, safetensors": Parser(_make_native, _read_model, lie_in_safetensors),
    "checkpoint, pth": Parser(_make_torch, _read_torch, lie_in_zip),
    "shard index": Parser(_make_shards, _read_model, wrong_json),
    "config.json": Parser(_make_config, _read_model, wrong_json),
    "null condition": Parser(_make_null, read_null_embedding, lie_in_zip),
    "LoRA": Parser(lambda folder: _lora(folder, peft=False), _read_lora, lie_in_safetensors),
    "adapter_config.json": Parser(lambda folder: _lora(folder, peft=True), _read_lora, wrong_json),
}
