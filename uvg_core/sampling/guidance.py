"""Classifier-free guidance."""

from __future__ import annotations

from torch import Tensor


def guide(null: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """v_null + s * (v_cond - v_null) (arXiv 2207.12598); s = 1 is no guidance."""
    return null + scale * (conditional - null)
