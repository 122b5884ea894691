"""Laws of the jump process: its marginals, the draws, the memory-saving forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from uvg_core import UniViGUError
from uvg_core.flow import discrete as flow
from uvg_core.flow.discrete import (
    MixturePath,
    corrupt,
    draw_clean_tokens,
    jump_step,
    source_tokens,
    token_log_likelihood,
)

V, N = 7, 20_000
SIGNIFICANCE = 1e-3  # every chi-square test runs on fixed seeds: it either passes for good or not


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of observed counts against a law."""
    expected = probabilities.double() / probabilities.double().sum() * counts.sum()
    return float(stats.chisquare(counts.double().numpy(), expected.numpy()).pvalue)


def run_process(
    path: MixturePath, rule: str, steps: int, stop: int, data: torch.Tensor, mask: int | None
) -> torch.Tensor:
    """The process with a perfect posterior of known data, up to step ``stop``."""
    g = generator(steps)
    tokens = source_tokens(tuple(data.shape), vocab_size=V, mask_token=mask, generator=g)
    for step in range(stop):
        tokens = jump_step(tokens, data, path.jump(rule, step / steps, (step + 1) / steps), g)
    return tokens


@pytest.mark.parametrize("exponent", [1.0, 2.0, 0.5])
@pytest.mark.parametrize(("steps", "stop"), [(2, 1), (8, 3), (50, 30)])
def test_bridge_follows_kappa_at_any_number_of_steps(exponent: float, steps: int, stop: int) -> None:
    path = MixturePath(exponent)
    tokens = run_process(path, "bridge", steps, stop, torch.full((N,), 3), mask=None)
    kappa = path.kappa(stop / steps)
    law = torch.full((V,), (1 - kappa) / V)
    law[3] += kappa
    assert chi_square(tokens.bincount(minlength=V), law) > SIGNIFICANCE


@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize(("steps", "stop"), [(8, 5), (50, 30)])
def test_euler_follows_its_own_product(exponent: float, steps: int, stop: int) -> None:
    path = MixturePath(exponent)
    tokens = run_process(path, "euler", steps, stop, torch.full((N,), 3), mask=V)
    stays = math.prod(
        math.exp(-(1 / steps) * exponent * t ** (exponent - 1) / (1 - t**exponent))
        for t in (i / steps for i in range(stop))
    )
    counts = torch.stack([(tokens == 3).sum(), (tokens == V).sum()])
    assert chi_square(counts, torch.tensor([1 - stays, stays])) > SIGNIFICANCE


def test_euler_is_off_kappa_by_what_is_known() -> None:
    """The largest gap to kappa over a run: 0.055 at 8 steps, 0.010 at 50 (n = 1)."""
    path = MixturePath()
    for steps, known in ((8, 0.055), (50, 0.010)):
        stays, gaps = 1.0, []
        for i in range(steps):
            gaps.append(abs((1 - stays) - path.kappa(i / steps)))
            stays *= 1 - path.jump("euler", i / steps, (i + 1) / steps)
        assert max(gaps) == pytest.approx(known, abs=2e-3)


@pytest.mark.parametrize(
    ("rule", "exponent"), [("bridge", 0.5), *((rule, e) for rule in ("bridge", "euler") for e in (1.0, 3.0))]
)
def test_the_last_step_takes_every_word(rule: str, exponent: float) -> None:
    data = torch.arange(N) % V
    assert torch.equal(run_process(MixturePath(exponent), rule, 5, 5, data, mask=V), data)


def test_unknown_rule() -> None:
    with pytest.raises(UniViGUError, match="expected bridge"):
        MixturePath().jump("magic", 0, 1)


def test_euler_is_refused_where_its_rate_is_infinite() -> None:
    """At tau = 0 with an exponent below 1: every token would jump in the first step, at any number of steps."""
    with pytest.raises(UniViGUError, match=r"kappa exponent 0\.5; expected .*at least 1.*Use bridge"):
        MixturePath(0.5).jump("euler", 0, 0.01)
    assert MixturePath(0.5).jump("bridge", 0, 0.01) == pytest.approx(0.1)
    assert MixturePath(1.0).jump("euler", 0, 0.01) == pytest.approx(0.01, rel=0.01)


