"""Ranking and templates, with a network that knows the answer."""

from __future__ import annotations

import pytest
import torch
from run_jobs import caption_likelihood, fill_template
from scipy import stats
from tiny_networks import TINY, random_network

from recipes.worlds.tokenizer import train_tokenizer
from uvg_core import GuidedDenoiser, ModelConfig, Prediction, Sampling, UniViGUError
from uvg_core.config import RunConfig
from uvg_core.media.tokenizer import Tokenizer, blanks
from uvg_core.sampling import Judging, clip_likelihood
from uvg_core.sampling.rank import _Race, _spread, student
from uvg_core.sampling.template import blank_widths, joint_template


class Oracle(torch.nn.Module):
    """Says the same words whatever it sees."""

    def __init__(self, words: list[int], vocab_size: int) -> None:
        super().__init__()
        self.config = ModelConfig(dim=8, num_heads=1, ffn_dim=8, num_layers=1, text_dim=4, vocab_size=vocab_size)
        self.words = torch.tensor(words)

    def forward(self, video: torch.Tensor, text: torch.Tensor, *_: object, **__: object) -> Prediction:
        logits = torch.full((*text.shape, self.config.vocab_size), -9.0)
        words = self.words[: text.shape[1]]
        logits[:, torch.arange(len(words)), words] = 9.0
        return Prediction(torch.zeros_like(video), logits)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(), RunConfig(text_length=16, context_length=32))


VIDEO = torch.zeros(1, 16, 1, 2, 2)


def test_the_true_text_wins_and_order_does_not_matter() -> None:
    model = Oracle([3, 4, 5, 1, 0, 0], 12)
    texts = [[3, 9, 5, 1], [3, 4, 5, 1], [7, 8, 9, 10, 11, 1]]
    scores = caption_likelihood(model, video=VIDEO, texts=texts, samples=4, length=6)
    assert int(scores.argmax()) == 1
    backwards = caption_likelihood(model, video=VIDEO, texts=texts[::-1], samples=4, length=6, batch=1)
    torch.testing.assert_close(backwards.flip(0), scores)


@pytest.mark.parametrize("flow", ["discrete", "embedding"])
def test_equal_texts_score_equally_and_seeds_repeat(flow: str) -> None:
    """Common random numbers: two copies of a text meet the same noise."""
    model = random_network(ModelConfig(**{**TINY.__dict__, "text_flow": flow}))
    texts = [[5, 6, 1], [8, 2, 1], [5, 6, 1]]
    scores = caption_likelihood(model, video=VIDEO, texts=texts, samples=3, seed=2, batch=2)
    torch.testing.assert_close(scores[0], scores[2])
    assert scores[0] != scores[1]
    torch.testing.assert_close(caption_likelihood(model, video=VIDEO, texts=texts, samples=3, seed=2), scores)


def test_the_mask_token_takes_nothing_from_the_words() -> None:
    """The sampler never draws it, so that what the network gives to it does not matter."""
    model = random_network(ModelConfig(**{**TINY.__dict__, "source": "mask"}))
    texts = [[5, 6, 1], [8, 2, 1]]
    before = caption_likelihood(model, video=VIDEO, texts=texts, samples=3)
    model.text_head.head.bias[model.config.mask_token] += 30
    torch.testing.assert_close(caption_likelihood(model, video=VIDEO, texts=texts, samples=3), before)
    model.text_head.head.bias[5] += 3
    assert not torch.allclose(caption_likelihood(model, video=VIDEO, texts=texts, samples=3), before)


@pytest.mark.parametrize("flow", ["discrete", "embedding"])
def test_clips_are_judged_alike_in_any_batch(flow: str) -> None:
    """Common random numbers: a clip's score does not depend on the others, and two copies of a clip score equally."""
    model = random_network(ModelConfig(**{**TINY.__dict__, "text_flow": flow}))
    videos = torch.randn(2, *VIDEO.shape[1:], generator=torch.Generator().manual_seed(1))[[0, 1, 0]]
    words, passes = torch.tensor([[5, 6, 1, 0]]), []
    settings, denoise = Judging(samples=2, seed=3), GuidedDenoiser(model)
    scores = clip_likelihood(denoise, videos, words, settings, callback=lambda *step: passes.append(step))
    assert passes == [(n, 6) for n in range(1, 7)]
    assert scores[0] != scores[1]
    together = clip_likelihood(denoise, videos, words.expand(3, -1), settings, batch=2)
    torch.testing.assert_close(together, scores)
    torch.testing.assert_close(scores[0], scores[2])


