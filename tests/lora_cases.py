"""LoRA files as people meet them, each with what it is to do, worked out here by plain arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK = 4
# A few layers of every kind, and what diffusers and the release call them.
DIFFUSERS = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.1.self_attn.o": "blocks.1.attn1.to_out.0",
    "blocks.1.cross_attn.k": "blocks.1.attn2.to_k",
    "blocks.0.ffn.0": "blocks.0.ffn.net.0.proj",
    "blocks.1.ffn.2": "blocks.1.ffn.net.2",
}
RELEASE = {
    "text_embedding.2": "cond_text_embedder.linear_2",
    "token_embedding": "vocab_embed",
    "time_embedding.0": "time_embedding_v.time_embedder.linear_1",
    "time_projection_t.1": "time_embedding_t.time_proj",
    "head.head": "video_head.proj_out",
    "text_head.head": "text_head.linear",
    "blocks.0.self_attn.v": "blocks.0.attn1.to_v",
    "blocks.1.ffn_t.0": "blocks.1.ffn_t.net.0.proj",
}
OURS = {name: name for name in (*DIFFUSERS, *RELEASE)}


@dataclass
class Case:
    """A file to be: tensors and metadata. ``adds`` and ``sets``: what is to become of weights, native names."""

    weights: dict[str, Tensor]
    generator: torch.Generator
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, object] | None = None  # adapter_config.json beside the file
    adds: dict[str, Tensor] = field(default_factory=dict)
    sets: dict[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    stem: str = "lora"
    suffix: str = ".safetensors"

    def random(self, *shape: int, scale: float = 0.3) -> Tensor:
        """What a file of this dtype can hold."""
        return (torch.randn(shape, generator=self.generator) * scale).to(self.dtype).float()

    def put(self, name: str, tensor: Tensor) -> Tensor:
        self.tensors[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return tensor

    def add(self, weight: str, change: Tensor) -> None:
        self.adds[weight] = self.adds.get(weight, 0) + change.reshape(self.weights[weight].shape)

    def sizes(self, layer: str) -> tuple[int, int]:
        shape = self.weights[f"{layer}.weight"].shape
        return shape[0], math.prod(shape[1:])

    def pair(
        self,
        name: str,
        layer: str,
        ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight"),
        scale: float = 1.0,
        rank: int = RANK,
    ) -> Tensor:
        """A low-rank pair, and what it adds."""
        outputs, inputs = self.sizes(layer)
        down, up = self.random(rank, inputs), self.random(outputs, rank)
        shape = self.weights[f"{layer}.weight"].shape
        flat = len(shape) == 2
        self.put(name + ends[0], down if flat else down.reshape(rank, *shape[1:]))
        self.put(name + ends[1], up if flat else up.reshape(outputs, rank, *(1,) * (len(shape) - 2)))
        change = scale * (up @ down)
        self.add(f"{layer}.weight", change)
        return change

    def pairs(self, prefix: str, names: dict[str, str], ends: tuple[str, str], flat: bool = False) -> None:
        for layer, name in names.items():
            self.pair(prefix + (name.replace(".", "_") if flat else name), layer, ends)

    def bias(self, name: str, weight: str, scale: float = 1.0) -> None:
        """A difference of a bias, a norm or a table."""
        self.add(weight, scale * self.put(name, self.random(*self.weights[weight].shape)))

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stem}{self.suffix}"
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        if self.suffix == ".safetensors":
            save_file(tensors, path, self.metadata or None)
        else:
            torch.save(tensors, path)
        if self.config is not None:
            (folder / "adapter_config.json").write_text(json.dumps(self.config))
        return path

    def merged(self, strength: Callable[[str], float]) -> dict[str, Tensor]:
        """All weights afterwards, by the strength on each."""
        found = {}
        for name, weight in self.weights.items():
            if strength(name) == 0:
                found[name] = weight
            else:
                found[name] = self.sets.get(name, weight) + strength(name) * self.adds.get(name, torch.zeros(()))
        return found


CASES: dict[str, Callable[[Case], object]] = {}


def case(name: str) -> Callable[[Callable[[Case], object]], Callable[[Case], object]]:
    def keep(make: Callable[[Case], object]) -> Callable[[Case], object]:
        CASES[name] = make
        return make

    return keep


def made_case(name: str, weights: dict[str, Tensor]) -> Case:
    made = Case(weights, torch.Generator().manual_seed(list(CASES).index(name)))
    CASES[name](made)
    return made


AB, DEFAULT = (".lora_A.weight", ".lora_B.weight"), (".lora_A.default.weight", ".lora_B.default.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
NAMES = {
    "ComfyUI": ("diffusion_model.", OURS, AB, False),
    "ComfyUI, whole file": ("model.diffusion_model.", OURS, AB, False),
    "Wan's own": ("", OURS, AB, False),
    "Wan's own, kohya's endings": ("", OURS, DOWN_UP, False),
    "peft's default adapter": ("", OURS, DEFAULT, False),
    "peft's default adapter under diffusion_model": ("diffusion_model.", OURS, DEFAULT, False),
    "an adapter with a name": ("transformer.", DIFFUSERS, (".lora_A.style.weight", ".lora_B.style.weight"), False),
    "DiffSynth": ("pipe.dit.", OURS, DEFAULT, False),
    "dit": ("dit.", OURS, AB, False),
    "peft": ("base_model.model.", OURS, AB, False),
    "peft on diffusers": ("base_model.model.", DIFFUSERS, AB, False),
    "diffusers": ("transformer.", DIFFUSERS, AB, False),
    "diffusers, kohya's endings": ("transformer.", DIFFUSERS, DOWN_UP, False),
    "diffusers, bare": ("", DIFFUSERS, AB, False),
    "diffusers, old endings": ("transformer.", DIFFUSERS, (".lora.down.weight", ".lora.up.weight"), False),
    "transformer with Wan's names": ("transformer.", OURS, AB, False),
    "no .weight": ("diffusion_model.", OURS, (".lora_A", ".lora_B"), False),
    "the release": ("", RELEASE, AB, False),
    "the release in wrappers": ("module._orig_mod.", RELEASE, AB, False),
    "musubi": ("lora_unet_", OURS, DOWN_UP, True),
    "VideoX-Fun": ("lora_unet__", OURS, DOWN_UP, True),
    "lora_unet with diffusers' names": ("lora_unet_", DIFFUSERS, DOWN_UP, True),
    "OneTrainer": ("lora_transformer_", DIFFUSERS, DOWN_UP, True),
    "SimpleTuner": ("lycoris_", DIFFUSERS, DOWN_UP, True),
    "LyCORIS with Wan's names": ("lycoris_", OURS, DOWN_UP, True),
}
for _name, (_prefix, _names, _ends, _flat) in NAMES.items():
    CASES[f"names: {_name}"] = lambda c, p=_prefix, n=_names, e=_ends, f=_flat: c.pairs(p, n, e, f)  # type: ignore[misc]

Q, Q_NAME = "blocks.0.self_attn.q", "diffusion_model.blocks.0.self_attn.q"
FFN, FFN_NAME = "blocks.1.ffn.0", "diffusion_model.blocks.1.ffn.0"  # not square


@case("alpha of half the rank")
def _(c: Case) -> None:
    c.pair(Q_NAME, Q, DOWN_UP, scale=0.5)
    c.put(f"{Q_NAME}.alpha", torch.tensor(RANK / 2))


@case("alpha as a whole number, factors in bfloat16")
def _(c: Case) -> None:
    c.dtype = torch.bfloat16
    c.pair("lora_unet_blocks_1_ffn_0", FFN, DOWN_UP, scale=8 / RANK)
    c.put("lora_unet_blocks_1_ffn_0.alpha", torch.tensor([8]))


@case("factors in float16")
def _(c: Case) -> None:
    c.dtype = torch.float16
    c.pair(Q_NAME, Q)


@case("a torch file")
def _(c: Case) -> None:
    c.suffix = ".pt"
    c.pair(Q_NAME, Q)


def _diffusers_facts(**facts: object) -> dict[str, str]:
    stated = {"r": RANK, "lora_alpha": RANK, "use_rslora": False, "use_dora": False, "rank_pattern": {}, **facts}
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in stated.items()})}


@case("diffusers: alpha in the metadata")
def _(c: Case) -> None:
    c.pair("transformer.blocks.0.attn1.to_q", Q, scale=2.0)
    c.metadata = _diffusers_facts(lora_alpha=2 * RANK)


@case("diffusers: alpha and rank for some layers")
def _(c: Case) -> None:
    c.pair("transformer.blocks.0.attn1.to_q", Q, scale=3 / 8, rank=8)
    c.pair("transformer.blocks.1.ffn.net.0.proj", FFN, scale=6 / RANK)
    c.pair("transformer.blocks.1.attn2.to_k", "blocks.1.cross_attn.k", scale=2 / RANK)
    patterns = {"blocks.0.attn1.to_q": 3, "blocks.1.attn2.to_k": 2}
    c.metadata = _diffusers_facts(lora_alpha=6, alpha_pattern=patterns, rank_pattern={"blocks.0.attn1.to_q": 8})


@case("diffusers: alpha by an expression")
def _(c: Case) -> None:
    c.pair("transformer.blocks.0.attn1.to_q", Q, scale=2.0)
    c.pair("transformer.blocks.1.attn2.to_k", "blocks.1.cross_attn.k", scale=0.25)
    c.metadata = _diffusers_facts(lora_alpha=1, alpha_pattern={r"blocks\.\d+\.attn1\.to_q": 8})


@case("diffusers: rank-stabilised")
def _(c: Case) -> None:
    c.pair("transformer.blocks.0.attn1.to_q", Q, scale=6 / math.sqrt(RANK))
    c.metadata = _diffusers_facts(lora_alpha=6, use_rslora=True)


@case("peft: configuration beside the file")
def _(c: Case) -> None:
    c.stem, c.config = "adapter_model", {"peft_type": "LORA", "r": RANK, "lora_alpha": 1, "use_rslora": True}
    c.pair(f"base_model.model.{Q}", Q, scale=1 / math.sqrt(RANK))


@case("a tensor's alpha before the metadata's")
def _(c: Case) -> None:
    c.pair("transformer.blocks.0.attn1.to_q", Q, scale=0.5)
    c.put("transformer.blocks.0.attn1.to_q.alpha", torch.tensor(RANK / 2))
    c.metadata = _diffusers_facts(lora_alpha=32)


@case("lora_B.bias, under alpha like its pair")
def _(c: Case) -> None:
    c.pair("transformer.blocks.0.attn1.to_q", Q, scale=2.0)
    c.bias("transformer.blocks.0.attn1.to_q.lora_B.bias", f"{Q}.bias", 2.0)
    c.metadata = _diffusers_facts(lora_alpha=2 * RANK)


@case("full differences")
def _(c: Case) -> None:
    for layer in ("blocks.0.self_attn.norm_q", "blocks.1.norm3", FFN, "time_projection.1", "patch_embedding"):
        c.bias(f"diffusion_model.{layer}.diff", f"{layer}.weight")
    for layer in (Q, "blocks.1.norm3", "head.head", "time_embedding.0"):
        c.bias(f"diffusion_model.{layer}.diff_b", f"{layer}.bias")


@case("full differences in diffusers' names")
def _(c: Case) -> None:
    c.bias("transformer.blocks.1.norm2.diff", "blocks.1.norm3.weight")
    c.bias("transformer.blocks.1.norm2.diff_b", "blocks.1.norm3.bias")
    c.bias("transformer.blocks.1.scale_shift_table.diff", "blocks.1.modulation")
    c.bias("transformer.scale_shift_table.diff", "head.modulation")
    c.bias("transformer.proj_out.diff_b", "head.head.bias")


@case("diff_m: modulation in LightX2V's words")
def _(c: Case) -> None:
    for block in ("blocks.0", "blocks.1", "head"):
        c.bias(f"diffusion_model.{block}.diff_m", f"{block}.modulation")
    c.bias("text_head.diff_m", "text_head.modulation")


@case("modulation and biases by their full names")
def _(c: Case) -> None:
    c.bias("diffusion_model.blocks.0.modulation.diff", "blocks.0.modulation")
    c.bias("diffusion_model.head.modulation.diff_m", "head.modulation")
    c.bias(f"{Q_NAME}.bias.diff", f"{Q}.bias")


@case("modulation in flat names")
def _(c: Case) -> None:
    c.bias("lora_unet_blocks_0.diff_m", "blocks.0.modulation")
    c.bias("lora_unet_head_modulation.diff", "head.modulation")


@case("w_norm and b_norm")
def _(c: Case) -> None:
    c.bias("lora_unet_blocks_0_norm3.w_norm", "blocks.0.norm3.weight")
    c.bias("lora_unet_blocks_0_norm3.b_norm", "blocks.0.norm3.bias")
    c.bias("lora_unet_blocks_1_cross_attn_norm_k.w_norm", "blocks.1.cross_attn.norm_k.weight")


@case("a replaced weight, and what is added to it")
def _(c: Case) -> None:
    c.sets["blocks.0.norm3.weight"] = c.put(
        "diffusion_model.blocks.0.norm3.set_weight", c.random(*c.sizes("head.head")[1:])
    )
    c.bias("diffusion_model.blocks.0.norm3.diff_b", "blocks.0.norm3.bias")


@case("a few-step LoRA as LightX2V writes it")
def _(c: Case) -> None:
    for layer in ("self_attn.q", "self_attn.o", "cross_attn.k", "ffn.0", "ffn.2"):
        for block in (0, 1):
            name = f"blocks.{block}.{layer}"
            c.pair(f"diffusion_model.{name}", name, DOWN_UP, scale=8 / RANK)
            c.put(f"diffusion_model.{name}.alpha", torch.tensor(8.0))
            c.bias(f"diffusion_model.{name}.diff_b", f"{name}.bias")
    for layer in ("blocks.0.self_attn.norm_q", "blocks.1.norm3"):
        c.bias(f"diffusion_model.{layer}.diff", f"{layer}.weight")
    c.bias("diffusion_model.blocks.1.norm3.diff_b", "blocks.1.norm3.bias")
    for block in ("blocks.0", "blocks.1", "head"):
        c.bias(f"diffusion_model.{block}.diff_m", f"{block}.modulation")
    c.bias("diffusion_model.patch_embedding.diff", "patch_embedding.weight")
    c.bias("diffusion_model.patch_embedding.diff_b", "patch_embedding.bias")


@case("a few-step LoRA as CausVid's are")
def _(c: Case) -> None:
    for layer in ("time_projection.1", "time_embedding.0", "text_embedding.2", "head.head", Q, FFN):
        c.pair(f"diffusion_model.{layer}", layer)
        c.bias(f"diffusion_model.{layer}.diff_b", f"{layer}.bias")
    c.bias("diffusion_model.blocks.0.cross_attn.norm_q.diff", "blocks.0.cross_attn.norm_q.weight")


@case("a pair and a difference on one weight")
def _(c: Case) -> None:
    c.pair(Q_NAME, Q)
    c.bias(f"{Q_NAME}.diff", f"{Q}.weight")


@case("a shape that is the weight's own")
def _(c: Case) -> None:
    c.pair(Q_NAME, Q)
    c.put(f"{Q_NAME}.reshape_weight", torch.tensor(c.weights[f"{Q}.weight"].shape))


@case("patch embedding in a flat pair")
def _(c: Case) -> None:
    outputs, inputs = c.sizes("patch_embedding")
    down, up = c.random(RANK, inputs), c.random(outputs, RANK)
    c.put("diffusion_model.patch_embedding.lora_A.weight", down)
    c.put("diffusion_model.patch_embedding.lora_B.weight", up)
    c.add("patch_embedding.weight", up @ down)


@case("patch embedding with a Tucker core")
def _(c: Case) -> None:
    outputs, channels, *kernel = c.weights["patch_embedding.weight"].shape
    down, up, core = c.random(RANK, channels), c.random(outputs, RANK), c.random(RANK, RANK, *kernel)
    ones = (1,) * len(kernel)
    c.put("lora_unet_patch_embedding.lora_down.weight", down.reshape(RANK, channels, *ones))
    c.put("lora_unet_patch_embedding.lora_up.weight", up.reshape(outputs, RANK, *ones))
    c.put("lora_unet_patch_embedding.lora_mid.weight", core)
    c.put("lora_unet_patch_embedding.alpha", torch.tensor(2.0))
    c.add("patch_embedding.weight", 2 / RANK * torch.stack([up @ k @ down for k in core.flatten(2).unbind(2)], 2))


def _halves(c: Case, name: str, kind: str, outputs: int, inputs: int) -> Tensor:
    a, b = c.random(outputs, RANK), c.random(RANK, inputs)
    c.put(f"{name}.{kind}_a", a)
    c.put(f"{name}.{kind}_b", b)
    return a @ b


@case("LoHa")
def _(c: Case) -> None:
    one, two = (_halves(c, "lycoris_blocks_1_ffn_net_0_proj", f"hada_w{n}", *c.sizes(FFN)) for n in (1, 2))
    c.put("lycoris_blocks_1_ffn_net_0_proj.alpha", torch.tensor(1.0))
    c.add(f"{FFN}.weight", one * two / RANK)


@case("LoHa without alpha")
def _(c: Case) -> None:
    one, two = (_halves(c, FFN_NAME, f"hada_w{n}", *c.sizes(FFN)) for n in (1, 2))
    c.add(f"{FFN}.weight", one * two)


@case("LoHa with Tucker cores on the patch embedding")
def _(c: Case) -> None:
    outputs, channels, *kernel = c.weights["patch_embedding.weight"].shape
    whole: Tensor | float = 1.0
    for n in (1, 2):
        a = c.put(f"lycoris_patch_embedding.hada_w{n}_a", c.random(RANK, outputs))
        b = c.put(f"lycoris_patch_embedding.hada_w{n}_b", c.random(RANK, channels))
        core = c.put(f"lycoris_patch_embedding.hada_t{n}", c.random(RANK, RANK, *kernel))
        whole = whole * torch.stack([a.T @ k @ b for k in core.flatten(2).unbind(2)], 2)
    c.add("patch_embedding.weight", torch.as_tensor(whole))


def _kron(a: Tensor, b: Tensor) -> Tensor:
    rows = [torch.cat([x * b for x in row], 1) for row in a.tolist()]
    return torch.cat(rows)


@case("LoKr of two whole factors, whose alpha means nothing")
def _(c: Case) -> None:
    outputs, inputs = c.sizes(FFN)
    w1 = c.put(f"{FFN_NAME}.lokr_w1", c.random(4, 2))
    w2 = c.put(f"{FFN_NAME}.lokr_w2", c.random(outputs // 4, inputs // 2))
    c.put(f"{FFN_NAME}.alpha", torch.tensor(1e10))
    c.add(f"{FFN}.weight", _kron(w1, w2))


@case("LoKr with one factor of low rank")
def _(c: Case) -> None:
    outputs, inputs = c.sizes(FFN)
    w1 = c.put("lycoris_blocks_1_ffn_net_0_proj.lokr_w1", c.random(2, 4))
    w2 = _halves(c, "lycoris_blocks_1_ffn_net_0_proj", "lokr_w2", outputs // 2, inputs // 4)
    c.put("lycoris_blocks_1_ffn_net_0_proj.alpha", torch.tensor(1.0))
    c.add(f"{FFN}.weight", _kron(w1, w2) / RANK)


@case("LoKr without alpha, both factors of low rank")
def _(c: Case) -> None:
    outputs, inputs = c.sizes(FFN)
    w1 = _halves(c, FFN_NAME, "lokr_w1", 4, 4)
    c.add(f"{FFN}.weight", _kron(w1, _halves(c, FFN_NAME, "lokr_w2", outputs // 4, inputs // 4)))


@case("LoKr, the first factor of low rank")
def _(c: Case) -> None:
    outputs, inputs = c.sizes(FFN)
    w1 = _halves(c, FFN_NAME, "lokr_w1", 4, 4)
    w2 = c.put(f"{FFN_NAME}.lokr_w2", c.random(outputs // 4, inputs // 4))
    c.put(f"{FFN_NAME}.alpha", torch.tensor(2.0))
    c.add(f"{FFN}.weight", _kron(w1, w2) * 2 / RANK)


@case("LoKr on the patch embedding")
def _(c: Case) -> None:
    outputs, channels, *kernel = c.weights["patch_embedding.weight"].shape
    w1 = c.put("lycoris_patch_embedding.lokr_w1", c.random(2, 4))
    w2 = c.put("lycoris_patch_embedding.lokr_w2", c.random(outputs // 2, channels // 4, *kernel))
    c.add("patch_embedding.weight", torch.stack([_kron(w1, k) for k in w2.flatten(2).unbind(2)], 2))


@case("LoKr from peft, whose alpha scales whole factors too")
def _(c: Case) -> None:
    c.stem, c.config = "adapter_model", {"peft_type": "LOKR", "r": 8, "alpha": 4, "rank_pattern": {}}
    outputs, inputs = c.sizes(FFN)
    w1 = c.put(f"base_model.model.{FFN}.lokr_w1", c.random(4, 4))
    w2 = c.put(f"base_model.model.{FFN}.lokr_w2", c.random(outputs // 4, inputs // 4))
    c.add(f"{FFN}.weight", _kron(w1, w2) / 2)


def _glora(c: Case, layer: str, old: bool) -> None:
    outputs, inputs = c.sizes(layer)
    a1, a2 = c.random(inputs, RANK), c.random(RANK, inputs)
    b1, b2 = c.random(outputs, RANK), c.random(RANK, inputs)
    name, weight = f"diffusion_model.{layer}", c.weights[f"{layer}.weight"]
    for role, factor in zip(
        ("a2", "a1", "b2", "b1") if old else ("a1", "a2", "b1", "b2"), (a1, a2, b1, b2), strict=True
    ):
        c.put(f"{name}.{role}.weight", factor)
    c.put(f"{name}.alpha", torch.tensor(2.0))
    c.add(f"{layer}.weight", (weight @ a1 @ a2 + b1 @ b2) * 2 / RANK)


CASES["GLoRA"] = lambda c: (_glora(c, Q, False), _glora(c, FFN, False))
CASES["GLoRA, old order"] = lambda c: (_glora(c, Q, True), _glora(c, FFN, True))


def _dora(c: Case, layer: str, delta: Tensor, rows: bool) -> Tensor:
    """A ``dora_scale`` as ComfyUI uses it: by row against the weight's rows, by column against the sum's columns."""
    weight = c.weights[f"{layer}.weight"]
    whole = weight + delta
    lengths = weight.norm(dim=1, keepdim=True) if rows else whole.norm(dim=0, keepdim=True)
    scale = lengths * (1 + c.random(*lengths.shape).abs())
    c.adds[f"{layer}.weight"] = whole * (scale / lengths) - weight
    return scale


@case("dora_scale by rows")
def _(c: Case) -> None:
    c.put(f"{FFN_NAME}.dora_scale", _dora(c, FFN, c.pair(FFN_NAME, FFN, DOWN_UP), True))
    c.put(f"{Q_NAME}.dora_scale", _dora(c, Q, c.pair(Q_NAME, Q, DOWN_UP, 0.5), True).flatten())
    c.put(f"{Q_NAME}.alpha", torch.tensor(RANK / 2))


@case("dora_scale by columns")
def _(c: Case) -> None:
    c.put(f"{FFN_NAME}.dora_scale", _dora(c, FFN, c.pair(FFN_NAME, FFN, DOWN_UP), False))
    c.put(f"{Q_NAME}.dora_scale", _dora(c, Q, c.pair(Q_NAME, Q, DOWN_UP), False))


@case("dora_scale on a LoKr")
def _(c: Case) -> None:
    outputs, inputs = c.sizes(FFN)
    w1 = c.put(f"{FFN_NAME}.lokr_w1", c.random(4, 2))
    w2 = c.put(f"{FFN_NAME}.lokr_w2", c.random(outputs // 4, inputs // 2))
    c.put(f"{FFN_NAME}.dora_scale", _dora(c, FFN, _kron(w1, w2), True))


def _peft_dora(c: Case, name: str, layer: str, end: str, scale: float = 1.0) -> None:
    weight = c.weights[f"{layer}.weight"].flatten(1)
    whole = weight + c.pair(name, layer, scale=scale)
    lengths = c.put(name + end, weight.norm(dim=1) * (1 + c.random(len(weight)).abs()))
    change = lengths[:, None] * whole / whole.norm(dim=1, keepdim=True) - weight
    c.adds[f"{layer}.weight"] = change.reshape(c.weights[f"{layer}.weight"].shape)


@case("DoRA from peft")
def _(c: Case) -> None:
    _peft_dora(c, f"base_model.model.{Q}", Q, ".lora_magnitude_vector")
    _peft_dora(c, f"base_model.model.{FFN}", FFN, ".lora_magnitude_vector.default.weight")
    _peft_dora(c, "base_model.model.patch_embedding", "patch_embedding", ".lora_magnitude_vector.weight")


@case("DoRA from diffusers, with an alpha")
def _(c: Case) -> None:
    _peft_dora(c, "transformer.blocks.0.attn1.to_q", Q, ".lora_magnitude_vector", 2.0)
    c.metadata = _diffusers_facts(lora_alpha=2 * RANK, use_dora=True)
