"""Sizes and flows of a network: the tensors' shapes decide, metadata and arguments supply what shapes hide."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..config import CheckpointConfig, ModelConfig, RunConfig
from ..errors import UniViGUError
from ..model.rope import frequencies
from ..settings import shown
from .detect import Checkpoint, open_checkpoint
from .facts import EXPORT_AGAIN, Overrides, run_and_card, stated_facts

log = logging.getLogger(__name__)

WAN_HEAD_DIM = 128  # of every public Wan model; the rule where nothing says otherwise
# What no shape shows, or not always. The number of heads is settled on its own.
_HIDDEN = ("eps", "kappa_exponent", "v2t_attention", "text_inv_freq", "time_rounding", "held_parts")
_ASSUMED = ("text_flow", "source", "latent_space")
_SAME_FREQUENCY = 1e-5  # relative: float32 rounds to 1e-7, bfloat16 to 4e-3
_FAR_TOKEN = 255  # the last of a caption of the released model


def read_config(path: str | Path | Checkpoint, overrides: Overrides | None = None) -> CheckpointConfig:
    """The configuration of a Uni-ViGU checkpoint of any layout, with what ``overrides`` state; reads no weights.

    Raises UniViGUError, naming the file, when it is not one.
    """
    checkpoint = open_checkpoint(path)
    checkpoint.require()
    overrides = overrides or Overrides()
    model, _ = model_config(checkpoint, overrides)
    stated = run_and_card(checkpoint)
    run = replace(stated.run, **overrides.of(RunConfig))
    try:
        return replace(stated, model=model, run=run)
    except UniViGUError as error:
        raise checkpoint.error(f"{error}. {EXPORT_AGAIN}") from None


def model_config(
    checkpoint: Checkpoint, overrides: Overrides, vocab_size: int = 0
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The configuration, and the names of its entries that are assumed because neither file nor caller states them.

    For a Wan base, ``vocab_size`` is the caller's. Raises UniViGUError when a tensor that shows a size is missing, the
    number of heads cannot be told, or an argument contradicts the file.
    """
    stated = stated_facts(checkpoint)
    sizes = _visible_sizes(checkpoint)
    known_heads = _heads(checkpoint, sizes["dim"], overrides.num_heads, stated.get("num_heads"))
    heads = known_heads or sizes["dim"] // WAN_HEAD_DIM
    facts = {name: stated[name] for name in _HIDDEN + _ASSUMED if name in stated}
    if checkpoint.is_wan:  # it has no text: what it states of flows is not meant for us
        facts = {name: value for name, value in facts.items() if name not in ("text_flow", "source")}
        facts |= overrides.of(ModelConfig)
    else:
        _require_agreement(checkpoint, facts, overrides)
        rows = _shape(checkpoint, "token_embedding.weight", 2)[0]
        if _shape(checkpoint, "text_head.head.weight", 2)[0] == sizes["dim"] != rows:
            facts = {"text_flow": "embedding"} | facts  # the width of the head says it
        facts |= overrides.of(ModelConfig)
        discrete = facts.get("text_flow", "discrete") == "discrete"
        if discrete and stated.get("vocab_size") == rows - 1:
            facts = {"source": "mask"} | facts  # the row beside the stated vocabulary says it
        vocab_size = rows - (discrete and facts.get("source") == "mask")
        if checkpoint.inv_freq is not None:
            facts["text_inv_freq"] = _stored_frequencies(checkpoint, sizes["dim"] // heads)
    assumed = [name for name in _ASSUMED if name not in facts] + ["num_heads"] * (known_heads is None)
    if checkpoint.layout == "release":  # the release's script runs the network on raw VAE latents
        facts = {"latent_space": "raw"} | facts
    try:
        config = ModelConfig(**sizes, **{**facts, "num_heads": heads, "vocab_size": vocab_size})
    except (TypeError, ValueError) as error:
        raise checkpoint.error(
            f"{error}. Pass another argument where it came from one; else the file is damaged or of another model: "
            "download or export it again"
        ) from None
    return config, tuple(assumed)


def _require_agreement(checkpoint: Checkpoint, stated: dict[str, Any], overrides: Overrides) -> None:
    for name in ("text_flow", "source"):
        wanted, known = getattr(overrides, name), stated.get(name)
        if wanted is not None and known is not None and wanted != known:
            raise checkpoint.error(
                f"{name}={wanted!r} was asked for, but the file states {shown(known)}; leave {name} out"
            )


def _shape(checkpoint: Checkpoint, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in checkpoint.names:
        raise checkpoint.error(
            f"{name} is missing ({checkpoint.layout} layout, {len(checkpoint.names)} weights found); expected a "
            "complete network. The file is damaged or only a part of one: download it again"
        )
    found = checkpoint.stored(name).shape
    if len(found) != dimensions or 0 in found:
        raise checkpoint.error(
            f"{name} has shape {list(found)}, expected {dimensions} dimensions: quantised in a format that is not read "
            "here, or another model"
        )
    return found


def _visible_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Sizes under ``ModelConfig``'s names."""
    dim, in_dim, *patch_size = _shape(checkpoint, "patch_embedding.weight", 5)
    blocks = [int(parts[1]) for parts in (name.split(".") for name in checkpoint.names) if _is_block(parts)]
    return {
        "dim": dim,
        "in_dim": in_dim,
        "patch_size": tuple(patch_size),
        "out_dim": _shape(checkpoint, "head.head.weight", 2)[0] // math.prod(patch_size),
        "ffn_dim": _shape(checkpoint, "blocks.0.ffn.0.weight", 2)[0],
        "num_layers": min(max(blocks) + 1, len(checkpoint.names)),  # a block takes weights: a wild number is no size
        "text_dim": _shape(checkpoint, "text_embedding.0.weight", 2)[1],
        "freq_dim": _shape(checkpoint, "time_embedding.0.weight", 2)[1],
    }


def _is_block(parts: list[str]) -> bool:
    """Whether a name, split at its dots, lies in a numbered block. Digits of other scripts and numbers too long to be
    converted are none: such names stay over and the strict check reports them."""
    if len(parts) < 3 or parts[0] != "blocks":
        return False
    return parts[1].isascii() and parts[1].isdecimal() and len(parts[1]) < 19


def _heads(checkpoint: Checkpoint, dim: int, argument: int | None, stated: Any) -> int | None:
    """The number of heads from whoever knows it, all of whom must agree; None for Wan's rule of 128 channels each."""
    known: dict[str, Any] = {} if stated is None else {"its metadata": stated}
    if checkpoint.inv_freq is not None:
        count = checkpoint.weights.tensors[checkpoint.inv_freq].numel
        known["its rotary_emb_text.inv_freq"] = dim // (2 * max(count, 1))
    if argument is not None:
        known["the number that was given"] = argument
    if any(heads != next(iter(known.values())) for heads in known.values()):
        claims = ", ".join(f"{who} says {shown(heads)}" for who, heads in known.items())
        raise checkpoint.error(f"the number of heads is contradictory: {claims}. Leave num_heads out")
    for who, heads in known.items():
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or dim % heads:
            raise checkpoint.error(
                f"{who} gives {shown(heads)} heads, which do not divide width {dim}; pass a right num_heads "
                "(--num-heads on the command line)"
            )
        return heads
    if dim % WAN_HEAD_DIM:
        raise checkpoint.error(
            f"the file does not show its number of heads, and width {dim} is not a multiple of Wan's {WAN_HEAD_DIM} "
            "channels per head; pass num_heads (--num-heads on the command line)"
        )
    return None


def _stored_frequencies(checkpoint: Checkpoint, head_dim: int) -> tuple[float, ...] | None:
    """The text's rotary frequencies that the file stores, where they are not the formula's.

    Raises UniViGUError when they do not fit the heads."""
    assert checkpoint.inv_freq is not None
    values = checkpoint.weights.read(checkpoint.inv_freq).double().flatten()
    if len(values) != head_dim // 2:
        raise checkpoint.error(
            f"{checkpoint.inv_freq} has {len(values)} values, expected {head_dim // 2}, one for each pair of channels "
            "of a head. The file is damaged or of another model: download it again"
        )
    if torch.allclose(values, frequencies(head_dim), rtol=_SAME_FREQUENCY, atol=0):
        return None
    return tuple(values.tolist())


def about_frequencies(config: ModelConfig) -> str:
    """How far the stored rotary frequencies of the text are from the formula's, in words; empty where they are not."""
    if config.text_inv_freq is None:
        return ""
    gap = torch.tensor(config.text_inv_freq, dtype=torch.float64) - frequencies(config.head_dim)
    return (
        f"stored in the file, not the formula's: angles differ by up to {_FAR_TOKEN * float(gap.abs().max()):.2g} rad "
        f"at token {_FAR_TOKEN}"
    )


def unchecked(path: str, latent_space: str, text_states: str) -> str:
    """What there is to say of a file where nobody has checked how it is meant to be run."""
    return (
        f"{path} has never been checked: {latent_space} latents and {text_states} text states are taken on trust. "
        "Check Uni-ViGU, or python -m uvg_core check, finds out and writes it into the file"
    )


@cache
def say_unchecked(path: str, latent_space: str, text_states: str) -> None:
    """Say that once."""
    log.warning("%s", unchecked(path, latent_space, text_states))
