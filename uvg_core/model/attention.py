"""Attention functions that can be injected into the network.

Signature, shared with ComfyUI's ``optimized_attention``: ``attention(q, k, v, heads, mask=None)`` with q ``[B,Nq,D]``,
k and v ``[B,Nk,D]``, heads folded into D, and mask ``[B,1,Nk]``, added to the scores: 0 where a key may be seen, the
lowest number where not. (Added, not boolean: several of ComfyUI's attention functions add whatever they are given.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

log = logging.getLogger(__name__)

Attention = Callable[..., Tensor]


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """torch's scaled_dot_product_attention; returns ``[B,Nq,D]``. Takes a boolean mask (true: seen) as well."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    if mask is not None:
        mask = mask[:, None] if mask.dtype == torch.bool else mask[:, None].to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b h n d -> b n (h d)")


class XformersAttention:
    """xformers' memory-efficient attention on CUDA; anything it cannot do goes to ``sdpa_attention``.

    The first failure is logged in one line and ends its use in this instance, so that a broken optional package
    never ends a run.
    """

    def __init__(self) -> None:
        from xformers.ops import memory_efficient_attention

        self._attend = memory_efficient_attention
        self._works = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        if not (self._works and q.is_cuda and mask is None):
            return sdpa_attention(q, k, v, heads, mask)
        try:
            out: Tensor = self._attend(*(rearrange(x, "b n (h d) -> b n h d", h=heads) for x in (q, k, v)))
            return out.flatten(2)
        except Exception as error:  # whatever an optional package throws, the run goes on
            self._works = False
            log.warning("xformers attention failed (%s); using torch's attention from here on", error)
            return sdpa_attention(q, k, v, heads, mask)


def default_attention() -> Attention:
    """xformers when it is installed (it takes over on CUDA tensors only), else torch's attention."""
    try:
        return XformersAttention()
    except ImportError:
        return sdpa_attention
    except Exception as error:  # an installed but broken build
        log.warning("xformers does not import (%s); using torch's attention", error)
        return sdpa_attention