def test_corruption_follows_the_path() -> None:
    path, tau = MixturePath(2.0), 0.6
    data = torch.full((1, N), 3)
    source = source_tokens((1, N), vocab_size=V, mask_token=None, generator=generator(1))
    noisy = corrupt(data, torch.tensor([tau]), path, source, generator(2))
    law = torch.full((V,), (1 - tau**2) / V)
    law[3] += tau**2
    assert chi_square(noisy.flatten().bincount(minlength=V), law) > SIGNIFICANCE


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.randn(V, generator=generator(3)) * 1.5
    drawn = draw_clean_tokens(logits.expand(1, N, V), generator=generator(4), temperature=temperature)
    assert chi_square(drawn.flatten().bincount(minlength=V), (logits / temperature).softmax(-1)) > SIGNIFICANCE


def test_nucleus_keeps_the_smallest_set_that_reaches_p() -> None:
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04])
    drawn = draw_clean_tokens(probabilities.log().expand(1, N, 5), generator=generator(), top_p=0.65)
    kept = torch.tensor([0.4, 0.3]) / 0.7
    counts = drawn.flatten().bincount(minlength=5)
    assert counts[2:].sum() == 0
    assert chi_square(counts[:2], kept) > SIGNIFICANCE
    only = draw_clean_tokens(probabilities.log().expand(1, 9, 5), generator=generator(), top_p=1e-6)
    assert only.unique().tolist() == [0]


def test_greedy_and_forbidden() -> None:
    logits = torch.tensor([[[0.0, 5.0, 1.0], [3.0, 9.0, 2.0]]])
    assert draw_clean_tokens(logits, generator=generator(), temperature=0).tolist() == [[1, 1]]
    assert draw_clean_tokens(logits, generator=generator(), temperature=0, forbidden=1).tolist() == [[2, 0]]
    many = draw_clean_tokens(logits.expand(50, 2, 3), generator=generator(), forbidden=1)
    assert not (many == 1).any()


def test_what_is_forbidden_has_no_share_in_a_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 5, V, generator=generator(8))
    tokens = torch.randint(V - 1, (2, 5), generator=generator(9))
    wanted = logits[..., : V - 1].log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    monkeypatch.setattr(flow, "CHUNK_NUMBERS", 3 * V)
    torch.testing.assert_close(token_log_likelihood(logits, tokens, V - 1), wanted)
    assert (token_log_likelihood(logits, tokens) < wanted).all()


@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-40, 1e-38, 1e-30])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_a_temperature_too_small_for_float32_takes_the_most_likely(temperature: float, top_p: float) -> None:
    logits = torch.tensor([[[0.0, 3.0, 2.9, -1.0], [1.0, 1.0, 1.0, 2.0]]])
    for seed in range(20):
        drawn = draw_clean_tokens(logits, generator=generator(seed), temperature=temperature, top_p=top_p)
        assert drawn.tolist() == [[1, 3]]


@pytest.mark.parametrize(("temperature", "top_p"), [(-1.0, 1.0), (1.0, 0.0), (1.0, 1.5)])
def test_draw_arguments(temperature: float, top_p: float) -> None:
    with pytest.raises(UniViGUError, match="expected"):
        draw_clean_tokens(torch.zeros(1, 1, 3), generator=generator(), temperature=temperature, top_p=top_p)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 11, V, generator=generator(5))
    tokens = torch.randint(V, (3, 11), generator=generator(6))

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        return token_log_likelihood(logits, tokens), draw_clean_tokens(logits, generator=generator(), top_p=0.9)

    whole = both()
    torch.testing.assert_close(whole[0], logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0])
    monkeypatch.setattr(flow, "CHUNK_NUMBERS", 2 * V)
    chunked = both()
    assert torch.equal(chunked[0], whole[0])
    assert torch.equal(chunked[1], whole[1])


def test_no_token_without_probability_is_drawn() -> None:
    """Also where a draw falls on the very end of the row."""
    logits = torch.full((N, V), -torch.inf)
    logits[:, :2] = 0.0
    assert int(draw_clean_tokens(logits, generator=generator()).max()) == 1


def test_a_step_holds_no_second_logits_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor made while drawing is one chunk, not [L, V]."""
    monkeypatch.setattr(flow, "CHUNK_NUMBERS", 4 * 1000)
    logits = torch.randn(64, 1000)
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.data_ptr() != logits.data_ptr():
                storage = out.untyped_storage()
                if storage.data_ptr() != logits.untyped_storage().data_ptr():
                    seen.append(storage.nbytes())
                assert out.dtype != torch.float64
            return out

    with Watch():
        clean = draw_clean_tokens(logits, generator=generator(), top_p=0.9)
        jump_step(torch.zeros_like(clean), clean, 0.5, generator())
    assert max(seen) <= 8 * 4 * 1000  # int64 order of one chunk, for the nucleus
