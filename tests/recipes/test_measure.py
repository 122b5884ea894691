"""How answers are judged: captions read as far as they go, lies one word off, and what counts as right."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from recipes.worlds.drawing import render
from recipes.worlds.evaluation import Accuracy, Evaluator
from recipes.worlds.grammar import ATTRIBUTES, Shape, World, hard_negatives, parse, random_world, read_caption

CIRCLE = Shape("circle", "red", "small", "moves left", "slowly")
STAR = Shape("star", "blue", "large", "stays still", None)
ONE, TWO = World((CIRCLE,), "navy"), World((CIRCLE, STAR), "beige")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def differences(true: World, other: World) -> list[str]:
    """The attributes in which two worlds of as many objects differ; a speed that comes or goes with the motion is part
    of it."""
    found = ["background"] if true.background != other.background else []
    for mine, theirs in zip(true.shapes, other.shapes, strict=True):
        names = [name for name in ATTRIBUTES[:-1] if getattr(mine, name) != getattr(theirs, name)]
        if "motion" in names and None in (mine.speed, theirs.speed):
            names = [name for name in names if name != "speed"]
        found += names
    return found


# --- reading captions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [1, 2])
def test_a_sentence_of_the_grammar_is_read_exactly(objects: int) -> None:
    g = generator()
    for _ in range(50):
        world = random_world(g, objects=objects)
        assert read_caption(world.caption) == world
        assert read_caption(f"  {world.caption}\n") == world


@pytest.mark.parametrize(
    ("text", "shape", "background"),
    [
        # parts left out
        ("a red circle", ("circle", "red", "", "", None), ""),
        ("a small red circle moves left slowly", ("circle", "red", "small", "moves left", "slowly"), ""),
        ("circle", ("circle", "", "", "", None), ""),
        ("a circle on a navy background", ("circle", "", "", "", None), "navy"),
        # words twice: the first counts
        ("a blue red star circle grows on a gray background", ("star", "blue", "", "grows", None), "gray"),
        # another order, and words that mean nothing here
        (
            "on a gray background slowly moves left a small redder one",
            ("one", "", "small", "moves left", "slowly"),
            "gray",
        ),
        ("the the red xyz circle moves left", ("circle", "red", "", "moves left", None), ""),
        # half a motion is none; a speed without one is still said
        ("a large blue star stays quickly", ("star", "blue", "large", "", "quickly"), ""),
        # a speed that the grammar does not allow there
        ("a large blue star stays still slowly", ("star", "blue", "large", "stays still", "slowly"), ""),
        # "redder" and "circles" are other words
        ("a redder circles star", ("star", "", "", "", None), ""),
    ],
)
def test_of_anything_else_the_words_that_can_be_told(text: str, shape: tuple[Any, ...], background: str) -> None:
    assert parse(text) is None
    assert read_caption(text) == World((Shape(*shape),), background)


@pytest.mark.parametrize("text", ["", "   ", "nothing to see", "on a navy background", "and and and"])
def test_nothing_is_told(text: str) -> None:
    assert read_caption(text) is None


def test_two_objects_have_their_own_words() -> None:
    broken = "a small red circle moves left and a large star and a green square on a beige background"
    seen = read_caption(broken)
    assert seen is not None
    assert seen.shapes == (
        Shape("circle", "red", "small", "moves left", None),
        Shape("star", "", "large", "", None),
        Shape("square", "green", "", "", None),
    )
    assert seen.background == "beige"
    # A part that says nothing is no object.
    assert len(read_caption("xyz and a blue star").shapes) == 1


# --- lies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [1, 2])
def test_lies_differ_in_one_attribute_and_are_sentences(objects: int) -> None:
    g = generator(1)
    for _ in range(40):
        world = random_world(g, objects=objects)
        found = hard_negatives(world, 9, g)
        assert len(found) == len(set(found)) == 9
        counts: Counter[str] = Counter()
        for text in found:
            told = parse(text)
            assert told is not None, text
            assert told.caption == text
            (name,) = differences(world, told)
            counts[name] += 1
            assert len({thing.colour for thing in told.shapes}) == objects
        # The attributes take turns.
        asked = [name for name in ATTRIBUTES if name != "speed" or any(thing.speed for thing in world.shapes)]
        assert set(counts) == set(asked)
        ample = [name for name in asked if name in ("kind", "colour", "motion")]
        assert max(counts[name] for name in ample) - min(counts[name] for name in ample) <= 2


@pytest.mark.parametrize("count", [1, 5, 20, 28])
def test_as_many_lies_as_asked_for(count: int) -> None:
    found = hard_negatives(World((STAR,), "navy"), count, generator())
    assert len(set(found)) == count
    assert World((STAR,), "navy").caption not in found


def test_lies_are_a_function_of_the_generator() -> None:
    assert hard_negatives(TWO, 9, generator(3)) == hard_negatives(TWO, 9, generator(3))
    assert hard_negatives(TWO, 9, generator(3)) != hard_negatives(TWO, 9, generator(4))


def test_what_moves_in_a_lie_has_a_speed_and_what_does_not_has_none() -> None:
    everything = [parse(text) for text in hard_negatives(World((STAR,), "navy"), 28, generator())]
    moved = [world.shapes[0] for world in everything if world and world.shapes[0].motion != "stays still"]
    assert len(moved) == 5
    assert all(thing.speed for thing in moved)
    stopped = [parse(text) for text in hard_negatives(ONE, 30, generator())]
    assert [w.shapes[0].speed for w in stopped if w and w.shapes[0].motion == "stays still"] == [None]


# --- counting ---------------------------------------------------------------------------------------------------------


def test_a_tally_counts_what_is_scored() -> None:
    right = dict.fromkeys(ATTRIBUTES, True)
    wrong = dict.fromkeys(ATTRIBUTES, False)
    tally = Accuracy.of([[right], [{**right, "speed": None}], [{**right, "kind": False}], [wrong]])
    assert tally.trials == {**dict.fromkeys(ATTRIBUTES, 4), "speed": 3, "whole": 4}
    assert tally.hits == {**dict.fromkeys(ATTRIBUTES, 3), "kind": 2, "speed": 2, "whole": 2}
    assert tally.rate("kind") == 0.5
    assert tally.rate("speed") == pytest.approx(2 / 3)
    assert tally.mean == pytest.approx((2 / 4 + 3 / 4 + 3 / 4 + 3 / 4 + 2 / 3 + 3 / 4) / 6)
    assert tally.to_json() == {"mean": round(tally.mean, 4), "hits": tally.hits, "trials": tally.trials}


def test_a_tally_of_some_attributes_leaves_the_others_out() -> None:
    tally = Accuracy.of([[{"kind": True, "colour": False}], [{"kind": True, "colour": True}]])
    assert (tally.rate("kind"), tally.rate("colour"), tally.rate("whole")) == (1.0, 0.5, 0.5)
    assert math.isnan(tally.rate("motion"))
    assert tally.mean == 0.75


def scores(objects: int, seen: list[World | None], said: list[World | None]) -> Accuracy:
    evaluator = object.__new__(Evaluator)
    evaluator.objects = objects
    return evaluator.score(seen, said)


def test_every_object_that_was_said_is_looked_for() -> None:
    tally = scores(2, [TWO], [TWO])
    assert tally.trials == {**dict.fromkeys(ATTRIBUTES, 2), "speed": 1, "whole": 1}
    assert tally.hits == tally.trials
    # The same two objects the other way round are the same world.
    assert scores(2, [World((STAR, CIRCLE), "beige")], [TWO]).hits == tally.hits


def test_what_is_not_seen_is_wrong() -> None:
    assert scores(1, [None], [ONE]).hits == dict.fromkeys((*ATTRIBUTES, "whole"), 0)
    half = scores(2, [World((CIRCLE,), "beige")], [TWO])
    assert (half.trials["kind"], half.trials["whole"]) == (2, 1)
    assert (half.hits["kind"], half.hits["background"], half.hits["whole"]) == (1, 2, 0)


def test_what_is_not_said_is_not_right() -> None:
    """A model does not do better by saying less."""
    nothing = scores(1, [ONE], [None])
    assert nothing.trials == dict.fromkeys((*ATTRIBUTES, "whole"), 1)
    assert not any(nothing.hits.values())
    short = scores(2, [TWO], [World((CIRCLE,), "beige")])
    assert (short.trials["kind"], short.hits["kind"], short.hits["whole"]) == (2, 1, 0)
    blank = scores(1, [ONE], [read_caption("a red circle")])
    assert (blank.hits["kind"], blank.hits["colour"], blank.hits["size"], blank.hits["whole"]) == (1, 1, 0, 0)


def test_saying_more_than_there_is_is_wrong() -> None:
    """A caption that names a second object is not right about the first."""
    for wrong in (
        World((CIRCLE, STAR), "navy"),
        read_caption("a small red circle moves left slowly and a star on a navy background"),
    ):
        for tally in (scores(1, [wrong], [ONE]), scores(1, [ONE], [wrong])):
            assert tally.hits == {**dict.fromkeys((*ATTRIBUTES, "whole"), 0), "background": 1}


def test_a_speed_that_is_left_out_is_wrong_where_something_moves() -> None:
    unsaid = read_caption("a small red circle moves left on a navy background")
    for tally in (scores(1, [unsaid], [ONE]), scores(1, [ONE], [unsaid])):
        assert (tally.hits["speed"], tally.trials["speed"], tally.hits["motion"], tally.hits["whole"]) == (0, 1, 1, 0)
    still = replace(ONE, shapes=(replace(CIRCLE, motion="stays still", speed=None),))
    assert scores(1, [still], [still]).trials["speed"] == 0
    assert scores(1, [unsaid], [still]).hits["speed"] == 0


def test_only_the_very_sentence_is_exact() -> None:
    evaluator = object.__new__(Evaluator)
    evaluator.objects, evaluator.worlds = 1, [ONE] * 3
    tally = evaluator.score_captions([ONE.caption, f"{ONE.caption} background", "a red circle"])
    assert (tally.hits["exact"], tally.trials["exact"]) == (1, 3)
    assert tally.hits["whole"] == 2


def test_what_else_a_clip_shows_is_counted() -> None:
    evaluator = object.__new__(Evaluator)
    evaluator.objects = 1
    clean = render(ONE, generator(), side=48, frames=9)
    blot = clean.clone()
    blot[:, 4:12, 4:12] = 255  # the circle is in the other half
    clips = torch.stack([clean, blot])
    tally = evaluator.score_clips(clips, [ONE, ONE])
    assert (tally.hits["alone"], tally.trials["alone"]) == (1, 2)


def test_one_wrong_word_is_one_miss() -> None:
    for text in hard_negatives(ONE, 20, generator(2)):
        told = parse(text)
        assert told is not None
        tally = scores(1, [told], [ONE])
        (name,) = differences(ONE, told)
        missed = {one for one in ATTRIBUTES if tally.hits[one] < tally.trials[one]}
        assert missed == {name} | ({"speed"} if told.shapes[0].speed is None else set())
        assert tally.hits["whole"] == 0
