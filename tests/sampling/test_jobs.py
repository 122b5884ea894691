"""Laws of the three jobs on a tiny random network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from run_jobs import caption_likelihood, joint, text_to_video, video_to_text
from tiny_networks import TINY, random_network

from uvg_core import ModelConfig, Prediction, State, UniViGU, UniViGUError
from uvg_core.config import RunConfig
from uvg_core.flow.discrete import MixturePath
from uvg_core.model import sdpa_attention
from uvg_core.sampling import Sampling
from uvg_core.sampling.guidance import GuidedDenoiser
from uvg_core.sampling.loop import run
from uvg_core.sampling.start import generators
from uvg_core.sampling.streams import TextStream, VideoStream
from uvg_core.sampling.text_updates import JumpProcess

EMBEDDING = ModelConfig(**{**TINY.__dict__, "text_flow": "embedding"})
MASK = ModelConfig(**{**TINY.__dict__, "source": "mask"})


@pytest.fixture
def given() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return {
        "noise": torch.randn(2, 16, 2, 4, 4, generator=g),
        "context": torch.randn(2, 6, 20, generator=g),
        "null_context": torch.randn(1, 6, 20, generator=g),
    }


@pytest.fixture(params=[TINY, MASK, EMBEDDING], ids=["uniform", "mask", "embedding"])
def any_network(request: pytest.FixtureRequest) -> UniViGU:
    return random_network(request.param)


def test_streams_held_clean_come_out_untouched(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    predict = GuidedDenoiser(network, given["context"])
    update = JumpProcess(path=MixturePath(), generators=generators([0, 1]))
    tokens = torch.randint(31, (2, 4))
    clip, words = given["noise"].clone(), tokens.clone()
    moved, held = run(VideoStream(clip, (1.0, 0.5, 0.0)), TextStream(words), predict)
    assert held.content is words
    assert torch.equal(words, tokens)
    assert not torch.equal(moved.latent, clip)
    held_video, written = run(VideoStream(clip), TextStream(words, (0.0, 0.5, 1.0), update=update), predict)
    assert held_video.latent is clip
    assert torch.equal(clip, given["noise"])
    assert not torch.equal(written.content, tokens)


def test_a_run_needs_a_noisy_stream(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    predict = GuidedDenoiser(network, given["context"])
    with pytest.raises(UniViGUError, match="at least one noisy stream"):
        run(VideoStream(given["noise"]), TextStream(torch.zeros(2, 3, dtype=torch.long)), predict)


def test_seeds_give_the_same_result(any_network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    def once(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed + 100)  # the global generator plays no part
        return joint(any_network, **given, length=6, steps=4, seed=seed)

    first, again, other = once(3), once(3), once(4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("update", ["bridge", "euler", "release"])
def test_batch_of_two_is_two_batches_of_one(any_network: UniViGU, given: dict[str, torch.Tensor], update: str) -> None:
    if any_network.config.text_flow == "embedding" and update != "bridge":
        with pytest.raises(UniViGUError, match="belong to the discrete text flow"):
            joint(any_network, **given, length=5, steps=3, text_update=update)
        return
    both = joint(any_network, **given, length=5, steps=3, seed=7, text_update=update)
    for row in range(2):
        one = joint(
            any_network,
            noise=given["noise"][row : row + 1],
            context=given["context"][row : row + 1],
            null_context=given["null_context"],
            length=5,
            steps=3,
            seed=7 + row,
            text_update=update,
        )
        torch.testing.assert_close(one.video[0], both.video[row], atol=1e-4, rtol=1e-4)
        assert torch.equal(one.text[0], both.text[row])


def test_text_to_video_does_not_care_about_padding(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    tokens = torch.tensor([[4, 9, 2]])
    padded = torch.tensor([[4, 9, 2, 0, 0]])
    plain = text_to_video(network, **given, text=tokens, steps=3)
    masked = text_to_video(network, **given, text=padded, text_mask=torch.arange(5)[None] < 3, steps=3)
    torch.testing.assert_close(masked, plain, atol=1e-4, rtol=1e-4)


def test_guidance_of_one_is_the_conditional_pass(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    plain = text_to_video(network, noise=given["noise"], context=given["context"], steps=2, guidance_scale=1)
    guided = text_to_video(
        network,
        noise=given["noise"],
        context=given["context"],
        null_context=given["context"],
        steps=2,
        guidance_scale=7,
    )
    torch.testing.assert_close(guided, plain, atol=1e-4, rtol=1e-4)
    with pytest.raises(UniViGUError, match="needs null_context"):
        text_to_video(network, noise=given["noise"], context=given["context"], steps=2, guidance_scale=5)


@pytest.mark.parametrize(("end", "passes"), [(0.0, 4), (0.1, 5), (0.5, 6), (1.0, 8)])
def test_guidance_may_end_before_the_run(
    network: UniViGU, given: dict[str, torch.Tensor], end: float, passes: int
) -> None:
    """Later steps cost one pass; with no guided step at all it is the conditional pass's run."""
    rows = []

    def counted(latent: torch.Tensor, *args: object, **options: object) -> Prediction:
        rows.append(len(latent))
        return network(latent, *args, **options)

    counted.config, counted.computes_in = network.config, network.computes_in  # type: ignore[attr-defined]
    found = text_to_video(counted, **given, steps=4, guidance_scale=5, guidance_end=end)  # type: ignore[arg-type]
    assert sum(rows) == passes * len(given["noise"])
    ends = {0.0: {"guidance_scale": 1}, 1.0: {"guidance_scale": 5}}
    for share, options in ends.items():
        whole = text_to_video(network, **given, steps=4, **options)  # type: ignore[arg-type]
        assert torch.equal(found, whole) == (share == end)


