"""Names of the weights: one table, used in both directions.

``native`` follows the original Wan / ComfyUI names, so that Wan files, LoRAs and patches apply to the video half
unchanged. ``release`` is what the released Uni-ViGU checkpoint uses, ``diffusers`` what Wan2.1 has in diffusers (its
video half is the release's, under other names for the condition embedder and the head).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Wrappers leave components behind, in any order and anywhere in a name: FSDP, activation checkpointing,
# torch.compile, DDP. No layout has a component called just "module" of its own.
_WRAPPERS = re.compile(r"(?<![^.])(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|module)\.")
# Where the network lies inside larger files.
NETWORK_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
# Where the other parts lie in an all-in-one file, as ComfyUI names them.
ENCODER_PREFIX = "text_encoders.umt5xxl.transformer."
TOKENIZER_KEY = "text_encoders.spiece_model"
VAE_PREFIX = "vae."
# What trainers put in front of the network's names in LoRA files, one or several of them; after the flat ones, the
# names have underscores for dots.
LORA_PREFIXES = ("diffusion_model.", "transformer.", "base_model.", "model.", "pipe.", "dit.", "unet.")
FLAT_LORA_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

# Derived from the sizes, stored by the release all the same.
DERIVED = re.compile(r"(^|\.)rotary_emb_text\.inv_freq$|(^|\.)rope\.freqs\w*$")

_BLOCK: tuple[tuple[str, str], ...] = (
    ("scale_shift_table", "modulation"),
    *(
        (f"{theirs}.{a}", f"{ours}.{b}")
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for a, b in (
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "o"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    ),
    ("norm2", "norm3"),  # the affine norm before cross-attention
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("ffn_t.net.0.proj", "ffn_t.0"),
    ("ffn_t.net.2", "ffn_t.2"),
)
_RELEASE: tuple[tuple[str, str], ...] = (
    ("patch_embedding", "patch_embedding"),
    ("vocab_embed", "token_embedding"),
    ("cond_text_embedder.linear_1", "text_embedding.0"),
    ("cond_text_embedder.linear_2", "text_embedding.2"),
    ("time_embedding_v.time_embedder.linear_1", "time_embedding.0"),
    ("time_embedding_v.time_embedder.linear_2", "time_embedding.2"),
    ("time_embedding_v.time_proj", "time_projection.1"),
    ("time_embedding_t.time_embedder.linear_1", "time_embedding_t.0"),
    ("time_embedding_t.time_embedder.linear_2", "time_embedding_t.2"),
    ("time_embedding_t.time_proj", "time_projection_t.1"),
    ("scale_shift_table_v", "head.modulation"),
    ("video_head.proj_out", "head.head"),
    ("scale_shift_table_t", "text_head.modulation"),
    ("text_head.norm_final", "text_head.norm"),
    ("text_head.linear", "text_head.head"),
)
_DIFFUSERS: tuple[tuple[str, str], ...] = (
    ("patch_embedding", "patch_embedding"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("scale_shift_table", "head.modulation"),
    ("proj_out", "head.head"),
)
_TO_NATIVE = {"release": dict(_RELEASE), "diffusers": dict(_DIFFUSERS)}
_FROM_NATIVE = {layout: {ours: theirs for theirs, ours in table.items()} for layout, table in _TO_NATIVE.items()}
_BLOCK_TO_NATIVE = dict(_BLOCK)
_BLOCK_FROM_NATIVE = {ours: theirs for theirs, ours in _BLOCK}
_PARTS = re.compile(r"^(?P<block>blocks\.\d+\.)?(?P<name>.+?)(?P<end>\.weight|\.bias)?$")


def strip_wrappers(name: str) -> str:
    """The name without what FSDP, torch.compile and DDP put into it."""
    return _WRAPPERS.sub("", name)


def network_prefix(names: Iterable[str]) -> str:
    """The prefix under which the network lies in a file, or the empty string."""
    names = list(names)
    for prefix in ("", *NETWORK_PREFIXES):
        if layout_of(name[len(prefix) :] for name in names if name.startswith(prefix)) != "unknown":
            return prefix
    return ""


def layout_of(names: Iterable[str]) -> str:
    """``native``, ``release``, ``wan`` (original naming), ``diffusers`` (Wan) or ``unknown``, from bare names.

    Several names speak for each layout, so that a file with a hole in it is still told what it is and what it lacks.
    ``token_embedding.weight`` alone says nothing: umT5's original files have one too.
    """
    names = set(names)
    if names & {"vocab_embed.weight", "text_head.linear.weight", "time_embedding_t.time_proj.weight"}:
        return "release"
    if names & {"text_head.head.weight", "text_head.modulation", "time_projection_t.1.weight"}:
        return "native"
    if names >= {"token_embedding.weight", "patch_embedding.weight"}:
        return "native"
    if "head.modulation" in names and names & {"patch_embedding.weight", "blocks.0.self_attn.q.weight"}:
        return "wan"
    if "condition_embedder.time_proj.weight" in names and names & {"scale_shift_table", "patch_embedding.weight"}:
        return "diffusers"
    return "unknown"


def _rename(name: str, table: dict[str, str], block_table: dict[str, str]) -> str | None:
    match = _PARTS.match(name)
    if match is None:
        return None
    inside_block = match["block"] is not None
    renamed = (block_table if inside_block else table).get(match["name"])
    return None if renamed is None else f"{match['block'] or ''}{renamed}{match['end'] or ''}"


def to_native(name: str, layout: str) -> str | None:
    """The native name of a weight of another layout; None when the table does not know it."""
    if layout not in _TO_NATIVE:
        return name
    return _rename(name, _TO_NATIVE[layout], _BLOCK_TO_NATIVE)


def from_native(name: str, layout: str) -> str | None:
    """The name that ``layout`` gives to a native weight; None when it has none (Wan has no text stream)."""
    if layout not in _FROM_NATIVE:
        return name
    return _rename(name, _FROM_NATIVE[layout], _BLOCK_FROM_NATIVE)


def lora_places(names: Iterable[str]) -> dict[str, str]:
    """Every name that a LoRA file may give to a layer, or to a parameter on its own, and what it is called here.

    ``names`` are the network's weights. A layer ``ffn.0`` stands for ``ffn.0.weight`` and ``ffn.0.bias``; a table such
    as ``modulation`` and each weight by its full name stand for themselves.
    """
    places: dict[str, str] = {}
    for name in names:
        for alias in (name, from_native(name, "release"), from_native(name, "diffusers")):
            if alias is None:
                continue
            layer, place = (full.removesuffix(".weight").removesuffix(".bias") for full in (alias, name))
            for known, meant in ((alias, name), (layer, place)):
                places[known] = places[known.replace(".", "_")] = meant
    return places


def lora_place(name: str, places: Mapping[str, str]) -> str | None:
    """The layer or parameter that a LoRA file means by ``name``, with ``lora_places``; None when it is not in them."""
    name = strip_wrappers(name)
    flat = next((prefix for prefix in FLAT_LORA_PREFIXES if name.startswith(prefix)), None)
    if flat is not None:
        return places.get(name[len(flat) :].lstrip("_"))  # VideoX-Fun writes two
    while name not in places:
        prefix = next((prefix for prefix in LORA_PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name[len(prefix) :]
    return places[name]
