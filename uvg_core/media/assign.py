"""Weights into modules of other libraries, without a second copy of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import UniViGUError


def with_weights(module: Any, weights: Mapping[str, Tensor], problem: str) -> Any:
    """A module built on the meta device, given all of its weights, for use only.

    Raises UniViGUError that begins with ``problem`` and names the first tensor that does not fit."""
    try:
        module.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]  # torch lists what does not fit under a headline
        raise UniViGUError(f"{problem}: {first[0].strip()[:200]}") from None
    return module.eval().requires_grad_(False)
