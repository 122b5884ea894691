"""What is stated of a checkpoint beyond its tensors: by the file's metadata, a config.json beside it, or the caller."""

from __future__ import annotations

import json
from typing import Annotated, Any

import torch

from ..config import (
    END_OF_TEXT,
    LATENT_SPACES,
    SOURCES,
    TEXT_FLOWS,
    TEXT_STATES,
    TIME_ROUNDING,
    CheckpointConfig,
    ModelConfig,
    RunConfig,
)
from ..errors import UniViGUError
from ..io import MEGABYTE
from ..settings import OneOf, Text, Whole, fields_of, setting, settings
from .detect import Checkpoint
from .keys import CONFIG_KEY

# diffusers' names, which the release's own JSON follows, for what the tensors do not show.
_TRANSLATED = {"num_attention_heads": "num_heads", "eps": "eps"}
EXPORT_AGAIN = "What the file says of itself was damaged or edited: export or download it again"


STATED = "what the checkpoint says"


@settings
class Overrides:
    """Facts that a caller states of a checkpoint; None leaves them to the file.

    ``text_flow``, ``source`` and ``num_heads`` are for files that do not state them: to contradict one is an error.
    The others, entries of ``ModelConfig`` and ``RunConfig``, take the place of the file's.
    """

    text_flow: Annotated[str, OneOf(*TEXT_FLOWS)] | None = setting("How text is generated.", default=None, auto=STATED)
    source: Annotated[str, OneOf(*SOURCES)] | None = setting(
        "What the discrete text flow starts from.", default=None, auto=STATED
    )
    num_heads: Whole | None = setting("Attention heads.", default=None, auto=STATED, ge=1, le=100_000)
    latent_space: Annotated[str, OneOf(*LATENT_SPACES)] | None = setting(
        "Latent space of the network.", default=None, auto=STATED
    )
    time_rounding: Annotated[str, OneOf(*TIME_ROUNDING)] | None = setting(
        "How the network rounds its times.", default=None, auto=STATED
    )
    text_states: Annotated[str, OneOf("", *TEXT_STATES)] | None = setting(
        "How the text encoder is run.", default=None, auto=f"{STATED}, else umT5"
    )
    end_of_text: Annotated[str, OneOf("", *END_OF_TEXT)] | None = setting(
        "How generated text ends: at the first end token, or after the last word.", default=None, auto=STATED
    )
    checked: Text | None = setting("What Check found.", default=None, auto=STATED)

    def of(self, cls: type[ModelConfig] | type[RunConfig]) -> dict[str, Any]:
        """What is given of one of the classes of a configuration."""
        return {name: value for name, value in vars(self).items() if name in fields_of(cls) and value is not None}


def stated_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Entries of ``ModelConfig``, under its names, as the file's metadata or its config.json state them.

    Sizes among them are only claims: the tensors decide. Raises UniViGUError for a ``config`` that is not JSON.
    """
    data = _metadata_config(checkpoint) or checkpoint.weights.facts
    stated = data.get("transformer", data)
    if not isinstance(stated, dict):
        raise checkpoint.error(f"metadata entry 'config': 'transformer' is not a JSON object. {EXPORT_AGAIN}")
    facts = {ours: stated[theirs] for theirs, ours in _TRANSLATED.items() if theirs in stated}
    if "masked_source" in stated:
        facts["source"] = "mask" if stated["masked_source"] else "uniform"
    return facts | {name: value for name, value in stated.items() if name in fields_of(ModelConfig)}


def run_and_card(checkpoint: Checkpoint) -> CheckpointConfig:
    """``run`` and ``card`` of a native file (its ``model`` is a placeholder); the defaults for every other file."""
    data = _metadata_config(checkpoint)
    if "transformer" not in data:
        return CheckpointConfig()
    try:
        # How many tokens there are, the tensors say: a vocabulary of 0 is one that is not known.
        return CheckpointConfig.from_json(json.dumps({**data, "transformer": {"vocab_size": 0}}))
    except (UniViGUError, RecursionError) as error:
        raise checkpoint.error(f"{error}. {EXPORT_AGAIN}") from None


def _carried_config(checkpoint: Checkpoint) -> str:
    """The same text where a saver has kept the tensors alone, as ComfyUI's own do: it lies among them, in bytes."""
    weights, name = checkpoint.weights, checkpoint.prefix + CONFIG_KEY
    stored = weights.tensors.get(name)
    if stored is None:
        return "{}"
    if stored.numel > MEGABYTE or stored.torch_dtype is not torch.uint8:
        raise checkpoint.error(
            f"{name} holds {stored.numel} numbers of {stored.dtype}, expected a text in bytes. {EXPORT_AGAIN}"
        )
    return bytes(weights.read(name).flatten().tolist()).decode("utf-8", "replace")


def _metadata_config(checkpoint: Checkpoint) -> dict[str, Any]:
    text = checkpoint.weights.metadata.get("config") or _carried_config(checkpoint)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise checkpoint.error(f"metadata entry 'config' is not JSON ({error}). {EXPORT_AGAIN}") from None
    if not isinstance(data, dict):
        found = type(data).__name__
        raise checkpoint.error(f"metadata entry 'config' is a {found}, expected a JSON object. {EXPORT_AGAIN}")
    return data