def test_clips_need_a_text_and_sound_losses() -> None:
    denoise = GuidedDenoiser(random_network())
    with pytest.raises(UniViGUError, match="no text to judge"):
        clip_likelihood(denoise, VIDEO, torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(UniViGUError, match="not finite"):
        clip_likelihood(denoise, VIDEO * float("nan"), torch.tensor([[5, 1]]))


def test_more_samples_settle() -> None:
    model = random_network()
    texts = [[5, 6, 1], [8, 2, 1]]
    few, more, most = (
        torch.stack([caption_likelihood(model, video=VIDEO, texts=texts, samples=n, seed=s) for s in range(6)])
        .std(0)
        .mean()
        for n in (1, 4, 16)
    )
    assert few > more > most


class Noted:
    """A network whose calls are noted by their rows."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.rows: list[int] = []
        network.register_forward_pre_hook(lambda _, given: self.rows.append(len(given[1])))


def test_texts_that_are_surely_beaten_meet_no_further_draws() -> None:
    model = Oracle([3, 4, 5, 1, 0, 0], 12)
    noted = Noted(model)
    texts = [[3, 9, 5, 1], [3, 4, 5, 1], [7, 8, 9, 10, 11, 1], [3, 4, 5, 1]]
    scores = caption_likelihood(model, video=VIDEO, texts=texts, samples=16, stop_when_sure=0.9, length=6)
    assert noted.rows == [4, 4, *[2] * 14]  # two are the same text, between which nothing can decide
    assert scores[1] == scores[3] == scores.max()
    every = caption_likelihood(model, video=VIDEO, texts=texts, samples=16, length=6)
    torch.testing.assert_close(scores, every)  # this network's losses are the same in every draw
    noted.rows.clear()
    caption_likelihood(model, video=VIDEO, texts=texts[:3], samples=16, stop_when_sure=0.9, length=6, batch=2)
    assert noted.rows == [2, 1, 2, 1]


def test_whoever_is_left_has_the_highest_score() -> None:
    """Texts that drop out keep their distance to the one that beat them, which may drop out itself."""
    race = _Race(3, 0.9)
    assert race.add(torch.tensor([9.0, 4.0, 4.1])).tolist() == [True, True, True]
    assert race.add(torch.tensor([10.0, 5.0, 5.9])).tolist() == [False, True, True]
    draws = 2
    while race.add(torch.tensor([9.0, 1.0])).all():
        draws += 1
        assert draws < 16
    scores = race.scores().tolist()
    assert scores[2] == max(scores)
    assert scores[0] == pytest.approx(scores[1] - 5)


def test_a_network_that_is_not_finite_is_never_sure() -> None:
    model = Oracle([3, 4, 5, 1], 12)
    model.register_forward_hook(lambda _, __, found: Prediction(None, found.logits * torch.nan))
    with pytest.raises(UniViGUError, match="not finite"):
        caption_likelihood(model, video=VIDEO, texts=[[3, 1], [4, 1]], samples=4, stop_when_sure=0.5)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 100])
def test_students_distribution(freedom: int) -> None:
    t = torch.tensor([-3.0, -0.5, 0.0, 1.0, 6.3, torch.inf], dtype=torch.float64)
    torch.testing.assert_close(student(t, freedom), torch.from_numpy(stats.t.cdf(t.numpy(), freedom)))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 16])
def test_draws_are_spread(count: int) -> None:
    order = _spread(count)
    assert sorted(order) == list(range(count))
    assert count < 4 or len({number * 3 // count for number in order[:4]}) == 3


@pytest.mark.parametrize(
    ("texts", "message"), [([], "no text to rank"), ([[]], "no text to rank"), ([[99]], "another model")]
)
def test_nothing_to_rank(texts: list[list[int]], message: str) -> None:
    with pytest.raises(UniViGUError, match=message):
        caption_likelihood(random_network(), video=VIDEO, texts=texts)


def test_templates_are_pinned_around_their_blanks(tokenizer: Tokenizer) -> None:
    a, red, moves, left = (tokenizer.ids(word, end=False)[0] for word in ("a", "red", "moves", "left"))
    assert tokenizer.template("a red ___ moves ___", [2, 0], 8).tolist() == [a, red, -1, -1, moves, -1, -1, -1]
    assert tokenizer.template("___ moves left", [1], 6).tolist() == [-1, moves, left, 1, 0, 0]
    assert blanks("a __ b ____") == (2, True)
    assert blanks("a_b") == (0, False)
    with pytest.raises(UniViGUError, match="the template needs 5 tokens"):
        tokenizer.template("a red ___ moves ___", [2, 0], 4)


def test_widths_of_blanks() -> None:
    assert blank_widths(2, True, 2) == [(1, 0), (2, 0)]
    assert blank_widths(2, False, 2) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert blank_widths(1, True, 3) == [(0,)]
    many = blank_widths(40, False, 2)  # without listing all 2**40
    assert len(many) == len(set(many)) == 16
    assert many[0] == (1,) * 40


def test_stopping_stops_every_width(tokenizer: Tokenizer) -> None:
    calls: list[int] = []

    def stop(step: int, state: object) -> bool:
        calls.append(step)
        return False

    fill_template(
        Oracle([3] * 16, tokenizer.size), tokenizer, "a ___ circle ___ on", video=VIDEO, length=16, callback=stop
    )
    assert calls == [1]


def test_a_joint_run_fills_a_template_and_keeps_a_frame(tokenizer: Tokenizer) -> None:
    """Of the widths that are tried, that of the text which is likeliest; each is a run, and stopping stops them all."""
    truth = "a red circle moves left on a navy background"
    ids = tokenizer.ids(truth)
    model = Oracle([*ids, *[0] * (16 - len(ids))], tokenizer.size)
    noise, free = torch.randn(1, 16, 2, 2, 2, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 2, 1, 1)
    free[:, :, 0] = 0
    clean, settings, steps = torch.ones_like(noise), Sampling(text_length=16, steps=2), list[int]()
    given = GuidedDenoiser(model), tokenizer, "a red circle ___ on a navy background", noise, settings
    found, chosen = joint_template(*given, kept=(clean, free), callback=lambda step, _: steps.append(step))
    assert tokenizer.text(found.text[0]) == truth
    assert (chosen, steps) == (1, [1, 2, 1, 2])  # of one token, and of two
    assert torch.equal(found.video[:, :, 0], clean[:, :, 0])
    assert joint_template(*given, callback=lambda step, _: False)[1] == 0


def test_a_blank_of_several_tokens_is_found(tokenizer: Tokenizer) -> None:
    truth = "a red circle moves left on a navy background"
    ids = tokenizer.ids(truth)
    model = Oracle([*ids, *[0] * (16 - len(ids))], tokenizer.size)
    for template in (
        "a red ___ moves ___",
        "a ___ moves left on a navy background",
        "___",
        "a red circle ___ navy background",
    ):
        filled = fill_template(model, tokenizer, template, video=VIDEO, length=16, longest_blank=4, steps=4)
        assert tokenizer.text(filled[0]) == truth
    with pytest.raises(UniViGUError, match="no blank"):
        fill_template(model, tokenizer, "a red circle", video=VIDEO, length=16)
    with pytest.raises(UniViGUError, match="no blank"):
        joint_template(GuidedDenoiser(model), tokenizer, "a red circle", VIDEO, Sampling(text_length=16))
    with pytest.raises(UniViGUError, match="shorten"):
        fill_template(model, tokenizer, "a red ___ moves left on a navy background", video=VIDEO, length=4)
