"""A network small enough to write in every layout, and a writer for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from uvg_core.checkpoint.keys import from_native
from uvg_core.config import ModelConfig
from uvg_core.model import UniViGU, sdpa_attention
from uvg_core.model.rope import frequencies

SIZES: dict[str, Any] = {
    "dim": 24,
    "ffn_dim": 40,
    "num_heads": 2,
    "num_layers": 2,
    "text_dim": 20,
    "freq_dim": 16,
    "vocab_size": 31,
}
LAYOUTS = ("native", "bare native", "all-in-one", "release", "release safetensors", "wrapped release", "bare release")
WAN_LAYOUTS = ("wan", "comfyui", "diffusers", "diffusers folder", "diffusers shards", "diffusers root")


def make_model(**changes: Any) -> UniViGU:
    """A model with random weights, norms and tables included, so that no renaming error can hide."""
    model = UniViGU(ModelConfig(**{**SIZES, **changes}), attention=sdpa_attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval().requires_grad_(False)


def weights_of(model: UniViGU) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write_uni_vigu(model: UniViGU, layout: str, folder: Path) -> Path:
    """The model in one of ``LAYOUTS``, as others would write it: nothing of the package's writers is used."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    native = weights_of(model)
    release = {from_native(name, "release"): tensor for name, tensor in native.items()}
    release["rotary_emb_text.inv_freq"] = frequencies(config.head_dim).float()
    metadata = {"config": json.dumps({"transformer": {"num_heads": config.num_heads}})}
    path = folder / "model.safetensors"
    if layout == "native":
        save_file(native, path, metadata)
    elif layout == "bare native":
        save_file(native, path)
    elif layout == "all-in-one":
        inside = {f"model.diffusion_model.{name}": tensor for name, tensor in native.items()}
        others = {"vae.conv1.weight": torch.ones(3), "text_encoders.umt5xxl.x": torch.zeros(2)}
        save_file(inside | others, path, metadata)
    elif layout == "release safetensors":
        save_file(release, path)
    else:
        path = folder / "model.pth"
        if layout == "bare release":
            torch.save(release, path)
        elif layout == "release":
            torch.save({"model": release, "optimizer": {"state": {0: torch.zeros(3)}}, "step": 12000}, path)
        else:
            wrapped = {
                name.replace("blocks.0.", "_fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module."): tensor
                for name, tensor in release.items()
            }
            torch.save({"model": {f"module._orig_mod.{name}": tensor for name, tensor in wrapped.items()}}, path)
    return path


def write_wan(model: UniViGU, layout: str, folder: Path) -> Path:
    """The video half alone, in one of ``WAN_LAYOUTS``."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor for name, tensor in weights_of(model).items() if is_video(name)}
    if layout in ("wan", "comfyui"):
        prefix = "model.diffusion_model." if layout == "comfyui" else ""
        save_file({prefix + name: tensor for name, tensor in half.items()}, folder / "wan.safetensors")
        return folder / "wan.safetensors"
    renamed = {str(from_native(name, "diffusers")): tensor for name, tensor in half.items()}
    home = folder / "transformer" if layout == "diffusers root" else folder
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(json.dumps({"num_attention_heads": model.config.num_heads, "eps": 1e-6}))
    stem = "diffusion_pytorch_model"
    if layout == "diffusers shards":
        names = sorted(renamed)
        shards = {f"{stem}-{i + 1}-of-2.safetensors": names[i::2] for i in range(2)}
        for file, part in shards.items():
            save_file({name: renamed[name] for name in part}, home / file)
        index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
        (home / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(renamed, home / f"{stem}.safetensors")
    return home / f"{stem}.safetensors" if layout == "diffusers" else folder


def dtypes(model: UniViGU) -> set[torch.dtype]:
    """Of all weights but the patch embedding, which is float32 whatever the rest is."""
    return {p.dtype for name, p in model.named_parameters() if not name.startswith("patch_embedding.")}


def is_video(name: str) -> bool:
    return not (name.startswith(("token_embedding", "text_head")) or "_t." in name)


def some_inputs(config: ModelConfig, length: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    text: Tensor = torch.randint(config.vocab_size, (1, length), generator=generator)
    if config.text_flow == "embedding" and length:
        text = torch.randn(1, length, config.dim, generator=generator)
    return {
        "video": torch.randn(1, config.in_dim, 2, 4, 4, generator=generator),
        "text": text,
        "time_video": torch.tensor([300.0]),
        "time_text": torch.tensor([700.0]),
        "context": torch.randn(1, 3, config.text_dim, generator=generator),
    }


class Toolbox:
    """What the tests of this folder share, as one fixture (helper modules cannot be imported from here)."""

    layouts, wan_layouts = LAYOUTS, WAN_LAYOUTS
    make_model = staticmethod(make_model)
    weights_of = staticmethod(weights_of)
    write_uni_vigu = staticmethod(write_uni_vigu)
    write_wan = staticmethod(write_wan)
    is_video = staticmethod(is_video)
    dtypes = staticmethod(dtypes)
    some_inputs = staticmethod(some_inputs)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take ``layout`` or ``wan_layout`` run for each."""
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", LAYOUTS)
    if "wan_layout" in metafunc.fixturenames:
        metafunc.parametrize("wan_layout", WAN_LAYOUTS)


@pytest.fixture(scope="session")
def tools() -> type[Toolbox]:
    return Toolbox


@pytest.fixture(scope="session")
def model() -> UniViGU:
    return make_model()


@pytest.fixture
def make() -> Callable[..., UniViGU]:
    return make_model
