"""What is stated of a checkpoint beyond its tensors: by the file's metadata, a config.json beside it, or the caller."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..config import CheckpointConfig, ModelConfig, RunConfig
from ..errors import UniViGUError
from ..settings import fields_of
from .detect import Checkpoint

# diffusers' names, which the release's own JSON follows, for what the tensors do not show.
_TRANSLATED = {"num_attention_heads": "num_heads", "eps": "eps"}
EXPORT_AGAIN = "What the file says of itself was damaged or edited: export or download it again"


@dataclass(frozen=True)
class Overrides:
    """Facts that a caller states of a checkpoint; None leaves them to the file.

    ``text_flow``, ``source`` and ``num_heads`` are for files that do not state them: to contradict one is an error.
    The others, entries of ``ModelConfig`` and ``RunConfig``, take the place of the file's.
    """

    text_flow: str | None = None
    source: str | None = None
    num_heads: int | None = None
    latent_space: str | None = None
    time_rounding: str | None = None
    text_states: str | None = None
    end_of_text: str | None = None
    checked: str | None = None

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


def _metadata_config(checkpoint: Checkpoint) -> dict[str, Any]:
    text = checkpoint.weights.metadata.get("config", "{}")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise checkpoint.error(f"metadata entry 'config' is not JSON ({error}). {EXPORT_AGAIN}") from None
    if not isinstance(data, dict):
        found = type(data).__name__
        raise checkpoint.error(f"metadata entry 'config' is a {found}, expected a JSON object. {EXPORT_AGAIN}")
    return data
