"""Stories of little worlds, and what is said of films."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.worlds.detector import read_world
from recipes.worlds.drawing import Placement, draw
from recipes.worlds.evaluation import Evaluator
from recipes.worlds.grammar import Shape, World
from recipes.worlds.stories import SHOTS, stories, story_of

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
CIRCLE = Shape("circle", "red", "large", "moves left", "slowly")


def test_motions_alternate_and_everything_else_stays() -> None:
    for place, shape in enumerate((CIRCLE, replace(CIRCLE, motion="grows"))):
        shots = story_of(World((shape,), "navy"), place)
        motions = [shot.shapes[0].motion for shot in shots]
        assert len(shots) == SHOTS
        assert motions[1::2] == ["stays still"] * 2
        assert {motions[0], motions[2]} in ({"moves left", "moves right"}, {"moves up", "moves down"})
        assert len({(*shot.caption.split()[:4], shot.background) for shot in shots}) == 1


class Told:
    """What ``stories`` asks of an evaluator, whose films are drawn by hand: a circle goes to the left, stays, comes
    back and stays. ``jump``: how far it is away, in sides, where the third shot begins."""

    def __init__(self, jump: float = 0.0, tint: int = 0) -> None:
        self.worlds, self.run = [World((CIRCLE,), "navy")], SimpleNamespace(frames=9)
        self.latents, self.jump, self.tint, self.made = torch.zeros(1, 16, 3, 6, 6), jump, tint, 0
        self.scores = Evaluator.scores.__get__(SimpleNamespace(objects=1))

    def read(self, pixels: Tensor) -> list[World | None]:
        return [read_world(clip) for clip in pixels]

    def encode(self, pixels: Tensor) -> Tensor:
        return torch.zeros(1, 16, 1 + (pixels.shape[1] - 1) // 4, 6, 6)

    def drawn(self, texts: list[str], **held: Any) -> Tensor:
        assert ("clean" in held) == (self.made > 0)
        assert self.made == 0 or held["free"].flatten(1)[0].tolist() == [0.0, 0.0, 1.0]
        return torch.zeros(1)

    def decode(self, _: Tensor) -> Tensor:
        """The nine frames of the next run, of which the first five are there but for the first run."""
        start = 0 if self.made == 0 else 4 * self.made
        times = torch.arange(start, start + 9).float()
        self.made += 1
        x = 0.5 - 0.02 * times.clamp(max=8) + 0.02 * (times.clamp(16, 24) - 16)
        x = x + self.jump * (times > 16)
        centres = torch.stack([x, torch.full_like(x, 0.5)], 1)
        clip = draw(self.worlds[0], [Placement(centres, torch.full_like(x, 0.2))], 48)
        return (clip.int() + (self.tint * (times > 24)).int()[:, None, None, None]).clamp(0, 255).to(torch.uint8)[None]


def test_a_film_drawn_as_it_should_be_is_right_in_everything() -> None:
    found, change = stories(Told())  # type: ignore[arg-type]
    assert all(set(letters) <= {"1", "-"} for part in found.values() for letters in part.values())
    assert found["smooth"]["jumps"] == "111"
    assert change["borders over inside"] < 1.1  # two of three shots begin with standing still


def test_a_jump_and_another_light_are_seen() -> None:
    assert stories(Told(jump=0.1))[0]["smooth"]["jumps"] == "101"  # type: ignore[arg-type]
    tinted = stories(Told(tint=20))[0]["smooth"]  # type: ignore[arg-type]
    assert tinted["colour"] == "110"
    assert tinted["whole"] == "0"
