"""The clip's keys and values between the steps of a caption."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_jobs import caption_likelihood, video_to_text
from tiny_networks import TINY, random_network
from torch import Tensor

from uvg_core import UniViGU
from uvg_core.errors import UniViGUError
from uvg_core.model import Hooks, Pass, PassOptions, Prediction, VideoCache
from uvg_core.model.memory import free_memory
from uvg_core.sampling.cache_policy import CachePolicy

HELD = PassOptions(video_clean=True)


def close(found: Prediction, wanted: Prediction) -> None:
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)


ONE_WAY = replace(TINY, v2t_attention="one_way")


@pytest.fixture
def one_way() -> UniViGU:
    return random_network(ONE_WAY)


@pytest.fixture
def clean(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**inputs, "time_video": torch.zeros(2), "time_text": torch.tensor([900.0, 512.0])}


def later(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same clip beside other words at another time."""
    return {**inputs, "text": (inputs["text"] + 7) % 31, "time_text": inputs["time_text"] - 300}


def test_where_the_video_does_not_see_the_text_nothing_is_lost(one_way: UniViGU, clean: dict[str, Tensor]) -> None:
    cache = VideoCache()
    for given in (clean, later(clean)):
        found = one_way(**given, options=PassOptions(want_velocity=False, cache=cache)).logits
        torch.testing.assert_close(found, one_way(**given, options=HELD).logits, rtol=1e-5, atol=1e-5)
        assert cache.filled


def test_a_full_cache_leaves_the_video_out(one_way: UniViGU, clean: dict[str, Tensor]) -> None:
    cache = VideoCache()
    one_way(**clean, options=PassOptions(cache=cache))
    wanted = one_way(**later(clean), options=HELD).logits
    blind = {**later(clean), "video": torch.full_like(clean["video"], torch.nan)}
    silent = random_network(ONE_WAY)
    for block in silent.blocks:
        block.ffn[0].weight.fill_(torch.nan)  # the video's expert has no part in it
    found = silent(**blind, options=PassOptions(cache=cache))
    assert found.velocity is None
    torch.testing.assert_close(found.logits, wanted, rtol=1e-5, atol=1e-5)


