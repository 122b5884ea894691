"""The numbers that benchmarks leave in ``benchmarks/numbers/`` for the pages that show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NUMBERS = Path(__file__).resolve().parent / "numbers"


def read(name: str) -> Any:
    """What was saved under ``name``; an empty dict where nothing was."""
    path = NUMBERS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def save(name: str, found: Any, indent: int | None = 1) -> None:
    from uvg_core.io import write_text  # here: those that ComfyUI's processes import know the pack by another name

    NUMBERS.mkdir(exist_ok=True)
    write_text(NUMBERS / f"{name}.json", json.dumps(found, indent=indent) + "\n")
