"""The table of times in docs/costs.md is the one that its script prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow  # half a minute: every operation of the released size is counted
def test_the_times_by_card_are_those_that_are_counted() -> None:
    script = ROOT / "benchmarks" / "times_by_card.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, env=environment, check=True, cwd=ROOT)
    table = done.stdout.decode("utf-8").strip()
    assert len(table.splitlines()) == 7
    assert table in (ROOT / "docs" / "costs.md").read_text(encoding="utf-8").replace("\r\n", "\n")
