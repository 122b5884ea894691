"""The bridge to ComfyUI: what knows its internals is here and nowhere else.

Nodes read their widgets and call one function from here. ``network``: our network, open to core's patches; ``model``:
as one of ComfyUI's models, registered, so that core's own loaders find it; ``sampling``: both streams inside ComfyUI's
guider; ``training`` is imported by its node alone, as it needs more packages.
"""

from __future__ import annotations

from .checking import COMFYUI, conditions_by_states, size_of, weigh_model, with_verdict
from .conditioning import encode_prompt, no_prompt, tokenizer_of, with_tokens_of
from .latents import (
    belong_to,
    decode_latent,
    empty_latent,
    encode_pixels,
    facts_of_vae,
    nearest_words,
    nested,
    require_video_latent,
    require_video_vae,
    streams_of,
)
from .loading import (
    NO_FILE,
    WEIGHT_DTYPES,
    checkpoint_names,
    checkpoint_path,
    file_names,
    file_path,
    fit_preview,
    load_encoder,
    load_network,
    load_vae,
    null_embedding_names,
    null_embedding_path,
    parts_of,
)
from .lora import apply_lora, is_text_weight
from .model import UniViGUConfig, UniViGUModel, register
from .names import DOWNLOADS, EMBEDDED, FROM_CHECKPOINT, RELEASED, TEXT_MASK, TEXT_TOKENS
from .network import HostedNetwork, config_of, latent_format_of, network_of, run_facts, weights_of
from .sampling import (
    HostDenoiser,
    core_samplers,
    core_schedulers,
    guided_until,
    prepare_noise,
    run_job,
    run_on_clip,
    sample_with_core,
    with_shift,
)
from .saving import output_file, save_checkpoint, value_of
from .showing import Progress, input_directory, offer_samples

__all__ = [
    "COMFYUI",
    "DOWNLOADS",
    "EMBEDDED",
    "FROM_CHECKPOINT",
    "NO_FILE",
    "RELEASED",
    "TEXT_MASK",
    "TEXT_TOKENS",
    "WEIGHT_DTYPES",
    "HostDenoiser",
    "HostedNetwork",
    "Progress",
    "UniViGUConfig",
    "UniViGUModel",
    "apply_lora",
    "belong_to",
    "checkpoint_names",
    "checkpoint_path",
    "conditions_by_states",
    "config_of",
    "core_samplers",
    "core_schedulers",
    "decode_latent",
    "empty_latent",
    "encode_pixels",
    "encode_prompt",
    "facts_of_vae",
    "file_names",
    "file_path",
    "fit_preview",
    "guided_until",
    "input_directory",
    "is_text_weight",
    "latent_format_of",
    "load_encoder",
    "load_network",
    "load_vae",
    "nearest_words",
    "nested",
    "network_of",
    "no_prompt",
    "null_embedding_names",
    "null_embedding_path",
    "offer_samples",
    "output_file",
    "parts_of",
    "prepare_noise",
    "register",
    "require_video_latent",
    "require_video_vae",
    "run_facts",
    "run_job",
    "run_on_clip",
    "sample_with_core",
    "save_checkpoint",
    "size_of",
    "streams_of",
    "tokenizer_of",
    "value_of",
    "weigh_model",
    "weights_of",
    "with_shift",
    "with_tokens_of",
    "with_verdict",
]
