"""Reading a little world back from its pixels, to judge clips that a model made.

Nothing here shares anything with a model: no network, no latents, no weights. ``segmentation.py`` finds the background
and the objects' colours and coverage; an object's way and its growth are straight lines fitted to centroid and area
over the frames; ``classifier.py`` tells its kind and size. Every threshold lies halfway between the grammar's own
amounts. Blur, ringing and noise of a video codec are expected: coverage is soft everywhere.

Legend: T frames, S side in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from uvg_core.errors import UniViGUError

from .classifier import aligned, kind_scores, moments
from .drawing import GROWTH, PAIR_SCALE, TRAVEL
from .grammar import ATTRIBUTES, DIRECTIONS, KINDS, SIZES, Shape, World
from .segmentation import ground, objects_of, pieces, smoothed

LEAST_AREA = 0.0022  # fraction of the picture under which a blot is no object: a fifth of the thinnest digit of a pair
LOG_GROWTH = {speed: math.log(growth) for speed, growth in GROWTH.items()}


@dataclass(frozen=True)
class Reading:
    """One object as the pixels show it: its words, and the measurements behind them.

    ``travel``: way over the clip (x, y), in sides, y down. ``growth``: last radius over first. ``radius``: in the
    middle of the clip, in sides. ``margin``: by how much the kind's score beats the runner-up's; scores aim at 1 for
    the right kind and 0 for others, so that under about 0.2 the kind is a guess.
    """

    shape: Shape
    background: str
    travel: tuple[float, float]
    growth: float
    radius: float
    margin: float


def read_world(pixels: Tensor, objects: int = 1) -> World | None:
    """The world that a clip shows, its objects in the order of the colour table, or None where nothing is found.

    ``pixels``: uint8 ``[T,S,S,3]``, RGB 0-255, T >= 5 frames over two seconds, S >= 48. ``objects``: how many to look
    for, 1 or 2; of two, the world has only one where a second colour is not to be seen. Raises UniViGUError for another
    shape, type or number, and where scikit-learn or scipy is missing."""
    readings = read_objects(pixels, objects)
    return World(tuple(reading.shape for reading in readings), readings[0].background) if readings else None


def read_objects(pixels: Tensor, objects: int = 1) -> list[Reading]:
    """What ``read_world`` reads, with its measurements; an empty list where nothing is found. Same errors."""
    clip = _require_clip(pixels)
    if objects not in (1, 2):
        raise UniViGUError(f"objects is {objects}; a little world has 1 or 2")
    background, change = ground(clip)
    found = [_read(*seen, background, objects) for seen in objects_of(change, background, objects)]
    return [reading for reading in found if reading is not None]


def count_blots(pixels: Tensor) -> int:
    """How many separate things a clip shows, whatever they are: parts of what differs from the ground that hang
    together in space and time, from half the size of the least object on. Objects that touch are one. ``pixels`` as for
    ``read_world``; same errors."""
    _, noticed = smoothed(ground(_require_clip(pixels))[1])
    _, sizes = pieces(noticed)
    return int((sizes > LEAST_AREA / 2 * noticed.numel()).sum())


def _require_clip(pixels: Tensor) -> Tensor:
    """``pixels`` as floats on the CPU. Raises UniViGUError for what is no clip of a little world."""
    fits = pixels.ndim == 4 and pixels.shape[1] == pixels.shape[2] >= 48 and pixels.shape[3] == 3
    if pixels.dtype != torch.uint8 or not fits or len(pixels) < 5:
        raise UniViGUError(
            f"a clip to read is {pixels.dtype} {list(pixels.shape)}; expected uint8 [T,S,S,3] with T >= 5 and S >= 48; "
            "decode it to RGB 0-255 at a square size"
        )
    return pixels.cpu().float()


def score(expected: World, seen: World | None, index: int = 0) -> dict[str, bool | None]:
    """Whether every attribute of object ``index`` of the world that was asked for is seen, by name.

    ``speed`` is None, not scored, where the object that was asked for stays still; where it moves and no speed was
    named, the speed is wrong. Of two objects, those seen are matched with those asked for so that most attributes
    agree, colours first: one wrong colour must not swap the two. A background counts whenever anything is seen; every
    other attribute of a missing object is wrong."""
    wanted = expected.attributes(index)
    found: dict[str, str | None] = {}
    if seen is not None:
        partner = _partner(expected, seen, index)
        found = {"background": seen.background} if partner >= len(seen.shapes) else seen.attributes(partner)
    scores: dict[str, bool | None] = {name: bool(word) and found.get(name) == word for name, word in wanted.items()}
    return {**scores, "speed": None} if wanted["motion"] == "stays still" else scores


def _partner(expected: World, seen: World, index: int) -> int:
    """Which object of ``seen`` stands for object ``index`` of ``expected``; beyond its last: none does."""
    count = len(seen.shapes)

    def agreement(order: tuple[int, ...]) -> int:
        return sum(
            (10 if name == "colour" else 1) * (getattr(mine, name) == getattr(seen.shapes[other], name))
            for mine, other in zip(expected.shapes, order, strict=False)
            for name in ATTRIBUTES[:-1]
            if other < count
        )

    return max(permutations(range(max(len(expected.shapes), count))), key=agreement)[index]


def _line(times: Tensor, values: Tensor, weights: Tensor) -> tuple[float, float]:
    """Weighted straight line through values ``[T]``: the value at time 0, and the slope."""
    weights = weights / weights.sum()
    mean_time, mean = (weights * times).sum(), (weights * values).sum()
    slope = (weights * (times - mean_time) * (values - mean)).sum() / (weights * (times - mean_time).square()).sum()
    return float(mean - slope * mean_time), float(slope)


def _read(colour: str, covered: Tensor, background: str, objects: int) -> Reading | None:
    """Reads one object from its coverage ``[T,S,S]``, or None where there is too little of it."""
    frames, side = covered.shape[:2]
    area, centre, gyration = moments(covered)
    visible = area > 0.3 * area.median()
    if float(area.mean()) < LEAST_AREA * side**2 or int(visible.sum()) * 2 <= frames:
        return None
    times, weights = torch.linspace(-0.5, 0.5, frames), visible.float()
    x, y = (_line(times, centre[:, axis] / side, weights)[1] for axis in (0, 1))
    # Areas tell growth, for blur keeps them; the radius of gyration tells the scale, for thin strokes keep that.
    per_root = math.sqrt(float((weights * gyration.square()).sum() / (weights * area).sum()))
    middle, slope = _line(times, area.sqrt() * per_root, weights)
    fitted = (middle + slope * times).clamp(min=0.3 * middle)
    growth = float(fitted[-1] / fitted[0])

    scores = kind_scores(aligned(covered[visible], centre[visible], fitted[visible]))
    best, kinds = scores[:-1].topk(2)
    radius = middle * math.exp(float(scores[-1])) / side
    drawn_at = 1.0 if objects == 1 else PAIR_SCALE
    size = "large" if radius > drawn_at * math.sqrt(SIZES["small"] * SIZES["large"]) else "small"
    shape = Shape(KINDS[int(kinds[0])], colour, size, *_motion(x, y, growth))
    return Reading(shape, background, (x, y), growth, radius, margin=float(best[0] - best[1]))


def _motion(x: float, y: float, growth: float) -> tuple[str, str | None]:
    """The words for a way (x, y) in sides and a growth, each against the point halfway to standing still; where both
    pass theirs, the one that passes it further."""
    way, log_growth = max(abs(x), abs(y)), math.log(max(growth, 1e-3))
    moves, grows = way / (TRAVEL["slowly"] / 2), log_growth / (LOG_GROWTH["slowly"] / 2)
    if max(moves, grows) < 1:
        return "stays still", None
    amount, amounts = (log_growth, LOG_GROWTH) if grows > moves else (way, TRAVEL)
    speed = "quickly" if amount > sum(amounts.values()) / 2 else "slowly"
    direction = max(DIRECTIONS, key=lambda word: x * DIRECTIONS[word][0] + y * DIRECTIONS[word][1])
    return "grows" if grows > moves else f"moves {direction}", speed
