"""What will run on the day a card is there runs today, on the CPU and on a fake card."""

from __future__ import annotations

import importlib
import json
import runpy
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


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, with the arguments of a rehearsal of planted claims."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--rehearse", "--only", "planted", "--out", str(tmp_path)])
    return importlib.import_module("on_a_gpu")


def test_a_claim_that_does_not_hold_fails(tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rig: Any) -> float:
        raise RuntimeError("CUDA error: an illegal memory access")

    claims = [
        script.Claim("planted high", "at most", 1, "GB", lambda rig: 2.0),
        script.Claim("planted low", "at least", 1, "GB", lambda rig: 2.0),
        script.Claim("planted broken", "at most", 1, "GB", broken),
    ]
    monkeypatch.setattr(script, "claims", lambda: claims)
    assert script.main() == 1
    found = json.loads((tmp_path / "on_a_gpu.json").read_text())["outcomes"]
    assert [one["verdict"] for one in found] == ["fail", "pass", "fail"]
    assert "illegal memory access" in found[2]["why"]


def test_without_a_card_it_says_what_to_do(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 2
    assert "--rehearse" in capsys.readouterr().err
