"""What will run on the day a card is there runs today, on the CPU and on a fake card."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_card import missing

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "on_a_gpu.py"


def rehearse(out: Path, patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    patch.syspath_prepend(SCRIPT.parent)
    patch.setattr(sys, "argv", [str(SCRIPT), "--rehearse", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 0
    found = json.loads((out / "on_a_gpu.json").read_text())
    assert found["rehearsal"]
    assert all(one["limit"][0] in ("at most", "at least") for one in found["outcomes"])
    assert all(one["verdict"] in ("pass", "not run") for one in found["outcomes"])
    assert all(one["why"] for one in found["outcomes"] if one["verdict"] == "not run")
    page = (out / "on_a_gpu.md").read_text()
    assert "no card was used" in page
    assert all(f"| {one['claim']} | {one['on']} |" in page for one in found["outcomes"])
    outcomes: list[dict[str, Any]] = found["outcomes"]
    return outcomes


def test_the_rehearsal_passes_without_a_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    outcomes = rehearse(tmp_path, monkeypatch)
    tried = {one["on"]: {o["claim"] for o in outcomes if o["on"] == one["on"]} for one in outcomes}
    assert tried.keys() == {"cpu"} if missing() else {"cpu", "fake"}
    asked = {o["claim"] for o in outcomes if o["claim"].startswith("ComfyUI") and "no ComfyUI" in o["why"]}
    assert len(asked) == 4
    measured = [one for one in outcomes if one["verdict"] == "pass"]
    assert all(isinstance(one["value"], float) for one in measured)
    assert {one["claim"] for one in measured} > {"the embedded model's caption is the CPU's"}
    if not missing():  # what docs/costs.md says of a card is what is counted today
        said = {
            one["claim"]: one["value"] for one in json.loads((SCRIPT.parent / "numbers" / "counted.json").read_text())
        }
        assert {one["claim"]: one["value"] for one in measured if one["on"] == "fake"} == pytest.approx(said, rel=0.05)


def test_a_claim_that_does_not_hold_fails(tmp_path: Path) -> None:
    code = f"""
import sys; sys.argv = ["x", "--rehearse", "--only", "planted", "--out", {str(tmp_path)!r}]
sys.path.insert(0, {str(SCRIPT.parent)!r})
import on_a_gpu
def broken(rig): raise RuntimeError("CUDA error: an illegal memory access")
on_a_gpu.claims = lambda: [on_a_gpu.Claim("planted high", "at most", 1, "GB", lambda rig: 2.0),
                           on_a_gpu.Claim("planted low", "at least", 1, "GB", lambda rig: 2.0),
                           on_a_gpu.Claim("planted broken", "at most", 1, "GB", broken)]
raise SystemExit(on_a_gpu.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / "on_a_gpu.json").read_text())["outcomes"]
    assert [one["verdict"] for one in found] == ["fail", "pass", "fail"]
    assert "illegal memory access" in found[2]["why"]


def test_without_a_card_it_says_what_to_do() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--rehearse" in done.stderr
