"""What a pass of the network needs in memory beside its weights, from arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config import ModelConfig

MARGIN = 1.02  # clocks, conditions, latents, rounding
WIDE = 4  # bytes of a number while queries and keys are turned


def video_tokens(size: Sequence[int], config: ModelConfig) -> int:
    """Tokens of a latent of ``size`` (frames, height, width); sides off the grid are padded."""
    return math.prod(-(-length // patch) for length, patch in zip(size, config.patch_size, strict=True))


def pass_bytes(config: ModelConfig, *, rows: int, video: int, text: int, itemsize: int, logits: int) -> float:
    """The widest moment of a pass over ``rows`` of ``video`` and ``text`` tokens, in bytes, where no gradient is asked
    for.

    That is one of three. A feed-forward: all tokens, as they are and as they go in, and of the larger stream the hidden
    layer (GELU is written over it) and what comes out. Attention: all tokens, as they are and as they go in, queries,
    keys and values, and queries once more in float32 while they are turned. Or the heads: the text's logits, which
    ``logits`` of the rows have, or the video normalised and modulated, beside all tokens. ``itemsize``: bytes of a
    number of the activations.

    Holds for attention that does not make the matrix of all scores."""
    tokens, larger = rows * (video + text), rows * max(video, text)
    turns = (video + text) * config.head_dim * WIDE
    feed_forward = itemsize * (tokens * 2 * config.dim + larger * (config.ffn_dim + config.dim))
    attention = tokens * config.dim * (itemsize * 5 + WIDE)
    head = itemsize * (tokens * config.dim + max(logits * text * config.text_out_dim, rows * video * 2 * config.dim))
    return MARGIN * (turns + max(feed_forward, attention, head))
