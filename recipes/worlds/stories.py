"""Stories of little worlds: shots whose motions alternate, so that objects stay in view, half of them moving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .edits import away_from_ground
from .evaluation import Accuracy, Evaluator
from .fills import ends_free
from .grammar import DIRECTIONS, Shape, World

SHOTS, OVERLAP = 4, 5
STAYS = ("kind", "colour", "size", "background")
FAR, OTHER = 2.0, 5.0  # pixels that a centroid jumps, and levels of 255 that a mean colour differs
_BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}


def story_of(world: World, place: int) -> list[World]:
    """The worlds of the shots: to one side, still, back again, still. What has no direction gets one by its place."""
    directions = tuple(DIRECTIONS)

    def moved(shape: Shape, number: int, back: bool) -> Shape:
        named = shape.motion.removeprefix("moves ")
        to = named if named in directions else directions[(place + number) % len(directions)]
        return replace(shape, motion=f"moves {_BACK[to] if back else to}", speed=shape.speed or "slowly")

    still = tuple(replace(shape, motion="stays still", speed=None) for shape in world.shapes)
    there, back = (tuple(moved(one, n, turned) for n, one in enumerate(world.shapes)) for turned in (False, True))
    return [replace(world, shapes=shapes) for shapes in (there, still, back, still)]


def stories(evaluator: Evaluator, overlap: int = OVERLAP) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """Films from the worlds, as ``uvg_core.pipeline.story`` makes them. Letters by part: ``followed``, what each shot
    shows against its prompt; ``kept``, what should stay of the first shot in the others; ``smooth``, whether no object
    jumps where shots meet (``jumps``), and the mean colour stays that of the first shot (``colour``). Also how much
    changes from frame to frame where shots meet, over how much does inside: of medians."""
    told = [story_of(world, index) for index, world in enumerate(evaluator.worlds)]
    films, ends = _films(evaluator, told, overlap)
    shots = [films[:, end - evaluator.run.frames : end] for end in ends]
    read = list(zip(*[evaluator.read(pixels) for pixels in shots], strict=True))
    followed = [
        [one for both in zip(worlds, seen, strict=True) for one in evaluator.scores(*both)]
        for worlds, seen in zip(told, read, strict=True)
    ]
    kept = [
        [{name: one[name] for name in STAYS} for other in others for one in evaluator.scores(first, other)]
        for first, *others in read
    ]
    means = torch.stack([pixels.float().mean((1, 2, 3)) for pixels in shots], 1)
    same = (means[:, 1:] - means[:, :1]).abs().amax(-1) <= OTHER
    borders = [end - 1 for end in ends[:-1]]
    change = (films[:, 1:].float() - films[:, :-1].float()).abs().mean((2, 3, 4))
    inside = [place for place in range(change.shape[1]) if place not in borders]
    ratio = float(change[:, borders].median() / change[:, inside].median())
    steps = torch.stack([_steps(film) for film in films])
    calm = _jumps(steps, borders) <= FAR
    smooth = {"jumps": _letters(calm), "colour": _letters(same), "whole": _letters((calm & same).all(1))}
    found = {"followed": Accuracy.of(followed).answers, "kept": Accuracy.of(kept).answers, "smooth": smooth}
    return found, {"borders over inside": ratio}


def _films(evaluator: Evaluator, told: Sequence[Sequence[World]], overlap: int) -> tuple[Tensor, list[int]]:
    """Films, uint8 ``[N,T,S,S,3]``, and the frame at which each shot ends."""
    films, ends, frames = None, list[int](), evaluator.run.frames
    runs = -(-(frames - 1) // (frames - overlap))  # that make a shot as long as a clip, but for the frame it begins at
    for shot in zip(*told, strict=True):
        for _ in range(1 if films is None else runs):
            held: dict[str, Any] = {}
            if films is not None:
                known = evaluator.encode(films[:, -overlap:])
                clean, free = torch.zeros_like(evaluator.latents), ends_free(evaluator.latents, last=False)
                clean[:, :, : known.shape[2]], free[:, :, : known.shape[2]] = known, 0
                held = {"clean": clean, "free": free}
            made = evaluator.decode(evaluator.drawn([world.caption for world in shot], **held))
            films = made if films is None else torch.cat([films, made[:, overlap:]], 1)
        assert films is not None
        films = films[:, : frames + (frames - 1) * len(ends)]
        ends.append(films.shape[1])
    assert films is not None
    return films, ends


def _steps(film: Tensor) -> Tensor:
    """How far the middle of what is shown moves from frame to frame, in pixels ``[T-1]``."""
    shown = away_from_ground(film).float()
    rows, columns = (torch.arange(float(side)) for side in shown.shape[1:])
    whole = shown.sum((1, 2)).clamp(min=1)
    centres = torch.stack([(shown.sum(2) * rows).sum(1) / whole, (shown.sum(1) * columns).sum(1) / whole], 1)
    return (centres[1:] - centres[:-1]).square().sum(1).sqrt()


def _jumps(steps: Tensor, borders: Sequence[int]) -> Tensor:
    """``[N,B]``, by how much the step at each border goes beyond the usual one of the shot that begins there."""
    length = borders[1] - borders[0]
    usual = torch.stack([steps[:, place + 1 : place + length].median(1).values for place in borders], 1)
    return steps[:, borders] - usual


def _letters(right: Tensor) -> str:
    return "".join("01"[int(one)] for one in right.flatten().tolist())
