"""Laws of what each clip is used for: functions of (seed, position) alone, shares and times as configured, and every
job told exactly what the samplers tell it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from tiny_networks import random_network
from tiny_runs import RUN, STATES, WORDS
from torch import Tensor

from uvg_core.config import ModelConfig, RunConfig
from uvg_core.data.shards import Sample
from uvg_core.errors import UniViGUError
from uvg_core.model import PassOptions
from uvg_core.training.config import Times, TrainConfig, from_dict
from uvg_core.training.objective import Objective
from uvg_core.training.plan import (
    HELD,
    JOBS,
    Batch,
    Collator,
    Order,
    SamplePlan,
    draw_sigma,
    free_parts,
    plan_sample,
    stream_of,
)

MODEL = ModelConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=12, freq_dim=32, vocab_size=WORDS)
EMPTY = STATES[[1]]  # of the empty prompt: its end-of-text token
PROMPT, DETAIL = [5, 9, 1], [4, 7, 11, 8, 1]
PAD = RUN.pad_token
DRAWS = 4000


def make(stage: str = "recall", **changes: Any) -> TrainConfig:
    values = {"stage": stage, "model": "m", "data": "d", "out": "o", "steps": 10}
    return from_dict(TrainConfig, {**values, **changes})


def make_sample(prompt: list[int] = PROMPT, detail: list[int] | None = DETAIL, bright: float = 1.0) -> Sample:
    latent = bright * torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    detail_ids = None if detail is None else torch.tensor(detail)
    states = None if detail is None else STATES[detail]
    return Sample(latent, torch.tensor(prompt), STATES[prompt], detail_ids, states, "clip 3")


def make_plan(job: str, sigma: float = 0.6, **changes: Any) -> SamplePlan:
    usual = SamplePlan(
        position=11,
        job=job,
        sigma_video=0.0 if job == "video_to_text" else sigma,
        sigma_text=0.0 if job == "text_to_video" else sigma,
        dropped=False,
        detailed=False,
        without_text=False,
    )
    return replace(usual, **changes)


def collate(
    plan: SamplePlan, config: TrainConfig | None = None, sample: Sample | None = None, model: ModelConfig = MODEL
) -> Batch:
    return Collator(model, RUN, config or make(), EMPTY)([sample or make_sample()], [plan])


def padded(ids: list[int]) -> Tensor:
    return torch.tensor([[*ids, *[PAD] * (RUN.text_length - len(ids))]])


def with_zeros(states: Tensor) -> Tensor:
    return torch.cat([states, torch.zeros(RUN.context_length - len(states), states.shape[1])])[None]


def near(share: float, expected: float, trials: int) -> bool:
    """Within four standard errors of a binomial share."""
    return abs(share - expected) <= 4 * math.sqrt(max(expected * (1 - expected), 1e-9) / trials) + 1e-9


# --- functions of the position ----------------------------------------------------------------------------------------


def test_lots_depend_on_seed_and_position_alone() -> None:
    config = make(seed=3)
    forwards = [plan_sample(config, i) for i in range(50)]
    assert [plan_sample(config, i) for i in reversed(range(50))] == forwards[::-1]
    torch.rand(7)  # the global state has no part in it
    assert [plan_sample(make(seed=3, batch=2, accumulate=5, out="elsewhere"), i) for i in range(50)] == forwards
    others = [plan_sample(make(seed=4), i) for i in range(50)]
    assert not any(mine.sigma_video == other.sigma_video != 0 for mine, other in zip(forwards, others, strict=True))
    assert len({plan.sigma_video for plan in forwards if plan.makes_video}) == sum(
        plan.makes_video for plan in forwards
    )


@pytest.mark.parametrize("flow", ["discrete", "embedding"])
def test_noise_depends_on_the_position_and_not_on_the_company(flow: str) -> None:
    config = make()
    model = replace(MODEL, text_flow=flow)
    plans = [replace(make_plan("joint"), position=i) for i in range(4)]
    samples = [make_sample(bright=float(i)) for i in range(4)]
    collator = Collator(model, RUN, config, EMPTY)
    together = collator(samples, plans)
    for i in (2, 0, 3):
        alone = collator([samples[i]], [plans[i]])
        for name in ("noise", "text", "text_noise", "latents", "context"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i]), name
    assert not torch.equal(together.noise[0], together.noise[1])
    elsewhere = Collator(model, RUN, make(seed=1), EMPTY)(samples, plans)
    assert not torch.equal(elsewhere.noise, together.noise)


def test_streams_of_neighbours_have_nothing_in_common() -> None:
    draws = torch.stack([torch.randn(400, generator=stream_of(seed, "noise", i)) for seed in (0, 1) for i in range(6)])
    likeness = torch.corrcoef(draws) - torch.eye(12)
    assert likeness.abs().max() < 4 / math.sqrt(400)
    first = torch.rand(3, generator=stream_of(0, "lot", 5))
    assert not torch.equal(first, torch.rand(3, generator=stream_of(0, "noise", 5)))


def test_every_epoch_is_a_new_permutation() -> None:
    order = Order(13, seed=5)
    epochs = [[order.clip(13 * epoch + i) for i in range(13)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again = Order(13, seed=5)  # asked for in another order, as after a resume
    assert [again.clip(13 * 2 + i) for i in range(13)] == epochs[2]
    assert [again.clip(i) for i in range(13)] == epochs[0]
    assert [Order(13, seed=6).clip(i) for i in range(13)] != epochs[0]


# --- shares -----------------------------------------------------------------------------------------------------------


def test_a_clip_comes_as_often_as_its_source_says() -> None:
    """Twice an epoch, 2.5 times, every second epoch; whichever is the odd one changes."""
    order = Order([[(range(4), 2.5), (range(4, 10), 0.5), (range(10, 11), 1.0)]], seed=5)
    assert order.epoch == 10 + 3 + 1
    drawn = [order.clip(position) for position in range(4 * order.epoch)]
    counts = [drawn.count(clip) for clip in range(11)]
    assert counts == [10] * 4 + [2] * 6 + [4]
    first = drawn[: order.epoch]
    assert sorted(first.count(clip) for clip in range(4)) == [2, 2, 3, 3]
    assert [order.clip(position) for position in (3, 40, 0)] == [drawn[3], drawn[40], drawn[0]]


def test_a_step_is_of_one_bucket_and_all_keep_pace() -> None:
    buckets = [[(range(6), 1.0)], [(range(6, 24), 1.0)], [(range(24, 25), 1.0)]]
    order = Order(buckets, seed=5, together=4)
    steps = [[order.clip(4 * step + i) for i in range(4)] for step in range(100)]
    sizes = [{0 if clip < 6 else 1 if clip < 24 else 2 for clip in step} for step in steps]
    assert all(len(size) == 1 for size in sizes)
    assert [sizes.count({number}) for number in range(3)] == [24, 72, 4]
    assert all(abs(sizes[:n].count({1}) - 0.72 * n) < 1.5 for n in range(100))
    drawn = [clip for step in steps for clip in step if 6 <= clip < 24]
    assert all(sorted(drawn[n : n + 18]) == list(range(6, 24)) for n in range(0, 288, 18))
    again = Order(buckets, seed=5, together=4)
    assert [again.clip(398), again.clip(17)] == [steps[99][2], steps[4][1]]


def test_shares_are_as_configured() -> None:
    shares = {"text_to_video": 2.0, "video_to_text": 1.0, "joint": 5.0}
    dropout = {"text_to_video": 0.1, "video_to_text": 0.7, "joint": 0.35}
    config = make(jobs=shares, dropout=dropout, detail_share=0.3, empty_text=0.25, joint_shared=0.6)
    plans = [plan_sample(config, i) for i in range(DRAWS)]
    counts = Counter(plan.job for plan in plans)
    for job, share in shares.items():
        mine = [plan for plan in plans if plan.job == job]
        assert near(counts[job] / DRAWS, share / 8, DRAWS), job
        assert near(sum(plan.dropped for plan in mine) / len(mine), dropout[job], len(mine)), job
        assert near(sum(plan.detailed for plan in mine) / len(mine), 0.3, len(mine)), job
    silent = [plan.without_text for plan in plans if plan.job == "text_to_video"]
    assert near(sum(silent) / len(silent), 0.25, len(silent))
    assert not any(plan.without_text for plan in plans if plan.job != "text_to_video")
    joint = [plan for plan in plans if plan.job == "joint"]
    assert near(sum(plan.sigma_video == plan.sigma_text for plan in joint) / len(joint), 0.6, len(joint))


def test_choices_do_not_lean_on_each_other() -> None:
    plans = [plan_sample(make(dropout=dict.fromkeys(JOBS, 0.5), detail_share=0.5), i) for i in range(DRAWS)]
    columns = torch.tensor(
        [[plan.dropped, plan.detailed, plan.job == "joint", plan.sigma_video > 0.5] for plan in plans]
    )
    likeness = torch.corrcoef(columns[:, :3].T.float()) - torch.eye(3)
    assert likeness.abs().max() < 4 / math.sqrt(DRAWS)


@pytest.mark.parametrize("job", JOBS)
def test_a_share_of_zero_is_never(job: str) -> None:
    plans = [plan_sample(make(jobs={name: float(name == job) for name in JOBS}), i) for i in range(300)]
    assert {plan.job for plan in plans} == {job}


def test_the_generate_stage_knows_one_job() -> None:
    plans = [plan_sample(make("generate", jobs={"text_to_video": 0.0}), i) for i in range(200)]
    assert {(plan.job, plan.without_text, plan.sigma_text) for plan in plans} == {("text_to_video", True, 0.0)}
    batch = collate(plans[0], make("generate"))
    assert batch.text.shape == batch.mask.shape == batch.weight.shape == (1, 0)


# --- times ------------------------------------------------------------------------------------------------------------


def uniform(x: Tensor) -> Tensor:
    return x


def logit_normal(mean: float, std: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.special.ndtr((torch.logit(x) - mean) / std)


def shifted(shift: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x / (shift - (shift - 1) * x)


@pytest.mark.parametrize(
    ("times", "cdf"),
    [
        (Times("uniform", shift=9.0, mean=4.0), uniform),
        (Times("logit_normal"), logit_normal(0, 1)),
        (Times("logit_normal", mean=-0.7, std=0.4), logit_normal(-0.7, 0.4)),
        (Times("shifted", shift=3.0), shifted(3.0)),
        (Times("shifted", shift=0.5), shifted(0.5)),
        (Times("shifted", shift=5.0, uniform_share=1.0), uniform),
        (Times("shifted", shift=5.0, uniform_share=0.3), lambda x: 0.3 * x + 0.7 * shifted(5.0)(x)),
        (Times("logit_normal", mean=1.0, uniform_share=0.5), lambda x: 0.5 * x + 0.5 * logit_normal(1, 1)(x)),
    ],
    ids=lambda value: str(value) if isinstance(value, Times) else "",
)
def test_times_follow_their_distribution(times: Times, cdf: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_sigma(times, generator) for _ in range(DRAWS)], dtype=torch.float64).sort().values
    assert 0 <= float(drawn[0]) <= float(drawn[-1]) <= 1
    reached = torch.arange(1, DRAWS + 1, dtype=torch.float64) / DRAWS
    assert float((cdf(drawn) - reached).abs().max()) < 1.9 / math.sqrt(DRAWS)  # Kolmogorov-Smirnov, under 0.2 %
    grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    mean = float(1 - torch.trapezoid(cdf(grid), grid))
    assert abs(float(drawn.mean()) - mean) < 4 * float(drawn.std()) / math.sqrt(DRAWS)


def test_the_shift_is_the_samplers() -> None:
    from uvg_core.flow.schedule import video_sigmas

    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_sigma(Times("shifted", shift=3.0), generator) for _ in range(DRAWS)])
    deciles = drawn.quantile(torch.linspace(0.1, 0.9, 9))
    torch.testing.assert_close(deciles, video_sigmas(10, 3.0)[1:-1].flip(0), atol=0.04, rtol=0)


def test_each_stream_has_its_own_times() -> None:
    config = make(
        video_times={"kind": "shifted", "shift": 8.0, "uniform_share": 0.0},
        text_times={"kind": "logit_normal", "mean": -2.0, "std": 0.5},
        joint_shared=0.5,
    )
    plans = [plan_sample(config, i) for i in range(DRAWS)]
    video, text = Times("shifted", shift=8.0), Times("logit_normal", -2.0, 0.5)
    generator = torch.Generator().manual_seed(1)
    means = {
        name: sum(draw_sigma(times, generator) for _ in range(DRAWS)) / DRAWS
        for name, times in (("video", video), ("text", text))
    }

    def mean(values: list[float]) -> float:
        assert len(values) > 300
        return sum(values) / len(values)

    joint = [plan for plan in plans if plan.job == "joint"]
    apart = [plan for plan in joint if plan.sigma_video != plan.sigma_text]
    shared = [plan for plan in joint if plan.sigma_video == plan.sigma_text]
    alone = [plan.sigma_text for plan in plans if plan.job == "video_to_text"]
    for values, name in (
        ([plan.sigma_video for plan in plans if plan.job == "text_to_video"], "video"),
        ([plan.sigma_video for plan in apart], "video"),
        ([plan.sigma_text for plan in shared], "video"),  # the joint sampler runs on the video's clock
        ([plan.sigma_text for plan in apart], "text"),
        (alone, "text"),
    ):
        assert abs(mean(values) - means[name]) < 0.04
    pairs = torch.tensor([[plan.sigma_video, plan.sigma_text] for plan in apart])
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 4 / math.sqrt(len(apart))


def test_a_stream_held_clean_has_time_zero() -> None:
    for plan in (plan_sample(make(), i) for i in range(400)):
        assert (plan.sigma_video == 0) == (plan.job == "video_to_text")
        assert (plan.sigma_text == 0) == (plan.job == "text_to_video")
        assert (plan.makes_video, plan.makes_text) == (plan.job != "video_to_text", plan.job != "text_to_video")


# --- what a job is told -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(("detailed", "words"), [(False, PROMPT), (True, DETAIL)])
def test_recall_writes_what_it_is_told(job: str, detailed: bool, words: list[int]) -> None:
    batch = collate(make_plan(job, detailed=detailed))
    assert torch.equal(batch.context, with_zeros(STATES[words]))
    assert torch.equal(batch.target, padded(words))


@pytest.mark.parametrize("job", ["joint", "video_to_text"])
@pytest.mark.parametrize("detailed", [False, True])
def test_refine_is_told_the_prompt_and_writes_the_detail(job: str, detailed: bool) -> None:
    batch = collate(make_plan(job, detailed=detailed), make("refine"))
    assert torch.equal(batch.context, with_zeros(STATES[PROMPT]))
    assert torch.equal(batch.target, padded(DETAIL))


@pytest.mark.parametrize(("detailed", "words"), [(False, PROMPT), (True, DETAIL)])
def test_text_to_video_is_told_one_text_in_both_places(detailed: bool, words: list[int]) -> None:
    batch = collate(make_plan("text_to_video", detailed=detailed), make("refine"))
    assert torch.equal(batch.context, with_zeros(STATES[words]))
    assert torch.equal(batch.text, padded(words))  # held clean: no token of it is noise
    assert torch.equal(batch.mask, torch.arange(RUN.text_length)[None] < len(words))
    assert batch.sigma_text == 0
    assert (batch.makes_video, batch.makes_text) == (1, 0)


def test_a_clip_without_detail_is_told_its_prompt() -> None:
    sample = make_sample(detail=None)
    batch = collate(make_plan("joint", detailed=True), sample=sample)
    assert torch.equal(batch.target, padded(PROMPT))
    with pytest.raises(UniViGUError, match="clip 3: there is no detailed caption"):
        collate(make_plan("video_to_text"), make("refine"), sample)
    assert torch.equal(collate(make_plan("text_to_video"), make("refine"), sample).target, padded(PROMPT))


@pytest.mark.parametrize("job", ["video_to_text", "joint"])
def test_noisy_text_is_seen_whole(job: str) -> None:
    batch = collate(make_plan(job))
    assert bool(batch.mask.all())  # where a text ends is what the model has to find out
    assert batch.makes_text == 1


@pytest.mark.parametrize("stage", ["recall", "refine"])
@pytest.mark.parametrize("job", ["text_to_video", "joint"])
def test_a_dropped_condition_of_a_job_with_guidance_is_the_empty_prompt(stage: str, job: str) -> None:
    told, dropped = (collate(make_plan(job, dropped=d), make(stage)) for d in (False, True))
    assert torch.equal(dropped.context, with_zeros(EMPTY))
    # Guidance changes the condition and nothing else: both of its passes see the same text stream.
    for name in ("text", "mask", "target", "noise", "latents"):
        assert torch.equal(getattr(told, name), getattr(dropped, name)), name


def test_a_dropped_condition_of_captioning_is_the_captioners_zeros() -> None:
    batch = collate(make_plan("video_to_text", dropped=True))
    assert not batch.context.any()
    network = random_network(MODEL)
    times = 0 * batch.sigma_video, 1000 * batch.sigma_text
    seen, sampled = (
        network(batch.latents, batch.text, *times, context, batch.mask).logits
        for context in (batch.context, torch.zeros(1, 1, MODEL.text_dim))
    )
    torch.testing.assert_close(seen, sampled, atol=1e-5, rtol=1e-5)


def test_contexts_are_the_text_encoders() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    from recipes.worlds.tokenizer import train_tokenizer
    from uvg_core.media.text_encoder import TextEncoder, build_encoder
    from uvg_core.media.tokenizer import Tokenizer

    run = RunConfig(height=32, width=32, frames=5, text_length=16, context_length=20)
    tokenizer = Tokenizer(train_tokenizer(), run)
    torch.manual_seed(0)
    sizes = {"d_model": 12, "num_heads": 2, "d_kv": 6, "d_ff": 16, "num_layers": 2}
    sizes |= {"relative_attention_num_buckets": 8, "vocab_size": tokenizer.size}
    encode = TextEncoder(build_encoder(sizes).eval(), tokenizer)
    texts = ["a red circle", "a small red circle moves left slowly on a navy background", ""]
    with torch.no_grad():
        whole = encode(texts)
    rows = [len(tokenizer.ids(text)) for text in texts]
    prompt, detail, empty = (one[:count] for one, count in zip(whole, rows, strict=True))
    ids = [torch.tensor(tokenizer.ids(text)) for text in texts]
    sample = Sample(torch.zeros(16, 2, 4, 4), ids[0], prompt, ids[1], detail, "clip")
    model = replace(MODEL, vocab_size=tokenizer.size)
    collator = Collator(model, run, make(), empty)
    plans = [make_plan("joint"), make_plan("joint", detailed=True), make_plan("text_to_video", dropped=True)]
    batch = collator([sample] * 3, plans)
    assert torch.equal(batch.context, whole)
    tokens, mask = tokenizer.stream(texts[:1], run.text_length)
    held = collator([sample], [make_plan("text_to_video")])
    assert torch.equal(held.text, tokens)
    assert torch.equal(held.mask, mask)


def test_without_text_the_network_is_plain_wan() -> None:
    network = random_network(MODEL)
    batch = collate(make_plan("text_to_video", without_text=True))
    assert not batch.mask.any()
    assert batch.text.shape[1] == RUN.text_length  # other clips of the batch have text
    times = 1000 * batch.sigma_video, 1000 * batch.sigma_text
    masked = network(batch.noise, batch.text, *times, batch.context, batch.mask).velocity
    empty = network(batch.noise, None, *times, batch.context, options=PassOptions(want_logits=False)).velocity
    torch.testing.assert_close(masked, empty, atol=1e-5, rtol=1e-5)
    with_text = network(batch.noise, batch.text, *times, batch.context, ~batch.mask).velocity
    assert not torch.allclose(with_text, empty, atol=1e-3)


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize("sigma", [0.25, 0.6])
def test_the_marginal_of_noisy_text_follows_kappa(source: str, exponent: float, sigma: float) -> None:
    model = replace(MODEL, source=source, kappa_exponent=exponent)
    run = replace(RUN, text_length=512)
    plans = [replace(make_plan("video_to_text", sigma), position=i) for i in range(8)]
    batch = Collator(model, run, make(), EMPTY)([make_sample()] * 8, plans)
    kept = (batch.text == batch.target).float()
    kappa, count = (1 - sigma) ** exponent, kept.numel()
    if source == "mask":
        assert set(batch.text[kept == 0].tolist()) == {model.mask_token}
        expected = kappa
    else:  # noise may be the right word by chance
        assert set(batch.text.flatten().tolist()) == set(range(WORDS))
        expected = kappa + (1 - kappa) / WORDS
    assert near(float(kept.mean()), expected, count)
    # Padding behind the text is part of it, and corrupted alike.
    head, tail = kept[:, : len(PROMPT)], kept[:, len(PROMPT) :]
    assert abs(float(tail.mean()) - expected) < 0.05
    assert 0 < float(head.mean()) < 1


def test_the_ends_of_the_path() -> None:
    clean = collate(make_plan("video_to_text", 0.0))
    assert torch.equal(clean.text, clean.target)
    noise = collate(make_plan("video_to_text", 1.0), model=replace(MODEL, source="mask"))
    assert bool((noise.text == WORDS).all())


def test_the_embedding_flow_mixes_noise_into_its_rows() -> None:
    model = replace(MODEL, text_flow="embedding", dim=64, num_heads=2)
    batch = collate(make_plan("joint"), model=model)
    assert torch.equal(batch.text, batch.target)
    assert batch.text_noise.shape == (1, RUN.text_length, 64)
    assert abs(float(batch.text_noise.mean())) < 0.2
    assert abs(float(batch.text_noise.std()) - 1) < 0.2


@pytest.mark.parametrize("padding", [0.0, 0.25, 1.0])
def test_padding_has_its_own_weight(padding: float) -> None:
    batch = collate(make_plan("video_to_text"), make(loss={"padding": padding}))
    assert batch.weight[0, : len(PROMPT)].tolist() == [1.0] * len(PROMPT)  # the end-of-text token counts whole
    assert batch.weight[0, len(PROMPT) :].tolist() == [padding] * (RUN.text_length - len(PROMPT))


def test_a_batch_moves_as_one() -> None:
    batch = collate(make_plan("joint")).to(torch.device("meta"))
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 10
    assert all(value.device.type == "meta" for value in tensors)


# --- parts that are given clean ---------------------------------------------------------------------------------------


def test_some_of_the_clips_that_form_have_parts_given_clean() -> None:
    config = make("refine", hold_share=0.25, jobs={"text_to_video": 0.5, "video_to_text": 0.25, "joint": 0.25})
    plans = [plan_sample(config, position) for position in range(DRAWS)]
    forming = [plan for plan in plans if plan.makes_video]
    assert {plan.held for plan in plans if not plan.makes_video} == {""}
    shares = Counter(plan.held for plan in forming)
    assert all(near(shares[kind] / len(forming), 0.25 / len(HELD), len(forming)) for kind in HELD)
    # Whatever else is drawn stays as it is without.
    usual = [plan_sample(make("refine", jobs=asdict(config.jobs)), position) for position in range(50)]
    assert [replace(plan, held="") for plan in plans[:50]] == usual


@pytest.mark.parametrize("held", HELD)
def test_parts_given_clean_hold_no_noise_and_the_rest_is_as_noisy_as_ever(held: str) -> None:
    plan = make_plan("text_to_video", sigma=0.7, held=held)
    batch = collate(plan, make(hold_share=0.5), replace(make_sample(), latent=torch.randn(16, 4, 6, 6)))
    assert batch.free is not None
    free = batch.free.expand_as(batch.latents).bool()
    assert 0 < float(free.float().mean()) < 1
    assert (not free[:, :, 0].any()) == (held in ("beginning", "ends"))
    assert (not free[:, :, -1].any()) == (held == "ends")
    noisy, _ = Objective(random_network(MODEL), make().loss)._noisy(batch)
    assert torch.equal(noisy[~free], batch.latents[~free])
    assert torch.equal(noisy[free], (0.3 * batch.latents + 0.7 * batch.noise)[free].to(noisy))


def test_nothing_is_learnt_of_parts_given_clean() -> None:
    objective = Objective(random_network(MODEL), make().loss)
    batch = collate(make_plan("text_to_video", held="beginning"), make(hold_share=0.5))
    assert batch.free is not None
    wrong = replace(batch, noise=batch.noise + 5 * (1 - batch.free))  # its noise is nowhere in what the network sees
    assert torch.equal(objective(batch).video, objective(wrong).video)


def test_clips_of_one_frame_are_never_held_as_a_whole() -> None:
    free = [free_parts(held, (16, frames, 6, 6), torch.Generator()) for held in HELD for frames in (1, 2, 3)]
    assert all(bool(mask.any()) for mask in free)


def test_a_beginning_is_mostly_one_picture_and_may_be_all_but_the_end() -> None:
    made = torch.Generator().manual_seed(0)
    counts = Counter(4 - int(free_parts("beginning", (16, 4, 2, 2), made)[0, :, 0, 0].sum()) for _ in range(400))
    assert set(counts) == {1, 2, 3}
    assert counts[1] > 200 > counts[2] > counts[3]


@pytest.mark.parametrize("other", [{"stage": "distill"}, {"trains": "lora"}, {"trains": "text"}])
def test_holds_need_the_whole_network(other: dict[str, str]) -> None:
    with pytest.raises(UniViGUError, match="hold_share"):
        make(**{"stage": "refine", "hold_share": 0.2, **other})
