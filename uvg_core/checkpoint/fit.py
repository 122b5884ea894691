"""Strictness: a file's names and shapes held against the network they should fill, before any weight is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..config import CheckpointConfig, ModelConfig
from ..model import UniViGU, sdpa_attention
from .config import about_frequencies, read_config
from .detect import Checkpoint, open_checkpoint
from .facts import Overrides
from .keys import is_text_half

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Misfit:
    """How a file's weights differ from the network they should fill; native names."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()  # name, found, expected


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The weights of the network that ``config`` describes: native names and shapes."""
    model = UniViGU(config, attention=sdpa_attention, device="meta")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def compare(checkpoint: Checkpoint, config: ModelConfig) -> Misfit:
    """Hold a file's names and shapes against the network that ``config`` describes; of a Wan base, no text half is
    expected."""
    expected = shapes_of(config)
    found = {name: checkpoint.stored(name).shape for name in checkpoint.names}
    return Misfit(
        tuple(n for n in expected if n not in found and not (checkpoint.is_wan and is_text_half(n))),
        tuple(n for n in found if n not in expected),
        tuple((n, found[n], shape) for n, shape in expected.items() if n in found and found[n] != shape),
    )


def require_fit(checkpoint: Checkpoint, misfit: Misfit) -> None:
    """Raise UniViGUError with the file and the first key of each kind that does not fit."""
    parts = []
    if misfit.missing:
        parts.append(f"{len(misfit.missing)} missing (first: {misfit.missing[0]})")
    if misfit.unexpected:
        parts.append(f"{len(misfit.unexpected)} unexpected (first: {checkpoint.names[misfit.unexpected[0]]})")
    if misfit.misshapen:
        name, found, expected = misfit.misshapen[0]
        shapes = f"first: {name}, found {list(found)}, expected {list(expected)}"
        parts.append(f"{len(misfit.misshapen)} of another shape ({shapes})")
    if parts:
        raise checkpoint.error(
            f"the weights ({checkpoint.layout} layout) do not make up a whole network: {', '.join(parts)}. The file is "
            "damaged, incomplete or of another model: download or export it again"
        )


def open_network(
    path: str | Path | Checkpoint, overrides: Overrides | None = None
) -> tuple[Checkpoint, CheckpointConfig]:
    """Open a Uni-ViGU checkpoint that is about to be read, and check that it holds the whole network; logs what is
    ignored in it, and rotary frequencies of its own.

    Raises UniViGUError for anything else."""
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint, overrides)
    require_fit(checkpoint, compare(checkpoint, config.model))
    checkpoint.weights.log_ignored()
    if checkpoint.inv_freq is not None and config.model.text_inv_freq is not None:
        about = about_frequencies(config.model)
        log.warning("%s: the text's rotary frequencies are %s; they are used", checkpoint.path, about)
    return checkpoint, config
