"""What a pass of the network needs in memory beside its weights, from arithmetic, and what a device has left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config import ModelConfig
from ..errors import UniViGUError

MARGIN = 1.02  # clocks, conditions, latents, rounding
WIDE = 4  # bytes of a number while queries and keys are rotated
MEMORY_OF_LINUX = Path("/proc/meminfo")
SHARE_OF_FREE = 0.7  # of a device's free memory: the pass needs some of it too


def video_tokens(size: Sequence[int], config: ModelConfig) -> int:
    """Tokens of a latent of ``size`` (frames, height, width); sides off the grid are padded."""
    return math.prod(-(-length // patch) for length, patch in zip(size, config.patch_size, strict=True))


def pass_bytes(
    config: ModelConfig, *, rows: int, video: int, text: int, itemsize: int, logits: int, velocity: bool = True
) -> float:
    """The widest moment of a pass over ``rows`` of ``video`` and ``text`` tokens, in bytes, where no gradient is asked
    for.

    That is one of three. A feed-forward: all tokens, as they are and as they go in, and of the larger stream the hidden
    layer (GELU is written over it) and what comes out. Attention: all tokens, as they are and as they go in, queries,
    keys and values, and queries once more in float32 while they are rotated. Or the heads: the text's logits, which
    ``logits`` of the rows have, or the video normalised and modulated, beside all tokens (the text's alone without
    ``velocity``). ``itemsize``: bytes of a number of the activations.

    Holds for attention that does not make the matrix of all scores."""
    tokens, larger = rows * (video + text), rows * max(video, text)
    turns = (video + text) * config.head_dim * WIDE
    feed_forward = itemsize * (tokens * 2 * config.dim + larger * (config.ffn_dim + config.dim))
    attention = tokens * config.dim * (itemsize * 5 + WIDE)
    left, wide = (tokens, rows * video * 2 * config.dim) if velocity else (rows * text, 0)
    head = itemsize * (left * config.dim + max(logits * text * config.text_out_dim, wide))
    return MARGIN * (turns + max(feed_forward, attention, head))


def free_memory(device: torch.device) -> float:
    """Bytes that may be taken on ``device``: of the machine's own memory what Linux says, elsewhere without a limit; of
    other devices 0 where torch cannot tell."""
    if device.type == "cpu":
        lines = MEMORY_OF_LINUX.read_text().splitlines() if MEMORY_OF_LINUX.exists() else []
        available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        return SHARE_OF_FREE * available[0] if available else math.inf
    if device.type != "cuda":
        try:
            return SHARE_OF_FREE * torch.accelerator.get_memory_info(device)[0]
        except (AttributeError, RuntimeError):  # an older torch; a device that does not know
            return 0.0
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    unused = reserved - torch.cuda.memory_allocated(device)
    return float(SHARE_OF_FREE * (min(free, fraction * total - reserved) + unused))


def total_memory(device: torch.device) -> float:
    """Bytes that ``device`` has in all, used or not; infinity where the system does not say."""
    if device.type == "cpu":
        lines = MEMORY_OF_LINUX.read_text().splitlines() if MEMORY_OF_LINUX.exists() else []
        stated = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
        return float(stated[0]) if stated else math.inf
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    try:
        return float(torch.accelerator.get_memory_info(device)[1])
    except (AttributeError, RuntimeError):  # an older torch; a device that does not know
        return math.inf


def require_room(needed: float, device: torch.device, what: str) -> None:
    """Raise UniViGUError for ``what`` that takes more bytes than the device has in all: nothing that could be freed
    would make it fit. Ask before work begins and before memory is taken."""
    total = total_memory(device)
    if needed > total:
        raise UniViGUError(
            f"{what} takes at least {needed / 1e9:.4g} GB of memory; {device} has {total / 1e9:.1f} GB in all. Make it "
            "smaller or shorter"
        )
