"""Both streams lie in one tensor ``[B,V+T,...]``: the video's tokens, and behind them the text's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VIDEO, TEXT = 0, 1


def split(x: Tensor, text: int) -> list[tuple[int, Tensor]]:
    """Views of the streams that have tokens, each with its index (VIDEO, TEXT); the last ``text`` are the text's."""
    video = x.shape[1] - text
    return [(index, part) for index, part in enumerate((x[:, :video], x[:, video:])) if part.shape[1]]


def join(parts: Sequence[Tensor], dim: int = 1) -> Tensor:
    """``torch.cat`` that does not copy a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
