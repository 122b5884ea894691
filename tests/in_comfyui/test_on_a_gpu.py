"""The claims about ComfyUI that a card will be asked for, rehearsed in a real one on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from in_comfyui_host import ROOT, ComfyUI


@pytest.mark.slow  # half a minute; tests/test_on_a_gpu.py rehearses the same script without ComfyUI
def test_the_rehearsal_runs_in_comfyui(comfyui: ComfyUI, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "on_a_gpu.py"), "--rehearse", "--only", "ComfyUI"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "on_a_gpu.json").read_text())["outcomes"]
    inside = {one["claim"]: one["why"] for one in found if one["claim"].startswith("ComfyUI")}
    assert len(inside) == 4
    assert all("rehearsed at a small size" in why or why == "launches are a card's" for why in inside.values())
