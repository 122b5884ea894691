"""Names of the Wan VAE's weights: the original ones (also ComfyUI's) and those of diffusers' AutoencoderKLWan."""

from __future__ import annotations

from collections.abc import Mapping

from .keys import inverse

_LAYERS = range(64)  # more than any VAE has
_TOWER = {
    "conv1": "conv_in",
    "head.0": "norm_out",
    "head.2": "conv_out",
    "middle.0": "mid_block.resnets.0",
    "middle.1": "mid_block.attentions.0",
    "middle.2": "mid_block.resnets.1",
}
# Original layer -> diffusers' layer. The decoder lists its layers flat; diffusers groups three residual blocks and one
# upsampler into a block.
_LAYER = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{tower}.{a}": f"{tower}.{b}" for tower in ("encoder", "decoder") for a, b in _TOWER.items()},
    **{f"encoder.downsamples.{i}": f"encoder.down_blocks.{i}" for i in _LAYERS},
    **{
        f"decoder.upsamples.{i}": f"decoder.up_blocks.{i // 4}."
        + ("upsamplers.0" if i % 4 == 3 else f"resnets.{i % 4}")
        for i in _LAYERS
    },
}
_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}


def _start_renamed(name: str, table: Mapping[str, str]) -> tuple[str, str]:
    """The start of a name as the table has it, and the rest; an empty start where the table does not know it."""
    for start, renamed in table.items():
        if name.startswith(f"{start}."):
            return f"{renamed}.", name[len(start) + 1 :]
    return "", name


def _renamed(name: str, layers: Mapping[str, str], residual: Mapping[str, str]) -> str:
    layer, rest = _start_renamed(name, layers)
    return layer + "".join(_start_renamed(rest, residual)) if layer else name


def vae_to_diffusers(name: str) -> str:
    """diffusers' name of a weight with an original name."""
    return _renamed(name, _LAYER, _RESIDUAL)


def vae_to_original(name: str) -> str:
    """The original name of a weight that diffusers names ``name``."""
    return _renamed(name, inverse(_LAYER), inverse(_RESIDUAL))