def test_both_passes_of_guidance_as_one_batch_or_two(
    any_network: UniViGU, given: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch where it fits; what comes out is the same."""
    mask = torch.tensor([[True] * 3, [True, True, False]])
    words = {"text": torch.tensor([[3, 4, 5], [6, 7, 0]]), "text_mask": mask}

    def clips() -> tuple[torch.Tensor, ...]:
        clip = text_to_video(any_network, **given, **words, steps=3)
        return clip, *joint(any_network, **given, length=6, steps=3, seed=1)

    rows: list[int] = []
    any_network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    together = clips()
    assert set(rows) == {4}
    rows.clear()
    monkeypatch.setattr("uvg_core.sampling.guidance.CPU_TOGETHER", 0)
    apart = clips()
    assert set(rows) == {2}
    for one, two in zip(together, apart, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_any_sigma_list(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    own = text_to_video(network, **given, sigmas=[1.0, 0.75, 0.5, 0.0], solver="heun")
    assert own.shape == given["noise"].shape
    by_schedule = text_to_video(network, **given, steps=2, shift=1.0)
    torch.testing.assert_close(text_to_video(network, **given, sigmas=torch.tensor([1, 0.5, 0])), by_schedule)


def test_pinned_words_stay(any_network: UniViGU) -> None:
    video = torch.randn(1, 16, 1, 4, 4)
    ids = video_to_text(any_network, video=video, length=6, steps=4, fixed={0: 7, 3: 12})
    assert ids[0, [0, 3]].tolist() == [7, 12]
    free = torch.tensor([3, -1, -1, 8])
    assert video_to_text(any_network, video=video, length=4, steps=2, fixed=free)[0, [0, 3]].tolist() == [3, 8]
    with pytest.raises(UniViGUError, match="positions 0 to 3"):
        video_to_text(any_network, video=video, length=4, fixed={4: 1})
    with pytest.raises(UniViGUError, match="fixed has shape"):
        video_to_text(any_network, video=video, length=4, fixed=torch.zeros(5))


def test_no_mask_token_is_ever_written(given: dict[str, torch.Tensor]) -> None:
    model = random_network(MASK)
    model.text_head.head.bias[MASK.mask_token] = 50.0  # the network would love to say it
    for update in ("bridge", "release"):
        assert int(joint(model, **given, length=8, steps=3, text_update=update).text.max()) < MASK.mask_token


def test_callback_sees_every_step_and_can_stop(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    seen: list[State] = []

    def watch(step: int, state: State) -> bool:
        seen.append(state)
        return step < 3

    result = joint(network, **given, length=4, steps=6, callback=watch)
    assert [state.step for state in seen] == [1, 2, 3]
    assert torch.equal(result.video, seen[-1].latent)
    assert torch.equal(result.text, seen[-1].tokens)
    assert all(0 <= state.sigma <= 1 and state.sigma == pytest.approx(1 - state.tau) for state in seen)
    assert seen[0].estimate.shape == given["noise"].shape


def test_the_clocks_that_the_network_is_told(network: UniViGU) -> None:
    told: list[tuple[float, float]] = []

    def recording(
        video: torch.Tensor,
        text: torch.Tensor,
        time_video: torch.Tensor,
        time_text: torch.Tensor,
        *rest: object,
        **kwargs: object,
    ) -> Prediction:
        told.append((float(time_video[0]), float(time_text[0])))
        return network(video, text, time_video, time_text, *rest, **kwargs)

    recording.config, recording.token_embedding = network.config, network.token_embedding  # type: ignore[attr-defined]
    video, context = torch.randn(1, 16, 1, 4, 4), torch.randn(1, 3, 20)
    video_to_text(recording, video=video, length=3, steps=3)  # type: ignore[arg-type]
    assert told == [(0, 1000), (0, 667), (0, 333)]
    told.clear()
    text_to_video(recording, noise=video, context=context, steps=2, shift=3, guidance_scale=1)  # type: ignore[arg-type]
    assert told == [(1000, 0), (750, 0)]
    told.clear()
    joint(
        recording,
        noise=video,
        context=context,
        length=3,
        steps=3,
        shift=3,
        guidance_scale=1,  # type: ignore[arg-type]
        text_update="release",
    )
    assert told[-1] == (0, 0)  # the closing pass
    for video_time, text_time in told:
        assert video_time == pytest.approx(text_time, abs=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_numbers(network: UniViGU, given: dict[str, torch.Tensor], value: float) -> None:
    given["noise"][1, 0, 0, 0, 0] = value
    with pytest.raises(UniViGUError, match="not numbers before the first step"):
        text_to_video(network, **given, steps=2)
    with pytest.raises(UniViGUError, match="not numbers"):
        video_to_text(network, video=given["noise"], length=3, steps=2)


def test_text_logits_that_are_not_numbers(given: dict[str, torch.Tensor]) -> None:
    model = random_network()
    model.text_head.head.bias[4] = float("nan")
    with pytest.raises(UniViGUError, match="text logits hold values that are not numbers"):
        video_to_text(model, video=given["noise"], length=3, steps=2)
    with pytest.raises(UniViGUError, match="text losses are not finite"):
        caption_likelihood(model, video=given["noise"][:1], texts=[[1, 2]], samples=1)


def test_half_formed_words_are_not_read(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UniViGUError, match=r"taus run from 0 to 0.7"):
        joint(network, **given, length=3, sigmas=[1.0, 0.5, 0.3])
    with pytest.raises(UniViGUError, match=r"taus are \[1, 0.5\]"):
        video_to_text(network, video=given["noise"], length=3, taus=[1.0, 0.5])
    assert video_to_text(network, video=given["noise"], length=3, taus=[0, 0.2, 1.0]).shape == (2, 3)


def test_text_noise_is_not_the_videos(given: dict[str, torch.Tensor]) -> None:
    """The same seed for both streams, as the command line uses it, must not give both the same numbers."""
    video = torch.randn(40, generator=torch.Generator().manual_seed(3))
    text = torch.randn(40, generator=generators([3])[0])
    assert not torch.isclose(video, text).any()


def test_results_can_be_trained_on(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    latent = text_to_video(network, **given, steps=1)
    weight = torch.ones(1, requires_grad=True)
    (latent * weight).sum().backward()
    assert weight.grad is not None


def test_a_mask_that_hides_nothing_is_dropped(given: dict[str, torch.Tensor]) -> None:
    masks: list[object] = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None):
        masks.append(mask)
        return sdpa_attention(q, k, v, heads, mask)

    model = UniViGU(TINY, attention=attention)
    text_to_video(model, **given, text=torch.tensor([[1, 2]]), text_mask=torch.ones(1, 2, dtype=torch.bool), steps=1)
    assert masks
    assert all(mask is None for mask in masks)


def test_a_network_that_breaks_down_is_named(given: dict[str, torch.Tensor]) -> None:
    model = random_network()
    model.head.head.bias += float("nan")
    with pytest.raises(UniViGUError, match="after step 1 of 2"):
        text_to_video(model, **given, steps=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "text_length is 0"),
        ({"text_update": "magic"}, "text_update"),
        ({"solver": "magic"}, "solver"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": [1]}, "1 seeds for a batch of 2"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_arguments(network: UniViGU, given: dict[str, torch.Tensor], change: dict, message: str) -> None:
    with pytest.raises(UniViGUError, match=message):
        joint(network, **{**given, "length": 3, "steps": 2, **change})


def test_ids_of_another_vocabulary(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UniViGUError, match="tokenizer belongs to another model"):
        text_to_video(network, **given, text=torch.tensor([[5, 99]]), steps=1)


class Sure:
    """A network that is sure of its words from ``from_call`` on, and says something else before."""

    config = TINY

    def __init__(self, words: list[int], from_call: int) -> None:
        self.words, self.from_call, self.calls = torch.tensor(words), from_call, 0

    def __call__(self, video: torch.Tensor, text: torch.Tensor, *_: object, **__: object) -> Prediction:
        self.calls += 1
        words = self.words if self.calls >= self.from_call else (self.words + self.calls) % TINY.vocab_size
        logits = torch.full((*text.shape, TINY.vocab_size), -100.0)
        return Prediction(None, logits.scatter(-1, words.expand(text.shape)[..., None], 100.0))


@pytest.mark.parametrize("stop_when_stable", [0, 2, 4])
def test_a_text_that_stands_ends_the_run(given: dict[str, torch.Tensor], stop_when_stable: int) -> None:
    words = [3, 9, 27]
    sure = Sure(words, from_call=3)
    seen: list[int] = []
    text = video_to_text(
        sure,  # type: ignore[arg-type]
        video=given["noise"],
        length=3,
        steps=20,
        stop_when_stable=stop_when_stable,
        callback=lambda step, state: seen.append(step),
    )
    assert text.tolist() == [words, words]
    assert sure.calls == len(seen) == (2 + stop_when_stable if stop_when_stable else 20)


def test_pinned_words_are_not_waited_for(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    """What is drawn where a word is pinned may change for ever: nobody sees it."""
    seen: list[int] = []
    text = video_to_text(
        network,
        video=given["noise"],
        length=3,
        steps=9,
        temperature=5.0,
        fixed={0: 4, 1: 5, 2: 6},
        stop_when_stable=2,
        callback=lambda step, state: seen.append(step),
    )
    assert text.tolist() == [[4, 5, 6]] * 2
    assert len(seen) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_an_unsure_text_takes_every_step(network: UniViGU, given: dict[str, torch.Tensor], temperature: float) -> None:
    seen: list[int] = []
    arguments = {"video": given["noise"], "length": 8, "steps": 6, "temperature": temperature}
    free = video_to_text(network, **arguments)
    watched = video_to_text(network, **arguments, stop_when_stable=2, callback=lambda step, state: seen.append(step))
    assert len(seen) == 6
    assert torch.equal(watched, free)


class Leaning:
    """Always the same words, the second of them with probability ``share``, the others with certainty."""

    config = TINY

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, video: torch.Tensor, text: torch.Tensor, *_: object, **__: object) -> Prediction:
        shares = torch.full((*text.shape, TINY.vocab_size), 1e-12)
        shares[:, [0, 2], 7] = 1.0
        shares[:, 1, 7], shares[:, 1, 8] = self.share, 1 - self.share
        return Prediction(None, shares.log())


@pytest.mark.parametrize(("share", "steps"), [(0.85, 9), (0.95, 2)])
def test_the_likeliest_words_are_not_sure_words(given: dict[str, torch.Tensor], share: float, steps: int) -> None:
    """At temperature 0 the words drawn are the same from the first step on, whatever the model knows."""
    seen: list[int] = []
    text = video_to_text(
        Leaning(share),  # type: ignore[arg-type]
        video=given["noise"],
        length=3,
        steps=9,
        temperature=0.0,
        stop_when_stable=2,
        callback=lambda step, state: seen.append(step),
    )
    assert text.tolist() == [[7, 7, 7]] * 2
    assert len(seen) == steps
    pinned = {"fixed": {1: 5}, "stop_when_stable": 2, "temperature": 0.0}  # what is not free need not be sure
    seen.clear()
    video_to_text(
        Leaning(share),  # type: ignore[arg-type]
        video=given["noise"],
        length=3,
        steps=9,
        callback=lambda step, state: seen.append(step),
        **pinned,
    )
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("share", "temperature", "settings", "steps"),
    [
        (0.75, 0.0, {}, 9),  # off
        (0.75, 0.0, {"stop_when_sure": 0.7}, 1),
        (0.65, 0.0, {"stop_when_sure": 0.7}, 9),
        (0.75, 0.0, {"stop_when_stable": 2}, 9),  # which asks for more
        (0.65, 0.0, {"stop_when_sure": 0.9, "fixed": {1: 5}}, 1),
    ],
)
def test_captions_end_when_every_word_is_sure(
    given: dict[str, torch.Tensor], share: float, temperature: float, settings: dict[str, Any], steps: int
) -> None:
    seen: list[int] = []
    model: Any = Leaning(share)
    text = video_to_text(
        model,
        video=given["noise"],
        length=3,
        steps=9,
        temperature=temperature,
        callback=lambda step, state: seen.append(step),
        **settings,
    )
    assert len(seen) == steps
    assert text[:, [0, 2]].tolist() == [[7, 7]] * 2


class EachSure:
    """Is sure of the words of a row only from a step of its own on; until then others are a little likelier."""

    config = TINY

    def __init__(self, from_call: list[int]) -> None:
        self.from_call, self.calls = from_call, 0

    def __call__(self, video: torch.Tensor, text: torch.Tensor, *_: object, **__: object) -> Prediction:
        self.calls += 1
        shares = torch.full((*text.shape, TINY.vocab_size), 1e-12)
        for row, first in enumerate(self.from_call):
            if self.calls == first:
                shares[row, :, 7] = 1.0
            else:
                shares[row, :, 3 + self.calls % 5], shares[row, :, 11] = 0.55, 0.45
        return Prediction(None, shares.log())


@pytest.mark.parametrize("settings", [{"stop_when_sure": 0.7}, {"stop_when_stable": 1}])
def test_each_clip_of_a_batch_ends_when_it_is_sure_itself(given: dict[str, torch.Tensor], settings: Any) -> None:
    """A batch of two is two batches of one: what a later step would make of a row that is done does not count."""
    seen: list[int] = []
    model: Any = EachSure([2, 5])
    text = video_to_text(
        model,
        video=given["noise"],
        length=3,
        steps=9,
        temperature=0.0,
        callback=lambda step, state: seen.append(step),
        **settings,
    )
    assert text.tolist() == [[7, 7, 7]] * 2
    assert len(seen) == 5


def test_a_checkpoint_may_end_captions_early_where_its_recipe_is_followed() -> None:
    recipe = RunConfig(text_steps=9, text_temperature=0.0, stop_when_sure=0.7)
    assert Sampling().resolved(recipe, captions=True).stop_when_sure == 0.7
    for chosen in (Sampling(steps=9), Sampling(temperature=0.0), Sampling(stop_when_sure=0)):
        assert chosen.resolved(recipe, captions=True).stop_when_sure == 0
    assert Sampling().resolved(recipe, joint=True).stop_when_sure == Sampling().resolved(recipe).stop_when_sure == 0
    assert Sampling(steps=4, stop_when_sure=0.5).resolved(recipe, captions=True).stop_when_sure == 0.5


def test_euler_is_refused_before_the_network_runs(given: dict[str, torch.Tensor]) -> None:
    steep = ModelConfig(**{**TINY.__dict__, "kappa_exponent": 0.5})
    model = Sure([1, 2, 3], from_call=1)
    model.config = steep
    with pytest.raises(UniViGUError, match="Use bridge"):
        video_to_text(model, video=given["noise"], length=3, text_update="euler")  # type: ignore[arg-type]
    assert model.calls == 0


def test_stopping_early_belongs_to_the_discrete_flow(given: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UniViGUError, match="stop_when_stable"):
        video_to_text(random_network(EMBEDDING), video=given["noise"], length=3, stop_when_stable=2)


HELD = ["noised", "clean"]


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("held_parts", HELD)
def test_what_a_mask_holds_is_kept(
    any_network: UniViGU, given: dict[str, torch.Tensor], solver: str, held_parts: str
) -> None:
    """Frames come out as they were, the others see them; a mask of ones is no mask, bit for bit."""
    any_network.config = replace(any_network.config, held_parts=held_parts)
    clean = torch.randn(given["noise"].shape, generator=torch.Generator().manual_seed(8))
    free = torch.ones(1, 1, 2, 4, 4)
    options = {**given, "length": 5, "steps": 4, "solver": solver}
    words = torch.tensor([[3, 4]])
    plain, drawn = joint(any_network, **options), text_to_video(any_network, **options, text=words)
    same = joint(any_network, **options, kept=(clean, free))
    assert torch.equal(same.video, plain.video)
    assert torch.equal(same.text, plain.text)
    assert torch.equal(text_to_video(any_network, **options, text=words, kept=(clean, free)), drawn)

    free[:, :, 0] = 0
    free[:, :, 1, 0, 0] = 0.5
    seen: list[State] = []
    held = joint(any_network, **options, kept=(clean, free), callback=lambda _, state: seen.append(state))
    filled = text_to_video(any_network, **options, text=words, kept=(clean, free))
    for made, other in ((held.video, plain.video), (filled, drawn)):
        assert torch.equal(made[:, :, 0], clean[:, :, 0])
        assert not torch.equal(made[:, :, 1, 1:], other[:, :, 1, 1:])
    assert torch.equal(seen[0].estimate[:, :, 0], clean[:, :, 0])
    noised = (1 - seen[1].sigma) * clean + seen[1].sigma * given["noise"]
    torch.testing.assert_close(seen[1].latent[:, :, 0], (clean if held_parts == "clean" else noised)[:, :, 0])

    words = torch.tensor([3, -1, 7, -1, -1])
    both = joint(any_network, **options, kept=(clean, free), fixed=words)
    assert both.text[:, [0, 2]].tolist() == [[3, 7]] * 2
    assert torch.equal(both.video[:, :, 0], clean[:, :, 0])


@pytest.mark.parametrize("held_parts", HELD)
def test_the_network_sees_held_parts_as_it_was_trained_to(given: dict[str, torch.Tensor], held_parts: str) -> None:
    """Clean from the first pass on, the one at pure noise included; or as noisy as the rest."""
    network, seen = random_network(replace(TINY, held_parts=held_parts)), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:2].clone()))
    clean, free = torch.ones_like(given["noise"]), torch.ones(1, 1, 2, 1, 1)
    free[:, :, 0] = 0
    text_to_video(network, **given, steps=3, solver="heun", shift=1, kept=(clean, free))
    shares = [torch.ones(()), *torch.tensor([2 / 3, 2 / 3, 1 / 3, 1 / 3])]  # no second pass where the run ends
    assert len(seen) == len(shares)
    for latent, share in zip(seen, shares, strict=True):
        noised = (1 - share) * clean + share * given["noise"]
        torch.testing.assert_close(latent[:, :, 0], (clean if held_parts == "clean" else noised)[:, :, 0])
    assert torch.equal(seen[0][:, :, 1], given["noise"][:, :, 1])


def test_masks_that_do_not_fit_are_refused(network: UniViGU, given: dict[str, torch.Tensor]) -> None:
    clean = torch.zeros_like(given["noise"])
    for kept, words in (
        ((clean[:1], torch.ones(1)), "expected the shape of the noise"),
        ((clean, torch.ones(3, 1, 1)), "expected the shape of the noise"),
        ((clean, torch.full((1,), 1.5)), "below 0 or above 1"),
        ((clean, torch.full((1,), float("nan"))), "below 0 or above 1"),
    ):
        for job in (joint, text_to_video):
            with pytest.raises(UniViGUError, match=words):
                job(network, **given, length=4, steps=2, kept=kept)
