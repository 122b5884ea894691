"""One joint block: both streams side by side, attention shared, a feed-forward expert each.

Legend: B batch, V video tokens, T text tokens, S rows of the prompt condition, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import Attention
from .kv_cache import VideoCache
from .modulation import Modulate, Modulation, block_modulations, modulate
from .rope import Rotate, rotate_both_in_place, rotate_in_place


class Streams(NamedTuple):
    """A pair of values, one per stream; ``whole``: both one behind the other, where they are its parts."""

    video: Tensor
    text: Tensor
    whole: Tensor | None = None

    @classmethod
    def of(cls, whole: Tensor, text: int) -> Streams:
        """The parts of ``[B,V+T,D]``, of which the last ``text`` are the text's."""
        video = whole.shape[1] - text
        return cls(whole[:, :video], whole[:, video:], whole)


def joined(streams: Streams) -> Tensor:
    """Both streams one behind the other; nothing is copied where they lie so, or where one of them is empty."""
    if streams.whole is not None:
        return streams.whole
    if not streams.text.shape[1]:
        return streams.video
    return torch.cat([streams.video, streams.text], 1) if streams.video.shape[1] else streams.text


class Kept(NamedTuple):
    """Where a block keeps the video's keys and values, as which of how many blocks."""

    cache: VideoCache
    number: int
    blocks: int


class Call(NamedTuple):
    """What a block works on.

    ``x`` tokens ``[B,V,D]`` and ``[B,T,D]``; ``e`` six time vectors each, ``[B,6,D]``, stacked as its ``whole``;
    ``rotations`` rotary matrices of both streams, or what ``rotate`` takes in their place; ``context`` the projected
    prompt condition ``[B,S,D]``; ``key_mask`` ``[B,1,V+T]`` hides padded text
    keys from both streams. ``one_way``: the video of every row sees itself alone, the text sees both; ``video_mask``
    ``[B,1,V+T]``: what the video's queries have in the place of ``key_mask``, where only some rows are so. ``kept``:
    the block takes the video's part of its attention from there and leaves the video alone (its stream is then empty),
    or fills it. ``rotate``: how queries and keys are turned; ``modulate``: how the inputs of sub-layers are normalised,
    scaled and shifted. ``text_alone``: nobody looks at the video's stream after this block: it is left as it is.
    ``in_place``: nobody looks at ``x`` after this block, which may write over it.
    """

    x: Streams
    e: Streams
    rotations: Streams
    context: Tensor
    key_mask: Tensor | None
    one_way: bool = False
    video_mask: Tensor | None = None
    kept: Kept | None = None
    rotate: Rotate = rotate_in_place
    modulate: Modulate = modulate
    text_alone: bool = False
    in_place: bool = False


def may_write(call: Call) -> bool:
    """Whether a block may write over its input. A compiled network does so by itself, and one that is compiled in
    pieces (attention that cannot be traced lies between them) must not be handed parts of one tensor to write to."""
    return call.in_place and not torch.compiler.is_compiling()


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
            return Streams.of(self.o(attention(q, k, v, self.heads, mask=call.key_mask)), T)

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
        return Streams(x.video, out) if call.text_alone else Streams.of(out, T)

    def _keys(self, both: Tensor, T: int, call: Call) -> tuple[Tensor, Tensor]:
        return self._turned(self.norm_k(self.k(both)), T, call), self.v(both)

    def _turned(self, both: Tensor, T: int, call: Call) -> Tensor:
        """Queries or keys, of the text the last ``T``, each stream's turned in its own way. They are nobody else's: a
        ``rotate`` may write over what it is given, which it then gives back."""
        if may_write(call) and call.rotate is rotate_in_place and call.rotations.whole is not None:
            return rotate_both_in_place(both, call.rotations.whole[-both.shape[1] :], T, self.heads)
        given = Streams.of(both, T)
        video, text = given.video, given.text
        if video.shape[1]:
            video = call.rotate(video, call.rotations.video, self.heads, "interleaved")
        if text.shape[1]:
            text = call.rotate(text, call.rotations.text, self.heads, "half")
        return both if video is given.video and text is given.text else joined(Streams(video, text))


