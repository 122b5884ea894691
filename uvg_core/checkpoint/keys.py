"""Names of the weights: one table, used in both directions, and which of them are the text half.

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

# Bytes of the metadata entry "config", inside the network, for savers that write tensors alone (ComfyUI's own).
CONFIG_KEY = "uni_vigu.config"
# Derived from the sizes, stored by the release all the same.
DERIVED = re.compile(r"(^|\.)rotary_emb_text\.inv_freq$|(^|\.)rope\.freqs\w*$")

VIDEO_HALF = "video half"
# The text half: a component, the part of the network it belongs to, and the video component it starts as a copy of.
TEXT_HALF = (
    ("ffn_t", "text experts", "ffn"),
    ("token_embedding", "token embedding", None),
    ("text_head.modulation", "text head", "head.modulation"),
    ("text_head", "text head", None),
    ("time_embedding_t", "text clock", "time_embedding"),
    ("time_projection_t", "text clock", "time_projection"),
)

# Inside a block: theirs (the release's and diffusers'), ours.
_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
_BLOCK = {
    "scale_shift_table": "modulation",
    **{f"attn1.{theirs}": f"self_attn.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{ours}" for theirs, ours in _ATTENTION.items()},
    "norm2": "norm3",  # the affine norm before cross-attention
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "ffn_t.net.0.proj": "ffn_t.0",
    "ffn_t.net.2": "ffn_t.2",
}
_RELEASE = {
    "patch_embedding": "patch_embedding",
    "vocab_embed": "token_embedding",
    "cond_text_embedder.linear_1": "text_embedding.0",
    "cond_text_embedder.linear_2": "text_embedding.2",
    "time_embedding_v.time_embedder.linear_1": "time_embedding.0",
    "time_embedding_v.time_embedder.linear_2": "time_embedding.2",
    "time_embedding_v.time_proj": "time_projection.1",
    "time_embedding_t.time_embedder.linear_1": "time_embedding_t.0",
    "time_embedding_t.time_embedder.linear_2": "time_embedding_t.2",
    "time_embedding_t.time_proj": "time_projection_t.1",
    "scale_shift_table_v": "head.modulation",
    "video_head.proj_out": "head.head",
    "scale_shift_table_t": "text_head.modulation",
    "text_head.norm_final": "text_head.norm",
    "text_head.linear": "text_head.head",
}
_DIFFUSERS = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """A table of names, read the other way round."""
    return {ours: theirs for theirs, ours in table.items()}


# By layout: names outside the blocks, and inside.
_TO_NATIVE = {"release": (_RELEASE, _BLOCK), "diffusers": (_DIFFUSERS, _BLOCK)}
_FROM_NATIVE = {layout: (inverse(outside), inverse(inside)) for layout, (outside, inside) in _TO_NATIVE.items()}
_NAME = re.compile(r"(?P<block>blocks\.\d+\.)?(?P<name>.+?)(?P<end>\.weight|\.bias)?")


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


def _renamed(name: str, tables: tuple[Mapping[str, str], Mapping[str, str]] | None) -> str | None:
    match = _NAME.fullmatch(name)
    if tables is None or match is None:
        return name if tables is None else None
    renamed = tables[match["block"] is not None].get(match["name"])
    return None if renamed is None else f"{match['block'] or ''}{renamed}{match['end'] or ''}"


def to_native(name: str, layout: str) -> str | None:
    """The native name of a weight of another layout; None when the table does not know it."""
    return _renamed(name, _TO_NATIVE.get(layout))


def from_native(name: str, layout: str) -> str | None:
    """The name that ``layout`` gives to a native weight; None when it has none (Wan has no text stream)."""
    return _renamed(name, _FROM_NATIVE.get(layout))


def part_of(name: str) -> tuple[str, str | None]:
    """The part of the network that a native weight belongs to, and the Wan weight that it starts from in a fresh
    Uni-ViGU: itself in the video half, None for what a Wan base has no equal of."""
    for component, part, video in TEXT_HALF:
        if f".{component}." in f".{name}.":
            return part, video and name.replace(component, video)
    return VIDEO_HALF, name


def is_text_half(name: str) -> bool:
    """Whether a native weight belongs to the text stream alone; without text the network never reads it."""
    return part_of(name)[0] != VIDEO_HALF
