"""The moving average of the weights, which is what is sampled from and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Average:
    """Exponential moving average of the weights that learn, in float32; early on it forgets faster."""

    # torch.optim.swa_utils.AveragedModel copies the whole network, frozen weights too, in the dtypes that it has.
    def __init__(self, weights: dict[str, nn.Parameter], decay: float) -> None:
        self.weights, self.decay, self.count = weights, decay, 0
        self.means = {name: weight.detach().clone().float() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        change = 1 - min(self.decay, self.count / (self.count + 10))
        for name, weight in self.weights.items():
            self.means[name].lerp_(weight.float(), change)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """The network has the averaged weights for the length of a block."""
        latest = {name: weight.clone() for name, weight in self.weights.items()}
        self._put(self.means)
        try:
            yield
        finally:
            self._put(latest)

    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        for name, mean in self.means.items():
            mean.copy_(state["means"][name])
