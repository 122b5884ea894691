"""MODEL, CLIP and VAE from files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...uvg_core.checkpoint import Overrides
from ...uvg_core.checkpoint.config import say_unchecked, unchecked
from ...uvg_core.checkpoint.detect import Checkpoint, open_checkpoint
from ...uvg_core.checkpoint.fit import open_network
from ...uvg_core.checkpoint.keys import ENCODER_PREFIX, TOKENIZER_KEY, VAE_PREFIX, strip_wrappers
from ...uvg_core.checkpoint.quant import (
    FP8,
    FP8_DTYPES,
    METADATA_KEY,
    dequantise,
    is_quantised_in_fp8,
    quantisation_metadata,
    quantise,
    quantised_layers,
)
from ...uvg_core.config import TEXT_STATES, CheckpointConfig, RunConfig
from ...uvg_core.errors import UniViGUError
from ...uvg_core.media.text_encoder import encoder_config
from ...uvg_core.model.memory import pass_bytes, video_tokens
from ...uvg_core.pipeline.component_files import ENCODER, VAE
from .latents import came_in, is_wan_vae
from .network import network_of, run_facts

log = logging.getLogger(__name__)

SECOND_BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
MARKS = ("comfy_quant", "scaled_fp8")  # what core marks quantised layers by, beside metadata
SPARE = 2e9  # bytes of a card for its context, workspaces, the screen and what ComfyUI keeps around a pass
SQUEEZED = (
    "this card is too small for the network in two bytes a number; its large matrices are kept in fp8 with a scale "
    "each, as convert --dtype fp8 does. Set weight_dtype to bf16 to keep them as they are"
)
WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "fp32": {"dtype": torch.float32},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def load_network(path: str, weight_dtype: str, latent_space: str | None, disable_dynamic: bool = False) -> Any:
    """A Uni-ViGU checkpoint of any layout as a MODEL; also what ComfyUI calls to load it anew on another device.

    Raises UniViGUError naming the file when it is not one.
    """
    checkpoint, config = open_network(path, Overrides(latent_space=latent_space))
    if not config.run.checked:
        say_unchecked(Path(path).name, config.model.latent_space, config.run.text_states or TEXT_STATES[0])
    tensors, metadata = _read(path, checkpoint)
    metadata["config"] = config.to_json()
    squeezed = weight_dtype == "default" and _is_too_large(tensors, config)
    if squeezed:
        tensors, metadata[METADATA_KEY] = _in_eight_bits(tensors)
        log.warning("Uni-ViGU: %s", SQUEEZED)
    model = comfy.sd.load_diffusion_model_state_dict(
        tensors, model_options=WEIGHT_DTYPES[weight_dtype], metadata=metadata, disable_dynamic=disable_dynamic
    )
    model.model.squeezed = squeezed
    if weight_dtype == "fp32":  # asked for, also of what is saved
        model.model.file_dtypes = {}
    if weight_dtype == "fp32" and model.model.get_dtype_inference() != torch.float32:
        model.model.manual_cast_dtype = torch.float32  # quantised weights: core computes in what the card is best at
    model.cached_patcher_init = (load_network, (path, weight_dtype, latent_space))
    return model


def notes_on(model: Any, name: str) -> list[str]:
    """What there is to say of a MODEL from the file of that name, where something is not as it may be expected."""
    notes, run = [], run_facts(model)
    if not run.checked:
        notes.append(unchecked(name, network_of(model).config.latent_space, run.text_states or TEXT_STATES[0]))
    return [*notes, SQUEEZED] if model.model.squeezed else notes


def _read(path: str, network: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The network's tensors under native names, scales of fp8 in core's form, and the file's metadata."""
    weights = network.weights
    metadata = {key: text for key, text in weights.metadata.items() if key != METADATA_KEY}
    read: Callable[[str], Tensor] = weights.read
    if Path(path).suffix in (".safetensors", ".sft"):
        read = comfy.utils.load_torch_file(path).__getitem__  # core's reader: memory-mapped as its offload wants it
    marked = METADATA_KEY in weights.metadata or any(name.endswith(MARKS) for name in weights.tensors)
    if network.layout == "native" and marked:  # core can tell by itself that layers are scaled
        prefix, layers = network.prefix, quantised_layers(weights.metadata)
        inside = [name for name in weights.tensors if name not in network.others]  # scales of fp8 too
        tensors = {strip_wrappers(name).removeprefix(prefix): read(name) for name in inside}
        known = {name.removeprefix(prefix): how for name, how in layers.items() if name.startswith(prefix)}
        return tensors, metadata | ({METADATA_KEY: quantisation_metadata((), known)} if known else {})
    tensors, scaled = {name: read(stored) for name, stored in network.names.items()}, []
    for name, stored in network.scales.items():
        layer, scale = name.removesuffix(".weight"), read(stored)
        if tensors[name].dtype == FP8 and scale.numel() == 1:
            tensors[f"{layer}.weight_scale"] = scale.float().reshape(())
            scaled.append(layer)
        else:  # core has no form for it
            tensors[name] = dequantise(tensors[name], scale).bfloat16()
    return tensors, metadata | ({METADATA_KEY: quantisation_metadata(scaled)} if scaled else {})


