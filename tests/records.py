"""Records of results in JSON files, and what of them must be equal where."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

WRITE = os.environ.get("UVG_WRITE_RECORD") == "1"


def machine(torch_version: str = torch.__version__) -> dict[str, Any]:
    """The kind of machine: between equal ones results are equal to the last bit."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"^(?:model name|model)\s*:\s*(.+)$", cpu.read_text(), re.MULTILINE) if cpu.is_file() else []
    return {
        "processor": " ".join([platform.machine(), platform.processor(), *sorted(set(names))]),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch_version,
        "threads": torch.get_num_threads(),
    }


def read_record(path: Path) -> dict[str, Any]:
    """The record; empty before it is first written."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_record(path: Path, name: str, here: dict[str, Any], found: Any) -> None:
    """Replace one entry. What another kind of machine has recorded is removed: a record comes from one machine."""
    record = read_record(path)
    if record.get("machine") != here:
        record = {}
    record |= {"machine": here, name: found}
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
