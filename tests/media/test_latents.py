"""Latent spaces, the grid, and VAE files in both namings."""

from __future__ import annotations

import pytest
import torch

from uvg_core import UniViGUError
from uvg_core.checkpoint.vae_keys import vae_to_diffusers, vae_to_original
from uvg_core.media.vae import LatentCodec, from_latent_space, latent_shape, load_vae, to_latent_space

pytest.importorskip("diffusers")

from recipes.worlds.vae import calibrate, decode_latent, encode_moments, initialise, small_wan_vae


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    torch.manual_seed(0)
    made = small_wan_vae(4).eval().requires_grad_(False)
    initialise(made)
    return made


@pytest.mark.parametrize("space", ["normalised", "raw"])
def test_latent_spaces_round_trip(space: str) -> None:
    latent = torch.randn(1, 16, 2, 3, 3)
    torch.testing.assert_close(from_latent_space(to_latent_space(latent, space), space), latent)
    assert torch.equal(to_latent_space(latent, "raw"), latent)


def test_names_round_trip(vae: torch.nn.Module) -> None:
    """Every name there and back; the original names are the ones that Wan's own file and ComfyUI look for."""
    names = list(vae.state_dict())
    original = [vae_to_original(name) for name in names]
    assert len(set(original)) == len(names)
    assert [vae_to_diffusers(name) for name in original] == names
    assert {
        "decoder.middle.0.residual.0.gamma",
        "encoder.downsamples.10.residual.2.weight",
        "conv1.weight",
        "decoder.upsamples.3.time_conv.weight",
        "decoder.head.0.gamma",
        "encoder.middle.1.to_qkv.weight",
    } <= set(original)


def test_both_namings_load_and_agree(vae: torch.nn.Module) -> None:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, 16, 32, 3), generator=g, dtype=torch.uint8)
    weights = vae.state_dict()
    ours = LatentCodec(load_vae({vae_to_original(name): w for name, w in weights.items()}))
    latent = ours.encode(pixels[None])
    assert latent.shape == latent_shape(5, 16, 32) == (1, 16, 2, 2, 4)
    torch.testing.assert_close(LatentCodec(load_vae(weights)).encode(pixels[None]), latent)
    assert ours.decode(latent)[0].shape == pixels.shape
    raw = LatentCodec(load_vae(weights), "raw").encode(pixels[None])
    torch.testing.assert_close(to_latent_space(raw, "normalised"), latent)


def test_training_forms_are_the_vae(vae: torch.nn.Module) -> None:
    """All later frames in one chunk give what the VAE gives frame group by frame group."""
    video = torch.rand(2, 3, 9, 16, 16) * 2 - 1
    moments = encode_moments(vae, video)
    torch.testing.assert_close(moments[:, :16], vae.encode(video).latent_dist.mode(), atol=1e-5, rtol=1e-5)
    latent = moments[:, :16]
    torch.testing.assert_close(decode_latent(vae, latent).clamp(-1, 1), vae.decode(latent).sample, atol=1e-5, rtol=1e-5)


def test_calibration_moves_the_latents_and_not_the_pictures() -> None:
    torch.manual_seed(1)
    vae = small_wan_vae(4).eval()
    video = torch.rand(4, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        before = decode_latent(vae, encode_moments(vae, video)[:, :16])
        calibrate(vae, video)
        latent = encode_moments(vae, video)[:, :16]
        torch.testing.assert_close(decode_latent(vae, latent), before, atol=1e-4, rtol=1e-3)
    normalised = to_latent_space(latent, "normalised")
    assert normalised.mean((0, 2, 3, 4)).abs().max() < 1e-3
    assert normalised.var((0, 2, 3, 4)).mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((10, 48, 48), "9 frames of 48x48"),
        ((9, 50, 48), "48x48"),
        ((0, 48, 48), "1 frames"),
        ((9, 480, 840), "832x480"),
    ],
)
def test_sizes_off_the_grid(size: tuple[int, int, int], nearest: str) -> None:
    with pytest.raises(UniViGUError, match=nearest):
        latent_shape(*size)


def test_files_that_are_no_wan_vae(vae: torch.nn.Module) -> None:
    with pytest.raises(UniViGUError, match="not a Wan 2"):
        load_vae({"encoder.conv_in.weight": torch.zeros(1)})
    weights = vae.state_dict()
    del weights["encoder.conv_in.bias"]
    with pytest.raises(UniViGUError, match="not a Wan 2"):
        load_vae(weights)
