"""LoRA files of any kind, as changes to single weights in native names.

Read here: low-rank pairs (with biases, Tucker cores, DoRA), LoHa, LoKr, GLoRA, full differences of weights, biases,
norms and modulation tables, replaced weights; in the names of Wan, ComfyUI, LightX2V, musubi, kohya, LyCORIS,
SimpleTuner, OneTrainer, DiffSynth, diffusers, peft, of the release, and ours. Shapes are checked before weights are
read, and whatever has no place in the network is named: nothing is dropped in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig, RunConfig
from ..errors import UniViGUError, counted
from ..io import read_text
from .detect import describe_foreign
from .fit import shapes_of
from .keys import is_text_half
from .lora_names import layer_and_role, lora_place, lora_places
from .lora_patch import FACTORS, OPTIONAL, Patch, Product, product
from .peft_patterns import Patterns
from .quant import is_companion
from .read import WeightFile, open_weights

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA file, its strength on what plain Wan has (``video``), and on the text half (``text``)."""

    path: Path
    video: float = 1.0
    text: float = 1.0

    @classmethod
    def of(cls, given: str | Path | LoraChoice) -> LoraChoice:
        """From ``FILE[:VIDEO[:TEXT]]``: strengths are the last fields that are numbers, the path is all before them;
        one number is for both halves. Raises UniViGUError where no path is left."""
        if isinstance(given, LoraChoice):
            return given
        path = str(given)
        strengths: list[float] = []
        while len(strengths) < 2:
            before, colon, field = path.rpartition(":")
            if not colon or not _NUMBER.fullmatch(field.strip()) or not math.isfinite(float(field)):
                break
            path, strengths = before, [float(field), *strengths]
        if not path.strip():
            raise UniViGUError(f"{str(given)!r} names no LoRA file; expected FILE, FILE:VIDEO or FILE:VIDEO:TEXT")
        return cls(Path(path), *(strengths * 2)[:2]) if strengths else cls(Path(path))


@dataclass(frozen=True)
class LoraMatch:
    """What became of a LoRA file: the layers in it, and how many of them the video half and the text half took whole;
    names that this model does not have; parts of layers that have no place or no meaning here; whether alpha = R was
    ``assumed`` for a file of peft's, which states it elsewhere."""

    layers: int
    video: int
    text: int
    unmatched: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    assumed: bool = False

    def __str__(self) -> str:
        halves = f"{self.video} of the video half, {self.text} of the text half"
        line = f"matched {self.video + self.text} of {self.layers} layers: {halves}"
        for what, names in (("not found in this model", self.unmatched), ("not applied", self.unused)):
            line += f"; {what}: {_kinds(names)}" if names else ""
        if self.assumed:
            line += "; the file states no alpha, taken as the rank (peft writes it to adapter_config.json beside it)"
        return line

    def at(self, video: float, text: float) -> str:
        """The line, with what a strength of 0 turns off."""
        off = [half for half, taken, s in (("video", self.video, video), ("text", self.text, text)) if taken and not s]
        return str(self) + "".join(f"; the {half} half is off (strength 0)" for half in off)


@dataclass(frozen=True)
class Student:
    """How a LoRA of the stage ``distill`` draws: passes for a clip, and for a clip with its caption, unguided."""

    passes: int
    joint_passes: int

    def __str__(self) -> str:
        return (
            f"draws clips in {counted(self.passes, 'step')}, with captions in {self.joint_passes}; without guidance, "
            "so negative prompts have no effect"
        )


