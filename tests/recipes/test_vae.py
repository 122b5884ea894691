"""The small VAE: the chunked passes are diffusers', calibration changes coordinates and nothing else, and a training
that was cut off goes on as if it had not been."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

from recipes.worlds import vae_training
from recipes.worlds.vae import calibrate, decode_latent, encode_moments, initialise, small_wan_vae
from recipes.worlds.vae_training import random_clips, reconstruction, train_vae
from uvg_core.media.vae import WAN_LATENT_MEAN, WAN_LATENT_STD

SIDE, FRAMES = 16, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_vae(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    vae = small_wan_vae(4).eval().requires_grad_(False)
    initialise(vae)
    noise = generator(seed)
    for weight in vae.parameters():  # every part says something, time too
        weight.add_(0.05 * torch.randn(weight.shape, generator=noise))
    return vae


def clips(count: int = 4, frames: int = FRAMES, seed: int = 0) -> Tensor:
    return random_clips(count, SIDE, frames, generator(seed))[0]


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_one_chunk_gives_what_diffusers_gives_in_many(frames: int) -> None:
    vae, video = make_vae(), clips(1, frames)
    moments = encode_moments(vae, video)
    mean = vae.encode(video).latent_dist.mode()
    assert moments.shape == (1, 32, (frames - 1) // 4 + 1, SIDE // 8, SIDE // 8)
    torch.testing.assert_close(moments[:, :16], mean, atol=1e-5, rtol=1e-4)
    decoded = decode_latent(vae, mean)
    assert decoded.shape == video.shape
    torch.testing.assert_close(decoded.clamp(-1, 1), vae.decode(mean).sample.clamp(-1, 1), atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_weight() -> None:
    vae, video = make_vae().train().requires_grad_(True), clips(1)
    mean, logvar = encode_moments(vae, video).chunk(2, 1)
    decode_latent(vae, mean + 0 * logvar).square().mean().backward()
    silent = [name for name, weight in vae.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_calibration_keeps_pictures_and_sets_the_latents(scale: float) -> None:
    vae, video = make_vae(), clips(24)
    mean, logvar = encode_moments(vae, video).chunk(2, 1)
    shown = decode_latent(vae, mean)
    calibrate(vae, video, scale)
    now, now_logvar = encode_moments(vae, video).chunk(2, 1)
    torch.testing.assert_close(decode_latent(vae, now), shown, atol=2e-4, rtol=1e-3)

    target_mean, target_std = (torch.tensor(one).view(1, 16, 1, 1, 1) for one in (WAN_LATENT_MEAN, WAN_LATENT_STD))
    normalised = (now - target_mean) / target_std
    torch.testing.assert_close(normalised.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    assert float(normalised.var((0, 2, 3, 4)).mean()) == pytest.approx(scale**2, rel=1e-3)
    # One scale for all: channels that carry little stay small.
    shares = normalised.var((0, 2, 3, 4)) / mean.var((0, 2, 3, 4))
    torch.testing.assert_close(shares, shares.mean().expand(16), rtol=1e-3, atol=0)
    # The noise that training put on a latent is as large beside it as before.
    before = (0.5 * logvar).exp() / mean.std((0, 2, 3, 4), keepdim=True)
    after = (0.5 * now_logvar).exp() / now.std((0, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=0)


@torch.no_grad()
def test_it_starts_as_independent_pictures() -> None:
    torch.manual_seed(0)
    vae = small_wan_vae(4).eval()
    initialise(vae)
    still = clips(1, 1).expand(-1, -1, FRAMES, -1, -1)
    latent = encode_moments(vae, still)[:, :16]
    torch.testing.assert_close(latent[:, :, 1], latent[:, :, 0], atol=1e-5, rtol=1e-4)
    shown = decode_latent(vae, latent)
    torch.testing.assert_close(shown, shown[:, :, :1].expand_as(shown), atol=1e-5, rtol=1e-4)
    assert shown.std() > 0.01  # the picture is carried through, not lost
    noise = encode_moments(vae, clips(4))[:, 16:]
    torch.testing.assert_close(noise, torch.full_like(noise, -5.0))


def test_clips_and_the_boxes_around_their_objects() -> None:
    video, boxes = random_clips(6, 32, FRAMES, generator())
    assert (video.shape, boxes.shape) == ((6, 3, FRAMES, 32, 32), (6, 1, FRAMES, 32, 32))
    assert -1 <= float(video.min()) < float(video.max()) <= 1
    assert set(boxes.unique().tolist()) == {0.0, 1.0}
    near = F.max_pool3d(boxes, (1, 3, 3), stride=1, padding=(0, 1, 1))  # a soft edge reaches half a pixel further
    outside = video.masked_fill(near.bool().expand_as(video), math.nan).flatten(2)
    for clip in outside:  # beyond the boxes is nothing but the ground
        assert all(len(channel[channel.isfinite()].unique()) == 1 for channel in clip)
    again = random_clips(6, 32, FRAMES, generator())[0]
    assert torch.equal(video, again)


def test_tight_boxes_touch_what_is_painted() -> None:
    video, boxes = random_clips(8, SIDE, FRAMES, generator(3), tight=True)
    wide = random_clips(8, SIDE, FRAMES, generator(3))[1]
    assert bool((boxes <= F.max_pool3d(wide, (1, 3, 3), stride=1, padding=(0, 1, 1))).all())
    assert float(boxes.sum()) < 0.8 * float(wide.sum())
    ground = video[:, :, :, :1, :1]
    painted = (video != ground).any(1, keepdim=True)
    assert not bool((painted & (boxes == 0)).any())
    for clip, box in zip(painted, boxes, strict=True):
        for frame in range(FRAMES):
            rows, columns = (box[0, frame].any(axis).nonzero()[:, 0] for axis in (1, 0))
            picture = clip[0, frame]
            assert picture[rows[0]].any()
            assert picture[rows[-1]].any()
            assert picture[:, columns[0]].any()
            assert picture[:, columns[-1]].any()


def test_reconstruction_is_the_error_in_decibels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in whose pictures are off by a tenth of the range everywhere."""

    def encode(vae: Any, video: Tensor) -> Tensor:
        return video.repeat(1, 11, 1, 1, 1)[:, :32]

    def decode(vae: Any, latent: Tensor) -> Tensor:
        picture = latent[:, :3]
        return picture - 0.2 * picture.sign()  # 0.2 of -1..1 is a tenth of 0..1

    monkeypatch.setattr(vae_training, "encode_moments", encode)
    monkeypatch.setattr(vae_training, "decode_latent", decode)
    found = reconstruction(None, side=SIDE, frames=FRAMES, clips=20)
    assert found.psnr == pytest.approx(20.0, abs=0.05)
    assert found.psnr_boxes == pytest.approx(20.0, abs=0.05)
    monkeypatch.setattr(vae_training, "decode_latent", lambda _, latent: 40 * latent[:, :3].sign())
    clamped = reconstruction(None, side=SIDE, frames=FRAMES, clips=20)
    assert clamped.psnr > 0  # what 8-bit pictures cannot show is no error


