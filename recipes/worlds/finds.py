"""Sentences that look for a little world's clip, and how well the clips that they find satisfy them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from uvg_core.io import write_text
from uvg_core.media.video import Clip
from uvg_core.pipeline.find import Index, Judge
from uvg_core.pipeline.pipeline import Pipeline

from .evaluation import Evaluator, held_out_worlds
from .grammar import ATTRIBUTES, Shape, World

QUERIES = ("full", "one attribute left out", "reordered")
TOP = 5


@dataclass(frozen=True)
class Query:
    """A sentence about a clip. ``world``: what it asks for, with empty words for what it leaves open."""

    text: str
    world: World

    def is_satisfied(self, world: World) -> bool:
        """Whether a clip of ``world`` shows what is asked for; the order of the objects is open."""
        asked = self.world
        if (asked.background and asked.background != world.background) or len(asked.shapes) != len(world.shapes):
            return False
        orders = world.shapes, world.shapes[::-1]
        return any(all(map(_has, asked.shapes, shapes)) for shapes in orders)


def _has(asked: Shape, shape: Shape) -> bool:
    words = {one.name: getattr(asked, one.name) for one in fields(asked)}
    return all(word in ("", getattr(shape, name)) for name, word in words.items())


def query_of(world: World, place: int, kind: str) -> Query:
    """The sentence that looks for the clip at ``place``: the attributes that are left out, or what is reordered, and
    the objects take turns."""
    if kind == "full":
        return Query(world.caption, world)
    if kind == "reordered":
        return Query(_reordered(world, place), world)
    attribute, index = ATTRIBUTES[place % len(ATTRIBUTES)], place // len(ATTRIBUTES) % len(world.shapes)
    if attribute == "background":
        return Query(world.caption.rsplit(" on a ", 1)[0], replace(world, background=""))
    shape = world.shapes[index]
    if attribute == "speed" and shape.speed is None:  # what stays still has none
        attribute = "motion"
    left = {attribute: ""} | ({"speed": ""} if attribute == "motion" else {})
    shapes = (*world.shapes[:index], replace(shape, **left), *world.shapes[index + 1 :])
    asked = replace(world, shapes=shapes)
    return Query(" ".join(asked.caption.split()), asked)


def _reordered(world: World, place: int) -> str:
    """The objects in the other order, the background first, colours before sizes, or speeds before motions."""
    ground, shapes = f"on a {world.background} background", world.shapes

    def phrases(words: Callable[[Shape], Sequence[str | None]]) -> str:
        return " and ".join(" ".join(word for word in ("a", *words(shape)) if word) for shape in shapes)

    match place % 4:
        case 0:
            return replace(world, shapes=shapes[::-1]).caption
        case 1:
            return f"{ground} {' and '.join(shape.phrase for shape in shapes)}"
        case 2:
            return f"{phrases(lambda one: (one.colour, one.size, one.kind, one.motion, one.speed))} {ground}"
        case _:
            return f"{phrases(lambda one: (one.size, one.colour, one.kind, one.speed, one.motion))} {ground}"


@dataclass(frozen=True)
class Hits:
    """Of the clips that a query has found whether the ``first`` satisfies it, whether one of ``five`` does, and nDCG@5,
    where each clip that satisfies it counts 1."""

    first: bool
    five: bool
    gain: float

    @classmethod
    def of(cls, right: Sequence[bool], satisfying: int) -> Hits:
        """``right``: what was found, best first; so many clips satisfy the query at all."""
        gain = sum(1 / math.log2(place + 2) for place, one in enumerate(right[:TOP]) if one)
        best = sum(1 / math.log2(place + 2) for place in range(min(TOP, satisfying)))
        return cls(any(right[:1]), any(right[:TOP]), gain / best)


class _Encoded(Judge):
    """A judge of clips whose latents ``[N,C,F,h,w]`` are there, a file with its number for each."""

    def __init__(self, pipe: Pipeline, encoded: Tensor) -> None:
        super().__init__(pipe)
        self._encoded = encoded

    def read(self, path: Path) -> Clip:
        no_file: Any = None
        return Clip(torch.zeros(1, 1, 1, 3, dtype=torch.uint8), no_file, note=path.stem)

    def latents(self, clips: Sequence[Any]) -> Tensor:
        return self._encoded[[int(clip.note) for clip in clips]]


def distinct(evaluator: Evaluator) -> tuple[list[World], Tensor]:
    """The evaluator's worlds and latents, those whose captions others have before them replaced by further ones."""
    worlds, latents, more = list(evaluator.worlds), evaluator.latents.clone(), 0
    known: dict[str, int] = {}
    for place, world in enumerate(worlds):
        while world.caption in known:
            more += 1
            seed, run = evaluator.seed + more * 2**20, evaluator.run
            how: dict[str, Any] = {"objects": evaluator.objects, "side": run.height, "frames": run.frames}
            ((world, pixels),) = held_out_worlds(1, seed=seed, **how)
            worlds[place], latents[place] = world, evaluator.encode(pixels[None])[0]
        known[world.caption] = place
    return worlds, latents


def hits(pipe: Pipeline, worlds: Sequence[World], latents: Tensor) -> dict[str, dict[str, list[Hits]]]:
    """A query for each of some clips, the kinds of queries in turn, answered by ``find`` (``judged``) and by its words
    alone (``words``); by kind. ``worlds``, ``latents`` ``[N,C,F,h,w]``: of the clips, which are indexed as a folder's
    are."""
    found: dict[str, dict[str, list[Hits]]] = {how: {kind: [] for kind in QUERIES} for how in ("judged", "words")}
    with TemporaryDirectory() as folder:
        for place in range(len(worlds)):
            write_text(Path(folder, f"{place:06d}.mp4"), str(place))
        judge = _Encoded(pipe, latents)
        with closing(Index(folder)) as index:
            index.update(judge)
            for place, world in enumerate(worlds):
                kind = QUERIES[place % len(QUERIES)]
                query = query_of(world, place // len(QUERIES), kind)
                satisfying = sum(map(query.is_satisfied, worlds))
                paths = {
                    "judged": [one.clip for one in index.find(query.text, judge, TOP)],
                    "words": index.by_words(query.text, TOP).values(),
                }
                for how, some in paths.items():
                    right = [query.is_satisfied(worlds[int(path.stem)]) for path in some]
                    found[how][kind].append(Hits.of(right, satisfying))
    return found
