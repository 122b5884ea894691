"""What is held of a clip: the pictures at its ends, or a file but for a region or its bars. The model is a stand-in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from numbered_clips import make, numbered, numbers
from PIL import Image
from torch import Tensor

from uvg_core.config import RunConfig
from uvg_core.errors import UniViGUError
from uvg_core.media.vae import latent_shape, with_ends
from uvg_core.media.video import ClipSpec, read_clip
from uvg_core.media.video.footage import Footage
from uvg_core.pipeline import fill
from uvg_core.pipeline.fill import Held, hold_ends, hold_outside
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import Size

SAMPLE = Path(__file__).parents[2] / "samples" / "uvg_sample.mp4"


class Stand:
    """A pipeline whose latents are means of pixels: of the first picture, then of four at a time."""

    config, device = SimpleNamespace(run=RunConfig(height=48, width=48, frames=9, fps=4.0)), torch.device("cpu")

    def noise(self, size: Size) -> Tensor:
        return torch.randn(latent_shape(*size.resolved(self.config.run)))

    def encode_clip(self, pixels: Tensor) -> Tensor:
        planes = torch.cat([pixels[:1].expand(3, -1, -1, -1), pixels]).permute(3, 0, 1, 2).float()
        return F.avg_pool3d(planes, (4, 8, 8)).repeat(6, 1, 1, 1)[None, :16]


@pytest.fixture
def pipe() -> Any:
    return Stand()


def picture(path: Path, pixels: torch.Tensor) -> Path:
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
    return path


def test_the_pictures_at_the_ends(pipe: Pipeline, tmp_path: Path) -> None:
    """Of a picture and of a clip: the latents are those of a clip that begins and ends with them."""
    pixels = read_clip(SAMPLE, ClipSpec(9, 48, 48)).pixels
    whole, still = pipe.encode_clip(pixels), picture(tmp_path / "first.png", pixels[0])
    for first in (still, SAMPLE):
        held = hold_ends(pipe, first, None)
        assert held.kept is not None
        clean, free = held.kept
        torch.testing.assert_close(clean[:, :, 0], whole[:, :, 0], atol=1e-4, rtol=1e-4)
        assert free[0, 0].amax((1, 2)).tolist() == free[0, 0].amin((1, 2)).tolist() == [0, 1, 1]
        assert (held.size, held.fps) == (Size(height=48, width=48, frames=9), None)
    assert torch.equal(held.shown(pixels), pixels)
    both = hold_ends(pipe, still, SAMPLE, Size(frames=13)).kept
    assert both is not None
    assert both[1][0, 0].amax((1, 2)).tolist() == [0, 1, 1, 0]
    torch.testing.assert_close(both[0][:, :, 3], whole[:, :, 2], atol=1.0, rtol=0.1)
    with pytest.raises(UniViGUError, match="all of a clip of 5 frames"):
        hold_ends(pipe, still, still, Size(frames=5))


@pytest.mark.parametrize(
    ("count", "footage", "expected"),
    [
        (40, Footage(), [7, 11, 15, 19, 23, 27, 31, 35, 39]),
        (12, Footage(), [3, 3, 3, 3, 3, 3, 3, 7, 11]),
        (1, Footage(), [0] * 9),
        (40, Footage(start=0.4, seconds=1.0), [10, 10, 10, 14, 18, 22, 26, 30, 34]),
    ],
)
def test_a_clip_ends_with_its_very_last_frame(
    tmp_path: Path, count: int, footage: Footage, expected: list[int]
) -> None:
    """At the model's rate; what lacks in the front is repeated."""
    clip = make(tmp_path / "clip.mp4", numbered(count), times=[40 * n for n in range(count)])
    seen: list[Tensor] = []

    def encode(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return torch.zeros(1, 16, 3, 4, 4)

    ending = fill._ending(clip, ClipSpec(9, 32, 32, fps=6.25), footage)
    with_ends(torch.zeros(1, 16, 4, 4, 4), encode, None, ending.pixels)
    assert numbers(seen[0]) == expected


def test_outside_a_region_a_file_stays_as_it_is(pipe: Pipeline, tmp_path: Path) -> None:
    white = torch.zeros(288, 288)
    white[:, :144] = 255
    held = hold_outside(pipe, SAMPLE, picture(tmp_path / "left.png", white))
    assert held.kept is not None
    clean, free = held.kept
    assert clean.shape == (1, 16, 3, 6, 6)
    assert free.tolist() == [[[[[1, 1, 1, 0, 0, 0]] * 6] * 3]]
    assert (held.fps, held.size.frames) == (4.0, 9)
    shown = held.shown(torch.full((9, 48, 48, 3), 255, dtype=torch.uint8))
    own = read_clip(SAMPLE, ClipSpec(9, 288, 288, fps=4.0)).pixels
    assert torch.equal(shown[:, :, 144:], own[:, :, 144:])
    assert int(shown[:, :, :130].min()) == 255


def test_bars_are_formed_and_what_is_between_them_stays(pipe: Pipeline) -> None:
    held = hold_outside(pipe, SAMPLE, None, Size(height=48, width=80), Footage(fit="pad"))
    assert held.kept is not None
    assert held.kept[1][0, 0, 0, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    made = torch.full((9, 48, 80, 3), 255, dtype=torch.uint8)
    shown = held.shown(made)
    assert torch.equal(shown[:, :, 16:64], read_clip(SAMPLE, ClipSpec(9, 48, 48, fps=4.0)).pixels)
    assert torch.equal(shown[:, :, :12], made[:, :, :12])


def test_what_cannot_be_held(pipe: Pipeline, tmp_path: Path) -> None:
    clip = make(tmp_path / "long.mp4", numbered(100))  # four seconds
    mask = picture(tmp_path / "white.png", torch.full((32, 32), 255))
    with pytest.raises(UniViGUError, match=r"at most 9 at once; choose a part with --start and --seconds 2\.25"):
        hold_outside(pipe, clip, mask)
    assert hold_outside(pipe, clip, mask, footage=Footage(start=1.0, seconds=2.25)).size.frames == 9
    with pytest.raises(UniViGUError, match="name a picture with --mask"):
        hold_outside(pipe, SAMPLE, None)
    with pytest.raises(UniViGUError, match="black everywhere"):
        hold_outside(pipe, SAMPLE, picture(tmp_path / "black.png", torch.zeros(32, 32)))
    with pytest.raises(UniViGUError, match="no such file"):
        hold_ends(pipe, None, tmp_path / "none.png")
    assert Held().kept is None
