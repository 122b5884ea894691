"""The jobs on a card that is not there (``fake_card``), at full width with two blocks: every tensor is where it is
wanted, and the program waits for the card once, when the run is over."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import fake_card
import pytest
import torch
from fake_card import FakeCard
from run_jobs import caption_likelihood, fill_template, joint, text_to_video, video_to_text
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_leaves

from uvg_core.config import ModelConfig
from uvg_core.errors import UniViGUError
from uvg_core.model import UniViGU, VideoCache, sdpa_attention
from uvg_core.sampling import finite
from uvg_core.sampling.loop import State
from uvg_core.training.config import Loss
from uvg_core.training.objective import Objective
from uvg_core.training.plan import Batch

needs_a_fake_card = pytest.mark.skipif(bool(fake_card.missing()), reason=fake_card.missing() or "-")
STEPS, LENGTH = 3, 64
MASKS = {"source": "mask"}
EMBEDDING = {"text_flow": "embedding"}
ONE_WAY = {"v2t_attention": "one_way"}
AS_RELEASED = {"text_inv_freq": tuple(10000 ** (-i / 64) for i in range(64)), "time_rounding": "bfloat16"}
THE_END = ("_local_scalar_dense", "close")  # FiniteCheck's last look
LET_GO = ("synchronize", "clear")  # the cache on the host, when it goes


@pytest.fixture
def card() -> Iterator[FakeCard]:
    with fake_card.fake_card() as made:
        yield made


def network(card: FakeCard, dtype: torch.dtype = torch.bfloat16, **config: Any) -> UniViGU:
    with unset_fake_temporarily():
        shape = replace(ModelConfig(), num_layers=2, **config)
        model = UniViGU(shape, attention=sdpa_attention, device="meta", dtype=dtype)
    return card.takes(model).eval().requires_grad_(False)


def latent() -> Tensor:
    return torch.zeros(1, 16, 21, 60, 104, device="cuda", dtype=torch.bfloat16)


def states() -> Tensor:
    return torch.zeros(1, 512, 4096, device="cuda", dtype=torch.bfloat16)


def words() -> Tensor:
    return torch.arange(60)[None]


def waits(card: FakeCard) -> Counter[tuple[str, str]]:
    """By operation and function."""
    found: Counter[tuple[str, str]] = Counter()
    for (operation, where), count in card.waits.items():
        found[operation, where.rpartition(" ")[2]] += count
    return found


class Words:
    """A tokenizer as far as a template needs one: a word is a number, a blank so many places."""

    class run:
        pad_token = 0

    def template(self, text: str, widths: tuple[int, ...], length: int) -> Tensor:
        first, _, rest = text.partition("___")
        ids = [5] * len(first.split()) + [-1] * widths[0] + [6] * len(rest.split()) + [1]
        return torch.tensor(ids + [0] * (length - len(ids)))


def t2v(model: UniViGU, **settings: Any) -> Tensor:
    mask = words() > 3
    given = {"text": words(), "context": states(), "null_context": states(), "steps": STEPS, **settings}
    return text_to_video(model, noise=latent(), text_mask=mask, **given)


def v2t(model: UniViGU, **settings: Any) -> Tensor:
    return video_to_text(model, video=latent(), length=LENGTH, steps=STEPS, **settings)


def both(model: UniViGU, **settings: Any) -> Any:
    given = {"context": states(), "null_context": states(), "length": LENGTH, "steps": STEPS, **settings}
    return joint(model, noise=latent(), **given)


def rank(model: UniViGU, **settings: Any) -> Tensor:
    return caption_likelihood(
        model, video=latent(), texts=torch.zeros(3, LENGTH, dtype=torch.long), samples=2, **settings
    )


def template(model: UniViGU) -> Tensor:
    return fill_template(model, Words(), "a ___ moves", video=latent(), length=32, steps=1, samples=1)  # type: ignore[arg-type]


# The job, the network, and the most bytes beside the weights.
JOBS: dict[str, tuple[Callable[[UniViGU], Any], dict[str, Any], float]] = {
    "text to video": (t2v, {}, 1.85e9),
    "text to video, heun": (lambda model: t2v(model, solver="heun"), {}, 1.85e9),
    "text to video, no guidance": (lambda model: t2v(model, null_context=None), EMBEDDING, 0.95e9),
    "video to text": (v2t, {}, 0.95e9),
    "video to text, settings": (lambda model: v2t(model, top_p=0.9, fixed={3: 7}, temperature=0.5), MASKS, 0.95e9),
    "video to text, the release's clocks": (v2t, AS_RELEASED, 0.95e9),
    "video to text, static": (lambda model: v2t(model, video_cache="static"), {}, 1.16e9),
    "video to text, float8": (lambda model: v2t(model, video_cache="static", cache=VideoCache(fp8=True)), {}, 1.05e9),
    "video to text, refresh": (lambda model: v2t(model, video_cache="refresh=2"), {}, 1.16e9),
    "video to text, one way": (v2t, ONE_WAY, 1.16e9),
    "video to text, one way, exact": (lambda model: v2t(model, video_cache="off"), ONE_WAY, 0.95e9),
    "video to text, embedding flow": (v2t, EMBEDDING, 0.95e9),
    "joint": (both, {}, 1.85e9),
    "joint, one way": (both, ONE_WAY, 1.85e9),
    "joint, release's rule": (lambda model: both(model, text_update="release"), MASKS, 1.85e9),
    "rank": (rank, {}, 2.8e9),
    "rank, static": (lambda model: rank(model, video_cache="static"), EMBEDDING, 1.16e9),
}


@needs_a_fake_card
@pytest.mark.parametrize("job", list(JOBS))
def test_a_job_stays_on_the_card_and_waits_for_it_once(card: FakeCard, job: str) -> None:
    run, config, most = JOBS[job]
    model = network(card, **config)
    card.begin()
    assert all(part.device.type == "cuda" for part in tree_leaves(run(model)))
    last = ("_local_scalar_dense", "_finite") if job.startswith("rank") else THE_END
    assert waits(card) == {last: 1}
    assert not any(copy.waits for copy in card.copies)
    # Over the bus go random numbers, tokens and the answers to checks: nothing large, and nothing from a pass.
    assert all(copy.nbytes <= 256 * 1536 * 4 for copy in card.copies)
    passes = {copy.where.rpartition(" ")[2] for copy in card.copies if "/model/" in copy.where}
    assert passes == ({"text_angles"} if config is AS_RELEASED else set())
    assert 0.9 * most < card.beside < most


@needs_a_fake_card
def test_a_template_waits_for_each_text_it_fills_in(card: FakeCard) -> None:
    template(network(card))
    # Two widths, each of them a run; then their words are looked at, the scores, and which is best.
    assert waits(card) == {
        THE_END: 2,
        ("_local_scalar_dense", "require_ids"): 2,
        ("_local_scalar_dense", "_finite"): 1,
        ("_local_scalar_dense", "fill_template"): 1,
    }


@needs_a_fake_card
def test_showing_a_run_takes_one_copy_a_step(card: FakeCard) -> None:
    """The estimate for a preview, the words as they stand: whoever shows a run asks for one of them."""
    for run, seen in ((t2v, lambda state: state.estimate), (v2t, lambda state: state.tokens)):

        def show(step: int, state: State, seen: Callable[[State], Tensor] = seen) -> None:
            seen(state).cpu()

        card.begin()
        run(network(card), callback=show)
        assert waits(card) == {("copy to the host", "run"): STEPS, THE_END: 1}


@needs_a_fake_card
def test_stopping_when_the_words_stand_looks_at_them(card: FakeCard) -> None:
    v2t(network(card), stop_when_stable=2)
    found = waits(card)
    assert found.pop(THE_END) == 1
    assert found.total() <= STEPS
    assert {where for _, where in found} == {"count"}


@needs_a_fake_card
def test_the_cache_on_the_host_copies_beside_the_work(card: FakeCard) -> None:
    model = network(card)
    card.begin()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "empty_host_cache", lambda: None)
        v2t(model, video_cache="static", cache=VideoCache(place="host"))
    assert waits(card) == {THE_END: 1, LET_GO: 1}
    kept = {copy: count for copy, count in card.copies.items() if copy.nbytes > 2**26}
    assert {copy.way: count for copy, count in kept.items()} == {"to the host": 4, "to the card": 4 * (STEPS - 1) + 2}
    # A block's keys are fetched when all before them is done, and used when they have come.
    assert card.orders.count(("side", "waits for stream", "main")) == card.orders.count(("side", "records an event"))
    assert card.orders.count(("main", "waits for event of", "side")) == 2 * (STEPS - 1)


@needs_a_fake_card
def test_guidance_shares_a_batch_where_it_fits() -> None:
    """Activations are counted in the weights' own bytes: two passes of 0.9 GB within 0.7 of what is free."""
    for memory, together in ((2.4e9, False), (2.7e9, True)):
        with fake_card.fake_card() as card:
            model = network(card)
            rows: list[int] = []
            model.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(given[0].shape[0]))
            card.memory = card.now + memory
            t2v(model, steps=1)
        assert rows == ([2] if together else [1, 1])


