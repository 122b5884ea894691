"""Handwritten digits: the images that ship with scikit-learn (Alpaydin and Kaynak's optical digits, UCI)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from uvg_core.errors import UniViGUError

from .grammar import DIGITS, draw_index


@cache
def digit_images(split: str) -> dict[str, Tensor]:
    """Handwritten digits by name, float ``[N,8,8]`` in 0..1; every fifth image of a digit is ``test``, the others are
    ``train``. Raises UniViGUError where scikit-learn, which brings the images, is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UniViGUError(
            'scikit-learn is not installed, and the digits of the little worlds come with it; install "scikit-learn"'
        ) from None
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
    found = {}
    for value, name in enumerate(DIGITS):
        of_digit = images[labels == value]
        is_test = torch.arange(len(of_digit)) % 5 == 0
        found[name] = of_digit[is_test == (split == "test")]
    return found


def random_digit(kind: str, split: str, generator: torch.Generator) -> Tensor | None:
    """One image of a digit ``[8,8]``; None for kinds that are not handwritten."""
    if kind not in DIGITS:
        return None
    images = digit_images(split)[kind]
    return images[draw_index(len(images), generator)]