class CutOff(Exception):
    pass


def test_a_training_that_was_cut_off_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(vae_training, "SAVE_EVERY", 2)
    monkeypatch.setattr(vae_training, "reconstruction", lambda *_, **__: vae_training.Reconstruction(0.0, 0.0))
    small: dict[str, Any] = {"width": 4, "side": SIDE, "frames": FRAMES, "say": lambda _: None}
    small |= {"picture_steps": 3, "clip_steps": 1}
    whole = train_vae(tmp_path / "whole.pt", **small).state_dict()

    draw = vae_training.random_clips
    calls: list[int] = []

    def drawn(*args: Any, **how: Any) -> tuple[Tensor, Tensor]:
        calls.append(args[2])
        if len(calls) == 3:  # the third step
            raise CutOff
        return draw(*args, **how)

    monkeypatch.setattr(vae_training, "random_clips", drawn)
    with pytest.raises(CutOff):
        train_vae(tmp_path / "parts.pt", **small)
    assert (tmp_path / "parts.pt.part").exists()
    assert not (tmp_path / "parts.pt").exists()
    parts = train_vae(tmp_path / "parts.pt", **small).state_dict()
    assert calls[3:] == [1, FRAMES, FRAMES]  # pictures, a step of clips, calibration: two steps and not four
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())
    stored = torch.load(tmp_path / "parts.pt", weights_only=True)
    assert all(torch.equal(stored[name], weight) for name, weight in whole.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.pt", "whole.pt"]