@needs_a_fake_card
def test_eight_gigabytes_hold_text_to_video(card: FakeCard) -> None:
    """Float8 weights take 3.9 GB; 1.5 of 8 are for the context, workspaces and the desktop."""
    model = network(card)
    card.memory = 8e9 - 1.5e9 - 3.9e9 + card.now
    card.begin()
    t2v(model, steps=1)
    assert card.beside < 8e9 - 1.5e9 - 3.9e9


@needs_a_fake_card
@pytest.mark.parametrize("rule", ["joint", "one_way"])
@pytest.mark.parametrize(("hides", "clean"), [(False, False), (False, True), (True, False), (False, None)])
def test_a_training_step_masks_what_is_to_be_hidden_alone(
    card: FakeCard, rule: str, hides: bool, clean: bool | None
) -> None:
    """Its forward pass under autocast, with all that the backward pass needs (that one asks for a real card)."""
    model = network(card, torch.float32, v2t_attention=rule).train().requires_grad_(True)

    def on(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, device="cuda", dtype=dtype)

    size, ids = (1, 16, 5, 60, 104), on(1, 256, dtype=torch.long)
    parts = on(*size), on(*size), on(1), on(1), on(1, 512, 4096), ids, ids, on(1, 256, 0)
    weights = on(1, 256, dtype=torch.bool), on(1, 256), on(1), on(1)
    card.begin()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        losses = Objective(model, Loss())(Batch(*parts, *weights, hides=hides, video_clean=clean))
    assert losses.video.requires_grad
    assert losses.text.requires_grad
    assert {(part.device.type, part.dtype) for part in losses} == {("cuda", torch.float32)}
    masked = sum(count for (_, mask), count in card.masked.items() if mask)
    unknown = rule == "one_way" and clean is None  # which of the clips are clean: a mask for the video's queries
    assert masked == 2 * (hides + unknown)
    assert not card.waits
    assert not card.copies


