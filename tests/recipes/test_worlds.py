"""Laws of the little worlds: the grammar says what the pixels show."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from recipes.worlds import free
from recipes.worlds.drawing import FRAMES, GROWTH, PAIR_SCALE, REACH, SIDE, TRAVEL, digit_images, place, render
from recipes.worlds.grammar import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    DIRECTIONS,
    KINDS,
    MOTIONS,
    SIZES,
    SPEEDS,
    Shape,
    World,
    all_shapes,
    is_held_out,
    parse,
    random_shape,
    random_world,
)

pytest.importorskip("sklearn")

ORDER = list(COLOURS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(
    kind: str = "circle",
    motion: str = "stays still",
    speed: str | None = None,
    size: str = "small",
    colour: str = "red",
) -> World:
    return World((Shape(kind, colour, size, motion, speed),), "black")


def drawn(world: World, seed: int = 0, **how: int) -> Tensor:
    return render(world, generator(seed), **{"side": 48, "frames": 9, **how})


def ink(clip: Tensor, background: str = "black") -> Tensor:
    """How far every pixel is from the ground, ``[T,S,S]``."""
    ground = torch.tensor(BACKGROUNDS[background], dtype=torch.float32)
    return (clip.float() - ground).square().sum(-1).sqrt()


def centroid(clip: Tensor) -> Tensor:
    """Of the ink of every frame, ``[T,2]`` (x, y) in sides."""
    amount = ink(clip)
    axis = (torch.arange(clip.shape[1]) + 0.5) / clip.shape[1]
    total = amount.sum((1, 2))
    return torch.stack([amount.sum(1) @ axis, amount.sum(2) @ axis], -1) / total[:, None]


# --- the grammar ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("held_out", [False, True])
def test_captions_say_everything(objects: int, held_out: bool) -> None:
    g = generator()
    for _ in range(200):
        world = random_world(g, objects=objects, held_out=held_out)
        assert parse(world.caption) == world
        assert parse(world.brief) is None  # the brief prompt leaves things out
        assert len(world.shapes) == objects
        assert all(is_held_out(thing) == held_out for thing in world.shapes)


def test_every_object_is_a_sentence() -> None:
    things = list(all_shapes())
    assert len(set(things)) == len(things) == 16 * 8 * 2 * (5 * 2 + 1)
    for thing in things:
        assert parse(f"{thing.phrase} on a gray background") == World((thing,), "gray")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a small red circle moves left on a navy background",
        "a small red circle stays still slowly on a navy background",
        "a small red circle grows slowly on a red background",
        "a small pink circle grows slowly on a navy background",
        "a small red circle grows slowly",
        "two small red circles grow slowly on a navy background",
        "a small red circle grows slowly and on a navy background",
    ],
)
def test_what_is_no_sentence(text: str) -> None:
    assert parse(text) is None


def test_pairs_have_two_colours_in_order() -> None:
    g = generator()
    for _ in range(200):
        first, second = random_world(g, objects=2).shapes
        assert ORDER.index(first.colour) < ORDER.index(second.colour)


def test_one_tenth_is_held_out() -> None:
    keys = {(thing.kind, thing.colour, thing.motion): is_held_out(thing) for thing in all_shapes()}
    assert len(keys) == 768
    assert sum(keys.values()) == 78
    # Size and speed play no part in it.
    assert all(keys[thing.kind, thing.colour, thing.motion] == is_held_out(thing) for thing in all_shapes())


def test_training_meets_every_word_about_equally() -> None:
    g = generator()
    things = [random_shape(g, held_out=False) for _ in range(3000)]
    for name, words in (
        ("kind", KINDS),
        ("colour", COLOURS),
        ("motion", MOTIONS),
        ("size", SIZES),
    ):
        for word in words:
            share = sum(getattr(thing, name) == word for thing in things) / len(things)
            assert share == pytest.approx(1 / len(words), rel=0.35), (name, word)


def test_held_out_worlds_meet_every_kind_and_motion() -> None:
    g = generator()
    things = [random_shape(g, held_out=True) for _ in range(1500)]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.motion for thing in things} == set(MOTIONS)
    assert {thing.colour for thing in things} == set(COLOURS)


def test_worlds_are_drawn_by_seed() -> None:
    for objects in (1, 2):
        a, b = (random_world(generator(7), objects=objects) for _ in range(2))
        assert a == b
        assert torch.equal(drawn(a, 3), drawn(b, 3))
        assert not torch.equal(drawn(a, 3), drawn(a, 4))


# --- the pictures -----------------------------------------------------------------------------------------------------


def test_handwriting_is_split() -> None:
    train, test = digit_images("train"), digit_images("test")
    assert list(train) == list(test) == list(DIGITS)
    total = 0
    for name in DIGITS:
        assert len(test[name]) == math.ceil((len(train[name]) + len(test[name])) / 5)
        assert float(train[name].min()) == 0
        assert float(train[name].max()) == 1
        total += len(train[name]) + len(test[name])
        pictures = {tuple(image.flatten().tolist()) for image in train[name]}
        assert not any(tuple(image.flatten().tolist()) in pictures for image in test[name])
    assert total == 1797


def test_format() -> None:
    clip = drawn(one())
    assert clip.dtype == torch.uint8
    assert clip.shape == (9, 48, 48, 3)
    assert render(one(), generator()).shape == (FRAMES, SIDE, SIDE, 3)
    assert drawn(one(), frames=1).shape[0] == 1


@pytest.mark.parametrize("objects", [1, 2])
def test_objects_stay_inside_the_picture(objects: int) -> None:
    g = generator()
    for i in range(200):
        world = random_world(g, objects=objects, held_out=i % 2 == 0)
        for placing in place(world, 9, g):
            reach = REACH * placing.radii[:, None]
            assert float((placing.centres - reach).min()) > -1e-5, world.caption
            assert float((placing.centres + reach).max()) < 1 + 1e-5, world.caption
        changed = ink(render(world, g, side=48, frames=9), world.background) > 0
        changed[:, 1:-1, 1:-1] = False
        # The soft edge of a tip may tint a few pixels of the rim.
        assert int(changed.sum((1, 2)).max()) <= 6, world.caption


@pytest.mark.parametrize("direction", list(DIRECTIONS))
@pytest.mark.parametrize("speed", SPEEDS)
def test_moves_go_where_they_say(direction: str, speed: str) -> None:
    step = torch.tensor(DIRECTIONS[direction], dtype=torch.float32)
    for seed, kind in enumerate(KINDS):
        track = centroid(drawn(one(kind, f"moves {direction}", speed, ["small", "large"][seed % 2]), seed))
        torch.testing.assert_close(track[-1] - track[0], step * TRAVEL[speed], atol=0.012, rtol=0)
        # Evenly: every frame goes as far as the last one did.
        torch.testing.assert_close(track.diff(dim=0).mean(0).expand(8, 2), track.diff(dim=0), atol=0.012, rtol=0)


@pytest.mark.parametrize("speed", SPEEDS)
def test_grows_grows(speed: str) -> None:
    for seed, kind in enumerate(KINDS):
        clip = drawn(one(kind, "grows", speed, "large"), seed, side=64)
        area = ink(clip).sum((1, 2))
        assert bool((area.diff() > 0).all())
        assert float((area[-1] / area[0]).sqrt()) == pytest.approx(GROWTH[speed], rel=0.06), kind
        # Handwriting may have its ink beside the middle of its box, and takes that along as it grows.
        tolerance = 0.05 if kind in DIGITS else 0.005
        torch.testing.assert_close(centroid(clip), centroid(clip)[:1].expand(9, 2), atol=tolerance, rtol=0)


def test_stays_still() -> None:
    for seed, kind in enumerate(KINDS):
        clip = drawn(one(kind), seed)
        assert torch.equal(clip, clip[:1].expand_as(clip))


def test_every_second_frame_of_the_longer_clip() -> None:
    g = generator()
    for seed in range(40):
        world = random_world(g, objects=1 + seed % 2)
        longer, shorter = drawn(world, seed, frames=17), drawn(world, seed, frames=9)
        difference = (longer[::2].int() - shorter.int()).abs()
        assert int(difference.max()) <= 1, world.caption


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_differ_and_hold_in_the_middle(kind: str) -> None:
    """In the middle of the clip every motion shows its size, and a large one has the square of the ratio's area."""
    ratio = (SIZES["large"] / SIZES["small"]) ** 2
    for motion, speed in (("stays still", None), ("moves up", "quickly"), ("grows", "quickly")):
        small, large = (
            float(ink(drawn(one(kind, motion, speed, size), 5, side=64))[4].sum()) for size in ("small", "large")
        )
        assert large / small == pytest.approx(ratio, rel=0.1)


