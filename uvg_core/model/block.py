"""One joint block: attention over both streams, a feed-forward expert for each (paper, section "Uni-flow", MoE block).

Legend: B batch, V video tokens, T text tokens, S rows of the prompt condition, D width. Both streams lie in one tensor
``[B,V+T,D]`` (``model/streams.py``), so that a layer that serves both is called once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import Attention
from .kv_cache import VideoCache
from .modulation import Modulate, Pair, block_modulations
from .rope import Rotate, rotate, rotate_in_place
from .streams import join, split


class Pass(NamedTuple):
    """What the blocks share in one forward pass.

    text                        T: the last tokens are the text's
    times                       six time vectors of each stream, ``[2,B,6,D]``
    rotations                   of all tokens, ``[V+T,...]`` (``model/rope.py``)
    context                     the projected prompt condition ``[B,S,D]``
    attention, cross_attention  see ``model/attention.py``
    key_mask                    ``[B,1,V+T]``, hides padded text keys from both streams
    one_way                     the video of every row sees itself alone, the text sees both
    video_mask                  ``[B,1,V+T]``, ``key_mask`` of the video's queries where some rows are so
    cache                       takes the keys and values of a clip, or has them: there are no video tokens then
    drop_video                  nobody needs the video after this block: it goes on with the text alone
    in_place                    blocks may write over their input where no gradient may be asked for
    rotate, modulate            a host's kernels in place of ``model/rope.py``'s and ``model/modulation.py``'s
    """

    text: int
    times: Tensor
    rotations: Tensor
    context: Tensor
    attention: Attention
    cross_attention: Attention
    key_mask: Tensor | None = None
    one_way: bool = False
    video_mask: Tensor | None = None
    cache: VideoCache | None = None
    drop_video: bool = False
    in_place: bool = False
    rotate: Rotate | None = None
    modulate: Modulate | None = None

    @property
    def writes(self) -> bool:
        """Whether a block writes over its input. Not while it is compiled: the compiler does so by itself, and a block
        that is compiled in pieces must not be handed parts of one tensor to write to."""
        return self.in_place and not torch.compiler.is_compiling()


class AttentionLayer(nn.Module):
    """q, k, v and o projections; q and k are RMS-normalised over the full width, before the split into heads."""

    def __init__(self, config: ModelConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.num_heads
        self.q, self.k, self.v, self.o = (operations.Linear(dim, dim, **factory) for _ in range(4))
        norm = partial(operations.RMSNorm, dim, eps=config.eps, elementwise_affine=True, **factory)
        self.norm_q, self.norm_k = norm(), norm()


class JointSelfAttention(AttentionLayer):
    """Attention over [video; text] with one set of weights and two rotary schemes. Everybody sees everybody; in a pass
    that is ``one_way`` the video sees itself alone."""

    def forward(self, index: int, x: Tensor, at: Pass) -> Tensor:
        video = x.shape[1] - at.text
        k, v = self._rotated(self.norm_k(self.k(x)), at), self.v(x)
        if at.cache is not None and at.cache.filled:
            k, v = at.cache.with_text(index, k, v)
        elif at.cache is not None:
            at.cache.keep(k[:, :video], v[:, :video], at.text)
        asking = x[:, video:].contiguous() if at.drop_video else x
        q = self._rotated(self.norm_q(self.q(asking)), at)
        out: list[Tensor] = []
        if not at.drop_video and (at.one_way or at.video_mask is not None):
            keys = (k[:, :video], v[:, :video]) if at.one_way else (k, v)
            out, q = [at.attention(q[:, :video], *keys, self.heads, mask=at.video_mask)], q[:, video:]
        out.append(at.attention(q, k, v, self.heads, mask=at.key_mask))
        seen: Tensor = self.o(join(out))
        return seen

    def _rotated(self, x: Tensor, at: Pass) -> Tensor:
        turn = at.rotate or (rotate_in_place if at.writes else rotate)
        return turn(x, at.rotations[-x.shape[1] :], at.text, self.heads)


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
    """Joint self-attention, cross-attention to the prompt, and the stream's own expert."""

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

    def forward(self, index: int, x: Tensor, at: Pass) -> Tensor:
        """Block ``index`` on the tokens ``[B,V+T,D]``; with ``drop_video`` it returns the text's ``[B,T,D]``."""
        attend, feed = block_modulations(self.modulation, at.times, factors=at.modulate is None)

        # Both streams look at each other.
        seen = self.self_attn(index, _attention_input(self.norm1, x, attend, at), at)
        if at.drop_video:
            x = x[:, -at.text :].clone()  # a view would keep the video alive
        x = _gated_add(x, (part for _, part in split(seen, at.text)), attend, at)
        del seen  # the feed-forward needs the room

        # Both read the prompt.
        read = self.cross_attn(self.norm3(x), at.context, at.cross_attention)
        x = x.add_(read) if at.writes else x + read
        del read

        # Each has an expert of its own.
        inputs, experts = _modulated(self.norm2, x, feed, at), (self.ffn, self.ffn_t)
        return _gated_add(x, (experts[stream](part) for stream, part in inputs), feed, at)


def _modulated(norm: nn.LayerNorm, x: Tensor, modulations: Pair, at: Pass) -> list[tuple[int, Tensor]]:
    """The input of a sub-layer, stream by stream."""
    if at.modulate is not None:
        return [(stream, at.modulate(norm, part, modulations[stream])) for stream, part in split(x, at.text)]
    return [(stream, modulations[stream].apply(part)) for stream, part in split(norm(x), at.text)]


def _attention_input(norm: nn.LayerNorm, x: Tensor, modulations: Pair, at: Pass) -> Tensor:
    """``_modulated`` in one tensor."""
    if at.modulate is not None or not at.writes:
        return join([part for _, part in _modulated(norm, x, modulations, at)])
    normed: Tensor = norm(x)
    for stream, part in split(normed, at.text):
        modulations[stream].apply(part, out=part)
    return normed


def _gated_add(x: Tensor, outputs: Iterable[Tensor], modulations: Pair, at: Pass) -> Tensor:
    """x + gate * output of a sub-layer, for each stream that has tokens."""
    parts = [(part, modulations[stream].gate) for stream, part in split(x, at.text)]
    if not at.writes:
        return join([torch.addcmul(part, out, gate) for (part, gate), out in zip(parts, outputs, strict=True)])
    for (part, gate), out in zip(parts, outputs, strict=True):
        part.addcmul_(out, gate)
    return x
