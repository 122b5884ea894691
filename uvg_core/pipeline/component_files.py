"""Finds the files of a checkpoint's text encoder, VAE and tokenizer, and the names of the tensors in them.

Files that were named come first, then the Wan folder, then the checkpoint itself, then the ComfyUI folder. A file is
recognised by the tensors in it, not by its name. Only tables of contents are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..checkpoint.detect import Checkpoint, describe_foreign
from ..checkpoint.keys import ENCODER_PREFIX, TOKENIZER_KEY, VAE_PREFIX
from ..checkpoint.read import WeightFile, open_weights
from ..errors import UniViGUError
from ..io import read_bytes, read_text
from ..media.text_encoder import SHARED, SPIECE, encoder_names
from ..media.vae import is_wan_vae
from ..settings import setting, settings

ENCODER, VAE, TOKENIZER = "text encoder", "VAE", "tokenizer"
SPIECE_FILE = "spiece.model"
# The files of Wan-AI/Wan2.1-T2V-1.3B.
WAN_ENCODER, WAN_VAE, WAN_TOKENIZER = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google/umt5-xxl"
# ComfyUI's names for the folders that each kind of file may lie in.
ENCODERS, VAES = ("text_encoders", "clip"), ("vae",)
NETWORKS = ("uni_vigu", "diffusion_models", "unet", "checkpoints")
FAST = "_fast"  # at the end of the name of a checkpoint's few-step LoRA
EXTRA_PATHS = "extra_model_paths.yaml"
_WEIGHTS = (".safetensors", ".sft", ".pth")
_MOST_TOKENIZER = 1 << 26  # bytes; umT5's has 4.5 million
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Download:
    """A file of the released model as users download it; ``folder`` is one of ComfyUI's folders of models."""

    name: str
    size: str
    folder: str
    url: str

    def __str__(self) -> str:
        return f"{self.name} ({self.size}) from {self.url} into models/{self.folder}"


def _of_wan(name: str, size: str, folder: str) -> Download:
    files = f"{_HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
    return Download(name, size, folder, f"{files}/{folder}/{name}")


