"""Optimizers, the course of their learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UniViGUError
from .config import Optimizer


def rate_at(optimizer: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step ``step`` (counted from 0) as a fraction of the peak: a linear climb, then a cosine."""
    if step < optimizer.warmup:
        return (step + 1) / (optimizer.warmup + 1)
    done = (step - optimizer.warmup) / max(1, (optimizer.horizon or steps) - optimizer.warmup)
    return optimizer.final + (1 - optimizer.final) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))


def faster(wanted: Optimizer, factor: float) -> Optimizer:
    """The same optimizer with higher peaks of its rates."""
    return replace(wanted, rate=wanted.rate * factor, muon_rate=wanted.muon_rate * factor)


def make_optimizers(weights: Mapping[str, nn.Parameter], wanted: Optimizer) -> list[torch.optim.Optimizer]:
    """One optimizer, or two with Muon. Each group's ``peak_lr`` is its peak learning rate.

    Weight decay holds for matrices only. Muon (momentum, orthogonalised; https://kellerjordan.github.io/posts/muon)
    takes the matrices inside the blocks, AdamW everything else."""
    if not weights:
        raise UniViGUError("nothing to train: with this stage and `trains`, every weight is frozen")
    muon: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, weight in weights.items():
        if wanted.kind == "muon" and name.startswith("blocks.") and weight.ndim == 2:
            muon.append(weight)
        elif weight.ndim > 1 and not name.endswith("modulation"):  # whose tables are vectors side by side
            matrices.append(weight)
        else:
            vectors.append(weight)
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": decay, "peak_lr": wanted.rate}
        for params, decay in ((matrices, wanted.weight_decay), (vectors, 0.0))
        if params
    ]
    made: list[torch.optim.Optimizer] = []
    if groups and wanted.kind == "adamw8bit":
        require_bitsandbytes()
        import bitsandbytes

        made.append(bitsandbytes.optim.AdamW8bit(groups, lr=wanted.rate, betas=wanted.betas))
    elif groups:
        made.append(torch.optim.AdamW(groups, lr=wanted.rate, betas=wanted.betas, fused=True))
    if muon:
        params = {"params": muon, "peak_lr": wanted.muon_rate}
        kind = _MuonOnCPU if muon[0].device.type == "cpu" else torch.optim.Muon
        made.append(kind([params], lr=wanted.muon_rate, weight_decay=wanted.weight_decay))
    return made


class _MuonOnCPU(torch.optim.Muon):
    """Muon that orthogonalises in float32.

    torch's own does so in bfloat16, whose products take most CPUs dozens of times as long: with it, Newton-Schulz
    was three quarters of a training step of the embedded model. Groups and state are the same."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                moment = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(moment, group["momentum"])  # Nesterov's, torch's default
                update = _orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)
        return loss


def _orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """A matrix (rows, columns) with its singular values brought near 1, by Newton-Schulz iterations of degree five."""
    linear, cubic, quintic = coefficients
    wide: Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = linear * wide + torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def require_bitsandbytes() -> None:
    """Raise UniViGUError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        how = "needs a GPU and bitsandbytes: pip install bitsandbytes, or use adamw"
        raise UniViGUError(f"optimizer.kind is adamw8bit, which {how}")


class Average:
    """Exponential moving average of the weights that learn, in float32; early on it forgets faster."""

    # torch.optim.swa_utils.AveragedModel copies the whole network instead, frozen weights too, in the dtypes it has.
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

    def _put(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        for name, mean in self.means.items():
            mean.copy_(state["means"][name])
