"""What a user asks of a clip of a little world: one word changed, in the words of the model's own caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uvg_core.errors import UniViGUError
from uvg_core.pipeline.wording import changes_of, reworded

from .grammar import BACKGROUNDS, WORDS, Shape, World, draw_index, read_caption

EDITED = ("colour", "kind", "size", "motion", "background")  # in turn, so equally often
Score = dict[str, bool | None]  # by attribute; None for what is not scored
_AWAY = 25  # of 255: a pixel that differs by more from the background shows an object


@dataclass(frozen=True)
class Wish:
    """``wanted``: the world after the change of ``attribute`` of object ``index`` of ``world``."""

    world: World
    wanted: World
    attribute: str
    index: int

    def reworded(self, caption: str) -> str:
        """The caption after the change. Words are named as the caption has them: where the model misread what is to be
        changed, a user still changes what stands there. Where there are no such words, the new caption is typed."""
        said, new = read_caption(caption), self.wanted
        if self.attribute == "background":
            old = said.background if said and said.background else self.world.background
            changes = (f"{old} background={new.background} background",)
        else:
            mine, shape = self._said(said), new.shapes[self.index]
            changes = (f"{_words(mine, self.attribute)}={_words(self._meant(mine, shape), self.attribute)}",)
        try:
            return reworded(caption, changes_of(changes))
        except UniViGUError:
            return new.caption

    def _said(self, said: World | None) -> Shape:
        """The object in the caption that a user means: the one of its colour, else of its place, else the true one."""
        true = self.world.shapes[self.index]
        shapes = said.shapes if said else ()
        place = shapes[self.index] if self.index < len(shapes) else true
        return next((one for one in shapes if one.colour == true.colour), place)

    def _meant(self, said: Shape, wanted: Shape) -> Shape:
        """What the caption has, with the wished attribute."""
        changed = replace(said, **{self.attribute: getattr(wanted, self.attribute)})
        return replace(changed, speed=wanted.speed) if self.attribute == "motion" else changed

    def judged(self, scores: Sequence[Score]) -> tuple[bool, list[Score]]:
        """Whether the wish came true, and the scores of all else: those of what was asked for are None in them."""
        is_asked = [self.attribute == "background" or index == self.index for index in range(len(scores))]
        kept = [{**one, self.attribute: None} if asked else one for one, asked in zip(scores, is_asked, strict=True)]
        return scores[self.index][self.attribute] is True, kept


def wish_of(world: World, place: int, seed: int) -> Wish:
    """What is asked of the clip at ``place``: attributes and objects take turns, the new word is drawn."""
    generator = torch.Generator().manual_seed((seed * 2**20 + place) % 2**62)
    attribute = EDITED[place % len(EDITED)]
    index = place // len(EDITED) % len(world.shapes)
    if attribute == "background":
        others = [word for word in BACKGROUNDS if word != world.background]
        return Wish(world, replace(world, background=others[draw_index(len(others), generator)]), attribute, 0)
    shape = world.shapes[index]
    taken = {one.colour for one in world.shapes} if attribute == "colour" else {getattr(shape, attribute)}
    words = [word for word in WORDS[attribute] if word not in taken]
    changed = replace(shape, **{attribute: words[draw_index(len(words), generator)]})
    if attribute == "motion":  # what stays still has no speed, what moves has one
        changed = replace(changed, speed=None if changed.motion == "stays still" else shape.speed or "slowly")
    shapes = (*world.shapes[:index], changed, *world.shapes[index + 1 :])
    return Wish(world, replace(world, shapes=shapes), attribute, index)


def away_from_ground(clip: Tensor, grounded: Tensor | None = None) -> Tensor:
    """Where a clip, uint8 ``[T,S,S,3]``, shows something else than the ground of ``grounded``, or its own:
    ``[T,S,S]``."""
    colour = (clip if grounded is None else grounded).flatten(0, 2).mode(0).values.int()
    return (clip.int() - colour).abs().amax(-1) >= _AWAY


def _words(shape: Shape, attribute: str) -> str:
    """As few words of an object as name an attribute of it and of no other: no two objects share a colour."""
    if attribute == "colour":
        return f"{shape.colour} {shape.kind}"
    if attribute == "size":
        return f"{shape.size} {shape.colour}"
    named = f"{shape.colour} {shape.kind}"
    return named if attribute == "kind" else f"{named} {shape.motion}{f' {shape.speed}' if shape.speed else ''}"


def background_psnr(clips: Tensor, made: Tensor, edited: Tensor, which: Sequence[int]) -> float:
    """PSNR in dB of ``made`` against ``clips``, uint8 ``[N,T,S,S,3]``, over the pixels that show the background in the
    clip and after the edit; of the clips ``which``."""
    error, count = 0.0, 0
    for index in which:
        quiet = ~(away_from_ground(clips[index]) | away_from_ground(edited[index], clips[index]))
        squares = (made[index].float() - clips[index].float()).square().mean(-1)[quiet]
        error, count = error + float(squares.sum()), count + squares.numel()
    return -10 * float(torch.tensor(error / max(count, 1) / 255**2 + 1e-12).log10())