# The name of the release's file on the hub is not known here, so the address is that of the page.
RELEASED = Download(
    "uni_vigu.pth", "6.1 GB in bf16, 12.2 GB in fp32", NETWORKS[0], f"{_HUB}/Fr0zencr4nE/Uni-ViGU/tree/main"
)
DOWNLOADS = {
    ENCODER: _of_wan("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "6.7 GB", ENCODERS[0]),
    VAE: _of_wan("wan_2.1_vae.safetensors", "254 MB", VAES[0]),
}
_TOKENIZER = (
    f"spiece.model (4.5 MB) from {_HUB}/google/umt5-xxl/resolve/main/spiece.model; the umt5_xxl files made for ComfyUI "
    "have it inside"
)


@settings
class Places:
    """Where to look for the components that a checkpoint does not contain. None: not given.

    wan            a folder of Wan2.1: in diffusers layout, Wan's own, or a ComfyUI folder
    comfyui        a ComfyUI folder
    text_encoder   a weights file, or a folder of shards
    vae            the same
    tokenizer      ``spiece.model``, a folder with it, or a text encoder's file that has it inside
    """

    wan: Path | None = setting(
        "Wan2.1 folder, in diffusers layout or Wan's own: VAE, text encoder and tokenizer for --model.",
        default=None,
        metavar="DIR",
    )
    comfyui: Path | None = setting(
        "ComfyUI folder: what --model lacks is found in its models (and extra_model_paths.yaml).",
        default=None,
        metavar="DIR",
    )
    text_encoder: Path | None = setting(
        "Such as umt5_xxl_fp8_e4m3fn_scaled.safetensors, which contains the tokenizer.", default=None
    )
    vae: Path | None = setting("Such as wan_2.1_vae.safetensors.", default=None)
    tokenizer: Path | None = setting("spiece.model, for text encoders without one inside.", default=None)


IN_CHECKPOINT = Places()


@dataclass(frozen=True)
class ComponentFile:
    """The file or folder of a component, and the prefix of its tensors' names there (of a tokenizer: the tensor's
    whole name, empty where the file is the SentencePiece model)."""

    path: Path
    prefix: str = ""

    def read_tokenizer(self) -> bytes:
        """The SentencePiece model. Raises UniViGUError for a file that cannot be read, and for a larger one."""
        expected = "the SentencePiece model of the umT5 tokenizer (spiece.model)"
        if not self.prefix:
            try:
                return read_bytes(self.path, _MOST_TOKENIZER, expected)
            except FileNotFoundError:
                raise UniViGUError(f"{self.path}: no longer exists; expected {expected}") from None
        weights = open_weights(self.path)
        stored = weights.tensors[self.prefix]
        if stored.nbytes > _MOST_TOKENIZER:
            raise UniViGUError(f"{self.path}: {self.prefix} has {stored.nbytes} bytes; expected {expected}")
        return weights.read(self.prefix).numpy().tobytes()


@dataclass(frozen=True)
class ComponentFiles:
    """Where the three components are; ``notes``: lines about what was chosen among several files."""

    encoder: ComponentFile
    vae: ComponentFile
    tokenizer: ComponentFile
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Weights:
    """How to recognise the weights of a component, and where they may lie. ``place``: its field of ``Places``."""

    name: str
    place: str
    prefix: str  # in an all-in-one checkpoint
    folders: tuple[str, ...]
    fits: Callable[[WeightFile], bool]
    expected: str


def is_umt5(weights: WeightFile) -> bool:
    """Whether a file holds a umT5 encoder: position biases in every layer, where T5 has them in the first."""
    names, _ = encoder_names(weights.tensors)
    second = "encoder.block.1.layer.0."
    bias = second if any(name.startswith(second) for name in names) else "encoder.block.0.layer.0."
    return f"{bias}SelfAttention.relative_attention_bias.weight" in names


_ENCODER = _Weights(ENCODER, "text_encoder", ENCODER_PREFIX, ENCODERS, is_umt5, "a umT5 text encoder")
_VAE = _Weights(VAE, "vae", VAE_PREFIX, VAES, is_wan_vae, "a Wan 2.1 VAE")


def find_component_files(model: Path, places: Places, *, text_dim: int) -> ComponentFiles:
    """Find all three components for the checkpoint ``model``, whose prompt condition has ``text_dim`` channels (0: not
    known).

    Raises UniViGUError for a file that is not what it was named as, and for a component that is found nowhere: with the
    file to download, its size, address and folder.
    """
    search = _Search(model, places, text_dim)
    encoder, vae = search.weights(_ENCODER), search.weights(_VAE)
    tokenizer = search.tokenizer(encoder)
    if encoder is None or vae is None or tokenizer is None:
        found = {ENCODER: encoder, VAE: vae, TOKENIZER: tokenizer}
        tried = [path for path in (search.wan, search.comfyui) if path is not None]
        raise UniViGUError(_how_to_get(model, [name for name, file in found.items() if file is None], tried))
    width = _width(search.open(encoder.path), encoder.prefix)
    if width is not None and text_dim not in (0, width):
        raise UniViGUError(
            f"{encoder.path}: this text encoder is {width} wide; {model} expects {text_dim}. Pass the text encoder "
            "that belongs to the checkpoint: umT5-XXL (4096) for the released model"
        )
    return ComponentFiles(encoder, vae, tokenizer, tuple(search.notes))


class _Search:
    """One search. It opens every file once."""

    def __init__(self, model: Path, places: Places, text_dim: int) -> None:
        named = {name: Path(path).expanduser() for name, path in vars(places).items() if path is not None}
        self.wan, self.comfyui = named.pop("wan", None), named.pop("comfyui", None)
        self.named = (_in_wan_folder(self.wan) if self.wan is not None else {}) | named
        if self.comfyui is not None:
            _require_comfyui(self.comfyui)
        self.model, self.text_dim = model, text_dim
        self.open = cache(open_weights)
        self.notes: list[str] = []

    def weights(self, kind: _Weights) -> ComponentFile | None:
        if kind.place in self.named:
            path = self.named[kind.place]
            weights = self.open(path)
            if not kind.fits(weights) and not _has(weights, kind.prefix):
                found = describe_foreign(weights.tensors)
                raise UniViGUError(f"{path}: found {found}, expected {kind.expected}. Choose another file")
            return ComponentFile(path, "" if kind.fits(weights) else kind.prefix)
        if self.wan is not None and _is_comfyui(self.wan) and (chosen := self.in_comfyui(kind, self.wan)):
            return chosen
        if _has(self.open(self.model), kind.prefix):
            return ComponentFile(self.model, kind.prefix)
        return None if self.comfyui is None else self.in_comfyui(kind, self.comfyui)

    def in_comfyui(self, kind: _Weights, folder: Path) -> ComponentFile | None:
        def fits(weights: WeightFile) -> bool:
            return kind.fits(weights) and (kind != _ENCODER or _width(weights) in (self.text_dim or 4096, None))

        def order(file: Path) -> tuple[bool, int, str]:
            """Files with the tokenizer inside first, then the smaller: fp8 needs the least memory."""
            return SPIECE not in self.open(file).tensors, file.stat().st_size, file.name

        files = sorted(_candidates(folder, kind.folders, fits, self.open), key=order)
        if not files:
            return None
        others = ", ".join(file.name for file in files[1:4])
        more = f" (also found: {others}; {_flag(kind.name)} chooses)" if others else ""
        self.notes.append(f"{kind.name}: {files[0]}{more}")
        return ComponentFile(files[0])

    def tokenizer(self, encoder: ComponentFile | None) -> ComponentFile | None:
        """Where none was named: in the text encoder's file, the checkpoint, or any encoder of the ComfyUI folder."""
        if TOKENIZER in self.named:
            return self.named_tokenizer(self.named[TOKENIZER])
        places = [(self.model, TOKENIZER_KEY)]
        if encoder is not None:
            places.insert(0, (encoder.path, TOKENIZER_KEY if encoder.prefix else SPIECE))
        places = [(path, name) for path, name in places if name in self.open(path).tensors]
        if not places and self.comfyui is not None:
            files = _candidates(self.comfyui, ENCODERS, lambda weights: SPIECE in weights.tensors, self.open)
            places = [(file, SPIECE) for file in files]
        return ComponentFile(*places[0]) if places else None

    def named_tokenizer(self, path: Path) -> ComponentFile:
        folders = (path, path / "tokenizer", path / WAN_TOKENIZER)
        file = next((file for file in (path, *(folder / SPIECE_FILE for folder in folders)) if file.is_file()), None)
        if file is None:
            found = "this folder contains no such file" if path.is_dir() else "no such file"
            raise UniViGUError(f"{path}: {found}; expected the SentencePiece model of the umT5 tokenizer, {_TOKENIZER}")
        if file.suffix.lower() not in _WEIGHTS:
            return ComponentFile(file)
        inside = [name for name in (SPIECE, TOKENIZER_KEY) if name in self.open(file).tensors]
        if not inside:
            raise UniViGUError(f"{file}: contains no tokenizer (tensor {SPIECE}); pass {SPIECE_FILE}")
        return ComponentFile(file, inside[0])


def _in_wan_folder(wan: Path) -> dict[str, Path]:
    """The components in a folder of Wan2.1, by field of ``Places``; none where it is a ComfyUI folder."""
    original = {"text_encoder": wan / WAN_ENCODER, "vae": wan / WAN_VAE, "tokenizer": wan / WAN_TOKENIZER / SPIECE_FILE}
    diffusers = {name: wan / name for name in ("vae", "text_encoder", "tokenizer")}
    found = {name: path for name, path in original.items() if path.is_file()}
    if found or _is_comfyui(wan):
        return found
    found = {name: path for name, path in diffusers.items() if path.is_dir()}
    if not found:
        raise UniViGUError(
            f"{wan}: not a Wan2.1 folder in diffusers layout: {', '.join(diffusers)} not found in it; expected the "
            "folders vae, text_encoder and tokenizer, as in Wan2.1-T2V-1.3B-Diffusers. ComfyUI's files work as well: "
            "pass --text-encoder FILE --vae FILE, or --comfyui FOLDER"
        )
    return found


def _flag(component: str) -> str:
    return f"--{component.lower().replace(' ', '-')}"


def _how_to_get(model: Path, missing: Sequence[str], tried: Sequence[Path]) -> str:
    looked = f", and neither does {' or '.join(str(place) for place in tried)}" if tried else ""
    flags = ", ".join(f"{_flag(component)} FILE" for component in missing)
    # The tokenizer comes with the text encoder's file.
    wanted = [component for component in missing if component != TOKENIZER or ENCODER not in missing]
    files = "; ".join(f"{component}: {DOWNLOADS.get(component, _TOKENIZER)}" for component in wanted)
    return (
        f"{model}: this checkpoint does not contain a {' and a '.join(missing)}{looked}; pass --wan DIR (a Wan2.1 "
        f"folder), --comfyui FOLDER, or {flags}. Files to download: {files}"
    )


def _has(weights: WeightFile, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights.tensors)


def _width(weights: WeightFile, prefix: str = "") -> int | None:
    """Channels of a text encoder's states; None where its file does not show them."""
    names, _ = encoder_names(name.removeprefix(prefix) for name in weights.tensors if name.startswith(prefix))
    shared = weights.tensors.get(prefix + names.get(SHARED, ""))
    return shared.shape[-1] if shared is not None and shared.shape else None


# ComfyUI's folders


def find_network_file(comfyui: Path, name: Path | None = None) -> Path:
    """The one Uni-ViGU checkpoint in a ComfyUI folder, or the file ``name`` below its folders of models.

    Raises UniViGUError when there is none, or when several could be meant."""
    _require_comfyui(comfyui)
    if name is not None:
        places = [folder / name for folder in _folders(comfyui, NETWORKS)]
        return next((place for place in places if place.exists()), name)
    files = _candidates(comfyui, NETWORKS, lambda weights: Checkpoint.of(weights).is_uni_vigu)
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(str(file) for file in files[:8])
        raise UniViGUError(f"{comfyui}: found several Uni-ViGU checkpoints ({names}); choose one with --model FILE")
    raise UniViGUError(
        f"{comfyui}: found no Uni-ViGU checkpoint in its folders {', '.join(NETWORKS)}; pass --model FILE, or "
        f"download {RELEASED}"
    )


def find_fast_lora(model: Path) -> Path:
    """The few-step LoRA of a checkpoint, ``NAME_fast.safetensors``: beside it, or in ``loras`` as in ComfyUI's folders.

    Raises UniViGUError when there is none."""
    name = f"{model.stem}{FAST}.safetensors"
    places = [model.parent / name, model.parent / "loras" / name, model.parent.parent / "loras" / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UniViGUError(
            f"{model}: found no {name} beside it or in {places[-1].parent}, which --fast applies. Train one with "
            "stage: distill, or leave --fast out"
        )
    return found


def _candidates(
    comfyui: Path,
    folders: Sequence[str],
    fits: Callable[[WeightFile], bool],
    open_file: Callable[[Path], WeightFile] = open_weights,
) -> list[Path]:
    """The weights files in ComfyUI's folders that fit, each once; files that cannot be read are passed over."""
    files: dict[Path, Path] = {}
    for path in (path for folder in _folders(comfyui, folders) for path in _weights_below(folder)):
        try:
            if path.resolve() not in files.values() and fits(open_file(path)):
                files[path] = path.resolve()
        except (UniViGUError, OSError):
            continue
    return sorted(files)


def _weights_below(folder: Path) -> Iterable[Path]:
    for root, _, names in os.walk(folder, followlinks=True):
        yield from (Path(root, name) for name in sorted(names) if Path(name).suffix.lower() in _WEIGHTS)


def _is_comfyui(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("models/text_encoders", "models/vae", *ENCODERS, NETWORKS[1]))


def _require_comfyui(folder: Path) -> None:
    if not _is_comfyui(folder) and not (folder / EXTRA_PATHS).is_file():
        raise UniViGUError(
            f"{folder}: not a ComfyUI folder; expected the one that holds models/text_encoders and models/vae"
        )


def _folders(comfyui: Path, names: Sequence[str]) -> list[Path]:
    """The folders of those names in ComfyUI's ``models``, or in ``comfyui`` where that is ``models`` itself, and those
    of its extra_model_paths.yaml."""
    models = comfyui / "models" if (comfyui / "models").is_dir() else comfyui
    found = [models / name for name in names] + _extra_folders(comfyui / EXTRA_PATHS, names)
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def _extra_folders(file: Path, names: Sequence[str]) -> list[Path]:
    if not file.is_file():
        return []
    try:
        import yaml
    except ImportError:
        raise UniViGUError(f"{file}: reading it needs pyyaml: pip install pyyaml") from None
    try:
        sections = yaml.safe_load(read_text(file, exact=True)) or {}
        found = []
        for section in filter(None, sections.values()):
            # As ComfyUI reads it: paths are relative to the section's base_path, and that to the file.
            base = file.parent / os.path.expandvars(os.path.expanduser(section.get("base_path", "")))
            lines = [line.strip() for name in names for line in str(section.get(name) or "").splitlines()]
            found += [base / line for line in lines if line]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UniViGUError(f"{file}: cannot be read as ComfyUI's list of folders ({reason})") from None
    return found