class CrossAttention(AttentionLayer):
    """Tokens of either stream read the prompt condition; no rotary, no mask."""

    def forward(self, x_BND: Tensor, context_BSD: Tensor, attention: Attention) -> Tensor:
        k, v = self.norm_k(self.k(context_BSD)), self.v(context_BSD)
        out: Tensor = self.o(attention(self.norm_q(self.q(x_BND)), k, v, self.heads, mask=None))
        return out


class GELU(nn.Module):
    """GELU(tanh), written over its input where no gradient may be asked for (the same to the bit): a feed-forward's
    hidden layer is the largest tensor of a pass."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.gelu(x, approximate="tanh")
        out: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
        return out


def feed_forward(config: ModelConfig, operations: Any, **factory: Any) -> nn.Sequential:
    """One expert: linear, GELU(tanh), linear."""
    return nn.Sequential(
        operations.Linear(config.dim, config.ffn_dim, **factory),
        GELU(),
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
        x, plain = call.x, call.modulate is modulate
        e = torch.stack([call.e.video, call.e.text]) if call.e.whole is None else call.e.whole
        of_video, of_text = block_modulations(self.modulation, e, factors=plain)
        (attend_v, feed_v), (attend_t, feed_t) = of_video, of_text
        moves_video = x.video.shape[1] > 0 and not call.text_alone
        in_place = may_write(call) and x.whole is not None and not call.text_alone

        # Both streams look at each other. What was added is let go of: the feed-forward is the widest moment.
        normed = self._modulated(self.norm1, x, attend_v, attend_t, call, in_place and plain)
        seen = self.self_attn(normed, call, attention)
        x = self._moved(x, seen, attend_v, attend_t, in_place, moves_video)
        del normed, seen

        # Both streams read the prompt.
        asking = joined(x if moves_video else Streams(x.video[:, :0], x.text))
        read = self.cross_attn(self.norm3(asking), call.context, cross_attention)
        if in_place:
            asking.add_(read)
        else:
            video = x.video + read[:, : x.video.shape[1]] if moves_video else x.video
            x = Streams(video, x.text + read[:, read.shape[1] - x.text.shape[1] :])
        del asking, read

        # Each stream has an expert of its own.
        video, text = x.video, x.text
        once = in_place and plain and len(video) == 1  # else the parts do not lie in one piece
        fresh = self._modulated(self.norm2, x, feed_v, feed_t, call, True) if once else None
        if moves_video:
            fed = self.ffn(fresh.video if fresh else call.modulate(self.norm2, video, feed_v))
            video = feed_v.add_(video, fed) if in_place else feed_v.add(video, fed)
            del fed
        if text.shape[1]:
            fed = self.ffn_t(fresh.text if fresh else call.modulate(self.norm2, text, feed_t))
            text = feed_t.add_(text, fed) if in_place else feed_t.add(text, fed)
        return x if in_place else Streams(video, text)

    @staticmethod
    def _modulated(
        norm: nn.LayerNorm, x: Streams, video: Modulation, text: Modulation, call: Call, in_place: bool
    ) -> Streams:
        """The input of a sub-layer: normalised once and modulated where it lies, or stream by stream."""
        if not in_place or x.whole is None:
            return Streams(call.modulate(norm, x.video, video), call.modulate(norm, x.text, text))
        normed = Streams.of(norm(x.whole), x.text.shape[1])
        for part, modulation in ((normed.video, video), (normed.text, text)):
            if part.shape[1]:
                modulation.apply(part, out=part)
        return normed

    @staticmethod
    def _moved(x: Streams, seen: Streams, video: Modulation, text: Modulation, in_place: bool, both: bool) -> Streams:
        """What attention has ``seen`` added to the streams, to the text alone where not ``both``."""
        if not in_place:
            return Streams(video.add(x.video, seen.video) if both else x.video, text.add(x.text, seen.text))
        if both:
            video.add_(x.video, seen.video)
        if x.text.shape[1]:
            text.add_(x.text, seen.text)
        return x
