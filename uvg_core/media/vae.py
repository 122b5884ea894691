"""Pixels <-> latents through the Wan VAE, and the two latent spaces.

Outside ComfyUI the VAE is diffusers' ``AutoencoderKLWan``; it is imported when one is built, not before. 16 channels,
4x in time (4n+1 frames give n+1), 8x in space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoint.build import with_weights
from ..checkpoint.read import WeightFile, open_weights
from ..checkpoint.vae_keys import vae_to_diffusers
from ..errors import UniViGUError, counted
from ..io import written_whole

# Wan2.1's statistics per latent channel, as in its configuration.
# fmt: off
WAN_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
WAN_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on
CHANNELS = 16
SPATIAL = 8
TEMPORAL = 4
# Numbers alive at once at the widest moment of the VAE, for each pixel of a frame and each channel of its first layer:
# counted on fake tensors at base width 96 (39 and 54 with bfloat16, in which more is copied, 37 and 53 with float32).
_NUMBERS = {"encoder": 39, "decoder": 54}


def _statistics(like: Tensor, latent_space: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of what the VAE gives, as the latent space counts them."""
    pair = ((0.0,), (1.0,)) if latent_space == "raw" else (WAN_LATENT_MEAN, WAN_LATENT_STD)
    mean, std = (like.new_tensor(numbers).view(1, -1, 1, 1, 1) for numbers in pair)
    return mean, std


def to_latent_space(raw: Tensor, latent_space: str) -> Tensor:
    """From what the VAE's encoder says to what the network works on; ``normalised`` or ``raw``."""
    mean, std = _statistics(raw, latent_space)
    return (raw - mean) / std


def from_latent_space(latent: Tensor, latent_space: str) -> Tensor:
    """The inverse of ``to_latent_space``."""
    mean, std = _statistics(latent, latent_space)
    return latent * std + mean


def latent_shape(frames: int, height: int, width: int, channels: int = 16) -> tuple[int, int, int, int, int]:
    """``[1,C,F,h,w]`` of a clip; raises UniViGUError for sizes off the grid."""
    rows, columns = (max(16, round(side / 16) * 16) for side in (height, width))
    whole = max(0, round((frames - 1) / 4)) * 4 + 1
    if (whole, rows, columns) != (frames, height, width):
        raise UniViGUError(
            f"{frames} frames of {width}x{height} are off the model's grid; expected 4n+1 frames and sides that are "
            f"multiples of 16: the nearest size is {counted(whole, 'frame')} of {columns}x{rows}"
        )
    return 1, channels, (frames - 1) // TEMPORAL + 1, height // SPATIAL, width // SPATIAL


def is_wan_vae(weights: WeightFile) -> bool:
    """Whether a file holds a Wan 2.1 VAE (16 channels; Wan 2.2's has 48), in the original or diffusers' naming."""
    tensors = weights.tensors
    names = {_diffusers_name(name): name for name in tensors}
    last = names.get("post_quant_conv.weight")
    return "decoder.norm_out.gamma" in names and last is not None and tensors[last].shape[:1] == (CHANNELS,)


def _diffusers_name(name: str) -> str:
    return name if "conv_in" in name or "block" in name else vae_to_diffusers(name)


def load_vae(weights: Mapping[str, Tensor]) -> Any:
    """diffusers' Wan VAE from weights in Wan's original naming (or diffusers'); the width is read from them."""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise UniViGUError(
            f"the VAE needs diffusers, which cannot be imported ({error}): "
            "pip install -e '.[standalone]' in the project's folder"
        ) from None
    named = {_diffusers_name(name): weight for name, weight in weights.items()}
    if "decoder.norm_out.gamma" not in named or "quant_conv.weight" not in named:
        raise UniViGUError("the VAE is not a Wan 2.1 VAE: expected tensors like decoder.head.0.gamma and conv1.weight")
    with torch.device("meta"):  # of other sizes than Wan's own only the width is free
        vae: Any = AutoencoderKLWan(base_dim=named["decoder.norm_out.gamma"].shape[0])
    return with_weights(vae, named, "the VAE is not a Wan 2.1 VAE")


def vae_bytes(vae: Any, tower: str, frames: int, height: int, width: int) -> float:
    """What ``encoder`` or ``decoder`` takes for a clip in one piece beside the weights, in bytes."""
    itemsize = next(vae.parameters()).element_size()
    return float(height * width * itemsize * (_NUMBERS[tower] * vae.config.base_dim + 2 * 3 * frames))