def test_pairs_are_smaller_and_keep_clear() -> None:
    g = generator()
    touching = 0
    for _ in range(150):
        world = random_world(g, objects=2)
        a, b = place(world, 9, g)
        assert float(a.radii[4]) == pytest.approx(PAIR_SCALE * SIZES[world.shapes[0].size])
        reach = float(((a.centres - b.centres).norm(dim=-1) - a.radii - b.radii).min())
        touching += reach < 0
    assert touching <= 3


def test_colours_are_the_table_s() -> None:
    for colour, paint in COLOURS.items():
        clip = drawn(one("square", colour=colour, size="large"))
        most = clip[0].reshape(-1, 3)[ink(clip)[0].flatten().argmax()]
        assert most.tolist() == list(paint)
    for background, paint in BACKGROUNDS.items():
        clip = drawn(World(one().shapes, background))
        assert clip[0, 0, 0].tolist() == list(paint)


@pytest.mark.parametrize("choices", list(product((False, True), repeat=3)))
def test_captions_with_several_right_wordings_are_read_back(choices: free.Choices) -> None:
    world = random_world(torch.Generator().manual_seed(4), objects=2)
    text = free.worded(world, choices)
    assert free.understood(text) == (world, choices)
    assert free.understood(text.replace("the" if choices[1] else "a", "a" if choices[1] else "the", 1)) is None


def test_what_captions_choose_is_counted_in_bits() -> None:
    assert free.entropy([]) == free.entropy("aaa") == 0
    assert free.entropy("abab") == 1
    assert free.entropy([(1, 2), (2, 1), (1, 1), (2, 2)]) == 2
