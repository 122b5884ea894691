"""The arithmetic of LoRA files: one change to one weight. Legend: O outputs and I inputs of a weight, R rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# The kinds of factors and their roles. Those in OPTIONAL mean nothing without the others.
FACTORS = {
    "pair": ("down", "up", "mid", "magnitude", "dora_scale"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "dora_scale"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "dora_scale"),
    "glora": ("a1", "a2", "b1", "b2", "dora_scale"),
}
OPTIONAL = {"mid", "magnitude", "dora_scale", "hada_t1", "hada_t2", "lokr_t2"}


class Product(NamedTuple):
    """Factors multiplied out: ``added`` to a weight, ``[O,I]`` or ``[O,I,...]``; for GLoRA also ``turned``, the
    ``[I,I]`` that the weight is multiplied with to give what is added beside; and the ``rank`` that alpha is divided
    by, None for factors that have none."""

    added: Tensor
    turned: Tensor | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Patch:
    """One change to one weight. ``parts``: the tensors of the file by their role; ``scale``: what the product of the
    factors is multiplied with, alpha / R.

    ``kind``: ``pair`` (down ``[R,I]``, up ``[O,R]``, mid ``[R,R,...]``), ``loha``, ``lokr``, ``glora``, ``diff`` or
    ``set``. A ``magnitude`` (peft) or a ``dora_scale`` (LyCORIS, OneTrainer) among the parts makes it a DoRA.
    """

    kind: str
    parts: Mapping[str, str]
    scale: float = 1.0

    def apply(self, weight: Tensor, tensors: Mapping[str, Tensor], strength: float) -> Tensor:
        """The changed weight, in the dtype and on the device of ``weight``, which stays as it is."""
        t = {role: tensor.to(weight.device, weight.dtype) for role, tensor in tensors.items()}
        if self.kind == "set":  # takes the weight's place whatever the strength, as in ComfyUI
            return t["set_weight"].clone()
        made = product(self.kind, t, weight.shape)
        changed = self.scale * made.added.reshape(weight.shape)
        if made.turned is not None:
            changed += self.scale * torch.einsum("oi...,ij->oj...", weight, made.turned)
        whole = weight + changed
        if "magnitude" in t:  # peft's: each row of the sum gets this length
            changed = whole * _rows(t["magnitude"].flatten() / _lengths(whole), whole) - weight
        elif "dora_scale" in t:  # as ComfyUI computes it: a scale for each row is held against the weight, not the sum
            scale, tiny = t["dora_scale"], torch.finfo(weight.dtype).eps
            if scale.shape[0] == len(weight):
                factor = _rows(scale.flatten() / (_lengths(weight) + tiny), whole)
            else:
                columns = whole.transpose(0, 1)
                factor = _rows(scale.flatten() / (_lengths(columns) + tiny), columns).transpose(0, 1)
            changed = whole * factor - weight
        return weight + strength * changed


def product(kind: str, t: Mapping[str, Tensor], weight: Sequence[int]) -> Product:
    """Factors multiplied out, for a weight of that shape.

    Raises KeyError for a factor that is missing, RuntimeError for factors that do not fit each other."""
    if kind == "diff":
        return Product(t["diff"])
    if kind == "pair":
        up, down = t["up"].flatten(1), t["down"].flatten(1)
        return Product(up @ down if "mid" not in t else _tucker(t["mid"], up.T, down), rank=len(down))
    if kind == "glora":
        a1, a2, b1, b2 = (t[role].flatten(1) for role in ("a1", "a2", "b1", "b2"))
        # LyCORIS once wrote them the other way round. A square weight tells which is the rank; where the rank is as
        # large as the weight, the old reading counts, as in ComfyUI.
        fits_new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
        fits_old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
        if fits_old and (not fits_new or len(a2) == weight[0] == weight[1]):
            a1, a2, b1, b2 = a2, a1, b2, b1
        return Product(b1 @ b2, a1 @ a2, len(a2))
    if kind == "loha":
        one, two = _half(t, "hada_w1", "hada_t1"), _half(t, "hada_w2", "hada_t2")
        if one.shape != two.shape:
            raise RuntimeError("the halves of a LoHa differ")
        return Product(one * two, rank=len(t["hada_w1_b"]))
    w1 = t["lokr_w1"] if "lokr_w1" in t else _half(t, "lokr_w1")
    w2 = t["lokr_w2"] if "lokr_w2" in t else _half(t, "lokr_w2", "lokr_t2")
    low = t.get("lokr_w2_b", t.get("lokr_w1_b"))
    added = torch.kron(w1.reshape(*w1.shape, *(1,) * (w2.ndim - w1.ndim)), w2)
    return Product(added, rank=None if low is None else len(low))


def _half(t: Mapping[str, Tensor], name: str, core: str = "") -> Tensor:
    """A factor that is itself of low rank, with a Tucker core or without."""
    a, b = t[f"{name}_a"], t[f"{name}_b"]
    return _tucker(t[core], a, b) if core in t else a @ b


def _tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``core [R,R,...]``, ``up [R,O]`` and ``down [R,I]`` -> ``[O,I,...]``."""
    return torch.einsum("ij...,io,jn->on...", core, up, down)


def _lengths(weight: Tensor) -> Tensor:
    """The norm of each row."""
    lengths: Tensor = weight.flatten(1).norm(dim=1)
    return lengths


def _rows(values: Tensor, weight: Tensor) -> Tensor:
    """One value a row, shaped to multiply ``weight``."""
    return values.reshape(-1, *(1,) * (weight.ndim - 1))
