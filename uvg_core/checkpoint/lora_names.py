"""What the tensors of a LoRA file are called by whoever wrote it, and which weights they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .keys import from_native, strip_wrappers

# What trainers put in front of the network's names, one or several of them; after the flat ones, the names have
# underscores for dots.
_PREFIXES = ("diffusion_model.", "transformer.", "base_model.", "model.", "pipe.", "dit.", "unet.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

# How names end, and what lies there; an empty role is the group of that name. peft puts an adapter's name in between:
# lora_A.default.weight.
_ADAPTER = r"(?:\.(?!(?:weight|bias)$)[^.]+)?"
_ENDINGS: tuple[tuple[str, str], ...] = (
    (rf"\.lora_(?:A|down){_ADAPTER}(?:\.weight)?|[._]lora(?:_linear_layer)?\.down\.weight", "down"),
    (rf"\.lora_(?:B|up){_ADAPTER}(?:\.weight)?|[._]lora(?:_linear_layer)?\.up\.weight", "up"),
    (rf"\.lora_(?:B|up){_ADAPTER}\.bias", "up_bias"),
    (r"\.lora_mid\.weight", "mid"),
    (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?", "magnitude"),
    (r"\.(?:diff_m|w_norm)", "diff"),
    (r"\.b_norm", "diff_b"),
    (r"\.(?P<role>[ab][12])\.weight", ""),
    (r"\.(?P<role>alpha|dora_scale|diff|diff_b|set_weight|reshape_weight)", ""),
    (r"\.(?P<role>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)", ""),
)
_ENDING = [(re.compile(rf"(?P<layer>.+?)(?:{ending})"), role) for ending, role in _ENDINGS]


def layer_and_role(name: str) -> tuple[str, str]:
    """What a tensor of a LoRA file belongs to, and what it is there; an empty role where the ending is not known."""
    for pattern, role in _ENDING:
        match = pattern.fullmatch(name)
        if match is not None:
            return match["layer"], role or match["role"]
    return name, ""


def lora_places(names: Iterable[str]) -> dict[str, str]:
    """Every name that a LoRA file may give to a layer, or to a parameter on its own, and what it is called here.

    ``names`` are the network's weights. A layer ``ffn.0`` stands for ``ffn.0.weight`` and ``ffn.0.bias``; a table such
    as ``modulation`` and each weight by its full name stand for themselves.
    """
    places: dict[str, str] = {}
    for name in names:
        for alias in filter(None, (name, from_native(name, "release"), from_native(name, "diffusers"))):
            layer, place = (full.removesuffix(".weight").removesuffix(".bias") for full in (alias, name))
            for known, meant in ((alias, name), (layer, place)):
                places[known] = places[known.replace(".", "_")] = meant
    return places


def lora_place(name: str, places: Mapping[str, str]) -> str | None:
    """The layer or parameter that a LoRA file means by ``name``, with ``lora_places``; None when it is not in them."""
    name = strip_wrappers(name)
    flat = next((prefix for prefix in _FLAT_PREFIXES if name.startswith(prefix)), None)
    if flat is not None:
        return places.get(name[len(flat) :].lstrip("_"))  # VideoX-Fun writes two
    while name not in places:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name[len(prefix) :]
    return places[name]
