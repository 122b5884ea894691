"""One joint block: both streams side by side, attention shared, a feed-forward expert each.

Legend: B batch, V video tokens, T text tokens, S rows of the prompt condition, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import Attention
from .cache import VideoCache
from .modulation import Modulate, block_modulation, modulate
from .rope import Rotate, rotate


class Streams(NamedTuple):
    """A pair of values, one per stream."""

    video: Tensor
    text: Tensor


def joined(streams: Streams) -> Tensor:
    """Both streams one behind the other; nothing is copied where one of them is empty."""
    if not streams.text.shape[1]:
        return streams.video
    return torch.cat(streams, 1) if streams.video.shape[1] else streams.text


class Kept(NamedTuple):
    """Where a block keeps the video's keys and values, as which of how many blocks."""

    cache: VideoCache
    number: int
    blocks: int


class Call(NamedTuple):
    """What a block works on.

    ``x`` tokens ``[B,V,D]`` and ``[B,T,D]``; ``e`` six time vectors each, ``[B,6,D]``; ``rotations`` rotary matrices of
    both streams; ``context`` the projected prompt condition ``[B,S,D]``; ``key_mask`` ``[B,1,V+T]`` hides padded text
    keys from both streams. ``one_way``: the video of every row sees itself alone, the text sees both; ``video_mask``
    ``[B,1,V+T]``: what the video's queries have in the place of ``key_mask``, where only some rows are so. ``kept``:
    the block takes the video's part of its attention from there and leaves the video alone (its stream is then empty),
    or fills it. ``rotate``: how queries and keys are turned; ``modulate``: how the inputs of sub-layers are normalised,
    scaled and shifted. ``text_alone``: nobody looks at the video's stream after this block: it is left as it is.
    """

    x: Streams
    e: Streams
    rotations: Streams
    context: Tensor
    key_mask: Tensor | None
    one_way: bool = False
    video_mask: Tensor | None = None
    kept: Kept | None = None
    rotate: Rotate = rotate
    modulate: Modulate = modulate
    text_alone: bool = False


