"""The released network on a card that is not there (``fake_card``): what a pass asks of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fake_card
import pytest
import torch
from fake_card import FakeCard
from tiny_networks import TINY, random_network
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from uvg_core.config import ModelConfig
from uvg_core.model import Hooks, Pass, PassOptions, Prediction, UniViGU, sdpa_attention
from uvg_core.model.memory import pass_bytes, video_tokens
from uvg_core.model.rope import rotate, rotate_in_place, rotations, text_angles, video_angles

needs_a_fake_card = pytest.mark.skipif(bool(fake_card.missing()), reason=fake_card.missing() or "-")
RELEASED = ModelConfig()


@pytest.fixture
def card() -> Iterator[FakeCard]:
    with fake_card.fake_card() as made:
        yield made


def released(card: FakeCard, layers: int, dtype: torch.dtype = torch.bfloat16, **config: Any) -> UniViGU:
    with unset_fake_temporarily():
        shape = replace(RELEASED, num_layers=layers, **config)
        model = UniViGU(shape, attention=sdpa_attention, device="meta", dtype=dtype)
    return card.takes(model).eval().requires_grad_(False)


def one_pass(
    card: FakeCard, model: UniViGU, *, rows: int = 1, frames: int = 21, text: int = 256, **wanted: Any
) -> Prediction:
    def on(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, device="cuda", dtype=dtype)

    given = on(rows, 16, frames, 60, 104), on(rows, text, dtype=torch.long), on(rows), on(rows)
    context = on(rows, 512, 4096, dtype=torch.bfloat16)
    card.begin()
    with torch.no_grad():
        found: Prediction = model(*given, context, **wanted)
    return found


@needs_a_fake_card
def test_a_pass_stays_on_the_card(card: FakeCard) -> None:
    found = one_pass(card, released(card, 6), options=PassOptions(want_logits=slice(0, 1)))
    assert found.velocity is not None
    assert found.logits is not None
    assert {(part.device.type, part.dtype) for part in found} == {("cuda", torch.bfloat16)}
    assert not card.waits
    assert not card.copies
    assert card.masked == {("flash", False): 12}
    # Nothing large is in float32 but the patches and, while they are turned, queries and keys.
    assert {operation for operation, *_ in card.wide} == {"convolution", "empty"}
    assert card.wide.total() == 13


@needs_a_fake_card
@pytest.mark.parametrize("text", [0, 256])
def test_launches_of_a_block(text: int) -> None:
    counts: list[Counter[str]] = []
    for layers in (1, 2):
        with fake_card.fake_card() as card:
            one_pass(card, released(card, layers), text=text, options=PassOptions(want_logits=False))
            counts.append(card.launches)
    block = counts[1] - counts[0]
    assert block.total() <= (45 if text else 34), block
    assert block["cat"] == block["clone"] == block["_to_copy"] == 0, block


JOBS: dict[str, tuple[int, bool, bool | slice]] = {
    "text to video": (1, True, False),
    "both passes of guidance": (2, True, False),
    "video to text": (1, False, True),
    "joint, both passes of guidance": (2, True, slice(0, 1)),
    "ranking four": (4, False, True),
}


@needs_a_fake_card
@pytest.mark.parametrize("job", list(JOBS))
@pytest.mark.parametrize(("frames", "text"), [(17, 512), (81, 256), (161, 512)])
def test_memory_is_what_was_said(card: FakeCard, frames: int, text: int, job: str) -> None:
    rows, velocity, logits = JOBS[job]
    latents = (frames - 1) // 4 + 1
    model = released(card, 2)
    one_pass(
        card,
        model,
        rows=rows,
        frames=latents,
        text=text,
        options=PassOptions(want_velocity=velocity, want_logits=logits),
    )
    heard = len(range(rows)[logits]) if isinstance(logits, slice) else rows * logits
    tokens = video_tokens((latents, 60, 104), RELEASED)
    said = pass_bytes(RELEASED, rows=rows, video=tokens, text=text, itemsize=2, logits=heard, velocity=velocity)
    assert said == pytest.approx(card.beside, rel=0.05)
    if (frames, job) == (81, "text to video"):
        assert card.beside < 0.95e9


@needs_a_fake_card
def test_blocks_that_are_looked_at_keep_what_they_are_given(card: FakeCard) -> None:
    model, seen = released(card, 2), []

    def watch(index: int, run: Any, x: Tensor, at: Pass) -> Tensor:
        out: Tensor = run(x, at)
        seen.append((at.in_place, out.untyped_storage()._cdata == x.untyped_storage()._cdata))
        return out

    one_pass(card, model, options=PassOptions(hooks=Hooks(block=watch)))
    one_pass(card, model, options=PassOptions(hooks=Hooks(block=watch, in_place=True)))
    assert seen == [(False, False)] * 2 + [(True, True)] * 2


# What is written in place is what it was, on real numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotating_in_place_is_rotating(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    whole = torch.randn(2, 12 + 5, 48, generator=g).to(dtype)
    video, text = rotations(video_angles((2, 2, 3), 24)), rotations(text_angles(5, 24))
    both = torch.cat([video, text])
    parts = rotate(whole[:, :12], video, 0, 2), rotate(whole[:, 12:], text, 5, 2)
    expected = rotate(whole, both, 5, 2)
    assert torch.equal(expected, torch.cat(parts, 1))
    assert expected.dtype == dtype
    part = whole[:, :12]
    assert rotate_in_place(part, video, 0, 2) is part
    rotate_in_place(whole[:, 12:], text, 5, 2)
    assert torch.equal(whole, expected)
    assert rotate(whole, both, 5, 2) is not whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("job", ["joint", "text to video", "video to text", "no text", "one clip"])
def test_a_pass_without_gradients_is_the_pass_with_them(
    job: str, dtype: torch.dtype, inputs: dict[str, Tensor]
) -> None:
    model = random_network().to(dtype)
    if job == "no text":
        inputs["text"] = inputs["text"][:, :0]
    if job == "one clip":
        inputs = {name: value[:1] for name, value in inputs.items()}
    wanted = PassOptions(want_velocity=job != "video to text", want_logits=job not in ("text to video", "no text"))
    given = {name: value.to(dtype) if name in ("video", "context") else value for name, value in inputs.items()}
    kept = {name: value.clone() for name, value in given.items()}
    with_gradients = model(**given, options=wanted)
    with torch.no_grad():
        in_place = model(**given, options=wanted)
    for one, other in zip(with_gradients, in_place, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert all(torch.equal(kept[name], value) for name, value in given.items())


@pytest.mark.parametrize(("rule", "text"), [("joint", 5), ("joint", 0), ("one_way", 5)])
def test_the_forward_is_one_graph(rule: str, text: int) -> None:
    model = random_network(replace(TINY, num_layers=1, v2t_attention=rule))
    model.attention = sdpa_attention
    g = torch.Generator().manual_seed(0)
    given = {
        "video": torch.randn(1, 16, 2, 4, 6, generator=g),
        "text": torch.randint(31, (1, text), generator=g),
        "time_video": torch.zeros(1),
        "time_text": torch.full((1,), 512.0),
        "context": torch.randn(1, 7, 20, generator=g),
    }
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # raises where the graph breaks
    with torch.no_grad():
        found, expected = (
            compiled(**given, options=PassOptions(video_clean=True)),
            model(**given, options=PassOptions(video_clean=True)),
        )
    torch.testing.assert_close(found.velocity, expected.velocity)
    torch.testing.assert_close(found.logits, expected.logits)
