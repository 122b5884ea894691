"""The losses: what they are, what minimises them, and that nothing about how they are computed changes them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import random_network
from tiny_runs import RUN, STATES, WORDS
from torch import Tensor

from uvg_core import UniViGU
from uvg_core.config import ModelConfig
from uvg_core.data.shards import Sample
from uvg_core.flow.discrete import MixturePath
from uvg_core.flow.embedding import normalised_rows
from uvg_core.model.attention import sdpa_attention
from uvg_core.training.config import Loss, TrainConfig, from_dict
from uvg_core.training.objective import LATEST_TAU, Objective, generalised_kl, plain_attention
from uvg_core.training.plan import Batch, Collator, SamplePlan

MODEL = ModelConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=12, freq_dim=32, vocab_size=WORDS)
EMBEDDING = replace(MODEL, text_flow="embedding")
EMPTY = STATES[[1]]
TEXTS = [5, 9, 1], [4, 7, 11, 8, 1], [12, 1]


def make_config(**loss: Any) -> TrainConfig:
    values = {"stage": "recall", "model": "m", "data": "d", "out": "o", "steps": 10, "loss": loss}
    return from_dict(TrainConfig, values)


def make_batch(model: ModelConfig = MODEL, config: TrainConfig | None = None, silent: bool = False) -> Batch:
    """A clip of each job; ``silent``: text-to-video with an empty text stream."""
    generator = torch.Generator().manual_seed(4)
    samples = [
        Sample(torch.randn(16, 2, 4, 4, generator=generator), torch.tensor(ids), STATES[ids], None, None, str(ids))
        for ids in TEXTS
    ]
    plans = [
        SamplePlan(0, "text_to_video", 0.7, 0.0, False, False, silent),
        SamplePlan(1, "video_to_text", 0.0, 0.4, False, False, False),
        SamplePlan(2, "joint", 0.5, 0.8, False, False, False),
    ]
    return Collator(model, RUN, config or make_config(), EMPTY)(samples, plans)


def learning(config: ModelConfig = MODEL) -> UniViGU:
    return random_network(config).train().requires_grad_(True)


def gradients(objective: Objective, batch: Batch) -> dict[str, Tensor]:
    objective.zero_grad()
    losses = objective(batch)
    (losses.video.sum() + losses.text.sum()).backward()
    return {name: p.grad.clone() for name, p in objective.model.named_parameters() if p.grad is not None}


# --- against direct computation ---------------------------------------------------------------------------------------


def test_the_video_loss_is_the_velocitys_squared_error() -> None:
    network, batch = random_network(MODEL), make_batch()
    losses = Objective(network, Loss())(batch)
    for i, sigma in enumerate((0.7, 0.0, 0.5)):
        point = (1 - sigma) * batch.latents[i] + sigma * batch.noise[i]
        velocity = network(
            point[None],
            batch.text[[i]],
            torch.tensor([1000 * sigma]),
            1000 * batch.sigma_text[[i]],
            batch.context[[i]],
            batch.mask[[i]],
        ).velocity[0]
        expected = F.mse_loss(velocity, batch.noise[i] - batch.latents[i])
        torch.testing.assert_close(losses.video[i], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0])
def test_the_text_loss_is_the_weighted_cross_entropy(padding: float) -> None:
    config = make_config(padding=padding)
    network, batch = random_network(MODEL), make_batch(config=config)
    losses = Objective(network, config.loss)(batch)
    for i, ids in enumerate(TEXTS):
        sigma = batch.sigma_video[i]
        point = (1 - sigma) * batch.latents[i] + sigma * batch.noise[i]
        logits = network(
            point[None],
            batch.text[[i]],
            1000 * sigma[None],
            1000 * batch.sigma_text[[i]],
            batch.context[[i]],
            batch.mask[[i]],
        ).logits[0]
        nats = -logits.log_softmax(-1).gather(-1, batch.target[i][:, None])[:, 0]
        real, pad = nats[: len(ids)].sum(), nats[len(ids) :].sum()
        expected = (real + padding * pad) / (len(ids) + padding * (RUN.text_length - len(ids)))
        torch.testing.assert_close(losses.text[i], expected, atol=1e-5, rtol=1e-4)


def test_a_clips_losses_do_not_depend_on_its_company() -> None:
    network, batch = random_network(MODEL), make_batch(silent=True)
    objective = Objective(network, Loss())
    together = objective(batch)
    for i in range(3):
        own = {name: value[[i]] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        alone = objective(Batch(**own))
        torch.testing.assert_close(alone.video[0], together.video[i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.text[0], together.text[i], atol=1e-5, rtol=1e-4)


def test_the_embedding_loss_is_velocity_error_and_anchor() -> None:
    network, batch = random_network(EMBEDDING), make_batch(EMBEDDING)
    losses = Objective(network, Loss(anchor=0.3))(batch)
    rows = normalised_rows(network.token_embedding.weight)
    data, sigma = rows[batch.target], batch.sigma_text[:, None, None]
    z = (1 - sigma) * data + sigma * batch.text_noise
    share = batch.sigma_video[:, None, None, None, None]
    video = (1 - share) * batch.latents + share * batch.noise
    times = 1000 * batch.sigma_video, 1000 * batch.sigma_text
    velocity = network(video, z, *times, batch.context, batch.mask).logits
    error = (velocity - (batch.text_noise - data)).square().mean(-1)
    clean = z - sigma * velocity
    logits = clean @ rows.T / EMBEDDING.dim**0.5
    anchor = -logits.log_softmax(-1).gather(-1, batch.target[..., None])[..., 0]
    torch.testing.assert_close(losses.text, (error + 0.3 * anchor).mean(1), atol=1e-5, rtol=1e-4)


def test_the_generalised_kl_is_the_paths() -> None:
    network, batch = random_network(MODEL), make_batch()
    losses = Objective(network, Loss(discrete="generalised_kl"))(batch)
    share = batch.sigma_video[:, None, None, None, None]
    video = (1 - share) * batch.latents + share * batch.noise
    times = 1000 * batch.sigma_video, 1000 * batch.sigma_text
    logits = network(video, batch.text, *times, batch.context, batch.mask).logits
    nats = generalised_kl(logits, batch.target, batch.text, 1 - batch.sigma_text, MixturePath())
    torch.testing.assert_close(losses.text, nats.mean(1), atol=1e-4, rtol=1e-4)


def test_without_a_text_stream_there_is_no_text_loss() -> None:
    config = from_dict(TrainConfig, {**make_config().to_dict(), "stage": "generate"})
    batch = make_batch(config=config)
    network = learning()
    losses = Objective(network, Loss())(batch)
    assert losses.text.tolist() == [0, 0, 0]
    losses.video.sum().backward()
    assert network.text_head.head.weight.grad is None
    assert network.blocks[0].ffn.get_parameter("0.weight").grad.abs().sum() > 0


# --- the generalised KL -----------------------------------------------------------------------------------------------

P = torch.tensor([0.5, 0.3, 0.2])


def kl(target: int, current: int, tau: float, p: Tensor = P, exponent: float = 1.0) -> float:
    ids = torch.tensor([[target]]), torch.tensor([[current]])
    return float(generalised_kl(p.log()[None, None], *ids, torch.tensor([tau]), MixturePath(exponent)))


def test_known_values_of_the_generalised_kl() -> None:
    # Rate 1 / (1 - 0.5) = 2 on the straight path, 2 * 0.6 / (1 - 0.36) = 15/8 on the squared one.
    assert kl(0, 0, 0.5) == pytest.approx(2 * (1 - 0.5))
    assert kl(1, 0, 0.5) == pytest.approx(2 * (-math.log(0.3) - 0.5))
    assert kl(2, 1, 0.6, exponent=2) == pytest.approx(15 / 8 * (-math.log(0.2) - 0.3))
    assert kl(1, 1, 0.0) == pytest.approx(0.7)
    sure = torch.tensor([1.0, 1e-9, 1e-9])
    assert kl(0, 0, 0.5, sure) == pytest.approx(0, abs=1e-6)
    # Where the token is noise, the one sure and right answer still costs nothing.
    assert kl(0, 1, 0.5, sure) == pytest.approx(0, abs=1e-6)


def test_the_generalised_kl_stays_finite_at_both_ends() -> None:
    for tau, exponent in product((0.0, LATEST_TAU, 1.0), (0.5, 1.0, 2.0)):
        assert math.isfinite(kl(1, 0, tau, exponent=exponent))
    assert kl(1, 0, 1.0) == kl(1, 0, LATEST_TAU)


# Two tokens over three words, told apart by nothing but themselves: p(first, second).
TRUTH = torch.tensor([[0.30, 0.05, 0.10], [0.02, 0.25, 0.08], [0.05, 0.05, 0.10]], dtype=torch.float64)


def chances(tau: float, source: str) -> Tensor:
    """p(x_t | x1) of one token, ``[x1, x_t]``; the mask is a fourth state."""
    keeps = tau * torch.eye(3, 4, dtype=torch.float64)
    if source == "mask":
        keeps[:, 3] = 1 - tau
    else:
        keeps[:, :3] += (1 - tau) / 3
    return keeps


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("loss", ["generalised_kl", "cross_entropy"])
def test_the_posterior_minimises_the_loss(loss: str, source: str) -> None:
    """Free logits for every pair of noisy tokens learn p(x1 | x_t), each token's own marginal."""
    tau, states = 0.4, 3 if source == "uniform" else 4
    seen = chances(tau, source)[:, :states]
    together = torch.einsum("ab,ai,bj->abij", TRUTH, seen, seen)  # x1 of both tokens, x_t of both
    pairs = [(a, b, i, j) for a, b, i, j in product(range(3), range(3), range(states), range(states))]
    weight = torch.tensor([float(together[pair]) for pair in pairs])
    target = torch.tensor([[a, b] for a, b, _, _ in pairs])
    current = torch.tensor([[i, j] for _, _, i, j in pairs])
    logits = torch.zeros(states, states, 2, states, requires_grad=True)  # the network's: a row for the mask too
    optimizer = torch.optim.LBFGS([logits], lr=1, max_iter=400, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        rows = logits[current[:, 0], current[:, 1]]
        if loss == "generalised_kl":
            nats = generalised_kl(rows, target, current, torch.full((len(pairs),), tau), MixturePath())
        else:
            nats = F.cross_entropy(rows.flatten(0, 1), target.flatten(), reduction="none").view(-1, 2)
        total = (weight[:, None] * nats).sum()
        total.backward()
        return total

    optimizer.step(closure)
    posterior = together / together.sum((0, 1))
    learnt = logits.detach().softmax(-1).double()
    torch.testing.assert_close(learnt[..., 0, :3], posterior.sum(1).permute(1, 2, 0), atol=4e-3, rtol=0)
    torch.testing.assert_close(learnt[..., 1, :3], posterior.sum(0).permute(1, 2, 0), atol=4e-3, rtol=0)


def over_the_path(word: int, prior: Tensor, source: str, model: Tensor | None = None) -> float:
    """The generalised KL of one token of a known word, its mean over noise integrated over the path. ``model``: the
    prior that the predictor believes in, by default the true one."""
    believed = prior if model is None else model
    taus = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    total = 0.0
    for tau in taus.split(1000):
        keeps = tau[:, None, None] * torch.eye(3, 4, dtype=torch.float64)
        if source == "mask":
            keeps[..., 3] += 1 - tau[:, None]
        else:
            keeps[..., :3] += (1 - tau[:, None, None]) / 3
        joint = believed[:, None] * keeps  # [N, x1, x_t]
        posterior = joint / joint.sum(1, keepdim=True).clamp(min=1e-300)
        states = range(4) if source == "mask" else range(3)
        for state in states:
            logits = F.pad(posterior[:, :, state].clamp(min=1e-12), (0, 1), value=1e-12).log()[:, None]
            ids = torch.full((len(tau), 1), word), torch.full((len(tau), 1), state)
            nats = generalised_kl(logits, *ids, tau, MixturePath())[:, 0]
            total += float((keeps[:, word, state] * nats).sum()) / 4000
    return total


def test_with_the_mask_source_the_generalised_kl_is_the_likelihood() -> None:
    prior = P.double()
    for word in range(3):
        # The rate is capped at the path's last hundredth, which is worth half of that.
        assert over_the_path(word, prior, "mask") == pytest.approx(-math.log(prior[word]), rel=0.008)


def test_with_the_uniform_source_it_bounds_the_likelihood() -> None:
    prior = P.double()
    entropy = float(-(prior * prior.log()).sum())
    mean = sum(float(prior[word]) * over_the_path(word, prior, "uniform") for word in range(3))
    assert mean > 0.99 * entropy
    for wrong in (torch.tensor([0.34, 0.33, 0.33]), torch.tensor([0.8, 0.1, 0.1])):
        other = sum(float(prior[word]) * over_the_path(word, prior, "uniform", wrong.double()) for word in range(3))
        crossed = float(-(prior * wrong.double().log()).sum())
        assert other > mean
        assert other > 0.99 * crossed


# --- the embedding flow -----------------------------------------------------------------------------------------------


def likeness_after_training(anchor: float, steps: int = 120) -> tuple[float, float]:
    """The mean cosine between different rows of E before and after a short training of the whole network."""
    model = ModelConfig(
        dim=16, ffn_dim=32, num_heads=2, num_layers=1, text_dim=12, freq_dim=16, vocab_size=8, text_flow="embedding"
    )
    network = random_network(model).train().requires_grad_(True)
    config = make_config()
    run = replace(RUN, text_length=6, context_length=3)
    collator = Collator(model, run, config, EMPTY)
    objective = Objective(network, Loss(anchor=anchor))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def likeness() -> float:
        rows = F.normalize(network.token_embedding.weight.detach(), dim=-1)
        return float(((rows @ rows.T).sum() - 8) / 56)

    before = likeness()
    for step in range(steps):
        samples, plans = [], []
        for i in range(16):
            ids = torch.randint(8, (6,), generator=generator)
            samples.append(Sample(torch.zeros(16, 1, 2, 2), ids, EMPTY, None, None, ""))
            plans.append(
                SamplePlan(
                    16 * step + i, "video_to_text", 0.0, float(torch.rand((), generator=generator)), *[False] * 3
                )
            )
        loss = objective(collator(samples, plans)).text.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, likeness()


def test_without_an_anchor_e_collapses_and_with_it_it_does_not() -> None:
    before, collapsed = likeness_after_training(anchor=0.0)
    same, anchored = likeness_after_training(anchor=1.0)
    assert before == same < 0.2
    assert collapsed > 0.6
    assert anchored < 0.2


# --- how it is computed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MODEL, EMBEDDING], ids=["discrete", "embedding"])
def test_recomputing_blocks_gives_the_same_gradients(config: ModelConfig) -> None:
    network, batch = learning(config), make_batch(config)
    calls: list[int] = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients(Objective(network, Loss()), batch)
    assert len(calls) == 2
    thrifty = gradients(Objective(network, Loss(), checkpointing=True), batch)
    assert len(calls) == 2 + 4  # each block again in the backward pass
    assert plain.keys() == thrifty.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(thrifty[name], gradient, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_is_attention(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 24, generator=generator, requires_grad=True) for n in (5, 7, 7))
    mask = None
    if masked:
        hidden = torch.zeros(2, 1, 7)
        hidden[0, :, 4:] = torch.finfo(torch.float32).min
        hidden[1, :, 6:] = torch.finfo(torch.float32).min
        mask = hidden
    pull = torch.randn(2, 5, 24, generator=generator)
    found = []
    for attention in (plain_attention, sdpa_attention):
        out = attention(q, k, v, 3, mask=mask)
        found.append((out.detach(), *torch.autograd.grad((out * pull).sum(), (q, k, v))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    if masked:
        assert not found[0][2][0, 4:].any()  # hidden keys learn nothing
        assert not found[0][3][0, 4:].any()


def test_plain_attention_gives_the_networks_losses_and_gradients() -> None:
    network, batch = learning(), make_batch(silent=True)
    usual = gradients(Objective(network, Loss()), batch)
    network.attention = plain_attention
    ours = gradients(Objective(network, Loss()), batch)
    for name, gradient in usual.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("config", "loss"),
    [(MODEL, Loss()), (MODEL, Loss(discrete="generalised_kl")), (EMBEDDING, Loss())],
    ids=["cross_entropy", "generalised_kl", "embedding"],
)
@pytest.mark.parametrize("attention", [sdpa_attention, plain_attention])
def test_losses_are_float32_under_autocast(config: ModelConfig, loss: Loss, attention: Any) -> None:
    network, batch = learning(config), make_batch(config, silent=True)
    network.attention = attention
    objective = Objective(network, loss)
    calls: list[tuple[Tensor, Any]] = []
    network.register_forward_hook(lambda _, given, out: calls.append((given[1], out)))
    exact = objective(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = objective(batch)
    text, said = calls[1]
    assert (said.velocity.dtype, said.logits.dtype) == (torch.bfloat16, torch.bfloat16)  # the network itself is quick
    assert {one.dtype for one in losses} == {torch.float32}
    for rough, precise in zip(losses, exact, strict=True):
        torch.testing.assert_close(rough, precise, atol=0.05, rtol=0.05)
    # Of what the network said, nothing more is lost.
    error = said.velocity.float() - (batch.noise - batch.latents)
    torch.testing.assert_close(losses.video, error.square().flatten(1).mean(1), atol=1e-6, rtol=1e-5)
    embeds = config.text_flow == "embedding"
    nats = objective._embedding(said.logits, text, batch) if embeds else objective._discrete(said.logits, batch)
    torch.testing.assert_close(losses.text, nats.mean(1), atol=1e-6, rtol=1e-5)
    (losses.video.sum() + losses.text.sum()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
