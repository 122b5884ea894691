"""The detector reads fresh worlds, as drawn and as a codec would damage them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import fft, ndimage

from recipes.worlds.detector import read_objects, read_world, score
from recipes.worlds.drawing import PAIR_SCALE, render
from recipes.worlds.grammar import BACKGROUNDS, KINDS, SIZES, parse, random_world
from uvg_core.errors import UniViGUError

pytest.importorskip("sklearn")


def damaged(clip: torch.Tensor, generator: torch.Generator, *, blur: float = 0.7, noise: float = 8.0) -> torch.Tensor:
    """What a small VAE leaves of a clip: blur in pixels, noise in levels (8 is 30 dB), and coarse 8x8 cosine blocks."""
    x = ndimage.gaussian_filter(clip.float().numpy(), (0, blur, blur, 0))
    frames, side = x.shape[:2]
    blocks = x.reshape(frames, side // 8, 8, side // 8, 8, 3)
    coarse = fft.dctn(blocks, axes=(2, 4), norm="ortho")
    x = fft.idctn((coarse / 20).round() * 20, axes=(2, 4), norm="ortho").reshape(x.shape)
    x = torch.from_numpy(x) + noise * torch.randn(x.shape, generator=generator)
    return x.round().clamp(0, 255).to(torch.uint8)


def accuracy(
    clips: int, objects: int = 1, *, side: int = 48, frames: int = 9, damage: bool = False, seed: int = 1
) -> dict[str, float]:
    """Share of right words by attribute, on held-out worlds in held-out handwriting."""
    generator = torch.Generator().manual_seed(seed)
    right: Counter[str] = Counter()
    scored: Counter[str] = Counter()
    for _ in range(clips):
        world = random_world(generator, objects=objects, held_out=True)
        clip = render(world, generator, side=side, frames=frames, split="test")
        seen = read_world(damaged(clip, generator) if damage else clip, objects)
        for index in range(objects):
            for name, good in score(world, seen, index).items():
                scored[name] += good is not None
                right[name] += good is True
    return {name: right[name] / scored[name] for name in scored}


def drawn(caption: str, seed: int = 0) -> torch.Tensor:
    world = parse(caption)
    assert world is not None
    return render(world, torch.Generator().manual_seed(seed), side=48, frames=9, split="test")


@pytest.mark.parametrize("damage", [False, True], ids=["crisp", "damaged"])
@pytest.mark.parametrize("objects", [1, 2])
def test_held_out_worlds_are_read(objects: int, damage: bool) -> None:
    shares = accuracy(80 // objects, objects, damage=damage)
    assert shares.pop("kind") >= (0.96 if damage else 0.97), shares
    assert all(share >= 0.985 for share in shares.values()), shares


@pytest.mark.parametrize(("side", "frames"), [(64, 17), (48, 5), (80, 9)])
def test_other_sizes_and_lengths(side: int, frames: int) -> None:
    shares = accuracy(50, 1, side=side, frames=frames, damage=True)
    assert shares.pop("kind") >= 0.94, shares
    assert all(share >= 0.97 for share in shares.values()), shares


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_known(kind: str) -> None:
    generator = torch.Generator().manual_seed(4)
    found = []
    for motion in ("moves left slowly", "stays still", "grows quickly"):
        for colour, background in (("magenta", "gray"), ("blue", "navy"), ("white", "beige"), ("red", "black")):
            world = parse(f"a small {colour} {kind} {motion} on a {background} background")
            assert world is not None
            clip = render(world, generator, side=48, frames=9, split="test")
            seen = read_world(damaged(clip, generator))
            found.append(seen is not None and seen.shapes[0].kind == kind)
    assert sum(found) >= 10


def test_close_colours_of_a_pair() -> None:
    for pair in ("yellow square stays still and a large white star", "yellow ring stays still and a large orange two"):
        for background in BACKGROUNDS:
            caption = f"a large {pair} moves up slowly on a {background} background"
            clip = damaged(drawn(caption), torch.Generator().manual_seed(0))
            seen = read_world(clip, 2)
            assert seen is not None
            assert seen.caption == caption


def test_colour_drift_is_no_other_colour() -> None:
    generator = torch.Generator().manual_seed(3)
    wrong: Counter[str] = Counter()
    for _ in range(60):
        world = random_world(generator)
        clip = render(world, generator, side=48, frames=9).float()
        drift = 10 * (2 * torch.rand(3, generator=generator) - 1)
        seen = read_world((0.95 * clip + drift).clamp(0, 255).to(torch.uint8))
        wrong.update(name for name, good in score(world, seen).items() if good is False)
    assert wrong["colour"] == wrong["background"] == wrong["motion"] == wrong["size"] == 0
    assert wrong["kind"] <= 3


def test_measurements() -> None:
    moving = read_objects(drawn("a large red circle moves left quickly on a navy background"))[0]
    assert moving.travel == pytest.approx((-0.36, 0.0), abs=0.01)
    assert moving.growth == pytest.approx(1, abs=0.03)
    assert moving.radius == pytest.approx(SIZES["large"], rel=0.04)
    assert moving.margin > 0.6
    caption = "a small red square stays still and a small cyan star grows quickly on a beige background"
    still, growing = read_objects(drawn(caption), 2)
    assert growing.growth == pytest.approx(2.1, abs=0.1)
    for reading in (still, growing):
        assert reading.radius == pytest.approx(SIZES["small"] * PAIR_SCALE, rel=0.08)


def test_nothing_is_found_where_nothing_is() -> None:
    generator = torch.Generator().manual_seed(0)
    for name, colour in BACKGROUNDS.items():
        empty = torch.tensor(colour, dtype=torch.uint8).expand(9, 48, 48, 3)
        for clip in (empty, damaged(empty, generator)):
            assert read_world(clip) is None, name
            assert read_world(clip, 2) is None, name


def test_a_missing_object_is_not_made_up() -> None:
    world = parse("a small red circle moves up slowly and a large cyan two stays still on a navy background")
    assert world is not None
    alone = read_world(drawn("a large cyan two stays still on a navy background"), 2)
    assert alone is not None
    assert len(alone.shapes) == 1
    missing = score(world, alone, 0)
    assert missing.pop("background") is True
    assert not any(missing.values())
    present = score(world, alone, 1)
    assert present["kind"]
    assert present["colour"]
    assert present["speed"] is None


def test_score() -> None:
    said = parse("a small red circle moves up slowly and a large cyan two stays still on a navy background")
    # The first object in another colour comes second now; it still stands for the first one that was asked for.
    seen = parse("a large cyan two moves left slowly and a small white circle moves up quickly on a gray background")
    assert said is not None
    assert seen is not None
    first, second = score(said, seen, 0), score(said, seen, 1)
    both = {"kind": True, "size": True, "background": False}
    assert first == {**both, "colour": False, "motion": True, "speed": False}
    assert second == {**both, "colour": True, "motion": False, "speed": None}
    assert set(score(said, None).values()) == {False}
    assert score(said, None, 1)["speed"] is None


@pytest.mark.parametrize("shape", [(9, 48, 48), (4, 48, 48, 3), (9, 48, 64, 3), (9, 32, 32, 3)])
def test_clips_that_are_none(shape: tuple[int, ...]) -> None:
    with pytest.raises(UniViGUError, match="expected uint8"):
        read_world(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(UniViGUError, match=r"torch\.float32"):
        read_world(torch.zeros(9, 48, 48, 3))
    with pytest.raises(UniViGUError, match="objects is 3"):
        read_world(torch.zeros(9, 48, 48, 3, dtype=torch.uint8), 3)