# Numbers that are not finite are found all the same


class Late:
    """A card's answers: they come when ``arrive`` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[tuple[Tensor, Tensor]] = []

        class OnCard:
            device = torch.device("cuda")

            def __init__(self, value: bool) -> None:
                self.value = torch.tensor(value)

            def to(self, dtype: torch.dtype) -> Tensor:
                return self.value.to(dtype)

            def __bool__(self) -> bool:
                return bool(self.value)

        self.flag = OnCard
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        monkeypatch.setattr(Tensor, "copy_", lambda to, value, non_blocking: self.answers.append((to, value)))
        monkeypatch.setattr(torch, "stack", lambda flags: torch.tensor([bool(flag) for flag in flags]))

    def arrive(self) -> None:
        for to, value in self.answers:
            to.fill_(int(value))
        self.answers.clear()


def test_an_answer_is_read_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    late, check = Late(monkeypatch), finite.FiniteCheck()
    check.add(late.flag(True), "first")  # type: ignore[arg-type]
    check.add(late.flag(False), "second")  # type: ignore[arg-type]
    late.arrive()
    with pytest.raises(UniViGUError, match="second"):
        check.add(late.flag(False), "third")  # type: ignore[arg-type]


def test_answers_that_are_not_there_are_waited_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    late, check = Late(monkeypatch), finite.FiniteCheck()
    for good, name in ((True, "first"), (False, "second"), (False, "third")):
        check.add(late.flag(good), name)  # type: ignore[arg-type]
    with pytest.raises(UniViGUError, match="second"):
        check.close()
    check.close()  # said once


def test_on_the_cpu_an_answer_is_there_at_once() -> None:
    check = finite.FiniteCheck()
    check.add(torch.tensor(True), "first")
    with pytest.raises(UniViGUError, match="second"):
        check.add(torch.tensor(math.nan).isfinite(), "second")
