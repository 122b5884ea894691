"""What is held of a little world's clip, and sentences with a blank."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from recipes.worlds.fills import ends_free, objects_free, psnr, with_blank
from recipes.worlds.grammar import ATTRIBUTES, random_world


def test_a_blank_stands_for_one_attribute_of_the_sentence() -> None:
    for objects in (1, 2):
        generator, asked = torch.Generator().manual_seed(objects), Counter[str]()
        for place in range(48):
            world = random_world(generator, objects=objects)
            template, attribute = with_blank(world, place)
            words = {world.background, *(getattr(shape, attribute, None) for shape in world.shapes)}
            assert template.count("___") == 1
            assert world.caption in {template.replace("___", word) for word in words if word}
            asked[attribute] += 1
        assert set(asked) == set(ATTRIBUTES)
        assert asked["kind"] == asked["background"] == 8


def test_masks_hold_ends_and_what_is_around_the_objects() -> None:
    latents = torch.zeros(2, 16, 3, 6, 6)
    assert ends_free(latents, last=False).flatten().tolist() == [0, 1, 1]
    assert ends_free(latents, last=True).flatten().tolist() == [0, 1, 0]
    clip = torch.full((1, 9, 48, 48, 3), 30, dtype=torch.uint8)
    clip[0, 0, 10:14, 9:12] = 200
    clip[0, 8, 20:30, 9:12] = 200  # the way counts, not one frame
    free = objects_free(clip)
    assert free.shape == (1, 1, 1, 6, 6)
    assert free[0, 0, 0].nonzero().tolist() == [[1, 1], [2, 1], [3, 1]]


def test_decibels_count_the_pixels_that_are_asked_for() -> None:
    clips = torch.full((1, 2, 4, 4, 3), 100, dtype=torch.uint8)
    made = clips.clone()
    made[:, 1] += 10
    where = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    where[:, 0] = True
    assert psnr(made, clips, where) > 100
    assert psnr(made, clips, ~where) == pytest.approx(28.13, abs=0.01)


def test_the_embedded_model_gives_back_what_it_held() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("diffusers")
    from recipes.worlds import answers, measure, tables
    from recipes.worlds.evaluation import Evaluator
    from uvg_core.pipeline.pipeline import Pipeline
    from uvg_core.sampling import Sampling

    evaluator = Evaluator(Pipeline(device="cpu"), 2, 1, sampling=Sampling(steps=1))
    found = measure.JOBS["fill"](evaluator)
    decibels = found.pop("dB")
    assert list(found) == ["first frame", "first and last", "region", "joint", "blank"]
    assert all(len(letters["whole"]) == 2 for letters in found.values())
    assert decibels["first frame, held"] == decibels["first frame, the VAE's own"] > 25
    row = {"of": "one object", "job": "fill", "clips": 2, "dB": decibels, "answers": found}
    row["numbers"] = {part: answers.Answers(letters).numbers() for part, letters in found.items()}
    shown = tables.tables([row])
    assert "sentences with one blank, beside the clip" in shown
    assert "outside the region, held" in shown
