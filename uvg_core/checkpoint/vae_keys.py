"""Names of the Wan VAE's weights: the original ones (also ComfyUI's) and those of diffusers' AutoencoderKLWan."""

from __future__ import annotations

import re

# (original, diffusers) for everything outside the two towers' down and up paths.
_FIXED: tuple[tuple[str, str], ...] = (
    ("conv1", "quant_conv"),
    ("conv2", "post_quant_conv"),
    *(
        (f"{tower}.{original}", f"{tower}.{diffusers}")
        for tower in ("encoder", "decoder")
        for original, diffusers in (
            ("conv1", "conv_in"),
            ("head.0", "norm_out"),
            ("head.2", "conv_out"),
            ("middle.0", "mid_block.resnets.0"),
            ("middle.1", "mid_block.attentions.0"),
            ("middle.2", "mid_block.resnets.1"),
        )
    ),
)
_RESIDUAL: tuple[tuple[str, str], ...] = (
    ("residual.0", "norm1"),
    ("residual.2", "conv1"),
    ("residual.3", "norm2"),
    ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
)
# The decoder lists its layers flat; diffusers groups three residual blocks and one upsampler into a block.
_LAYERS_PER_UP_BLOCK = 4


def _swap(name: str, pairs: tuple[tuple[str, str], ...], to_original: bool) -> str:
    for original, diffusers in pairs:
        old, new = (diffusers, original) if to_original else (original, diffusers)
        pattern = rf"(^|(?<=\.)){re.escape(old)}(?=\.|$)"
        if re.search(pattern, name):
            return re.sub(pattern, new, name, count=1)
    return name


def vae_to_diffusers(name: str) -> str:
    """diffusers' name of a weight with an original name."""
    body, changed = name, False
    for original, diffusers in _FIXED:
        if body.startswith(original + "."):
            body, changed = diffusers + body[len(original) :], True
            break
    if not changed:
        if match := re.match(r"decoder\.upsamples\.(\d+)\.(.*)", body):
            block, layer = divmod(int(match[1]), _LAYERS_PER_UP_BLOCK)
            part = f"resnets.{layer}" if layer < _LAYERS_PER_UP_BLOCK - 1 else "upsamplers.0"
            body = f"decoder.up_blocks.{block}.{part}.{match[2]}"
        else:
            body = body.replace("encoder.downsamples.", "encoder.down_blocks.")
    return _swap(body, _RESIDUAL, to_original=False)


def vae_to_original(name: str) -> str:
    """The original name of a weight that diffusers names ``name``."""
    body = _swap(name, _RESIDUAL, to_original=True) if re.search(r"block|resnets", name) else name
    for original, diffusers in _FIXED:
        if body.startswith(diffusers + "."):
            return original + body[len(diffusers) :]
    if match := re.match(r"decoder\.up_blocks\.(\d+)\.(resnets\.(\d+)|upsamplers\.0)\.(.*)", body):
        layer = int(match[3]) if match[3] else _LAYERS_PER_UP_BLOCK - 1
        return f"decoder.upsamples.{int(match[1]) * _LAYERS_PER_UP_BLOCK + layer}.{match[4]}"
    return body.replace("encoder.down_blocks.", "encoder.downsamples.")
