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


class Projected(NamedTuple):
    """A stream's queries, keys and values ``[B,N,D]``, heads folded into D."""

    q: Tensor
    k: Tensor
    v: Tensor


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
    or fills it. ``rotate``: how queries and keys are turned; ``modulate``: how the
    inputs of sub-layers are normalised, scaled and shifted. ``text_alone``: nobody looks at the video's stream after
    this block: it is left as it is.
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
    the call says so, the video less than the text does."""

    def forward(self, x: Streams, call: Call, attention: Attention) -> Streams:
        with_text = x.text.shape[1] > 0  # several attention functions refuse sequences without tokens
        if call.kept is not None and call.kept.cache.filled:
            q, k, v = self._projected(x.text, call.rotations.text, "half", call.rotate)
            k, v = call.kept.cache.with_text(call.kept.number, k, v)
            return Streams(x.video, self.o(attention(q, k, v, self.heads, mask=call.key_mask)))

        q, k, v = self._projected(x.video, call.rotations.video, "interleaved", call.rotate)
        if call.kept is not None:
            call.kept.cache.keep(k, v, call.kept.blocks, x.text.shape[1])
        if not with_text:
            return Streams(self.o(attention(q, k, v, self.heads, mask=call.key_mask)), x.text)
        text = self._projected(x.text, call.rotations.text, "half", call.rotate)
        keys, values = torch.cat([k, text.k], 1), torch.cat([v, text.v], 1)
        if call.text_alone:
            return Streams(x.video, self.o(attention(text.q, keys, values, self.heads, mask=call.key_mask)))
        if call.one_way or call.video_mask is not None:
            seen = (k, v) if call.one_way else (keys, values)
            video = attention(q, *seen, self.heads, mask=call.video_mask)
            words = attention(text.q, keys, values, self.heads, mask=call.key_mask)
        else:
            out = attention(torch.cat([q, text.q], 1), keys, values, self.heads, mask=call.key_mask)
            video, words = out.split([x.video.shape[1], x.text.shape[1]], 1)
        return Streams(self.o(video), self.o(words))

    def _projected(self, x: Tensor, rotations: Tensor, pairs: str, turn: Rotate) -> Projected:
        q = turn(self.norm_q(self.q(x)), rotations, self.heads, pairs)
        k = turn(self.norm_k(self.k(x)), rotations, self.heads, pairs)
        return Projected(q, k, self.v(x))


class CrossAttention(AttentionLayer):
    """A stream reads the prompt condition; no rotary, no mask."""

    def forward(self, x: Streams, context_BSD: Tensor, attention: Attention) -> Streams:
        k, v = self.norm_k(self.k(context_BSD)), self.v(context_BSD)

        def read(stream: Tensor) -> Tensor:
            if not stream.shape[1]:
                return stream
            return self.o(attention(self.norm_q(self.q(stream)), k, v, self.heads, mask=None))

        return Streams(read(x.video), read(x.text))


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
        asking = Streams(self.norm3(video) if moves_video else video[:, :0], self.norm3(text))
        read = self.cross_attn(asking, call.context, cross_attention)
        video = video + read.video if moves_video else video
        text = text + read.text
        del asking, read

        # Each stream has an expert of its own.
        if moves_video:
            video = feed_v.add(video, self.ffn(call.modulate(self.norm2, video, feed_v)))
        if text.shape[1]:
            text = feed_t.add(text, self.ffn_t(call.modulate(self.norm2, text, feed_t)))
        return Streams(video, text)
