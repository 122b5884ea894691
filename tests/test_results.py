"""The pages of results and performance say what their numbers say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ATTRIBUTES = ("kind", "colour", "size", "motion", "speed", "background", "whole")


def tally(share: float) -> dict[str, Any]:
    hits = dict.fromkeys((*ATTRIBUTES, "exact", "alone"), round(100 * share))
    return {"mean": share, "hits": hits, "trials": dict.fromkeys(hits, 100)}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The module that writes a page, from numbers in ``tmp_path`` and into it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("saved"), "NUMBERS", tmp_path)

    def load(name: str) -> Any:
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "DOCS", tmp_path)
        monkeypatch.setattr("sys.argv", [f"{name}.py"])
        return module

    return load


@pytest.fixture
def results(page: Callable[[str], Any]) -> Any:
    return page("results")


def write(folder: Path, name: str, numbers: Any) -> None:
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


def test_the_page_is_written_whole_with_what_is_there(results: Any, tmp_path: Path) -> None:
    write(tmp_path, "quality_generate", {"objects_1": {"plain": tally(0.91)}})
    results.main()
    page = (tmp_path / "results.md").read_text("utf-8")
    assert "before stage 1, 1 object | **91.0**" in page
    assert "Not measured yet." in page
    assert "{{" not in page


def test_performance_says_what_was_missed_and_what_was_not_measured(page: Callable[[str], Any], tmp_path: Path) -> None:
    performance = page("performance")
    claim = {"claim": "peak of a pass over its estimate", "limit": ["at most", 1.1, "times"]}
    write(tmp_path, "counted", [{**claim, "value": value} for value in (0.95, 1.25)])
    turns = {"ours": [1.0, 2.0], "released code, bfloat16": [1.25, 2.5]}
    of = {"seconds": turns, "apart": dict.fromkeys(turns, 0.004)}
    write(tmp_path, "released_cpu", {"video": 64, "text": 16, "blocks": {"1": of}})
    write(tmp_path, "load_memory", {"load native bf16": {"seconds": 4.0, "file": 2.0**31, "added": 2.0**32}})
    performance.main()
    told = (tmp_path / "performance.md").read_text("utf-8")
    assert "| within 10 % | 0.95 to 1.25 of it is taken, on a fake card | **missed** |" in told
    assert "| a pass against the released code's | less than 1 of the time | 0.80 | reached |" in told
    assert "| released code, bfloat16 | 1875 ms (0.80) | 0.40 % |" in told
    assert "| load native bf16 | 4.0 | 2.00 | 4.00 | 2.000 |" in told
    assert "| text to video at 832x480x81 | under 8 GB | not measured: no GPU | open |" in told
    assert "Not measured yet." in told
    assert "{{" not in told
