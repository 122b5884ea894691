"""The harness itself: the process inside ComfyUI answers; test_harness.py has the server."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_comfyui_host import Inside


def test_the_process_inside_answers(inside: Inside) -> None:
    found = inside.call("harness", "surroundings", words="größer", numbers=[1, 2.5, None])
    assert found["arguments"] == {"words": "größer", "numbers": [1, 2.5, None]}
    assert (found["device"], found["inference"]) == ("cpu", True)
    assert Path(found["input"]) == inside.base / "input"
    assert "this belongs to the log" in inside.log_text()
    assert "IMPORT FAILED" not in inside.log_text()


def test_it_awaits_coroutines_and_runs_nodes(inside: Inside) -> None:
    assert inside.call("harness", "later", value=7) == 7
    assert inside.call("harness", "picture") == [2, 4, 8, 3]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("fails", "ValueError: this was to be expected"),
        ("leaves", "SystemExit: 3"),
        ("no_json", "not JSON serializable"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_what_goes_wrong_there_fails_the_test_here(inside: Inside, function: str, words: str) -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        inside.call("harness", function)
    assert words in str(caught.value)
    assert "Traceback" in str(caught.value)
    assert inside.call("harness", "later", value=1) == 1


def test_a_pack_that_does_not_load_says_why(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("from .nowhere import nothing")
    assert "No module named" in inside.call("harness", "problem_of", folder=str(tmp_path))
    (tmp_path / "__init__.py").write_text("async def comfy_entrypoint(): raise RuntimeError('not today')")
    assert "not today" in inside.call("harness", "problem_of", folder=str(tmp_path))