class Lora:
    """An opened LoRA file, held against a network: ``patches`` by native weight, and ``match``, what they are.

    Raises UniViGUError, naming the file: when it is no LoRA, is damaged, has factors of other shapes than the network's
    weights (another width), or has nothing that this network has.
    """

    def __init__(self, choice: LoraChoice, config: ModelConfig) -> None:
        self.choice = choice
        self.file = open_weights(choice.path)
        self.path = self.file.path
        self.patches: dict[str, list[Patch]] = {}
        self._shapes = shapes_of(config)
        self._stated_scale = _peft_scale(self.file)
        self._misfits: list[tuple[str, Sequence[int], Sequence[int]]] = []
        self.match = self._fit()

    def __str__(self) -> str:
        """One line: the file, what was applied, what was not, and how it draws."""
        return f"{self.path.name}: {self.says}"

    @property
    def says(self) -> str:
        """The line without the file."""
        found = self.student
        draws = "" if found is None else f"; {found}"
        return f"{self.match.at(self.choice.video, self.choice.text)}{draws}"

    def _error(self, text: str) -> UniViGUError:
        return UniViGUError(f"{self.path}: {text}")

    @property
    def student(self) -> Student | None:
        """How it draws, as its metadata says; None where it was not distilled, or leaves the video half alone."""
        if not self.choice.video:
            return None
        try:
            stated = json.loads(self.file.metadata.get("uvg_training") or "{}")["distill"]
            found = Student(*(int(stated[field.name]) for field in fields(Student)))
        except (ValueError, TypeError, KeyError):
            return None
        return found if min(found.passes, found.joint_passes) > 0 else None

    def strength(self, name: str) -> float:
        """The strength on a native weight."""
        return self.choice.text if is_text_half(name) else self.choice.video

    def changes(self, name: str) -> bool:
        """Whether it does anything to a native weight."""
        return name in self.patches and self.strength(name) != 0

    def tensors(self, patch: Patch) -> dict[str, Tensor]:
        """What a patch is made of, as stored. Raises UniViGUError for values that are not finite."""
        read = {role: self.file.read(name) for role, name in patch.parts.items()}
        for role, tensor in read.items():
            if not bool(tensor.float().isfinite().all()):
                raise self._error(
                    f"{patch.parts[role]} holds values that are not finite. The file is damaged: download it again"
                )
        return read

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """A native weight with this LoRA on it, in float32; the weight itself where there is nothing to do."""
        if self.changes(name):
            for patch in self.patches[name]:
                weight = patch.apply(weight.float(), self.tensors(patch), self.strength(name))
        return weight

    def _fit(self) -> LoraMatch:
        """From the file's names to patches."""
        places = lora_places(self._shapes)
        layers: dict[str, dict[str, str]] = {}  # by place, or by the file's name where there is none
        called: dict[str, str] = {}
        unread: list[str] = []
        for name in self.file.tensors:
            layer, role = layer_and_role(name)
            if not role:
                unread += [] if is_companion(name) else [name]
                continue
            table = f"{layer}{'.' if '.' in layer else '_'}modulation" if name.endswith(".diff_m") else layer
            place = lora_place(table, places) or lora_place(layer, places) or layer
            here = layers.setdefault(place, {})
            called.setdefault(place, layer)
            if here.setdefault(role, name) != name:
                raise self._error(
                    f"{here[role]} and {name} both stand for the same part of {place}. The file holds two LoRAs: save "
                    "them one by one"
                )
        if not any(here.keys() - {"alpha"} for here in layers.values()):
            found = describe_foreign(self.file.tensors)
            raise self._error(
                f"found no LoRA weights in it, such as lora_A and lora_B, but {found}. Choose a LoRA file"
            )
        known, taken, unused = set(places.values()), Counter[bool](), list(unread)
        for place, here in layers.items():
            if place in known:
                left = self._read_layer(place, called[place], here)
                unused += left
                taken[is_text_half(place)] += not left
        self._require_fit()
        stated = self._stated_scale is not None or any("alpha" in here for here in layers.values())
        match = LoraMatch(
            layers=len(layers) + len(unread),
            video=taken[False],
            text=taken[True],
            unmatched=tuple(called[place] for place in layers if place not in known),
            unused=tuple(unused),
            assumed=not stated and any(name.startswith("base_model.model.") for name in self.file.tensors),
        )
        if not self.patches:
            raise self._error(f"{match}. It was made for another model; expected a LoRA for Wan2.1 or Uni-ViGU")
        return match

    def _read_layer(self, place: str, called: str, stored: Mapping[str, str]) -> list[str]:
        """Add the patches of a layer; returns the names in the file that are left over."""
        here, done, scale = dict(stored), 0, 1.0
        weight = place if place in self._shapes else f"{place}.weight"
        shape = self._shapes[weight]
        alpha = here.pop("alpha", None)
        if "reshape_weight" in here:  # for models that grow; this one does not
            self._require(weight, self.file.read(here.pop("reshape_weight")).int().tolist(), shape)
        if "set_weight" in here:
            done += self._add(weight, Patch("set", {"set_weight": here.pop("set_weight")}))
        for kind, roles in FACTORS.items():
            if len(shape) > 1 and here.keys() & set(roles) - OPTIONAL:
                parts = {role: here.pop(role) for role in roles if role in here}
                made = self._multiplied(kind, parts, shape)
                scale = self._scale(alpha, (called, place), made.rank)
                done += self._add(weight, Patch(kind, parts, scale), made)
        if "diff" in here:
            done += self._add(weight, Patch("diff", {"diff": here.pop("diff")}))
        for role, factor in (("diff_b", 1.0), ("up_bias", scale)):
            if role in here and f"{place}.bias" in self._shapes:
                done += self._add(f"{place}.bias", Patch("diff", {"diff": here.pop(role)}, factor))
        return [*here.values(), *([alpha] if alpha and not done else [])]

    def _add(self, weight: str, patch: Patch, made: Product | None = None) -> bool:
        """Check a patch, of factors that multiply to ``made``, against its weight, and keep it."""
        stored = {role: self.file.tensors[name] for role, name in patch.parts.items()}
        for role, tensor in stored.items():
            if not tensor.is_floating:
                raise self._error(
                    f"{patch.parts[role]} is stored as {tensor.dtype}, expected floating point: it is quantised in a "
                    "format that only its own tool reads. Take a bf16 or fp16 version"
                )
        expected = self._shapes[weight]
        if made is None:
            self._require(weight, next(iter(stored.values())).shape, expected)
        else:
            added = made.added.shape
            self._require(weight, (added[0], math.prod(added[1:])), (expected[0], math.prod(expected[1:])))
            self._require(weight, added[2:] or expected[2:], expected[2:])
            if made.turned is not None:
                self._require(weight, made.turned.shape, (expected[1], expected[1]))
        for role in stored.keys() & {"magnitude", "dora_scale"}:
            shape = stored[role].shape
            columns = role == "dora_scale" and len(shape) > 1 and shape[0] == 1
            self._require(weight, [math.prod(shape)], [expected[int(columns)]])
        self.patches.setdefault(weight, []).append(patch)
        return True

    def _multiplied(self, kind: str, parts: Mapping[str, str], weight: Sequence[int]) -> Product:
        """The product of factors, shapes alone. Raises UniViGUError where they do not fit each other."""
        empty = {role: torch.empty(self.file.tensors[name].shape, device="meta") for role, name in parts.items()}
        try:
            return product(kind, empty, weight)
        except KeyError as error:
            found = f"{error} is missing beside {next(iter(parts.values()))}"
        except (RuntimeError, IndexError):
            found = ", ".join(f"{parts[role]} is {list(tensor.shape)}" for role, tensor in empty.items())
        raise self._error(f"factors do not fit each other ({found}). The file is damaged: download it again")

    def _scale(self, alpha: str | None, names: Sequence[str], rank: int | None) -> float:
        """alpha / R of a product of factors; alpha from the file's tensors, else from what peft wrote beside them."""
        if alpha is None:
            return 1.0 if self._stated_scale is None else self._stated_scale(names, rank)
        value = self.file.read(alpha)
        if value.numel() != 1 or not math.isfinite(float(value)):
            raise self._error(f"{alpha} is not one finite number. Download the file again")
        return float(value) / rank if rank else 1.0

    def _require(self, weight: str, found: Sequence[int], expected: Sequence[int]) -> None:
        if tuple(found) != tuple(expected):
            self._misfits.append((weight, tuple(found), tuple(expected)))

    def _require_fit(self) -> None:
        """Raise UniViGUError for changes of other shapes than the network's weights; a square one shows widths best."""
        if not self._misfits:
            return
        name, found, expected = min(self._misfits, key=lambda misfit: len(set(misfit[2])))
        width, own = next((p for p in zip(found, expected, strict=False) if p[0] != p[1]), (len(found), len(expected)))
        raise self._error(
            f"this LoRA is for width {width}, this model's is {own} ({name}: found {list(found)}, expected "
            f"{list(expected)}): it was made for another size or kind of Wan (1536 is the 1.3B, 5120 the 14B). Choose "
            "a LoRA for Wan2.1 1.3B"
        )


