"""Whole checkpoints, with what ComfyUI has patched into them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.cli_args import args
from torch import Tensor

from ...uvg_core.checkpoint.convert import eight_bits, packed
from ...uvg_core.checkpoint.keys import VAE_PREFIX
from ...uvg_core.checkpoint.quant import (
    FP8_DTYPES,
    METADATA_KEY,
    dequantise,
    is_companion,
    quantisation_metadata,
    scaled_weight,
)
from ...uvg_core.checkpoint.read import Stored
from ...uvg_core.checkpoint.write import ALL_IN_ONE_PREFIX, Pending, write_safetensors
from ...uvg_core.config import CheckpointConfig
from ...uvg_core.confined import is_plain, place_of
from ...uvg_core.errors import UniViGUError
from .latents import file_dtypes_of
from .network import config_of, network_of, run_facts

log = logging.getLogger(__name__)


def save_checkpoint(
    path: Path,
    model: Any,
    clip: Any | None,
    vae: Any | None,
    dtype: str | None = None,
    progress: Callable[[int, int], Any] | None = None,
    learnt: Mapping[str, Tensor] | None = None,
) -> None:
    """Write MODEL, with whatever LoRA is on it, and the parts that are given, as one file of ours.

    ``dtype`` as for ``convert``; None keeps what is loaded, and what core has widened for computing is as large as it
    was in its file. Text encoder and VAE stay as they are. ``learnt``: weights
    by name that take the place of MODEL's own.
    """
    network = network_of(model)
    patchers = [model, *([clip.load_model()] if clip is not None else [])]
    comfy.model_management.load_models_gpu(patchers)
    stored = model.model_state_dict_for_saving(network, "diffusion_model.")
    quantised = any(name.endswith(".weight_scale") for name in stored)
    if quantised and dtype is None and model.model.squeezed:
        log.warning(
            "Uni-ViGU: the network was kept in fp8 because the card is small, and is saved so; choose a dtype in Save "
            "Uni-ViGU, and weight_dtype bf16 in Load Uni-ViGU, to keep what its file holds"
        )
    prefix = "" if clip is None and vae is None else ALL_IN_ONE_PREFIX
    pending: dict[str, Any] = {}
    layers: list[str] = []
    for name, tensor in stored.items():
        if is_companion(name) or scaled_weight(name) in stored:  # a scale is made anew, or none is needed
            continue
        own = learnt is not None and name in learnt
        kept = tensor.dtype if own else _narrower(tensor.dtype, model.model.file_dtypes.get(name))
        plain = Stored.like(tensor.shape, torch.bfloat16 if own and kept in FP8_DTYPES else kept)
        read, chosen = partial(value_of, learnt if learnt is not None and own else stored, name), dtype
        if dtype is None and kept in FP8_DTYPES and not own and f"diffusion_model.{name}" in model.patches:
            chosen = "fp8"  # without a scale, eight bits are too coarse for what a LoRA adds
        scaled = dtype is None and _scale_of(stored, name) is not None
        entries = eight_bits(name, plain, read) if scaled else packed(name, plain, read, chosen)
        pending |= {prefix + entry: value for entry, value in entries.items()}
        if len(entries) > 1:
            layers.append(prefix + name.removesuffix(".weight"))
    parts: dict[str, Tensor] = {}
    if clip is not None:
        parts |= {f"text_encoders.{k}": v for k, v in clip.state_dict_for_saving().items() if "logit_scale" not in k}
    if vae is not None:
        parts |= {f"{VAE_PREFIX}{k}": v for k, v in vae.get_sd().items()}
    narrow = {} if vae is None else file_dtypes_of(vae)
    for name, tensor in parts.items():  # core's lazy weights are cast and patched as they are moved
        kept = _narrower(tensor.dtype, narrow.get(name.removeprefix(VAE_PREFIX)))
        read = partial(tensor.to, "cpu") if kept == tensor.dtype else partial(tensor.to, "cpu", kept)
        pending[name] = Pending(Stored.like(tensor.shape, kept), read)
    metadata = {"config": CheckpointConfig(config_of(model), run_facts(model)).to_json(), "format": "pt"}
    if layers:
        metadata[METADATA_KEY] = quantisation_metadata(layers)
    write_safetensors(path, pending, metadata, progress)


def value_of(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight as numbers, whatever it is stored as."""
    tensor, scale = stored[name].to("cpu"), _scale_of(stored, name)
    return tensor if scale is None else dequantise(tensor, scale.to("cpu"))


def _scale_of(stored: Mapping[str, Tensor], name: str) -> Tensor | None:
    return stored.get(name.removesuffix(".weight") + ".weight_scale")


def _narrower(loaded: torch.dtype, in_file: torch.dtype | None) -> torch.dtype:
    """What a weight is written in: as it is in memory, or as it was in its file, where that takes less."""
    return loaded if in_file is None or in_file.itemsize >= loaded.itemsize else in_file


def output_file(prefix: str, kind: str, suffix: str = ".safetensors") -> Path:
    """The next free ``output/<kind>/<prefix>_00001_.safetensors``; ComfyUI's loaders look there too. No other file has
    that number, whatever its suffix.

    Raises UniViGUError for a prefix that is empty or leads out of that folder."""
    home = Path(folder_paths.get_output_directory()) / kind
    if not prefix.strip() or not is_plain(prefix) or place_of(prefix, home, [home]) is None:
        found = "an absolute path" if os.path.isabs(prefix) else repr(prefix)
        raise UniViGUError(
            f"filename_prefix is {found}; expected a name such as uni_vigu, or a path inside {home}, such as "
            "mine/uni_vigu"
        )
    home.mkdir(parents=True, exist_ok=True)
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(home))
    return Path(folder) / f"{name}_{counter:05}_{suffix}"


def workflow_tags(prompt: Any, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """What core's savers write of the workflow into a file; nothing with --disable-metadata."""
    if args.disable_metadata:
        return {}
    tags = {**(extra or {}), **({} if prompt is None else {"prompt": prompt})}
    return {name: json.dumps(value) for name, value in tags.items()}


def place_in_output(path: Path) -> tuple[str, str]:
    """Name and subfolder of a file in the output folder, as previews of ComfyUI want it."""
    return path.name, path.parent.relative_to(folder_paths.get_output_directory()).as_posix().removeprefix(".")
