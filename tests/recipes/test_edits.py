"""What is asked of an edit, in the caption's own words, and how it is judged."""

from __future__ import annotations

from collections import Counter

import torch

from recipes.worlds.edits import EDITED, background_psnr, wish_of
from recipes.worlds.grammar import WORDS, World, parse, random_world


def worlds(objects: int, count: int = 40) -> list[World]:
    generator = torch.Generator().manual_seed(objects)
    return [random_world(generator, objects=objects) for _ in range(count)]


def test_every_wish_is_one_change_in_the_words_of_the_caption() -> None:
    for objects in (1, 2):
        wishes = [wish_of(world, place, 3) for place, world in enumerate(worlds(objects))]
        assert set(Counter(wish.attribute for wish in wishes).values()) == {40 // len(EDITED)}
        assert {wish.index for wish in wishes if wish.attribute != "background"} == set(range(objects))
        for wish in wishes:
            assert parse(wish.reworded(wish.world.caption)) == wish.wanted
            assert wish.wanted != wish.world


def test_a_caption_that_misread_something_else_keeps_its_mistake() -> None:
    wish = wish_of(worlds(1)[0], 0, 0)
    assert wish.attribute == "colour"
    other = next(word for word in WORDS["background"] if word != wish.world.background)
    wrong = wish.world.caption.replace(f"{wish.world.background} background", f"{other} background")
    assert wish.reworded(wrong) == wish.wanted.caption.replace(wish.world.background, other)
    assert wish.reworded("nothing that is known") == wish.wanted.caption


def test_the_wish_and_the_rest_are_judged_apart() -> None:
    wish = wish_of(worlds(2)[1], 1, 0)  # a kind, of the first object
    right = {"kind": True, "colour": True, "size": True, "motion": True, "speed": None, "background": True}
    unasked = {**right, "kind": None}
    assert wish.judged([right, right]) == (True, [unasked, right])
    assert wish.judged([{**right, "kind": False}, right]) == (False, [unasked, right])
    lost = {**right, "size": False}
    assert wish.judged([right, lost]) == (True, [unasked, lost])


def test_the_background_is_where_neither_clip_shows_an_object() -> None:
    clip = torch.full((1, 2, 8, 8, 3), 100, dtype=torch.uint8)
    edited = clip.clone()
    edited[:, :, :3, :3] = 250
    assert background_psnr(clip, edited, edited, [0]) > 100
    assert abs(background_psnr(clip, edited + 10, edited + 10, [0]) - 28.13) < 0.05
