"""The clip's keys and values on a GPU: kept there, or fetched from the host block by block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_networks import TINY, random_network
from torch import Tensor

from uvg_core import UniViGU
from uvg_core.model import PassOptions, VideoCache

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
ONE_WAY = replace(TINY, v2t_attention="one_way", num_layers=5)  # odd: the stages meet each other at the end
DEVICES = ["cuda:0", pytest.param("cuda:1", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU"))]


def given(device: str, words: int, frames: int = 2, side: int = 16) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(words)
    video = torch.randn(1, 16, frames, side, side, generator=torch.Generator().manual_seed(0))
    parts = {
        "video": video,
        "text": torch.randint(31, (1, 5), generator=g),
        "time_video": torch.zeros(1),
        "time_text": torch.full((1,), 900.0 - 100 * words),
        "context": torch.zeros(1, 1, 20),
    }
    return {name: part.to(device) for name, part in parts.items()}


def on(device: str, dtype: torch.dtype = torch.float32) -> UniViGU:
    return random_network(ONE_WAY).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fp8", [False, True])
def test_the_host_gives_back_what_the_device_keeps(device: str, fp8: bool) -> None:
    model = on(device)
    caches = {place: VideoCache(fp8=fp8, place=place) for place in ("device", "host")}
    for words in range(6):
        found = {
            place: model(**given(device, words), options=PassOptions(want_velocity=False, cache=cache)).logits
            for place, cache in caches.items()
        }
        assert torch.equal(found["device"], found["host"])
        assert found["host"].device == torch.device(device)
    assert caches["host"].place == "host"


def test_a_cleared_cache_is_filled_anew_while_blocks_are_on_their_way() -> None:
    model, cache = on("cuda:0"), VideoCache(place="host")
    for words in range(4):
        model(**given("cuda:0", words), options=PassOptions(want_velocity=False, cache=cache))
        if words % 2:
            cache.clear()
    found = model(**given("cuda:0", 9), options=PassOptions(want_velocity=False, cache=cache)).logits
    torch.testing.assert_close(found, model(**given("cuda:0", 9)).logits, rtol=1e-4, atol=1e-5)


def test_two_blocks_of_a_cache_on_the_host_are_on_the_device() -> None:
    """However fast passes are asked for, and however long the way is."""
    model = random_network(replace(ONE_WAY, num_layers=15)).to("cuda:0", torch.bfloat16)
    cache, size = VideoCache(place="host", fp8=False), {"frames": 8, "side": 64}  # 8,192 tokens
    passes = [given("cuda:0", words, **size) for words in range(20)]
    for one in passes[:2]:
        model(**one, options=PassOptions(want_velocity=False, want_logits=False, cache=cache))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for one in passes:
        model(**one, options=PassOptions(want_velocity=False, want_logits=False, cache=cache))
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < cache.nbytes / 3  # five blocks of fifteen


def test_what_was_pinned_is_given_back() -> None:
    model, cache = on("cuda:0"), VideoCache(place="host")
    model(**given("cuda:0", 0), options=PassOptions(want_velocity=False, cache=cache))
    model(**given("cuda:0", 1), options=PassOptions(want_velocity=False, cache=cache))
    held = torch.cuda.host_memory_stats()["allocated_bytes.current"]
    assert held >= cache.nbytes
    del cache
    assert torch.cuda.host_memory_stats()["allocated_bytes.current"] < held


def test_what_does_not_fit_goes_to_the_host() -> None:
    model = on("cuda:0", torch.bfloat16)
    for free, place in ((1e9, "device"), (0, "host")):
        cache = VideoCache(free_bytes=lambda _, free=free: free)
        model(**given("cuda:0", 0), options=PassOptions(want_velocity=False, cache=cache))
        assert cache.place == place


def test_memory_that_a_process_may_not_take_is_not_free() -> None:
    from uvg_core.model.memory import free_memory

    device = torch.device("cuda:0")
    whole = free_memory(device)
    torch.cuda.set_per_process_memory_fraction(0.05, device)
    try:
        total = torch.cuda.get_device_properties(device).total_memory
        assert free_memory(device) <= 0.05 * total < whole
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