def open_loras(given: Iterable[str | Path | LoraChoice | Lora], config: ModelConfig) -> list[Lora]:
    """Open LoRA files, named as for ``LoraChoice.of``, for a network; those that are open already stay."""
    return [lora if isinstance(lora, Lora) else Lora(LoraChoice.of(lora), config) for lora in given]


def with_students(run: RunConfig, loras: Iterable[Lora]) -> RunConfig:
    """How a network is run with these LoRAs on it: as it states itself, or as the first distilled one among them."""
    student = next((lora.student for lora in loras if lora.student is not None), None)
    return run if student is None else run.distilled(student.passes, student.joint_passes)


def _kinds(names: Iterable[str], shown: int = 3) -> str:
    """Names with the number of their block left out, counted; the first few."""
    kinds = Counter(re.sub(r"(?<=[._])\d+(?=[._])", "N", name, count=1) for name in names)
    listed = [kind if count == 1 else f"{kind} ({count})" for kind, count in list(kinds.items())[:shown]]
    return ", ".join(listed) + (f" and {len(kinds) - shown} more" if len(kinds) > shown else "")


def _peft_scale(file: WeightFile) -> Callable[[Sequence[str], int | None], float] | None:
    """alpha / R by the names and the rank of a layer, from the configuration that diffusers puts into a file's metadata
    or that peft saves beside ``adapter_model``; None where there is none. Patterns match a name's end, as in peft."""
    text, beside = file.metadata.get("lora_adapter_metadata"), file.path.parent / "adapter_config.json"
    where = "its metadata lora_adapter_metadata"
    try:
        if text is None and file.path.stem == "adapter_model" and beside.is_file():
            text, where = read_text(beside, exact=True), str(beside)
        facts = json.loads(text or "{}")
        stated = next((name for name in facts if re.search(r"^(?!text_encoder)(.*\.)?(lora_)?alpha$", name)), None)
        if stated is None:
            return None
        prefix = stated[: stated.rfind(".") + 1]
        rslora = bool(facts.get(f"{prefix}use_rslora"))

        strengths, ranks = (
            Patterns(dict(facts.get(f"{prefix}{patterns}") or {}), float(default))
            for patterns, default in (("alpha_pattern", facts[stated]), ("rank_pattern", facts.get(f"{prefix}r") or 1))
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UniViGUError(
            f"{file.path}: {where} cannot be read ({error}); expected peft's configuration, which says how strong the "
            "LoRA is. Save or download it again"
        ) from None

    def scale(names: Sequence[str], rank: int | None) -> float:
        try:
            alpha, stated_rank = strengths.number_of(names), ranks.number_of(names)
        except ValueError as error:
            raise UniViGUError(f"{file.path}: {where}: {error}. Write the names of its layers out") from None
        rank_or_root = rank or stated_rank
        return alpha / (math.sqrt(rank_or_root) if rslora else rank_or_root)

    return scale