def channels_last(vae: nn.Module) -> nn.Module:
    """Lay a VAE's convolutions out as CPUs want them (in place): 1.5 times as fast there, the same numbers to 1e-5."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for layer in vae.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            layer.weight.data = layer.weight.data.contiguous(memory_format=formats[layer.weight.ndim])
    return vae


def pixels_to_video(pixels: Tensor) -> Tensor:
    """uint8 ``[B,T,H,W,3]`` -> float32 ``[B,3,T,H,W]`` from -1 to 1, as the VAE reads it."""
    return pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


# A value stands for four frames, and the VAE looks at those before them too. A picture that stands still for nine comes
# back at 30.6 dB in the embedded model, one that does for five at 30.3.
LOOKED_AT = 9


def with_ends(
    empty: Tensor,
    encode: Callable[[Tensor], Tensor],
    first: Tensor | None = None,
    last: Tensor | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Put the frames at the ends of a clip, uint8 ``[T,H,W,3]``, into a latent ``[B,C,F,h,w]``: it and a mask of what
    is free, ``[1,1,F,h,w]``.

    Of ``first`` as many are taken as fill whole values: one, and then four each. The end of ``last`` fills ``groups``
    values; what lacks in front is its first frame. Raises UniViGUError where nothing is left free."""
    clean, free = empty.clone(), empty.new_ones(1, 1, *empty.shape[2:])
    if first is not None:
        count = min(1 + (len(first) - 1) // TEMPORAL, empty.shape[2])
        clean[:, :, :count], free[:, :, :count] = encode(first[: 1 + TEMPORAL * (count - 1)]).to(clean), 0.0
    if last is not None:
        lacking = max(LOOKED_AT - len(last), -(len(last) - 1) % TEMPORAL)
        latent = encode(torch.cat([last[:1].expand(lacking, -1, -1, -1), last]))
        groups = min(groups, empty.shape[2])
        clean[:, :, -groups:], free[:, :, -groups:] = latent[:, :, -groups:].to(clean), 0.0
    if not bool(free.any()):
        frames = TEMPORAL * (empty.shape[2] - 1) + 1
        raise UniViGUError(
            f"the pictures at its ends are all of a clip of {counted(frames, 'frame')}, so that nothing is left to "
            "form; ask for more frames"
        )
    return clean, free


class LatentCodec:
    """Clips <-> latents of one checkpoint's latent space, in batches."""

    def __init__(self, vae: Any, latent_space: str = "normalised") -> None:
        self.vae, self.latent_space = vae, latent_space

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 ``[B,T,H,W,3]`` -> latents ``[B,16,F,h,w]`` float32, the mean of the VAE's posterior.

        Raises UniViGUError for sizes off the model's grid."""
        latent_shape(*pixels.shape[1:4])
        weight = next(self.vae.parameters())
        video = pixels_to_video(pixels.to(weight.device)).to(weight.dtype)
        return to_latent_space(self.vae.encode(video).latent_dist.mode().float(), self.latent_space)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B,16,F,h,w]`` -> uint8 ``[B,T,H,W,3]`` on the CPU.

        Raises UniViGUError where the VAE gives numbers that are not finite."""
        weight = next(self.vae.parameters())
        raw = from_latent_space(latents.float(), self.latent_space).to(weight.device, weight.dtype)
        video: Tensor = self.vae.decode(raw).sample.float()
        if not bool(video.isfinite().all()):
            raise UniViGUError(
                "the VAE decoded values that are not numbers; expected finite ones. The latent or the VAE's file is "
                "damaged, or the VAE computes in a dtype that is too small for it"
            )
        levels = ((video.permute(0, 2, 3, 4, 1).clamp(-1, 1) + 1) * 127.5).round()
        return levels.to(torch.uint8).cpu()


def write_latent(path: Path, latent: Tensor, model: str, text: str = "") -> None:
    """Keep a sampled latent ``[1,16,F,h,w]`` in a file, with the name of the checkpoint whose latent space it is in,
    and the text that formed with it."""
    with written_whole(path) as temporary:
        save_file({"latent": latent.cpu().contiguous()}, temporary, metadata={"model": model, "text": text})


def read_latent(path: Path, model: str) -> Tensor:
    """What ``write_latent`` wrote. Raises UniViGUError for another file, and for the latent of another checkpoint."""
    file = open_weights(path)
    latent = file.tensors.get("latent")
    if latent is None or len(latent.shape) != 5 or latent.shape[:2] != (1, CHANNELS):
        raise UniViGUError(f"{path}: no latent in it; expected a file that a run kept because it could not decode")
    owner = file.metadata.get("model", model)
    if owner != model:
        raise UniViGUError(f"{path}: this latent was sampled with {owner}, not with {model}; pass --model {owner}")
    return file.read("latent")
