"""What a pass of the network needs in memory beside its weights, from arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config import ModelConfig

MARGIN = 1.1  # what a pass holds beside its largest tensors: rotary matrices, attention's own, rounding


def video_tokens(size: Sequence[int], config: ModelConfig) -> int:
    """Tokens of a latent of ``size`` (frames, height, width); sides off the grid are padded."""
    return math.prod(-(-length // patch) for length, patch in zip(size, config.patch_size, strict=True))


def pass_bytes(config: ModelConfig, *, rows: int, video: int, text: int, itemsize: int, logits: int) -> float:
    """The widest moment of a pass over ``rows`` of ``video`` and ``text`` tokens, in bytes.

    That is a block in the middle of a feed-forward (all tokens before and after attention, what goes in, and one
    stream's hidden layer twice, before and after its GELU), or the text's logits, which ``logits`` of the rows have.
    ``itemsize``: bytes of a number of the activations.

    Holds for attention that does not make the matrix of all scores."""
    tokens = rows * (video + text)
    block = tokens * 3 * config.dim + rows * max(video, text) * 2 * config.ffn_dim
    head = tokens * 4 * config.dim + logits * text * config.text_out_dim
    return MARGIN * itemsize * max(block, head)
