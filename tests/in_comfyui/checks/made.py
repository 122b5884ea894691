"""Small random checkpoints and what several checks need."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor
from worker import node_class, pack_module

core = pack_module("uvg_core")


class Bridge:
    """What the files of nodes/comfy define, whichever it is in."""

    FILES = (
        "names",
        "folders",
        "network",
        "conditioning",
        "latents",
        "loading",
        "lora",
        "model",
        "sampling",
        "captions",
    )

    def __getattr__(self, name: str) -> Any:
        for file in (*self.FILES, "checking", "samples", "saving", "showing"):
            module = pack_module(f"nodes.comfy.{file}")
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(name)


bridge = Bridge()
TINY = {"dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 3, "text_dim": 20, "freq_dim": 32, "vocab_size": 31}
EMBEDDED = bridge.EMBEDDED
WAN_SIZES = ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "freq_dim")


def random_network(seed: int = 0, **changes: Any) -> Any:
    """A network with every weight random, so that no part is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.no_grad():
        model = core.UniViGU(core.ModelConfig(**{**TINY, **changes})).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model


def checkpoint(name: str, dtype: torch.dtype | None = None, run: dict[str, Any] | None = None, **changes: Any) -> str:
    """A file with a random network in models/diffusion_models."""
    path = model_folder() / f"{name}.safetensors"
    core.save_model(random_network(**changes), path, dtype=dtype, run=core.RunConfig(**(run or {})))
    return str(path)


def model_folder(kind: str = "diffusion_models") -> Path:
    path = Path(folder_paths.get_folder_paths(kind)[-1])
    path.mkdir(parents=True, exist_ok=True)
    return path


def run(node_id: str, **inputs: Any) -> Any:
    """A node's outputs, called as ComfyUI calls it (unique id 1)."""
    cls = node_class(node_id)
    if hasattr(cls, "PREPARE_CLASS_CLONE"):
        return out(node_id, **inputs).args
    return getattr(cls(), cls.FUNCTION)(**inputs)


def out(node_id: str, **inputs: Any) -> Any:
    """All that one of our nodes gives, its last words too."""
    from comfy_api.latest import io

    prepared = node_class(node_id).PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}})
    return prepared.execute(**inputs)


def said_by(node_id: str, **inputs: Any) -> list[str]:
    """The last words of a node, as core takes them from its outputs."""
    return list(out(node_id, **inputs).ui["text"])


def message(act: Callable[[], Any]) -> str:
    """What is said when ``act`` fails."""
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def saved(file: str) -> str:
    """The path of a file that a node says it has written."""
    if file.startswith("(system temp)"):
        return file.replace("(system temp)", tempfile.gettempdir(), 1)
    return str(Path(folder_paths.get_output_directory()).parent / file)


def load_embedded(**widgets: Any) -> Any:
    own = bridge.FROM_CHECKPOINT
    given = {"checkpoint": EMBEDDED, "text_encoder": own, "vae": own, "latent_space": own, "text_states": "umT5"}
    return run("UniViGULoader", **{**given, "weight_dtype": "default", **widgets})


def inputs(batch: int = 2, text: int = 5, width: int = 20) -> dict[str, Tensor]:
    """Latent, times, condition and tokens of a batch for the tiny network."""
    g = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, 16, 2, 4, 6, generator=g),
        "t": torch.tensor([0.3, 0.8])[:batch],
        "context": torch.randn(batch, 7, width, generator=g),
        "tokens": torch.randint(31, (batch, text), generator=g),
    }


def conditioning(seed: int = 2, rows: int = 7, width: int = 20, tokens: list[int] | None = None) -> list[Any]:
    g = torch.Generator().manual_seed(seed)
    extra = {} if tokens is None else {bridge.TEXT_TOKENS: torch.tensor([tokens])}
    return [[torch.randn(1, rows, width, generator=g), extra]]


def empty(frames: int = 2, height: int = 4, width: int = 6, batch: int = 1) -> dict[str, Tensor]:
    return {"samples": torch.zeros(batch, 16, frames, height, width)}


def sampled(model: Any, positive: list[Any], negative: list[Any], latent: dict[str, Any], **changes: Any) -> Any:
    """The stock KSampler's latent."""
    given = {"seed": 3, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    (out,) = run(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **{**given, **changes}
    )
    return out["samples"]


def joint(model: Any, positive: list[Any], negative: list[Any], **changes: Any) -> Any:
    """What Joint Sampler gives without a CLIP: latent and text."""
    given = {"latent": empty(), "text_length": 6, "seed": 1, "steps": 6, "guidance": 4.0, "shift": 3.0}
    latent, text, _ = run("JointSampler", model=model, positive=positive, negative=negative, **{**given, **changes})
    return latent, text


def is_text_weight(name: str) -> bool:
    """Whether a weight, by its name in a model or a file, belongs to the half that plain Wan does not have."""
    return pack_module("uvg_core.checkpoint.keys").is_text_half(name.rpartition("diffusion_model.")[2])


def video_half(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of a checkpoint that plain Wan has, and the metadata that a file of them would carry."""
    stored = comfy.utils.load_torch_file(path)
    config = core.read_config(path).model
    facts = {name: getattr(config, name) for name in WAN_SIZES}
    weights = {name: tensor for name, tensor in stored.items() if not is_text_weight(name)}
    return weights, {"config": json.dumps({"transformer": facts})}


def plain_wan(path: str, **options: Any) -> Any:
    """Core's own Wan model with the video half of a checkpoint."""
    weights, metadata = video_half(path)
    return bridge.with_shift(comfy.sd.load_diffusion_model_state_dict(weights, options, metadata), 3.0)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference; 0.0 exactly when they are equal bit for bit."""
    return 0.0 if torch.equal(a, b) else float((a.float() - b.float()).abs().max())
