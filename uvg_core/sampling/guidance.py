"""Classifier-free guidance."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import UniViGUError


def guide(null: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """v_null + s * (v_cond - v_null) (arXiv 2207.12598); s = 1 is no guidance."""
    return null + scale * (conditional - null)


def guided_steps(end: float, steps: int) -> int:
    """How many of ``steps`` are guided where the share ``end``, from the noisiest on, is (arXiv 2404.07724): a step
    begun within the share is. Raises UniViGUError for an ``end`` off [0, 1]."""
    if not 0 <= end <= 1:
        raise UniViGUError(f"guidance_end is {end}; expected a share of the steps, from 0 to 1")
    return math.ceil(end * steps - 1e-9)  # 0.55 * 100 is a little more than 55
