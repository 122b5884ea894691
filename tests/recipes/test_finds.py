"""Sentences that look for clips, which clips satisfy them, and what is counted of those that are found."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from recipes.worlds.finds import Hits, query_of
from recipes.worlds.grammar import WORDS, Shape, World, random_world

CIRCLE = Shape("circle", "red", "small", "moves left", "slowly")
STAR = Shape("star", "blue", "large", "stays still", None)
WORLD = World((CIRCLE, STAR), "navy")


def test_a_query_is_satisfied_by_its_clip_and_by_what_it_leaves_open() -> None:
    asked = Counter[str]()
    for place in range(24):
        generator = torch.Generator().manual_seed(place)
        world, others = (random_world(generator, objects=2), [random_world(generator, objects=2) for _ in range(50)])
        full, less, other = (query_of(world, place, kind) for kind in ("full", "one attribute left out", "reordered"))
        assert full.text == world.caption
        assert sorted(other.text.split()) == sorted(full.text.split())
        assert other.text != full.text
        assert len(less.text.split()) < len(full.text.split())
        for query in (full, less, other):
            assert query.is_satisfied(world)
            assert query.is_satisfied(replace(world, shapes=world.shapes[::-1]))
            assert not any(map(query.is_satisfied, others))
        left = set(full.text.split()) - set(less.text.split())
        asked.update(name for name, words in WORDS.items() if left & set(" ".join(words).split()))
    assert asked.keys() >= {"kind", "colour", "background"}


@pytest.mark.parametrize("place", range(6))
def test_only_what_is_left_out_is_open(place: int) -> None:
    query = query_of(WORLD, place, "one attribute left out")
    changed = {
        "kind": replace(CIRCLE, kind="ring"),
        "colour": replace(CIRCLE, colour="green"),
        "size": replace(CIRCLE, size="large"),
        "motion": replace(CIRCLE, motion="grows"),
        "speed": replace(CIRCLE, speed="quickly"),
    }
    worlds = {name: World((shape, STAR), "navy") for name, shape in changed.items()}
    worlds["background"] = World((CIRCLE, STAR), "beige")
    satisfied = {name for name, world in worlds.items() if query.is_satisfied(world)}
    expected = {list(WORDS)[place]}
    assert satisfied == (expected | {"speed"} if expected == {"motion"} else expected)


def test_hits_count_places() -> None:
    assert Hits.of([True, False], 1) == Hits(True, True, 1.0)
    assert Hits.of([False] * 5 + [True], 3) == Hits(False, False, 0.0)
    found = Hits.of([False, True, True], 2)
    assert (found.first, found.five) == (False, True)
    assert found.gain == pytest.approx((1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3)))


def test_the_embedded_model_finds_its_clips() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("diffusers")
    from recipes.worlds import measure, tables
    from recipes.worlds.evaluation import Evaluator
    from uvg_core.pipeline.pipeline import Pipeline

    evaluator = Evaluator(Pipeline(device="cpu"), 6, 2, seed=3)
    evaluator.worlds[1], evaluator.latents[1] = evaluator.worlds[0], evaluator.latents[0]  # drawn anew
    found = measure.JOBS["find"](evaluator)
    gains = found.pop("nDCG@5")
    assert [*found] == [*gains]
    assert all(letters["five"] == "11" for letters in found.values())
    row = {"of": "two objects", "job": "find", "clips": 6, "answers": found, "nDCG@5": gains}
    assert "| reordered, 2 queries | 100.0" in tables.tables([row | {"numbers": {}}])
