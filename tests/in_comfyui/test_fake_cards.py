"""The jobs at the released size on a card that is not there, through ComfyUI's guider and model management."""

from __future__ import annotations

from typing import Any

import pytest
from in_comfyui_host import Inside

LIVE_TEXT = "copy to the host, uvg_core/media/tokenizer.py"  # what the words of a step are shown from


@pytest.fixture(scope="module")
def card(inside: Inside) -> Inside:
    reason = inside.call("fake_cards", "missing")
    if reason:
        pytest.skip(reason)
    return inside


def test_no_step_waits_for_the_card(card: Inside) -> None:
    """Live text takes one copy a step (a template of two blanks forms four texts). No job mixes devices, or it would
    not get here."""
    found: dict[str, Any] = card.call("fake_cards", "waits")
    expected = {
        "t2v": {},
        "t2v in float16": {},
        "joint": {},
        "joint, live text": {LIVE_TEXT: 1},
        "v2t": {LIVE_TEXT: 1},
        "v2t, static": {LIVE_TEXT: 1},
        "v2t, refresh": {LIVE_TEXT: 1},
        "template": {LIVE_TEXT: 4},
        "rank": {},
    }
    assert {job: seen["step"] for job, seen in found.items()} == expected
    assert {job: seen["watch"] for job, seen in found.items() if seen["watch"]} == {"t2v in float16": 1}
    assert all(not seen["slower attention"] for seen in found.values()), found


def test_comfyui_is_told_what_a_run_needs(card: Inside) -> None:
    found = card.call("fake_cards", "peaks")
    assert len(found) == 8
    for run in found:
        assert 0.9 <= run["required"] / run["peak"] <= 1.1, run


def test_launches_of_a_block(card: Inside) -> None:
    found = card.call("fake_cards", "launches")
    assert found["with text"]["launches"] <= 36
    assert found["without text"]["launches"] <= found["core's Wan"]["launches"]
    assert found["with text"]["traffic"] <= found["core's Wan"]["traffic"]


def test_832x480x81_on_8_gb(card: Inside) -> None:
    """With 1.5 GB left for the context, workspaces and the screen, as the card is by default."""
    found = card.call("fake_cards", "fits")
    assert max(found["t2v"], found["joint"]) <= 6.0e9
    assert max(found["v2t"], found["v2t from the host"]) <= 5.7e9
    assert found["v2t from the host, kept on the host"] > 0
    assert found["v2t, kept on the host"] == 0


def test_a_compiled_network_is_one_graph(inside: Inside) -> None:
    found = inside.call("fake_cards", "graphs")
    assert {job: len(made) for job, made in found.items()} == dict.fromkeys(("t2v", "joint", "v2t"), 1)