class AttentionLayer(nn.Module):
    """q, k, v and o projections; q and k are RMS-normalised over the full width, before the split into heads."""

    def __init__(self, config: ModelConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.num_heads
        self.q = operations.Linear(dim, dim, **factory)
        self.k = operations.Linear(dim, dim, **factory)
        self.v = operations.Linear(dim, dim, **factory)
        self.o = operations.Linear(dim, dim, **factory)
        self.norm_q = operations.RMSNorm(dim, eps=config.eps, elementwise_affine=True, **factory)
        self.norm_k = operations.RMSNorm(dim, eps=config.eps, elementwise_affine=True, **factory)


class JointSelfAttention(AttentionLayer):
    """Attention over [video; text] with one set of weights and two rotary schemes; everybody sees everybody, or, where
    the call says so, the video less than the text does.

    Each projection is called once for both streams: a host that brings weights to the device as they are called for
    brings them once.
    """

    def forward(self, x: Streams, call: Call, attention: Attention) -> Streams:
        V, T = x.video.shape[1], x.text.shape[1]
        if call.kept is not None and call.kept.cache.filled:
            q, k, v = (self._turned(self.norm_q(self.q(x.text)), T, call), *self._keys(x.text, T, call))
            k, v = call.kept.cache.with_text(call.kept.number, k, v)
            return Streams(x.video, self.o(attention(q, k, v, self.heads, mask=call.key_mask)))

        both = joined(x)
        k, v = self._keys(both, T, call)
        if call.kept is not None:
            call.kept.cache.keep(k[:, :V], v[:, :V], call.kept.blocks, T)
        q = self._turned(self.norm_q(self.q(x.text if call.text_alone else both)), T, call)
        if call.text_alone or not (T and (call.one_way or call.video_mask is not None)):
            out = attention(q, k, v, self.heads, mask=call.key_mask)
        else:
            seen = (k[:, :V], v[:, :V]) if call.one_way else (k, v)
            video = attention(q[:, :V], *seen, self.heads, mask=call.video_mask)
            out = torch.cat([video, attention(q[:, V:], k, v, self.heads, mask=call.key_mask)], 1)
        out = self.o(out)
        return Streams(x.video, out) if call.text_alone else Streams(*out.split([V, T], 1))

    def _keys(self, both: Tensor, T: int, call: Call) -> tuple[Tensor, Tensor]:
        return self._turned(self.norm_k(self.k(both)), T, call), self.v(both)

    def _turned(self, both: Tensor, T: int, call: Call) -> Tensor:
        """Queries or keys, of the text the last ``T``, each stream's turned in its own way."""
        video, text = both.split([both.shape[1] - T, T], 1)
        if video.shape[1]:
            video = call.rotate(video, call.rotations.video, self.heads, "interleaved")
        if text.shape[1]:
            text = call.rotate(text, call.rotations.text, self.heads, "half")
        return joined(Streams(video, text))


class CrossAttention(AttentionLayer):
    """Tokens of either stream read the prompt condition; no rotary, no mask."""

    def forward(self, x_BND: Tensor, context_BSD: Tensor, attention: Attention) -> Tensor:
        k, v = self.norm_k(self.k(context_BSD)), self.v(context_BSD)
        out: Tensor = self.o(attention(self.norm_q(self.q(x_BND)), k, v, self.heads, mask=None))
        return out


def feed_forward(config: ModelConfig, operations: Any, **factory: Any) -> nn.Sequential:
    """One expert: linear, GELU(tanh), linear."""
    return nn.Sequential(
        operations.Linear(config.dim, config.ffn_dim, **factory),
        nn.GELU(approximate="tanh"),
        operations.Linear(config.ffn_dim, config.dim, **factory),
    )


class JointBlock(nn.Module):
    """Joint self-attention, cross-attention to the prompt, and the stream's own expert (paper, uni-flow MoE block)."""

    def __init__(self, config: ModelConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.norm1 = operations.LayerNorm(dim, eps, elementwise_affine=False, **factory)
        self.self_attn = JointSelfAttention(config, operations, **factory)
        self.norm3 = operations.LayerNorm(dim, eps, elementwise_affine=True, **factory)
        self.cross_attn = CrossAttention(config, operations, **factory)
        self.norm2 = operations.LayerNorm(dim, eps, elementwise_affine=False, **factory)
        self.ffn = feed_forward(config, operations, **factory)
        self.ffn_t = feed_forward(config, operations, **factory)
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim, **factory))

    def forward(self, call: Call, attention: Attention, cross_attention: Attention) -> Streams:
        video, text = call.x
        attend_v, feed_v = block_modulation(self.modulation, call.e.video)
        attend_t, feed_t = block_modulation(self.modulation, call.e.text)
        moves_video = video.shape[1] > 0 and not call.text_alone

        # Both streams look at each other. What was added is let go of: the feed-forward is the widest moment.
        normed = Streams(call.modulate(self.norm1, video, attend_v), call.modulate(self.norm1, text, attend_t))
        seen = self.self_attn(normed, call, attention)
        video = attend_v.add(video, seen.video) if moves_video else video
        text = attend_t.add(text, seen.text)
        del normed, seen

        # Both streams read the prompt.
        asking = joined(Streams(video if moves_video else video[:, :0], text))
        read = self.cross_attn(self.norm3(asking), call.context, cross_attention)
        video = video + read[:, : video.shape[1]] if moves_video else video
        text = text + read[:, read.shape[1] - text.shape[1] :]
        del asking, read

        # Each stream has an expert of its own.
        if moves_video:
            video = feed_v.add(video, self.ffn(call.modulate(self.norm2, video, feed_v)))
        if text.shape[1]:
            text = feed_t.add(text, self.ffn_t(call.modulate(self.norm2, text, feed_t)))
        return Streams(video, text)