def _is_too_large(tensors: Mapping[str, Tensor], config: CheckpointConfig) -> bool:
    """Whether a CUDA card does not hold the network in two bytes a number, beside one pass at the size it was trained
    for. Files in fp8 are left alone."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda" or any(tensor.dtype in FP8_DTYPES for tensor in tensors.values()):
        return False
    run, network = config.run, config.model
    latent = ((run.frames - 1) // 4 + 1, run.height // 8, run.width // 8)
    weights, video = 2 * comfy.utils.calculate_parameters(tensors), video_tokens(latent, network)
    needed = weights + SPARE
    needed += pass_bytes(network, rows=1, video=video, text=run.text_length, itemsize=2, logits=1)
    return bool(needed > comfy.model_management.get_total_memory(device))


def _in_eight_bits(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors with the blocks' matrices in fp8, and core's list of those."""
    made = dict(tensors)
    layers = [name.removesuffix(".weight") for name in tensors if is_quantised_in_fp8(name)]
    for layer in layers:
        made[f"{layer}.weight"], made[f"{layer}.weight_scale"] = quantise(tensors[f"{layer}.weight"])
    return made, quantisation_metadata(layers)


def encoder_target(
    sizes: Mapping[str, int], detected: Mapping[str, Any], run: RunConfig, release_states: bool = False
) -> Any:
    """What core's CLIP needs to build a umT5 of any size, which pads prompts to the rows that the model was trained
    with; see ``TextEncoder`` in uvg_core for the release's states."""
    base = comfy.text_encoders.wan.te(**detected)
    known = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers")
    config: dict[str, Any] = {name: sizes[name] for name in known if name in sizes}
    if release_states:
        config["model_type"] = "t5"  # the first layer's position bias everywhere

    class Encoder(base):  # type: ignore[misc, valid-type]
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] = {}) -> None:
            super().__init__(device, dtype, {**model_options, "umt5xxl_model_config": config})
            if release_states:
                self.umt5xxl.zero_out_masked = False

    class PromptTokenizer(comfy.text_encoders.wan.WanT5Tokenizer):  # type: ignore[misc]
        run_facts = run

        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] = {}) -> None:
            super().__init__(embedding_directory, {**tokenizer_data, "umt5xxl_min_length": run.context_length})

    return comfy.supported_models_base.ClipTarget(PromptTokenizer, Encoder)


def load_encoder(path: str, release_states: bool, text_dim: int, run: RunConfig, disable_dynamic: bool = False) -> Any:
    """The umT5 of a text encoder file, or of an all-in-one checkpoint, as a CLIP.

    Raises UniViGUError naming the file when it holds no umT5, one of another width, or no tokenizer.
    """
    stored, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    inside = part_of(stored, ENCODER_PREFIX)
    tokenizer = stored.get(TOKENIZER_KEY if inside else "spiece_model")
    weights, _ = (inside, None) if inside else comfy.utils.convert_old_quants(stored, metadata=metadata)
    try:
        sizes, found = encoder_config(weights), ""
    except UniViGUError as error:
        sizes, found = {}, str(error)
    if sizes and sizes["num_layers"] > 1 and SECOND_BIAS not in weights:
        found = "found a plain T5, expected a umT5 (position biases in every layer)"
    elif sizes and sizes["d_model"] != text_dim:
        found = f"this text encoder is {sizes['d_model']} wide; the checkpoint expects {text_dim}"
    elif sizes and tokenizer is None:
        found = "the text encoder has no tokenizer in it (tensor spiece_model)"
    if found:
        raise UniViGUError(
            f"{path}: {found}. Choose the text encoder that belongs to the checkpoint: umt5_xxl_fp8_e4m3fn_scaled or "
            "umt5_xxl_fp16, in ComfyUI's layout, for the released model, 'from the checkpoint' for the embedded one"
        )
    clip = comfy.sd.CLIP(
        encoder_target(sizes, comfy.text_encoders.sd3_clip.t5_xxl_detect(weights), run, release_states),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"spiece_model": tokenizer},
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_patcher, (load_encoder, path, release_states, text_dim, run))
    return clip


def load_vae(path: str, disable_dynamic: bool = False) -> Any:
    """The Wan VAE of a VAE file, or of an all-in-one checkpoint. ``disable_dynamic`` means nothing to core's VAE.

    Raises UniViGUError naming the file when it holds none.
    """
    stored, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    weights = part_of(stored, VAE_PREFIX) or stored
    dtypes = {name: tensor.dtype for name, tensor in weights.items()}
    vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    if not is_wan_vae(vae):
        raise UniViGUError(
            f"{path}: not a Wan 2.1 VAE (16 latent channels, video); choose a file such as wan_2.1_vae.safetensors"
        )
    if getattr(vae, "patcher", None) is not None:
        vae.patcher.cached_patcher_init = (_patcher, (load_vae, path))
        came_in(vae, dtypes)
    return vae


def _patcher(load: Callable[..., Any], *arguments: Any, disable_dynamic: bool = False) -> Any:
    """What ComfyUI calls to load a text encoder or VAE anew on another device."""
    return load(*arguments, disable_dynamic=disable_dynamic).patcher


def components_in(path: str) -> set[str]:
    """Which of text encoder and VAE a checkpoint has in it. Raises UniViGUError when it is no Uni-ViGU."""
    checkpoint = open_checkpoint(path)
    checkpoint.require()
    names = checkpoint.weights.tensors
    prefixes = {ENCODER: ENCODER_PREFIX, VAE: VAE_PREFIX}
    return {part for part, prefix in prefixes.items() if any(name.startswith(prefix) for name in names)}


def part_of(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One part of an all-in-one file, under its own names; empty where the file does not have it."""
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
