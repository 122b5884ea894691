"""What the network is stored in and computed in on cards that are not here, and the watch over float16."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from in_comfyui_host import ROOT, Inside

BF16 = ("RTX 3050", "RTX 3060", "RTX 4060", "RTX 4090", "RTX 5090", "RX 7900 (ROCm, gfx1100)", "Apple GPU (MPS)")
FP16 = ("RTX 2060", "RTX 2080", "RX 6800 (ROCm, gfx1030)")
SMALL = ("GTX 1080", "RTX 2060", "RTX 2080", "RTX 3050", "RTX 4060")  # 6 and 8 GB
CHOICES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp8_e4m3fn": "float8_e4m3fn",
    "fp8_e4m3fn_fast": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}


def best_of(card: str) -> str:
    """What a card computes in."""
    return "bfloat16" if card in BF16 else "float16" if card in FP16 else "float32"


def expected(card: str, file: str, choice: str) -> list[str]:
    """[stored in, computed in]."""
    best, quantised = best_of(card), "fp8" in file
    if choice == "fp32":
        return ["float8_e4m3fn" if quantised else "float32", "float32"]
    if quantised:
        return ["float8_e4m3fn", best]
    if choice == "default":
        # The oldest cards compute in float32, which needs too much room for the weights.
        wide = "bfloat16" if card == "GTX 1080" else best
        return ["float8_e4m3fn" if card in SMALL else wide, best]
    return [CHOICES[choice], "float16" if choice == "fp16" and card in BF16 else best]


def judged(found: dict[str, list[str]]) -> dict[str, tuple[list[str], list[str]]]:
    rows = {row: (dtypes, expected(*row.split(" | "))) for row, dtypes in found.items()}
    return {row: pair for row, pair in rows.items() if pair[0] != pair[1]}


def test_every_card_computes_in_what_it_is_good_at(inside: Inside) -> None:
    found = inside.call("cards", "dtypes", weight_dtypes=["default"])
    assert len(found) == 12 * 5
    assert judged(found) == {}


@pytest.mark.parametrize("card", ["GTX 1080", "RTX 2080", "RTX 3060", "RTX 4090"])
def test_weight_dtype_says_what_is_stored(inside: Inside, card: str) -> None:
    found = inside.call("cards", "dtypes", cards=[card], kinds=["bf16", "fp8"], weight_dtypes=list(CHOICES))
    assert len(found) == 2 * 6
    assert judged(found) == {}


@pytest.mark.slow
def test_the_whole_table(inside: Inside) -> None:
    found = inside.call("cards", "dtypes", timeout=600)
    assert len(found) == 12 * 5 * 7
    assert judged(found) == {}


def test_a_card_that_is_too_small_keeps_the_network_in_fp8(inside: Inside) -> None:
    """As convert writes it, said in one line; never where a dtype was chosen or the card is large enough."""
    found = inside.call("cards", "squeezed")
    assert found["not as convert"] == []
    assert found["said"] == {"RTX 4060": 1, "RTX 4060, bf16": 0, "RTX 3060": 0, "CPU": 0}
    assert "weight_dtype bf16" in found["saved as loaded"]


@pytest.mark.parametrize("quantised", [False, True])
def test_a_first_step_that_float16_is_too_small_for_is_computed_in_float32(
    inside: Inside, tmp_path: Path, quantised: bool
) -> None:
    """In every job, with the same result as in float32 from the start, and at once when it runs again."""
    shutil.copy(ROOT / "samples" / "uvg_sample.mp4", tmp_path)
    found = inside.call("cards", "overflow", folder=str(tmp_path), quantised=quantised)
    assert len(found) == (3 if quantised else 8)
    for job, seen in found.items():
        assert seen.pop("equal"), job
        in_float16, in_float32 = seen.pop("passes")
        assert (in_float16, in_float32 >= 2) == (1, True), job
        assert seen == {"said": 1, "asked for memory": 1, "said again": 0, "again in float16": 0}, job


def test_float16_that_is_large_enough_stays(inside: Inside) -> None:
    """One look, at the first step; and a run with other patches on the weights begins in float16 again."""
    found = inside.call("cards", "float16_stays")
    assert found["looks"] == found["passes of the first step"] == 1
    assert found["passes"] == ["float16"] * 4
    assert found["after another model's float32"] == ["float16", "float32", "float32", "float16"]


def test_check_goes_on_in_float32_where_float16_is_too_small(inside: Inside) -> None:
    found = inside.call("cards", "check_in_float16")
    assert found == {"same": True, "finite": True, "said": 1}
