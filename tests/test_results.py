"""The page of results says what its numbers say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "results.py"
ATTRIBUTES = ("kind", "colour", "size", "motion", "speed", "background", "whole")


def tally(share: float) -> dict[str, Any]:
    hits = dict.fromkeys((*ATTRIBUTES, "exact", "alone"), round(100 * share))
    return {"mean": share, "hits": hits, "trials": dict.fromkeys(hits, 100)}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("results", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "NUMBERS", tmp_path)
    monkeypatch.setattr(module, "DOCS", tmp_path)
    return module


def write(folder: Path, name: str, numbers: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(numbers), encoding="utf-8")


def test_a_target_that_is_missed_is_said_to_be(results: Any, tmp_path: Path) -> None:
    one = {"understanding": tally(0.98), "generation": tally(0.9), "vae": {"whole": 33.0, "boxes": 23.0}}
    write(tmp_path, "quality_final", {"objects_1": one})
    told = results.about_targets().splitlines()
    assert "| video to text | 97.0 % | 98.0 % | reached |" in told
    assert "| text to video | 93.0 % | 90.0 % | **not reached** |" in told
    assert told[-1] == "| VAE, inside the objects' boxes | 24 dB | 23.0 dB | **not reached** |"


def test_a_claim_is_judged_by_its_interval(results: Any, tmp_path: Path) -> None:
    def seeds(*shares: float) -> dict[str, Any]:
        return {str(i): {"says": "", "seconds": 60, "understanding": tally(share)} for i, share in enumerate(shares)}

    arms = {
        "unified": seeds(0.80, 0.81, 0.82),
        "scratch": seeds(0.60, 0.62, 0.61),
        "no recall": seeds(0.85, 0.75, 0.84),
        "mask": seeds(0.90, 0.91, 0.92),
    }
    write(tmp_path, "ablations", {"steps": 1, "batch": 1, "clips": 1, "arms": arms})
    told = {line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in results.about_claims().splitlines()[2:]}
    assert told["starting from the generator, not from random weights"].endswith(": better")
    assert told["Knowledge Recall before refinement"].endswith(": no difference shown")
    assert told["discrete flow from uniform words, not from masks"] == "-10.0 ± 0.0: **worse**"
    assert "81.0 ± 2.5" in results.about_ablations()


def test_the_page_is_written_whole_with_what_is_there(
    results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["results.py"])
    write(tmp_path, "quality_generate", {"objects_1": {"plain": tally(0.91)}})
    results.main()
    page = (tmp_path / "results.md").read_text("utf-8")
    assert "before stage 1, 1 object | **91.0**" in page
    assert "Not measured yet." in page
    assert "{{" not in page
