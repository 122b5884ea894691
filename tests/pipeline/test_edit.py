"""Editing a clip's file: the words, the frames that the model gets, and what comes back. The model is a stand-in."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from uvg_core.config import RunConfig
from uvg_core.errors import UniViGUError
from uvg_core.media.video import ClipSpec, probe, read_clip, write_video
from uvg_core.media.video.footage import Footage
from uvg_core.pipeline.edit import Mask, Subject
from uvg_core.pipeline.wording import changes_of, reworded

CAPTION = "A red circle and a reddish square; the circle moves  left slowly"


class Stand:
    """A pipeline whose latents are pixels, and whose network does what ``edit`` is told to."""

    def __init__(self, frames: int = 9, side: int = 32) -> None:
        self.config = SimpleNamespace(run=RunConfig(height=side, width=side, frames=frames, fps=4.0))
        self.device = torch.device("cpu")

    def encode_clip(self, pixels: Tensor) -> Tensor:
        assert len(pixels) % 4 == 1
        return pixels

    def decode_clips(self, latents: list[Tensor]) -> list[Tensor]:
        return latents


def clip(path: Path, frames: int = 9, height: int = 64, width: int = 64, fps: float = 5.0) -> Path:
    ramp = torch.linspace(0, 200, width)[None, None, :, None] + 5 * torch.arange(frames)[:, None, None, None]
    write_video(path, ramp.expand(frames, height, width, 3).to(torch.uint8), fps)
    return path


def same(latent: Tensor, free: Tensor | None) -> Tensor:
    return latent


def white(latent: Tensor, free: Tensor | None) -> Tensor:
    return torch.full_like(latent, 255)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["red=blue"], "A blue circle and a reddish square; the circle moves  left slowly"),
        (["moves left slowly=stays still"], "A red circle and a reddish square; the circle stays still"),
        (["a red circle=the star"], "The star and a reddish square; the circle moves  left slowly"),
        (["circle=square", "square=circle"], "A red square and a reddish circle; the square moves  left slowly"),
        (["red circle=star", "red=x y", "circle=moon"], None),
        (["slowly="], "A red circle and a reddish square; the circle moves left"),
    ],
)
def test_words_change_as_a_user_would_change_them(changes: list[str], expected: str | None) -> None:
    if expected is None:  # "red" occurs only where the longer change took it
        with pytest.raises(UniViGUError, match="'red' does not occur"):
            reworded(CAPTION, changes_of(changes))
    else:
        assert reworded(CAPTION, changes_of(changes)) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["green=blue"], f"'green' does not occur in the caption.*{CAPTION}"),
        (["ed=blue"], "'ed' does not occur"),
        (["Red=red", "square=square "], "'square=square ', which changes nothing"),
        (["="], "expected old words, = and new words"),
        (["=blue"], "expected old words"),
        (["red"], "expected old words"),
        (["red=blue", "Red=green"], "names 'Red' twice"),
        (["RED=red"], "leaves the caption as it is"),
    ],
)
def test_words_that_cannot_be_changed_are_refused_with_the_caption(changes: list[str], words: str) -> None:
    with pytest.raises(UniViGUError, match=words):
        reworded(CAPTION, changes_of(changes))


@pytest.mark.parametrize(("height", "width", "fit"), [(64, 64, "auto"), (48, 96, "pad"), (50, 70, "stretch")])
def test_size_rate_and_length_of_the_file_are_kept(tmp_path: Path, height: int, width: int, fit: str) -> None:
    path = clip(tmp_path / "a.mp4", 7, height, width)
    subject = Subject.read(Stand(), path, footage=Footage(fit=fit))  # type: ignore[arg-type]
    made = subject.restored(subject.edited(Stand(), same, None), None)  # type: ignore[arg-type]
    assert made.shape == (7, height, width, 3)
    assert subject.info.fps == 5
    assert (made.float() - read_clip(path, _own(7, height, width)).pixels.float()).abs().mean() < 8


def test_what_is_cropped_off_is_not_there_and_the_rest_keeps_its_scale(tmp_path: Path) -> None:
    subject = Subject.read(Stand(), clip(tmp_path / "a.mp4", 9, 64, 128))  # type: ignore[arg-type]
    assert subject.size == (64, 64)


def test_a_longer_clip_is_edited_in_windows_that_fade_into_each_other(tmp_path: Path) -> None:
    subject = Subject.read(Stand(frames=5), clip(tmp_path / "a.mp4", 12, fps=4.0))  # type: ignore[arg-type]
    windows = subject.windows()
    assert [(one.start, one.stop) for one in windows] == [(0, 5), (4, 9), (7, 12)]
    assert torch.equal(subject.edited(Stand(), same, None), subject.pixels)  # type: ignore[arg-type]
    shades = iter((0, 90, 180))

    def one_shade(latent: Tensor, free: Tensor | None) -> Tensor:
        return torch.full_like(latent, next(shades))

    found = subject.edited(Stand(), one_shade, None)[:, 0, 0, 0].tolist()  # type: ignore[arg-type]
    assert found == [0, 0, 0, 0, 45, 90, 90, 120, 150, 180, 180, 180]


@pytest.mark.parametrize(("frames", "fps", "read", "rate"), [(9, 8.0, 9, 8.0), (17, 8.0, 9, 4.0), (12, 2.0, 12, 2.0)])
def test_only_a_clip_that_does_not_fit_loses_frames(
    tmp_path: Path, frames: int, fps: float, read: int, rate: float
) -> None:
    subject = Subject.read(Stand(), clip(tmp_path / "a.mp4", frames, fps=fps))  # type: ignore[arg-type]
    assert (len(subject.pixels), subject.info.fps) == (read, rate)
    assert len(subject.windows()) == (2 if read > 9 else 1)


def test_outside_a_mask_the_pixels_are_the_clips_own(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    picture = np.zeros((128, 128), np.uint8)  # twice as large as the clip, of its shape
    picture[:, :64] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    subject = Subject.read(Stand(), path)  # type: ignore[arg-type]
    mask = Mask.read(tmp_path / "mask.png", subject)
    free = mask.of_latent(slice(0, 9))
    assert free.shape == (1, 1, 3, 4, 4)
    assert free[..., :2].min() == 1
    assert free[..., 3:].max() == 0
    made = subject.restored(subject.edited(Stand(), white, mask), mask)  # type: ignore[arg-type]
    own = read_clip(path, _own(9, 64, 64)).pixels
    assert torch.equal(made[:, :, 34:], own[:, :, 34:])  # the mask was scaled, which softens its border
    assert made[:, :, :31].min() >= 254  # up to it: else the old clip shows around what a close mask changes


def test_masks_of_another_shape_and_black_ones_are_refused(tmp_path: Path) -> None:
    subject = Subject.read(Stand(), clip(tmp_path / "a.mp4"))  # type: ignore[arg-type]
    for name, size in (("wide.png", (64, 128)), ("black.png", (64, 64))):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / name)
    with pytest.raises(UniViGUError, match="mask is 128x64, of another shape than the clip, which is 64x64"):
        Mask.read(tmp_path / "wide.png", subject)
    with pytest.raises(UniViGUError, match="black everywhere"):
        Mask.read(tmp_path / "black.png", subject)


@pytest.mark.parametrize(
    ("suffix", "codec", "kept"), [("mp4", "aac", "aac"), ("mov", "pcm_s16le", "aac"), ("mkv", "mp2", "")]
)
def test_the_sound_of_the_part_that_was_read_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: str, kept: str
) -> None:
    caplog.set_level("WARNING")  # also of its handler, which the command line may have silenced
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream("libx264", rate=Fraction(5))
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio: Any = file.add_stream(codec, rate=48000, layout="mono")
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 9, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        piece = av.AudioFrame.from_ndarray(np.full((1, 96000), 900, np.int16), format="s16", layout="mono")
        piece.sample_rate, piece.pts = 48000, 0
        file.mux([*audio.encode(piece), *audio.encode()])
    for footage, frames in ((Footage(), 10), (Footage(start=1.0), 5)):
        subject = Subject.read(Stand(frames=13), path, footage=footage)  # type: ignore[arg-type]
        write_video(tmp_path / "out.mp4", subject.restored(subject.pixels, None), 5, subject.sound)
        assert probe(tmp_path / "out.mp4").frames == frames
        with av.open(str(tmp_path / "out.mp4")) as file:
            if not kept:
                assert not file.streams.audio
                assert "a.mkv: its sound is mp2" in caplog.text
                continue
            (track,) = file.streams.audio
            assert track.codec_context.name == kept
            heard = sum(frame.samples for frame in file.decode(track)) / 48000
        assert heard == pytest.approx(frames / 5, abs=0.1)


def _own(frames: int, height: int, width: int) -> ClipSpec:
    return ClipSpec(frames, height, width, 5.0)
