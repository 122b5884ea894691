"""Laws of editing by words on a tiny random network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_networks import TINY, random_network
from torch import Tensor

from uvg_core import GuidedDenoiser, ModelConfig, Sampling, UniViGU, UniViGUError
from uvg_core.flow.continuous import interpolate
from uvg_core.sampling import Editing, Worded, edit, edit_sigmas
from uvg_core.sampling.edit import windows_of
from uvg_core.sampling.start import clean_text, generators

EMBEDDING = ModelConfig(**{**TINY.__dict__, "text_flow": "embedding"})
FEW = Sampling(steps=3, seed=2)


@pytest.fixture(params=[TINY, EMBEDDING], ids=["discrete", "embedding"])
def any_network(request: pytest.FixtureRequest) -> UniViGU:
    return random_network(request.param)


@pytest.fixture
def clip() -> Tensor:
    return torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(5))


def worded(network: Any, seed: int, guidance: float = 1.0) -> Worded:
    """A condition and tokens by seed."""
    g = torch.Generator().manual_seed(seed)
    context, null = torch.randn(1, 6, 20, generator=g), torch.zeros(1, 6, 20)
    return Worded(GuidedDenoiser(network, context, null, guidance), torch.randint(31, (1, 4), generator=g))


def test_words_that_stay_change_nothing(any_network: UniViGU, clip: Tensor) -> None:
    same = worded(any_network, 1)
    assert torch.equal(edit(clip, same, same, FEW, Editing(draws=2)), clip)
    assert not torch.allclose(edit(clip, same, worded(any_network, 2), FEW), clip)


def test_no_strength_changes_nothing_and_more_strength_changes_more(network: UniViGU, clip: Tensor) -> None:
    old, new = worded(network, 1), worded(network, 2, 3.0)
    apart = [float((edit(clip, old, new, FEW, Editing(strength=s)) - clip).norm()) for s in (0, 0.1, 0.9)]
    assert apart[0] == 0 < apart[1] < apart[2]


def test_the_seed_decides_and_a_batch_is_its_rows(any_network: UniViGU, clip: Tensor) -> None:
    old, new = worded(any_network, 1), worded(any_network, 2, 3.0)
    once = edit(clip, old, new, FEW)
    assert torch.equal(edit(clip, old, new, FEW), once)
    assert not torch.allclose(edit(clip, old, new, replace(FEW, seed=9)), once)
    second = edit(clip[1:], old, new, replace(FEW, seed=3))
    torch.testing.assert_close(second[0], once[1], atol=1e-4, rtol=1e-4)


def test_one_step_is_the_difference_of_both_velocities(network: UniViGU, clip: Tensor) -> None:
    """From pure noise, both sides are at the same place, and the step is as long as the schedule."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(latent: Tensor, *args: Any, **options: Any) -> Any:
        found = network(latent, *args, **options)
        seen.append((latent, found.velocity))
        return found

    watched.config, watched.computes_in, watched.embed = network.config, network.computes_in, network.embed  # type: ignore[attr-defined]
    edited = edit(clip, worded(watched, 1), worded(watched, 2), replace(FEW, steps=1), Editing(strength=1))
    (there, new), (here, old) = seen
    torch.testing.assert_close(there, here)
    torch.testing.assert_close(edited, clip + old - new)


def test_what_a_mask_holds_stays_as_it_is(network: UniViGU, clip: Tensor) -> None:
    free = torch.zeros(1, 1, 2, 4, 4)
    free[..., :2] = 1
    edited = edit(clip, worded(network, 1), worded(network, 2), FEW, free=free)
    assert torch.equal(edited[..., 2:], clip[..., 2:])
    assert not torch.allclose(edited[..., :2], clip[..., :2])
    with pytest.raises(UniViGUError, match="its mask"):
        edit(clip, worded(network, 1), worded(network, 2), FEW, free=torch.ones(1, 1, 2, 4, 5))


def test_a_long_clip_is_edited_in_windows_that_overlap(network: UniViGU) -> None:
    assert [(one.start, one.stop) for one in windows_of(7, 3)] == [(0, 3), (2, 5), (4, 7)]
    assert [(one.start, one.stop) for one in windows_of(22, 21)] == [(0, 21), (1, 22)]
    assert windows_of(3, 3) == windows_of(3, 0) == [slice(0, 3)]
    long = torch.randn(1, 16, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    old, new = (worded(network, seed)._replace(window=2) for seed in (1, 2))
    assert torch.equal(edit(long, old, old, FEW), long)
    few = Sampling(steps=1, seed=2)
    found, parts = edit(long, old, new, few) - long, []
    noise = torch.randn(1, 16, 4, 4, 4, generator=generators([2])[0])
    for start in range(3):
        part = interpolate(long, noise, torch.tensor(edit_sigmas(few.resolved(), 0.95)[0]))[:, :, start : start + 2]
        sigmas = edit_sigmas(few.resolved(), 0.95)
        texts = [clean_text(side.denoise, side.text, None, part) for side in (new, old)]
        there, here = (side.velocity(part, sigmas, text, 0) for side, text in zip((new, old), texts, strict=True))
        parts.append((there - here) * (sigmas[1] - sigmas[0]))
    torch.testing.assert_close(found[:, :, 0], parts[0][:, :, 0])
    torch.testing.assert_close(found[:, :, 1], (parts[0][:, :, 1] + parts[1][:, :, 0]) / 2)
    torch.testing.assert_close(found[:, :, 3], parts[2][:, :, 1])


def test_an_edit_can_be_stopped_and_tells_where_it_is(network: UniViGU, clip: Tensor) -> None:
    old, new, seen = worded(network, 1), worded(network, 2), list[Tensor]()

    def watch(step: int, state: Any) -> bool:
        seen.append(state.estimate)
        return step < 2

    assert torch.equal(edit(clip, old, new, FEW, callback=watch), seen[1])
    assert len(seen) == 2


def test_plain_wan_has_no_text_stream(network: UniViGU, clip: Tensor) -> None:
    old, new = (Worded(worded(network, seed).denoise) for seed in (1, 2))
    assert not torch.allclose(edit(clip, old, new, FEW), clip)


def test_numbers_that_are_none_and_heun_are_refused(network: UniViGU, clip: Tensor) -> None:
    old, new = worded(network, 1), worded(network, 2)
    with pytest.raises(UniViGUError, match="not numbers before the first step"):
        edit(clip * torch.nan, old, new, FEW)
    with pytest.raises(UniViGUError, match="edits know only euler"):
        edit(clip, old, new, replace(FEW, solver="heun"))
