"""Sizes and flows of a network: the tensors' shapes decide, metadata and arguments supply what shapes hide."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..config import CheckpointConfig, ModelConfig, shown
from ..errors import UniViGUError
from ..model.rope import frequencies
from .detect import UNI_VIGU_LAYOUTS, Network, find_network, require_layout
from .facts import EXPORT_AGAIN, run_and_card, stated_facts
from .read import WeightFile, open_weights

log = logging.getLogger(__name__)

WAN_HEAD_DIM = 128  # of every public Wan model; the rule where nothing says otherwise
# The release's script runs the network on raw VAE latents, encoder and decoder alike.
_RELEASE_LATENT_SPACE = "raw"
# What no shape shows
_HIDDEN = ("eps", "kappa_exponent", "latent_space", "v2t_attention", "text_inv_freq", "time_rounding")
_SAME_FREQUENCY = 1e-5  # relative: float32 rounds to 1e-7, bfloat16 to 4e-3
_FAR_TOKEN = 255  # the last of a caption of the released model


def read_config(
    path: str | Path,
    *,
    text_flow: str | None = None,
    source: str | None = None,
    latent_space: str | None = None,
    num_heads: int | None = None,
    time_rounding: str | None = None,
    run: Mapping[str, Any] | None = None,
) -> CheckpointConfig:
    """The configuration of a Uni-ViGU checkpoint of any layout; reads no weights. Arguments as for ``load_model``;
    ``run`` holds entries of ``RunConfig`` that take the place of the file's.

    Raises UniViGUError, naming the file, when it is not one.
    """
    weights = open_weights(path)
    network = find_network(weights)
    require_layout(weights, network, UNI_VIGU_LAYOUTS)
    return whole_config(
        weights,
        network,
        run,
        text_flow=text_flow,
        source=source,
        latent_space=latent_space,
        num_heads=num_heads,
        time_rounding=time_rounding,
    )


def whole_config(
    weights: WeightFile, network: Network, run: Mapping[str, Any] | None = None, **stated_by_caller: Any
) -> CheckpointConfig:
    """``read_config`` of a file that is open; keywords as for ``model_config``."""
    model, _ = model_config(weights, network, **stated_by_caller)
    stated = run_and_card(weights)
    changed = replace(stated.run, **run) if run else stated.run
    try:
        return replace(stated, model=model, run=changed)
    except UniViGUError as error:
        raise UniViGUError(f"{weights.path}: {error}. {EXPORT_AGAIN}") from None


def stored_frequencies(weights: WeightFile, network: Network, head_dim: int) -> tuple[float, ...] | None:
    """The text's rotary frequencies that the file stores, where they are not the formula's.

    Raises UniViGUError when they do not fit the heads."""
    if network.inv_freq is None:
        return None
    values = weights.read(network.inv_freq).double().flatten()
    if len(values) != head_dim // 2:
        raise UniViGUError(
            f"{weights.path}: {network.inv_freq} has {len(values)} values, expected {head_dim // 2}, one for each pair "
            "of channels of a head. The file is damaged or of another model: download it again"
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


def log_frequencies(weights: WeightFile, network: Network, config: ModelConfig) -> None:
    """Say once, where the file stores such frequencies as a tensor, that they are used (``convert`` writes them into
    the metadata)."""
    if network.inv_freq is not None and config.text_inv_freq is not None:
        log.warning("%s: the text's rotary frequencies are %s; they are used", weights.path, about_frequencies(config))


@cache
def say_unchecked(path: str, latent_space: str, text_states: str) -> None:
    """Say once that nobody has checked how a file is meant to be run."""
    log.warning(
        "%s has never been checked: %s latents and %s text states are taken on trust. Check Uni-ViGU, or python -m "
        "uvg_core check, finds out and writes it into the file",
        path,
        latent_space,
        text_states,
    )


def model_config(
    weights: WeightFile,
    network: Network,
    *,
    text_flow: str | None = None,
    source: str | None = None,
    latent_space: str | None = None,
    num_heads: int | None = None,
    time_rounding: str | None = None,
    vocab_size: int | None = None,
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The configuration, and the names of its entries that are assumed because neither file nor caller states them.

    For a Wan base, ``vocab_size`` is the caller's. Raises UniViGUError when a tensor that shows a size is missing, the
    number of heads cannot be told, or an argument contradicts the file.
    """
    stated = stated_facts(weights)
    sizes = _visible_sizes(weights, network)
    assumed: list[str] = []

    def settled(name: str, argument: Any, default: Any) -> Any:
        known = stated.get(name)
        if argument is not None and known is not None and argument != known:
            raise UniViGUError(
                f"{weights.path}: {name}={argument!r} was asked for, but the file states {shown(known)}; leave "
                f"{name} out"
            )
        if argument is None and known is None:
            assumed.append(name)
        return next((value for value in (argument, known) if value is not None), default)

    heads = _heads(weights, network, sizes["dim"], num_heads, stated.get("num_heads"))
    if heads is None:
        assumed.append("num_heads")
        heads = sizes["dim"] // WAN_HEAD_DIM
    rows, text_rows = sizes.pop("token_rows", None), sizes.pop("text_rows", None)
    seems_embedding = text_rows == sizes["dim"] != rows
    if network.layout in UNI_VIGU_LAYOUTS:
        flow = settled("text_flow", text_flow, "embedding" if seems_embedding else "discrete")
        if seems_embedding and flow == "embedding" and "text_flow" in assumed:
            assumed.remove("text_flow")  # the shape of the head says it
        masked = rows is not None and stated.get("vocab_size") == rows - 1
        source = settled("source", source, "mask" if masked and flow == "discrete" else "uniform")
        if masked and "source" in assumed:
            assumed.remove("source")  # the row beside the stated vocabulary says it
        vocab_size = (rows or 0) - (source == "mask" and flow == "discrete")
    else:
        flow, source = text_flow or "discrete", source or "uniform"
    if latent_space is None and "latent_space" not in stated:
        assumed.append("latent_space")
        latent_space = _RELEASE_LATENT_SPACE if network.layout == "release" else None
    # Not a property of the weights' shape or of their training that can be checked: the caller has the last word.
    hidden = {name: stated[name] for name in _HIDDEN if name in stated}
    hidden |= {
        name: value
        for name, value in (("latent_space", latent_space), ("time_rounding", time_rounding))
        if value is not None
    }
    if network.layout in UNI_VIGU_LAYOUTS and network.inv_freq is not None:
        hidden["text_inv_freq"] = stored_frequencies(weights, network, sizes["dim"] // heads)
    try:
        config = ModelConfig(
            **sizes, **hidden, num_heads=heads, text_flow=flow, source=source, vocab_size=vocab_size or 0
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UniViGUError(
            f"{weights.path}: {error}. Pass another argument where it came from one; else the file is damaged or of "
            "another model: download or export it again"
        ) from None
    return config, tuple(assumed)


def _visible_sizes(weights: WeightFile, network: Network) -> dict[str, Any]:
    """Sizes under ``ModelConfig``'s names, plus ``token_rows`` and ``text_rows`` (the text head's) of a Uni-ViGU."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in network.names:
            raise UniViGUError(
                f"{weights.path}: {name} is missing ({network.layout} layout, {len(network.names)} weights found); "
                "expected a complete network. The file is damaged or only a part of one: download it again"
            )
        found = weights.tensors[network.names[name]].shape
        if len(found) != dimensions or 0 in found:
            raise UniViGUError(
                f"{weights.path}: {name} has shape {list(found)}, expected {dimensions} dimensions: quantised in a "
                "format that is not read here, or another model"
            )
        return found

    dim, in_dim, *patch_size = shape("patch_embedding.weight", 5)
    patch = patch_size[0] * patch_size[1] * patch_size[2]
    blocks = {int(parts[1]) for parts in (name.split(".") for name in network.names) if _is_block(parts)}
    sizes: dict[str, Any] = {
        "dim": dim,
        "in_dim": in_dim,
        "patch_size": tuple(patch_size),
        "out_dim": shape("head.head.weight", 2)[0] // patch,
        "ffn_dim": shape("blocks.0.ffn.0.weight", 2)[0],
        "num_layers": min(max(blocks) + 1, len(network.names)),  # a block takes weights: a wild number is no size
        "text_dim": shape("text_embedding.0.weight", 2)[1],
        "freq_dim": shape("time_embedding.0.weight", 2)[1],
    }
    if network.layout in UNI_VIGU_LAYOUTS:
        sizes["token_rows"] = shape("token_embedding.weight", 2)[0]
        sizes["text_rows"] = shape("text_head.head.weight", 2)[0]
    return sizes


def _is_block(parts: list[str]) -> bool:
    """Whether a name, split at its dots, lies in a numbered block. Digits of other scripts and numbers too long to be
    converted are none: such names stay over and the strict check reports them."""
    if len(parts) < 3 or parts[0] != "blocks":
        return False
    return parts[1].isascii() and parts[1].isdecimal() and len(parts[1]) < 19


def _heads(weights: WeightFile, network: Network, dim: int, argument: int | None, stated: Any) -> int | None:
    """The number of heads from whoever knows it, all of whom must agree; None for Wan's rule of 128 channels each."""
    known: dict[str, Any] = {} if stated is None else {"its metadata": stated}
    if network.inv_freq is not None:
        known["its rotary_emb_text.inv_freq"] = dim // (2 * max(weights.tensors[network.inv_freq].numel, 1))
    if argument is not None:
        known["the number that was given"] = argument
    if any(heads != next(iter(known.values())) for heads in known.values()):
        claims = ", ".join(f"{who} says {shown(heads)}" for who, heads in known.items())
        raise UniViGUError(f"{weights.path}: the number of heads is contradictory: {claims}. Leave num_heads out")
    for who, heads in known.items():
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or dim % heads:
            raise UniViGUError(
                f"{weights.path}: {who} gives {shown(heads)} heads, which do not divide width {dim}; pass a right "
                "num_heads (--num-heads on the command line)"
            )
        return heads
    if dim % WAN_HEAD_DIM:
        raise UniViGUError(
            f"{weights.path}: the file does not show its number of heads, and width {dim} is no multiple of Wan's "
            f"{WAN_HEAD_DIM} channels per head; pass num_heads (--num-heads on the command line)"
        )
    return None
