"""The course of the rate, and which weights go where."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from uvg_core.errors import UniViGUError
from uvg_core.training.config import Optimizer
from uvg_core.training.optimizers import make_optimizers, rate_at


def weights() -> dict[str, nn.Parameter]:
    """Matrices inside and outside the blocks, vectors inside and outside."""
    shapes = {
        "blocks.0.self_attn.q.weight": (8, 8),
        "blocks.0.self_attn.q.bias": (8,),
        "blocks.1.ffn_t.0.weight": (16, 8),
        "blocks.1.norm3.weight": (8,),
        "token_embedding.weight": (12, 8),
        "text_head.head.bias": (12,),
    }
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def names(group: dict[str, Any], of: dict[str, nn.Parameter]) -> set[str]:
    return {name for name, weight in of.items() if any(weight is one for one in group["params"])}


# --- the rate ---------------------------------------------------------------------------------------------------------


def test_the_rate_climbs_evenly_and_is_whole_after_the_warm_up() -> None:
    wanted = Optimizer(warmup=4)
    climb = [rate_at(wanted, step, 100) for step in range(5)]
    assert climb == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rate_at(Optimizer(warmup=0), 0, 100) == 1.0


def test_the_rate_falls_along_a_cosine() -> None:
    wanted, steps = Optimizer(warmup=10, final=0.1), 110
    for share in (0.25, 0.5, 0.75):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2
        assert rate_at(wanted, 10 + int(100 * share), steps) == pytest.approx(expected)
    course = [rate_at(wanted, step, steps) for step in range(10, steps)]
    assert all(later < earlier for earlier, later in pairwise(course))


def test_a_shorter_run_follows_the_longer_ones_course() -> None:
    whole, part = Optimizer(warmup=10), Optimizer(warmup=10, horizon=500)
    for step in (0, 9, 10, 50, 149):
        assert rate_at(part, step, 150) == rate_at(whole, step, 500)


def test_the_rate_ends_at_its_final_share() -> None:
    wanted = Optimizer(warmup=10, final=0.1)
    assert rate_at(wanted, 110, 110) == pytest.approx(0.1)
    assert rate_at(wanted, 109, 110) == pytest.approx(0.1, abs=1e-3)
    assert rate_at(wanted, 500, 110) == pytest.approx(0.1)  # never below, never up again
    assert all(rate_at(Optimizer(warmup=5, final=1.0), step, 50) == 1.0 for step in range(5, 50))


def test_a_run_shorter_than_its_warm_up_only_climbs() -> None:
    course = [rate_at(Optimizer(warmup=100), step, 10) for step in range(10)]
    assert course == pytest.approx([(step + 1) / 101 for step in range(10)])


# --- the groups -------------------------------------------------------------------------------------------------------


def test_vectors_do_not_decay() -> None:
    found = weights()
    (adamw,) = make_optimizers(found, Optimizer(rate=3e-4, weight_decay=0.1))
    assert isinstance(adamw, torch.optim.AdamW)
    decays = {name: group["weight_decay"] for group in adamw.param_groups for name in names(group, found)}
    assert decays == {name: 0.1 if weight.ndim == 2 else 0.0 for name, weight in found.items()}
    assert all(group["peak_lr"] == 3e-4 for group in adamw.param_groups)
    assert all(group["betas"] == Optimizer().betas for group in adamw.param_groups)


def test_decay_pulls_matrices_and_nothing_else() -> None:
    found = weights()
    before = {name: weight.detach().clone() for name, weight in found.items()}
    for weight in found.values():
        weight.grad = torch.zeros_like(weight)
    (adamw,) = make_optimizers(found, Optimizer(rate=0.1, weight_decay=0.5))
    adamw.step()
    for name, weight in found.items():
        torch.testing.assert_close(weight.detach(), before[name] * (0.95 if weight.ndim == 2 else 1.0))


def test_muon_takes_the_matrices_of_the_blocks() -> None:
    found = weights()
    adamw, muon = make_optimizers(found, Optimizer(kind="muon", rate=1e-4, muon_rate=0.02, weight_decay=0.1))
    assert isinstance(muon, torch.optim.Muon)
    assert names(muon.param_groups[0], found) == {"blocks.0.self_attn.q.weight", "blocks.1.ffn_t.0.weight"}
    assert muon.param_groups[0]["peak_lr"] == 0.02
    rest = set().union(*(names(group, found) for group in adamw.param_groups))
    assert rest == set(found) - names(muon.param_groups[0], found)


def test_muon_moves_along_all_directions_alike() -> None:
    weight = nn.Parameter(torch.zeros(8, 8))
    (muon,) = make_optimizers({"blocks.0.ffn.0.weight": weight}, Optimizer(kind="muon", weight_decay=0.0))
    steep = torch.diag(torch.tensor([100.0, 50, 20, 10, 5, 2, 1, 0.5]))
    weight.grad = steep
    muon.step()
    moved = torch.linalg.svdvals(weight.detach())
    assert float(moved.max() / moved.min()) < 2  # of the gradient it is 200
    assert float((weight.detach() * steep).sum()) < 0


@pytest.mark.parametrize("shape", [(16, 6), (6, 16)])
def test_muon_on_a_cpu_steps_as_torch_does_without_bfloat16(shape: tuple[int, int]) -> None:
    made = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=made)
    ours, torchs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    (muon,) = make_optimizers({"blocks.0.ffn.0.weight": ours}, Optimizer(kind="muon", muon_rate=0.1, weight_decay=0.1))
    reference = torch.optim.Muon([torchs], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=made)
        torchs.grad = ours.grad.clone()
        with DTypes() as seen:
            muon.step()
        assert torch.bfloat16 not in seen.dtypes
        reference.step()
    torch.testing.assert_close(ours.detach(), torchs.detach(), rtol=0, atol=0.02)  # of steps of 0.1 and more
    reference.load_state_dict(muon.state_dict())  # a run goes on from either's state


class DTypes(TorchDispatchMode):
    """Collects the dtypes of all results inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.dtypes |= {one.dtype for one in tree_leaves(result) if isinstance(one, torch.Tensor)}
        return result


def test_muon_alone_where_nothing_else_learns() -> None:
    found = {"blocks.0.ffn.0.weight": nn.Parameter(torch.zeros(4, 4))}
    (alone,) = make_optimizers(found, Optimizer(kind="muon"))
    assert isinstance(alone, torch.optim.Muon)
    only_vectors = {"blocks.0.norm3.weight": nn.Parameter(torch.zeros(4))}
    assert [type(one) for one in make_optimizers(only_vectors, Optimizer(kind="muon"))] == [torch.optim.AdamW]


def test_eight_bits_without_bitsandbytes_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UniViGUError, match=r"optimizer\.kind is adamw8bit.*bitsandbytes.*or use adamw"):
        make_optimizers(weights(), Optimizer(kind="adamw8bit"))


def test_nothing_to_learn_is_an_error() -> None:
    with pytest.raises(UniViGUError, match="nothing to train"):
        make_optimizers({}, Optimizer())