def test_what_was_seen_with_the_text_is_what_it_was(network: UniViGU, clean: dict[str, Tensor]) -> None:
    """Beside the same text the kept keys are right; beside another they are those of the first."""
    cache = VideoCache(reads_text=True)
    first = network(**clean, options=PassOptions(cache=cache)).logits
    assert torch.equal(first, network(**clean).logits)
    torch.testing.assert_close(network(**clean, options=PassOptions(cache=cache)).logits, first, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(
        network(**later(clean), options=PassOptions(cache=cache)).logits, network(**later(clean)).logits, atol=1e-3
    )


def test_float8_is_half_as_large_and_close(one_way: UniViGU, clean: dict[str, Tensor]) -> None:
    whole, half = VideoCache(fp8=False), VideoCache(fp8=True)
    for cache in (whole, half):
        one_way(**clean, options=PassOptions(cache=cache))
    exact = one_way(**later(clean), options=PassOptions(cache=whole)).logits
    close = one_way(**later(clean), options=PassOptions(cache=half)).logits
    assert exact is not None
    assert close is not None
    assert half.nbytes < 0.5 * whole.nbytes
    assert 0 < float((close - exact).std() / exact.std()) < 0.1


@pytest.mark.parametrize(
    ("missing", "fp8", "place", "in_float8"),
    [
        (0, None, "device", False),
        (1, None, "device", True),
        (1, False, "nowhere", False),
        (math.inf, None, "nowhere", True),
    ],
)
def test_it_is_kept_in_what_fits(
    one_way: UniViGU, clean: dict[str, Tensor], missing: float, fp8: bool | None, place: str, in_float8: bool
) -> None:
    """Where nothing does, every pass is a full one."""
    needed = 2 * len(one_way.blocks) * 2 * 12 * TINY.dim * 4  # keys and values, 2 clips of 12 tokens, float32
    cache = VideoCache(fp8=fp8, free_bytes=lambda _: needed - missing)
    one_way(**clean, options=PassOptions(cache=cache))
    assert (cache.place, cache.fp8, cache.filled) == (place, in_float8, place == "device")
    if not cache.filled:
        assert cache.nbytes == 0
        wanted = one_way(**later(clean), options=HELD).logits
        torch.testing.assert_close(
            one_way(**later(clean), options=PassOptions(cache=cache)).logits, wanted, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("fp8", "in_float8"), [(None, True), (False, False)])
def test_it_takes_no_room_from_weights_where_float8_needs_none(
    one_way: UniViGU, clean: dict[str, Tensor], fp8: bool | None, in_float8: bool
) -> None:
    """A host may put weights aside for it, and would fetch them at every step; an exact cache takes that room."""
    needed = 2 * len(one_way.blocks) * 2 * 12 * TINY.dim * 4
    cache = VideoCache(fp8=fp8, free_bytes=lambda _: 2.0 * needed, spare_bytes=lambda _: 0.5 * needed)
    one_way(**clean, options=PassOptions(cache=cache))
    assert (cache.place, cache.fp8) == ("device", in_float8)


def test_the_machines_memory_is_no_bottomless_pit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux tells how much is left; other systems do not, and then nothing is refused."""
    told = tmp_path / "meminfo"
    monkeypatch.setattr("uvg_core.model.memory.MEMORY_OF_LINUX", told)
    assert free_memory(torch.device("cpu")) == math.inf
    told.write_text("MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:  2000 kB\n")
    assert free_memory(torch.device("cpu")) == pytest.approx(0.7 * 2000 * 1024)


def test_ranking_without_room_is_ranking_without_a_cache(one_way: UniViGU, clean: dict[str, Tensor]) -> None:
    """Also where room appears once the ranking is under way."""
    texts, clip = [[3, 4], [5, 6], [7, 8]], clean["video"][:1]
    room = iter([0.0])
    cache = VideoCache(free_bytes=lambda _: next(room, 1e9))
    settings = {"video": clip, "texts": texts, "batch": 2, "samples": 2}
    found = caption_likelihood(one_way, **settings, video_cache="static", cache=cache)  # type: ignore[arg-type]
    assert not cache.filled
    exact = caption_likelihood(one_way, **settings, video_cache="off")  # type: ignore[arg-type]
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("change", ["rows", "size"])
def test_the_cache_of_other_clips_is_refused(one_way: UniViGU, clean: dict[str, Tensor], change: str) -> None:
    cache = VideoCache()
    one_way(**clean, options=PassOptions(cache=cache))
    other = {name: torch.cat([value, value[:1]]) if change == "rows" else value for name, value in clean.items()}
    if change == "size":
        other["video"] = other["video"][:, :, :1]
    with pytest.raises(UniViGUError, match=r"the cache holds 2 clip\(s\) of 12 tokens"):
        one_way(**other, options=PassOptions(cache=cache))


@pytest.mark.parametrize("kind", ["embedding", "bfloat16"])
def test_other_networks_keep_their_clips_as_well(clean: dict[str, Tensor], kind: str) -> None:
    if kind == "embedding":
        model, tolerance = random_network(replace(ONE_WAY, text_flow="embedding")), 1e-5
        clean["text"] = torch.randn(2, 5, ONE_WAY.dim)
        after = {**clean, "text": clean["text"] + 0.3}
    else:
        model, tolerance = random_network(ONE_WAY).to(torch.bfloat16), 0.03
        after = later(clean)
    cache = VideoCache()
    model(**clean, options=PassOptions(cache=cache))
    found, wanted = (
        model(**after, options=PassOptions(cache=cache)).logits.float(),
        model(**after, options=HELD).logits.float(),
    )
    assert cache.filled
    assert float((found - wanted).norm() / wanted.norm()) < tolerance


def test_padded_words_stay_hidden(one_way: UniViGU, clean: dict[str, Tensor]) -> None:
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    cache = VideoCache()
    one_way(**clean, options=PassOptions(cache=cache))
    found = one_way(**later(clean), text_mask=mask, options=PassOptions(cache=cache)).logits
    torch.testing.assert_close(
        found, one_way(**later(clean), text_mask=mask, options=HELD).logits, rtol=1e-5, atol=1e-5
    )


def test_one_clip_serves_many_texts(one_way: UniViGU, clean: dict[str, Tensor]) -> None:
    one = {name: value[:1] for name, value in clean.items()}
    cache = VideoCache()
    one_way(**one, options=PassOptions(cache=cache))
    # The video reads the prompt condition as well: that has to be the same.
    same = {name: clean[name][:1].expand_as(clean[name]) for name in ("video", "context")}
    many = {**later(clean), **same}
    torch.testing.assert_close(
        one_way(**many, options=PassOptions(cache=cache)).logits,
        one_way(**many, options=HELD).logits,
        rtol=1e-5,
        atol=1e-5,
    )


# --- captions ---------------------------------------------------------------------------------------------------------


def caption(model: UniViGU, clip: Tensor, **options: object) -> Tensor:
    return video_to_text(model, video=clip, length=6, steps=8, **options)  # type: ignore[arg-type]


def test_captions_are_the_same_where_the_rule_is_one_way(one_way: UniViGU, inputs: dict[str, Tensor]) -> None:
    exact = caption(one_way, inputs["video"], video_cache="off")
    for kept in ("auto", "static", "refresh=3"):
        assert torch.equal(caption(one_way, inputs["video"], video_cache=kept), exact)


def test_auto_never_rounds(one_way: UniViGU) -> None:
    """It promises the words of the exact run, however little room there is; who asks for ``static`` may get float8."""
    for setting, fp8 in (("auto", False), ("static", True), ("refresh=3", True)):
        cache = CachePolicy.of(setting, one_way.config).cache(one_way)
        assert cache is not None
        cache.free_bytes = lambda _: 1000.0
        cache.begin(1, 300, 1)
        cache.keep(torch.ones(1, 300, 2), torch.ones(1, 300, 2), 0)
        assert cache.fp8 is fp8


@pytest.mark.parametrize("setting", ["static", "refresh=2"])
def test_a_cancelled_caption_leaves_nothing_behind(inputs: dict[str, Tensor], setting: str) -> None:
    model, made = random_network(), []

    def remembered(**settings: object) -> VideoCache:
        cache = VideoCache(**settings)  # type: ignore[arg-type]
        made.append(weakref.ref(cache))
        return cache

    def cancel(*_: object) -> None:
        raise KeyboardInterrupt

    model.video_cache = remembered  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        caption(model, inputs["video"], video_cache=setting, callback=cancel)
    gc.collect()
    assert [cache() for cache in made] == [None]


def test_a_refresh_at_every_step_is_the_exact_run(network: UniViGU, inputs: dict[str, Tensor]) -> None:
    exact = caption(network, inputs["video"], video_cache="off")
    assert torch.equal(caption(network, inputs["video"], video_cache="refresh=1"), exact)
    assert torch.equal(caption(network, inputs["video"]), exact)


@pytest.mark.parametrize(
    ("setting", "full"), [("off", 8), ("refresh=3", 3), ("refresh=8", 1), ("static", 1), ("refresh=100", 1)]
)
def test_how_often_the_clip_is_looked_at(inputs: dict[str, Tensor], setting: str, full: int) -> None:
    model, seen = random_network(), []
    model.patch_embedding.register_forward_hook(lambda *_: seen.append(1))
    caption(model, inputs["video"], video_cache=setting)
    assert len(seen) == full


@pytest.mark.parametrize("setting", ["on", "refresh", "refresh=0", "refresh=-1", "refresh=1.5", "static=2", ""])
def test_another_setting_is_refused(setting: str) -> None:
    with pytest.raises(UniViGUError, match=r"video_cache is .* expected one of auto, off, static, refresh=K"):
        CachePolicy.of(setting, TINY)


def test_another_place_is_refused() -> None:
    with pytest.raises(UniViGUError, match="place of the video cache is 'disk'; expected one of device, host"):
        VideoCache(place="disk")


def test_a_pass_that_broke_off_leaves_nothing_behind(one_way: UniViGU, clean: dict[str, Tensor]) -> None:
    cache = VideoCache()

    def breaks(index: int, run: Callable[..., Tensor], x: Tensor, at: Pass) -> Tensor:
        if index == 1:
            raise KeyboardInterrupt
        return run(x, at)

    with pytest.raises(KeyboardInterrupt):
        one_way(**clean, options=PassOptions(cache=cache, hooks=Hooks(block=breaks)))
    assert not cache.filled
    for given in (clean, later(clean)):
        torch.testing.assert_close(
            one_way(**given, options=PassOptions(cache=cache)).logits,
            one_way(**given, options=HELD).logits,
            rtol=1e-5,
            atol=1e-5,
        )


def test_where_the_video_is_not_asked_for_the_words_are_the_same(network: UniViGU, clean: dict[str, Tensor]) -> None:
    """The last block then works for the text alone."""
    found = network(**clean, options=PassOptions(want_velocity=False))
    assert found.velocity is None
    torch.testing.assert_close(found.logits, network(**clean).logits, rtol=1e-5, atol=1e-5)


def test_ranking_looks_at_the_clip_once(one_way: UniViGU, network: UniViGU, inputs: dict[str, Tensor]) -> None:
    clip, texts = inputs["video"][:1], [[3, 4, 5, 1], [6, 7, 1], [8, 1], [3, 4, 9, 1]]
    ranked = {
        kept: caption_likelihood(one_way, video=clip, texts=texts, samples=3, batch=3, video_cache=kept)
        for kept in ("off", "auto")
    }
    torch.testing.assert_close(ranked["auto"], ranked["off"], rtol=1e-5, atol=1e-4)
    with pytest.raises(UniViGUError, match="ranking knows auto, off and static"):
        caption_likelihood(network, video=clip, texts=texts, video_cache="refresh=2")
