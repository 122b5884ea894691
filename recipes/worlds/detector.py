"""Reading a little world back from its pixels, to judge clips that a model made.

Nothing here shares anything with a model: no network, no latents, no weights. The ground is the median of the rim; an
object's colour is the table colour whose line from the ground explains the changed pixels best; its way and its growth
are straight lines fitted to centroid and area over the frames; its kind and size come from comparing it with pictures
drawn with the grammar's own ``cover`` and the *training* side of the handwriting (kernel ridge regression, e.g. Bishop,
Pattern Recognition and Machine Learning, eq. 6.8 and 6.9). Every threshold lies halfway between the grammar's own
amounts. Blur, ringing and noise of a video codec are expected: coverage is soft everywhere, and the pictures that
objects are compared with are blurred and noisy too.

Legend: T frames, S side in pixels, N side of an aligned patch, M pictures that kinds are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uvg_core.errors import UniViGUError

from . import world as worlds
from .world import Thing, World

PATCH = 24  # side of the aligned picture that kinds are told by
REACH = 2.3  # half its side, in radii of gyration: the tips of a star just fit
NOTICED = 22.0  # a smoothed pixel this far from the ground belongs to something; white on beige is 84 away
LUMA, TRUST = (0.299, 0.587, 0.114), 3.0  # codecs keep brightness better than hue, so it counts this much extra
CODEC_ERROR = 25.0  # how far off its colour's line a pixel of an object may well lie
LEAST_AREA = 0.0022  # share of the picture under which a blot is no object: a fifth of the thinnest digit of a pair


@dataclass(frozen=True)
class Reading:
    """One object as the pixels show it: its words, and the measurements behind them.

    ``travel``: way over the clip (x, y), in sides, y down. ``growth``: last radius over first. ``radius``: in the
    middle of the clip, in sides. ``margin``: by how much the kind's score beats the runner-up's; scores aim at 1 for
    the right kind and 0 for others, so that under about 0.2 the kind is a guess. ``area``: mean share of the picture.
    """

    thing: Thing
    background: str
    travel: tuple[float, float]
    growth: float
    radius: float
    margin: float
    area: float


def read_world(pixels: Tensor, objects: int = 1) -> World | None:
    """The world that a clip shows, its objects in the order of the colour table, or None where nothing is found.

    ``pixels``: uint8 ``[T,S,S,3]``, RGB 0-255, T >= 5 frames over two seconds, S >= 48. ``objects``: how many to look
    for, 1 or 2; of two, the world has only one where a second colour is not to be seen. Raises UniViGUError for another
    shape, type or number, and where scikit-learn or scipy is missing."""
    readings = read_objects(pixels, objects)
    return World(tuple(reading.thing for reading in readings), readings[0].background) if readings else None


def read_objects(pixels: Tensor, objects: int = 1) -> list[Reading]:
    """What ``read_world`` reads, with its measurements; an empty list where nothing is found. Same errors."""
    clip = _require_clip(pixels)
    if objects not in (1, 2):
        raise UniViGUError(f"objects is {objects}; a little world has 1 or 2")
    background, change = _ground(clip)
    readings = []
    for colour, coverage in _objects(change, background, objects):
        reading = _read(colour, coverage, background, 1.0 if objects == 1 else worlds.PAIR_SCALE)
        if reading is not None:
            readings.append(reading)
    return readings


def count_blots(pixels: Tensor) -> int:
    """How many separate things a clip shows, whatever they are: parts of what differs from the ground that hang
    together in space and time, from half the size of the least object on. Objects that touch are one. ``pixels`` as for
    ``read_world``; same errors."""
    _, change = _ground(_require_clip(pixels))
    noticed = _smooth(change.permute(0, 3, 1, 2)).square().sum(1) > NOTICED**2
    _, sizes = _pieces(noticed)
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


def score(said: World, seen: World | None, index: int = 0) -> dict[str, bool | None]:
    """Whether every attribute of object ``index`` of the world that was asked for is seen, by name.

    ``speed`` is None, not scored, where the object that was asked for stays still; where it moves and no speed was
    said, the speed is wrong. Of two objects, those seen are matched with those asked for so that most attributes agree,
    colours first: one wrong colour must not swap the two. A background counts whenever anything is seen; every other
    attribute of a missing object is wrong."""
    wanted = said.attributes(index)
    found: dict[str, str | None] = {}
    if seen is not None:
        partner = _partner(said, seen, index)
        found = {"background": seen.background} if partner is None else seen.attributes(partner)
    scores: dict[str, bool | None] = {
        name: word is not None and found.get(name) == word for name, word in wanted.items()
    }
    if said.things[index].motion == "stays still":
        scores["speed"] = None
    return scores


def _partner(said: World, seen: World, index: int) -> int | None:
    """Which object of ``seen`` stands for object ``index`` of ``said``, or None."""

    def agreement(order: tuple[int, ...]) -> int:
        pairs = [(thing, seen.things[j]) for thing, j in zip(said.things, order, strict=False) if j < len(seen.things)]
        names = ("kind", "size", "motion", "speed")
        same = [sum(getattr(mine, name) == getattr(other, name) for name in names) for mine, other in pairs]
        return sum(same) + 10 * sum(mine.colour == other.colour for mine, other in pairs)

    best = max(permutations(range(max(len(said.things), len(seen.things)))), key=agreement)
    return best[index] if best[index] < len(seen.things) else None


# --- ground and colours -----------------------------------------------------------------------------------------------


def _ground(clip: Tensor) -> tuple[str, Tensor]:
    """The background's name, and every pixel's distance from the ground, float ``[T,S,S,3]``.

    Frame by frame, as a codec's brightness may drift; a tip that touches the rim does not move the median."""
    width = max(1, clip.shape[1] // 24)
    rim = torch.ones(clip.shape[1:3], dtype=torch.bool)
    rim[width:-width, width:-width] = False
    level = clip[:, rim].median(dim=1).values
    table = torch.tensor(list(worlds.BACKGROUNDS.values()), dtype=torch.float32)
    nearest = int((level.median(dim=0).values - table).square().sum(-1).argmin())
    return list(worlds.BACKGROUNDS)[nearest], clip - level[:, None, None]


def _smooth(images: Tensor) -> Tensor:
    """Mean of 3 x 3 pixels of ``[T,C,S,S]``: enough against noise, and a mix of ground and paint stays on its line."""
    return F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


def _objects(change: Tensor, background: str, objects: int) -> Iterator[tuple[str, Tensor]]:
    """Colour and soft coverage ``[T,S,S]``, 0..1, of each object, in the order of the colour table."""
    ground = torch.tensor(worlds.BACKGROUNDS[background], dtype=torch.float32)
    lines, luma = torch.tensor(list(worlds.COLOURS.values()), dtype=torch.float32) - ground, torch.tensor(LUMA)
    smooth = _smooth(change.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    noticed = smooth.square().sum(-1) > NOTICED**2
    points = smooth[noticed]
    if len(points) < len(change) * 4:
        return
    # How much of its paint a pixel shows, and how far off that colour's line it still is.
    shares = (points @ lines.T / lines.square().sum(-1)).clamp(0, 1)
    off = (points[:, None] - shares[..., None] * lines).square().sum(-1)
    loss = off / (off + CODEC_ERROR**2)  # saturates: a large object's shade must not outvote a small second object
    groups = list(combinations(range(len(lines)), objects))
    chosen = min(groups, key=lambda group: float(loss[:, group].min(dim=1).values.sum()))

    owner = off[:, chosen].argmin(dim=1)
    cores = []
    for place, colour in enumerate(chosen):
        core = torch.zeros_like(noticed)
        core[noticed] = (owner == place) & (shares[:, colour] > 0.3)
        cores.append(_main_part(core))
    for place, colour in enumerate(chosen):
        core = cores[place]
        if not core.any():
            continue
        near = _widened(core, 2)
        if objects == 2 and cores[1 - place].any():  # between two objects, to the nearer one; frames are far apart
            mine, others = (
                _ndimage().distance_transform_edt(~mask.numpy(), sampling=(99, 1, 1))
                for mask in (core, cores[1 - place])
            )
            near &= torch.from_numpy(mine <= others)
        line = lines[colour]
        weighed = line + TRUST * (line @ luma) * luma
        coverage = ((change @ weighed) / (line @ weighed)).clamp(0, 1) * near
        yield list(worlds.COLOURS)[colour], coverage


def _main_part(core: Tensor) -> Tensor:
    """A mask ``[T,S,S]`` without blots: parts that hang together in space and time, of at least a quarter of the
    largest one's size (a quarter, as an object that a model lets flicker falls into parts)."""
    piece, sizes = _pieces(core)
    return core & (sizes * 4 >= sizes.max())[piece]


def _pieces(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which piece every pixel of ``[T,S,S]`` belongs to, from 1 on, 0 for none, and every piece's pixels in ``mask``;
    a piece hangs together in space and time, over gaps such as the strokes of a digit may have."""
    labels, count = _ndimage().label(_widened(mask, 1).numpy(), structure=torch.ones(3, 3, 3).numpy())
    piece = torch.from_numpy(labels).long()
    return piece, torch.bincount(piece[mask], minlength=count + 1)


def _widened(mask: Tensor, by: int) -> Tensor:
    """A mask ``[T,S,S]`` and all within ``by`` pixels of it in the same frame."""
    return F.max_pool2d(mask.float(), 2 * by + 1, stride=1, padding=by) > 0


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError:
        raise UniViGUError('scipy is not installed, and reading clips needs it; install "scipy"') from None
    return ndimage


# --- one object -------------------------------------------------------------------------------------------------------


def _moments(coverage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Area ``[T]`` in pixels, centroid ``[T,2]`` (x, y) in pixels from the first pixel's corner, and radius of
    gyration ``[T]`` in pixels."""
    height, width = coverage.shape[1:]
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    area = coverage.sum((1, 2))
    total = area.clamp(min=1e-3)
    centre = torch.stack([coverage.sum(1) @ x, coverage.sum(2) @ y], -1) / total[:, None]
    spread = (coverage.sum(1) @ x.square() + coverage.sum(2) @ y.square()) / total - centre.square().sum(-1)
    return area, centre, spread.clamp(min=0.25).sqrt()


def _aligned(coverage: Tensor, centre: Tensor, gyration: Tensor) -> Tensor:
    """The mean over frames of an object's coverage, each frame moved and scaled to a standard place: ``[N*N]`` with
    mean 0 and length 1."""
    side = coverage.shape[-1]
    axis = (torch.arange(PATCH) + 0.5) / PATCH * 2 - 1
    offset = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) * REACH
    grid = (centre[:, None, None] + offset * gyration[:, None, None, None]) / side * 2 - 1
    patch = F.grid_sample(coverage[:, None], grid, mode="bilinear", align_corners=False).mean(0).flatten()
    patch = patch - patch.mean()
    return patch / patch.norm().clamp(min=1e-6)


def _line(times: Tensor, values: Tensor, weights: Tensor) -> tuple[float, float]:
    """Weighted straight line through values ``[T]``: the value at time 0, and the slope."""
    weights = weights / weights.sum()
    mean_time, mean = (weights * times).sum(), (weights * values).sum()
    slope = (weights * (times - mean_time) * (values - mean)).sum() / (weights * (times - mean_time).square()).sum()
    return float(mean - slope * mean_time), float(slope)


def _read(colour: str, coverage: Tensor, background: str, scale: float) -> Reading | None:
    """Reads one object from its coverage ``[T,S,S]``, or None where there is too little of it. ``scale``: what the
    grammar's sizes are drawn at."""
    frames, side = coverage.shape[:2]
    area, centre, gyration = _moments(coverage)
    seen = area > 0.3 * area.median()
    if float(area.mean()) < LEAST_AREA * side**2 or int(seen.sum()) * 2 <= frames:
        return None
    times, weights = torch.linspace(-0.5, 0.5, frames), seen.float()
    x, y = (_line(times, centre[:, axis] / side, weights)[1] for axis in (0, 1))
    # Areas tell growth, for blur keeps them; the radius of gyration tells the scale, for thin strokes keep that.
    per_root = math.sqrt(float((weights * gyration.square()).sum() / (weights * area).sum()))
    middle, slope = _line(times, area.sqrt() * per_root, weights)
    fitted = (middle + slope * times).clamp(min=0.3 * middle)
    growth = float(fitted[-1] / fitted[0])

    scores = _kind_scores(_aligned(coverage[seen], centre[seen], fitted[seen]))
    order = scores[:-1].argsort(descending=True)
    kind = worlds.KINDS[int(order[0])]
    radius = middle * math.exp(float(scores[-1])) / side
    size = "large" if radius > scale * math.sqrt(worlds.SIZES["small"] * worlds.SIZES["large"]) else "small"
    motion, speed = _motion(x, y, growth)
    return Reading(
        thing=Thing(kind, colour, size, motion, speed),
        background=background,
        travel=(x, y),
        growth=growth,
        radius=radius,
        margin=float(scores[order[0]] - scores[order[1]]),
        area=float(area.mean()) / side**2,
    )


def _motion(x: float, y: float, growth: float) -> tuple[str, str | None]:
    """The words for a way (x, y) in sides and a growth, each against the point halfway to standing still; where both
    pass theirs, the one that passes it further."""
    way = max(abs(x), abs(y))
    moves, grows = way / (worlds.TRAVEL["slowly"] / 2), math.log(max(growth, 1e-3)) / (_log_growth("slowly") / 2)
    if max(moves, grows) < 1:
        return "stays still", None
    if grows > moves:
        middle = (_log_growth("slowly") + _log_growth("quickly")) / 2
        return "grows", "quickly" if math.log(growth) > middle else "slowly"
    steps = {word: x * dx + y * dy for word, (dx, dy) in worlds.DIRECTIONS.items()}
    halfway = (worlds.TRAVEL["slowly"] + worlds.TRAVEL["quickly"]) / 2
    return f"moves {max(steps, key=lambda word: steps[word])}", "quickly" if way > halfway else "slowly"


def _log_growth(speed: str) -> float:
    return math.log(worlds.GROWTH[speed])


# --- kinds ------------------------------------------------------------------------------------------------------------


COPIES, SHAPE_COPIES = 3, 150  # pictures drawn of every handwritten image, and of every shape
BANDWIDTH = 0.5  # of the kernel, where patches have length 1
RIDGE = 0.01


@cache
def _library() -> tuple[Tensor, Tensor]:
    """Patches ``[M,N*N]`` that kinds are compared with, and their weights ``[M,17]``: kernel ridge regression of the
    16 kinds (1 for the right one, 0 for others) and of log(radius / radius of gyration). A fixed draw; 5 to 10 seconds
    on one thread, once in a process."""
    generator = torch.Generator().manual_seed(0)
    patches, targets = [], []
    for index, kind in enumerate(worlds.KINDS):
        images = list(worlds.digit_images("train")[kind]) if kind in worlds.DIGITS else [None]
        for image in images:
            for _ in range(COPIES if image is not None else SHAPE_COPIES):
                patch, ratio = _example(kind, image, generator)
                patches.append(patch)
                target = torch.zeros(len(worlds.KINDS) + 1)
                target[index], target[-1] = 1.0, ratio
                targets.append(target)
    library = torch.stack(patches)
    kernel = _kernel(library, library)
    kernel.diagonal().add_(RIDGE)
    weights = torch.cholesky_solve(torch.stack(targets), torch.linalg.cholesky(kernel))
    return library, weights


def _example(kind: str, image: Tensor | None, generator: torch.Generator) -> tuple[Tensor, float]:
    """One picture of a kind, as damaged as those that are read: its patch, and log(radius / radius of gyration)."""
    frames, side = 3, 44
    luck = torch.rand(3, generator=generator).tolist()
    radius = 4.5 * (12.5 / 4.5) ** luck[0]  # pixels: from the small ones of a pair at side 48 to a large one at 64
    places = side / 2 + torch.rand(frames, 2, generator=generator)
    axis = torch.arange(side) + 0.5
    x, y = axis[None, None, :] - places[:, 0, None, None], axis[None, :, None] - places[:, 1, None, None]
    share = worlds.cover(kind, x.expand(-1, side, -1), y.expand(-1, -1, side), torch.tensor(radius), image)
    share = torch.from_numpy(_ndimage().gaussian_filter(share.numpy(), (0, 1.5 * luck[1], 1.5 * luck[1])))
    noise = 0.06 * luck[2] * torch.randn(share.shape, generator=generator)
    share = (share + noise).clamp(0, 1) * (F.max_pool2d(share, 5, stride=1, padding=2) > 0.3)
    _, centre, gyration = _moments(share)
    mean = gyration.square().mean().sqrt()
    return _aligned(share, centre, mean.expand(frames)), math.log(radius / float(mean))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """A Gaussian of the distance between patches of length 1, ``[A,B]``."""
    return ((a @ b.T - 1) / BANDWIDTH**2).exp()


def _kind_scores(patch: Tensor) -> Tensor:
    """How much a patch ``[N*N]`` looks like each of the 16 kinds, and log(radius / radius of gyration): ``[17]``."""
    library, weights = _library()
    return (_kernel(patch[None], library) @ weights)[0]
