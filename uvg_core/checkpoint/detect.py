"""An open checkpoint: where the network lies in the file and in which layout, told from the names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..errors import UniViGUError
from .keys import CONFIG_KEY, DERIVED, layout_of, network_prefix, strip_wrappers, to_native
from .quant import dequantise, is_companion, scaled_weight
from .read import Stored, WeightFile, open_weights

UNI_VIGU_LAYOUTS = ("native", "release")
WAN_LAYOUTS = ("wan", "diffusers")
# Files that are taken for others, and what their names have, joined by line ends.
_FOREIGN = (
    ("a checkpoint of a video model", r"^(.*diffusion_model\.)?patch_embedding\.weight$"),
    ("a LoRA", r"lora_(A|B|down|up)\.|\.lora\.|lokr_|hada_w1"),
    ("a T5 text encoder", r"SelfAttention|shared\.weight"),
    ("a T5 text encoder", r"^token_embedding\.weight$", r"pos_embedding"),
    ("a text or image encoder", r"text_model\.|model\.embed_tokens\.|visual\.transformer\."),
    ("a VAE", r"decoder\.", r"encoder\.|conv2\.|post_quant_conv"),
    ("another diffusion model", r"(double_blocks|transformer_blocks|input_blocks|joint_blocks|single_blocks)\."),
)


@dataclass(frozen=True)
class Checkpoint:
    """An open file and the network in it; ``layout`` is ``unknown`` where there is none.

    ``names`` and ``scales`` lead from native names to those in the file; a weight that the layout does not know keeps
    its own name, so that the strict check reports it. ``inv_freq`` is the derived rotary buffer of the release,
    ``others`` the tensors outside the network."""

    weights: WeightFile
    layout: str = "unknown"
    prefix: str = ""
    names: dict[str, str] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    inv_freq: str | None = None
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, weights: WeightFile) -> Checkpoint:
        """Find the network among a file's tensors. Raises UniViGUError when two tensors claim the same place."""
        stripped = {name: strip_wrappers(name) for name in weights.tensors}
        prefix = network_prefix(stripped.values())
        inside = {name: bare[len(prefix) :] for name, bare in stripped.items() if bare.startswith(prefix)}
        layout = layout_of(inside.values())
        if layout == "unknown":
            return cls(weights, others=tuple(weights.tensors))
        names: dict[str, str] = {}
        scales: dict[str, str] = {}
        for name, bare in inside.items():
            if DERIVED.search(bare) or is_companion(bare) or bare == CONFIG_KEY:
                continue
            weight = scaled_weight(bare)
            places = names if weight is None else scales
            native = to_native(weight or bare, layout) or bare
            if native in places:
                raise UniViGUError(
                    f"{weights.path}: {places[native]} and {name} both stand for {native}; expected one of them. The "
                    "file mixes two models: export it anew"
                )
            places[native] = name
        inv_freq = next((name for name, bare in inside.items() if DERIVED.search(bare) and "inv_freq" in bare), None)
        return cls(weights, layout, prefix, names, scales, inv_freq, tuple(n for n in stripped if n not in inside))

    @property
    def path(self) -> Path:
        return self.weights.path

    @property
    def is_uni_vigu(self) -> bool:
        return self.layout in UNI_VIGU_LAYOUTS

    @property
    def is_wan(self) -> bool:
        """Whether it is a plain Wan base, without a text half."""
        return self.layout in WAN_LAYOUTS

    def stored(self, name: str) -> Stored:
        """How a weight, by its native name, lies in the file."""
        return self.weights.tensors[self.names[name]]

    def read(self, name: str) -> Tensor:
        """One weight by its native name, values restored (in float32) where it is stored with a scale."""
        tensor, scale = self.weights.read(self.names[name]), self.scales.get(name)
        return tensor if scale is None else dequantise(tensor, self.weights.read(scale))

    def error(self, text: str) -> UniViGUError:
        """An error that names the file."""
        return UniViGUError(f"{self.path}: {text}")

    def require(self, *, wan: bool = False) -> None:
        """Raise UniViGUError unless the file holds a Uni-ViGU network (or a Wan base), in dtypes read here."""
        if self.is_wan if wan else self.is_uni_vigu:
            self.require_floats()
        elif self.is_wan:
            raise self.error(
                "found a plain Wan base (video only), expected a Uni-ViGU checkpoint. To train from it, start with "
                "init_from_wan; to only generate videos, use it with a Wan workflow"
            )
        elif self.is_uni_vigu:
            raise self.error("found a Uni-ViGU checkpoint, expected a plain Wan base; load it with load_model")
        else:
            kind, expected = (
                ("Wan2.1 base", "Wan2.1 text-to-video (original, ComfyUI's or diffusers' names)")
                if wan
                else ("Uni-ViGU checkpoint", "a network with both streams (native or release names)")
            )
            found = describe_foreign(self.weights.tensors)
            raise self.error(f"not a {kind}: found {found}, expected {expected}. Choose the diffusion model's file")

    def require_floats(self) -> None:
        """Raise UniViGUError for weights in packed integers or scaled by rows: quantised in a format unknown here."""
        for name in self.names:
            if not self.stored(name).is_floating:
                raise self.error(
                    f"{name} is stored as {self.stored(name).dtype}, expected floating point or fp8: it is quantised "
                    "in a format that only its own tool reads. Use a bf16, fp16, fp32 or fp8 file"
                )
        for name, scale in self.scales.items():
            count = self.weights.tensors[scale].numel
            if count != 1:
                raise self.error(
                    f"the scale of {name} has {count} values, expected one per tensor. Use a bf16 file, or fp8 written "
                    "by convert"
                )


def open_checkpoint(given: str | Path | Checkpoint) -> Checkpoint:
    """Open a checkpoint of any kind without reading weights; one that is open already stays as it is.

    Raises UniViGUError, naming the file, for anything that is not a whole, readable, safe set of weights."""
    return given if isinstance(given, Checkpoint) else Checkpoint.of(open_weights(given))


def describe_foreign(names: Iterable[str]) -> str:
    """What a file that holds no network of ours seems to be, with its first names."""
    names = [strip_wrappers(name) for name in names]
    text = "\n".join(names)
    kinds = (
        kind for kind, *patterns in _FOREIGN if all(re.search(pattern, text, re.MULTILINE) for pattern in patterns)
    )
    return f"{next(kinds, 'an unknown kind of file')} (first names: {', '.join(names[:3]) or 'none'})"
