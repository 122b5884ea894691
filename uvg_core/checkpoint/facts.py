"""What a file says beyond its tensors: our metadata, the release's JSON, diffusers' and Wan's config.json."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from ..config import CheckpointConfig, ModelConfig
from ..errors import UniViGUError
from .read import WeightFile

# diffusers' names, which the release's own JSON follows, for what the tensors do not show.
_TRANSLATED = {"num_attention_heads": "num_heads", "eps": "eps"}
EXPORT_AGAIN = "What the file says of itself was damaged or edited: export or download it again"
_OURS = {field.name for field in fields(ModelConfig)}


def stated_facts(weights: WeightFile) -> dict[str, Any]:
    """Entries of ``ModelConfig``, under its names, as the file's metadata or its config.json state them.

    Sizes among them are only claims: the tensors decide. Raises UniViGUError for a ``config`` that is not JSON.
    """
    data = _metadata_config(weights) or weights.facts
    stated = data.get("transformer", data)
    if not isinstance(stated, dict):
        raise UniViGUError(
            f"{weights.path}: metadata entry 'config': 'transformer' is not a JSON object. {EXPORT_AGAIN}"
        )
    facts = {ours: stated[theirs] for theirs, ours in _TRANSLATED.items() if theirs in stated}
    if "masked_source" in stated:
        facts["source"] = "mask" if stated["masked_source"] else "uniform"
    return facts | {name: value for name, value in stated.items() if name in _OURS}


def run_and_card(weights: WeightFile) -> CheckpointConfig:
    """``run`` and ``card`` of a native file (its ``model`` is a placeholder); the defaults for every other file."""
    data = _metadata_config(weights)
    if "transformer" not in data:
        return CheckpointConfig()
    try:
        # How many tokens there are, the tensors say: a vocabulary of 0 is one that is not known.
        return CheckpointConfig.from_json(json.dumps({**data, "transformer": {"vocab_size": 0}}))
    except (UniViGUError, RecursionError) as error:
        raise UniViGUError(f"{weights.path}: {error}. {EXPORT_AGAIN}") from None


def _metadata_config(weights: WeightFile) -> dict[str, Any]:
    text = weights.metadata.get("config")
    if text is None:
        return {}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UniViGUError(
            f"{weights.path}: metadata entry 'config' is not JSON ({error}); expected what save_model or convert "
            f"wrote. {EXPORT_AGAIN}"
        ) from None
    if not isinstance(data, dict):
        kind = type(data).__name__
        raise UniViGUError(
            f"{weights.path}: metadata entry 'config' is a {kind}, expected a JSON object. {EXPORT_AGAIN}"
        )
    return data
