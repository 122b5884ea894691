"""Where the VAE, the text encoder and the tokenizer of a run lie: which file, and under which names in it.

What is named for itself comes first, then the Wan folder, then what the checkpoint carries, then the ComfyUI folder.
Files are told by the tensors in them, not by their names; nothing but tables of contents is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.detect import UNI_VIGU_LAYOUTS, describe_foreign, find_network
from ..checkpoint.keys import ENCODER_PREFIX, TOKENIZER_KEY, VAE_PREFIX
from ..checkpoint.read import WeightFile, open_weights
from ..errors import UniViGUError
from ..media.text_encoder import SHARED, SPIECE, encoder_names
from ..media.vae import is_wan_vae

WAN_FOLDERS = ("vae", "text_encoder", "tokenizer")
SPIECE_FILE = "spiece.model"
# Wan's own folder: what lies where in Wan-AI/Wan2.1-T2V-1.3B.
ORIGINAL_ENCODER, ORIGINAL_VAE = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"
ORIGINAL_TOKENIZER = Path("google") / "umt5-xxl"
# ComfyUI's names for the folders that each kind of file may lie in.
ENCODERS, VAES = ("text_encoders", "clip"), ("vae",)
NETWORKS = ("uni_vigu", "diffusion_models", "unet", "checkpoints")
EXTRA_PATHS = "extra_model_paths.yaml"
_WEIGHTS = (".safetensors", ".sft", ".pth")
_FLAGS = {"text encoder": "--text-encoder FILE", "VAE": "--vae FILE", "tokenizer": "--tokenizer FILE"}


@dataclass(frozen=True)
class Download:
    """A file that the released model needs, as users get it; ``folder`` is one of ComfyUI's models."""

    name: str
    size: str
    folder: str
    url: str

    def __str__(self) -> str:
        return f"{self.name} ({self.size}) from {self.url} into models/{self.folder}"


def _of_wan(name: str, size: str, folder: str) -> Download:
    files = f"{_HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
    return Download(name, size, folder, f"{files}/{folder}/{name}")


_HUB = "https://huggingface.co"
# The hub's name of the release's file is not known here, hence a page as the address.
RELEASED = Download(
    "uni_vigu.pth", "6.1 GB in bf16, 12.2 GB in fp32", NETWORKS[0], f"{_HUB}/Fr0zencr4nE/Uni-ViGU/tree/main"
)
PARTS = {
    "text encoder": _of_wan("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "6.7 GB", ENCODERS[0]),
    "VAE": _of_wan("wan_2.1_vae.safetensors", "254 MB", VAES[0]),
}
_TOKENIZER = (
    f"spiece.model (4.5 MB) from {_HUB}/google/umt5-xxl/resolve/main/spiece.model; the umt5_xxl files made for ComfyUI "
    "have it inside"
)


@dataclass(frozen=True)
class Source:
    """A file or folder, and what the names of a component's tensors begin with in it (the tokenizer: its name)."""

    path: Path
    prefix: str = ""

    def tokenizer_bytes(self) -> bytes:
        """The SentencePiece model. Raises UniViGUError for a file that is missing or holds none."""
        if self.prefix:
            return open_weights(self.path).read(self.prefix).numpy().tobytes()
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UniViGUError(
                f"{self.path}: cannot be read ({error.strerror or error}); expected the SentencePiece model of the "
                "umT5 tokenizer (spiece.model)"
            ) from None


@dataclass(frozen=True)
class Components:
    """Where the three components are, and lines about what was chosen among several."""

    encoder: Source
    vae: Source
    tokenizer: Source
    notes: tuple[str, ...] = ()


def find_components(
    model: Path,
    *,
    text_dim: int,
    wan: Path | None = None,
    comfyui: Path | None = None,
    text_encoder: Path | None = None,
    vae: Path | None = None,
    tokenizer: Path | None = None,
) -> Components:
    """Find all three components for the checkpoint ``model``, whose prompt condition is ``text_dim`` wide.

    Args:
        wan: a folder of Wan2.1: in diffusers layout, Wan's own, or a ComfyUI folder. comfyui: a ComfyUI folder.
        text_encoder, vae: a weights file, or a folder of shards. tokenizer: ``spiece.model``, a folder with it, or a
            text encoder's file that has it inside.

    Raises UniViGUError for a file that is something else than it is named for, and for what is found nowhere: with the
    file to get, its size, its address and its folder.
    """
    notes: list[str] = []
    found: dict[str, Source] = {}

    def add(part: str, source: Source | None) -> None:
        if source is not None:
            found.setdefault(part, source)

    if text_encoder is not None:
        add("text encoder", _named(text_encoder, ENCODER_PREFIX, is_umt5, "a umT5 text encoder"))
    if vae is not None:
        add("VAE", _named(vae, VAE_PREFIX, is_wan_vae, "a Wan 2.1 VAE"))
    if tokenizer is not None:
        add("tokenizer", _tokenizer_at(tokenizer))
    if wan is not None:
        for part, source in _in_wan_folder(
            wan, text_dim, notes, [part for part in _FLAGS if part not in found]
        ).items():
            add(part, source)
    own = open_weights(model)
    if any(name.startswith(VAE_PREFIX) for name in own.tensors):
        add("VAE", Source(model, VAE_PREFIX))
    if any(name.startswith(ENCODER_PREFIX) for name in own.tensors):
        add("text encoder", Source(model, ENCODER_PREFIX))
    if comfyui is not None:
        for part, source in _in_comfyui(
            comfyui, text_dim, notes, [part for part in _FLAGS if part not in found]
        ).items():
            add(part, source)
    if "text encoder" in found:
        add("tokenizer", _tokenizer_inside(found["text encoder"]))
    if TOKENIZER_KEY in own.tensors:
        add("tokenizer", Source(model, TOKENIZER_KEY))
    if comfyui is not None and "tokenizer" not in found:
        files = _candidates(comfyui, ENCODERS, lambda weights: SPIECE in weights.tensors)
        add("tokenizer", Source(files[0], SPIECE) if files else None)
    missing = [part for part in _FLAGS if part not in found]
    if missing:
        raise UniViGUError(_how_to_get(model, missing, [place for place in (wan, comfyui) if place is not None]))
    width = _width(found["text encoder"])
    if width is not None and text_dim not in (0, width):
        raise UniViGUError(
            f"{found['text encoder'].path}: this text encoder is {width} wide; {model} expects {text_dim}. Pass the "
            "text encoder that belongs to the checkpoint: umT5-XXL (4096) for the released model"
        )
    return Components(found["text encoder"], found["VAE"], found["tokenizer"], tuple(notes))


def find_network_file(comfyui: Path, name: Path | None = None) -> Path:
    """The one Uni-ViGU checkpoint in a ComfyUI folder, or the file ``name`` below its folders of models.

    Raises UniViGUError when there is none, or when several could be meant."""
    _require_comfyui(comfyui)
    if name is not None:
        places = [folder / name for folder in _folders(comfyui, NETWORKS)]
        return next((place for place in places if place.exists()), name)

    def is_network(weights: WeightFile) -> bool:
        return find_network(weights).layout in UNI_VIGU_LAYOUTS

    files = _candidates(comfyui, NETWORKS, is_network)
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(str(file) for file in files[:8])
        raise UniViGUError(f"{comfyui}: several Uni-ViGU checkpoints lie here ({names}); choose one with --model FILE")
    raise UniViGUError(
        f"{comfyui}: no Uni-ViGU checkpoint in its folders {', '.join(NETWORKS)}; pass --model FILE, or get {RELEASED}"
    )


def is_umt5(weights: WeightFile) -> bool:
    """Whether a file holds a umT5 encoder: position biases in every layer, where T5 has them in the first."""
    names, _ = encoder_names(weights.tensors)
    second = "encoder.block.1.layer.0."
    deep = any(name.startswith(second) for name in names)
    bias = second if deep else "encoder.block.0.layer.0."
    return f"{bias}SelfAttention.relative_attention_bias.weight" in names


def _width(source: Source) -> int | None:
    stored = open_weights(source.path).tensors
    names, _ = encoder_names(name.removeprefix(source.prefix) for name in stored if name.startswith(source.prefix))
    shared = stored.get(source.prefix + names.get(SHARED, ""))
    return shared.shape[-1] if shared is not None and shared.shape else None


# Where to look


def _named(path: Path, prefix: str, fits: Callable[[WeightFile], bool], what: str) -> Source:
    """A component from a file that the user named; an all-in-one checkpoint will do."""
    weights = open_weights(path)
    if fits(weights):
        return Source(path)
    if any(name.startswith(prefix) for name in weights.tensors):
        return Source(path, prefix)
    raise UniViGUError(f"{path}: found {describe_foreign(weights.tensors)}, expected {what}. Choose another file")


def _tokenizer_at(path: Path) -> Source:
    for place in (path, path / SPIECE_FILE, path / "tokenizer" / SPIECE_FILE, path / ORIGINAL_TOKENIZER / SPIECE_FILE):
        if place.is_file():
            if place.suffix.lower() in _WEIGHTS:
                inside = [name for name in (SPIECE, TOKENIZER_KEY) if name in open_weights(place).tensors]
                if not inside:
                    raise UniViGUError(f"{place}: no tokenizer in it (tensor {SPIECE}); pass {SPIECE_FILE}")
                return Source(place, inside[0])
            return Source(place)
    found = "this folder holds no such file" if path.is_dir() else "no such file"
    raise UniViGUError(f"{path}: {found}; expected the SentencePiece model of the umT5 tokenizer, {_TOKENIZER}")


def _tokenizer_inside(encoder: Source) -> Source | None:
    name = TOKENIZER_KEY if encoder.prefix else SPIECE
    return Source(encoder.path, name) if name in open_weights(encoder.path).tensors else None


def _in_wan_folder(wan: Path, text_dim: int, notes: list[str], wanted: list[str]) -> dict[str, Source]:
    original = {
        "VAE": wan / ORIGINAL_VAE,
        "text encoder": wan / ORIGINAL_ENCODER,
        "tokenizer": wan / ORIGINAL_TOKENIZER / SPIECE_FILE,
    }
    if any(path.is_file() for path in original.values()):
        return {part: Source(path) for part, path in original.items() if path.is_file()}
    if _is_comfyui(wan):
        return _in_comfyui(wan, text_dim, notes, wanted)
    diffusers = dict(zip(("VAE", "text encoder", "tokenizer"), (wan / name for name in WAN_FOLDERS), strict=True))
    absent = [path.name for part, path in diffusers.items() if not path.is_dir()]
    if len(absent) == len(diffusers):
        raise UniViGUError(
            f"{wan}: not a Wan2.1 folder in diffusers layout: {', '.join(absent)} not found in it; expected the "
            "folders vae, text_encoder and tokenizer, as in Wan2.1-T2V-1.3B-Diffusers. ComfyUI's files will do too: "
            "--text-encoder FILE --vae FILE, or --comfyui FOLDER"
        )
    for part in wanted:
        if part != "tokenizer" and diffusers[part].name not in absent:
            open_weights(diffusers[part])  # said now, not when it is loaded
    return {
        part: Source(path / SPIECE_FILE if part == "tokenizer" else path)
        for part, path in diffusers.items()
        if path.name not in absent
    }


def _in_comfyui(comfyui: Path, text_dim: int, notes: list[str], wanted: list[str]) -> dict[str, Source]:
    def is_encoder(weights: WeightFile) -> bool:
        return is_umt5(weights) and _width(Source(weights.path)) in (text_dim or 4096, None)

    def order(file: Path) -> tuple[bool, int, str]:
        """The tokenizer inside before none, small before large: it is fp8 that the least memory is needed for."""
        return SPIECE not in open_weights(file).tensors, file.stat().st_size, file.name

    _require_comfyui(comfyui)
    found: dict[str, Source] = {}
    for part, folders, fits in (("text encoder", ENCODERS, is_encoder), ("VAE", VAES, is_wan_vae)):
        files = sorted(_candidates(comfyui, folders, fits), key=order) if part in wanted else []
        if files:
            found[part] = Source(files[0])
            others = ", ".join(file.name for file in files[1:4])
            more = f" (would do too: {others}; {_FLAGS[part].split()[0]} chooses)" if others else ""
            notes.append(f"{part}: {files[0]}{more}")
    return found


def _candidates(comfyui: Path, folders: Iterable[str], fits: Callable[[WeightFile], bool]) -> list[Path]:
    """The weights files in ComfyUI's folders that fit; what cannot be read is passed over."""
    files: dict[Path, Path] = {}
    for folder in _folders(comfyui, folders):
        for root, _, names in os.walk(folder, followlinks=True):
            for path in (Path(root) / name for name in sorted(names) if Path(name).suffix.lower() in _WEIGHTS):
                try:
                    if path.resolve() not in files.values() and fits(open_weights(path)):
                        files[path] = path.resolve()
                except (UniViGUError, OSError):
                    continue
    return sorted(files)


def _is_comfyui(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("models/text_encoders", "models/vae", *ENCODERS, NETWORKS[1]))


def _require_comfyui(folder: Path) -> None:
    if not _is_comfyui(folder) and not (folder / EXTRA_PATHS).is_file():
        raise UniViGUError(
            f"{folder}: not a ComfyUI folder; expected the one that holds models/text_encoders and models/vae"
        )


def _folders(comfyui: Path, names: Iterable[str]) -> list[Path]:
    """ComfyUI's folders of those names: its own, or those below ``models`` itself, and those of its
    extra_model_paths.yaml."""
    names = list(names)
    models = comfyui / "models" if (comfyui / "models").is_dir() else comfyui
    found = [models / name for name in names] + _extra_folders(comfyui / EXTRA_PATHS, names)
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def _extra_folders(file: Path, names: list[str]) -> list[Path]:
    if not file.is_file():
        return []
    try:
        import yaml
    except ImportError:
        raise UniViGUError(f"{file}: reading it needs pyyaml: pip install pyyaml") from None
    try:
        sections = yaml.safe_load(file.read_text("utf-8")) or {}
        found = []
        for section in (section for section in sections.values() if section):
            # As ComfyUI reads it: relative paths lead from the section's base, and that from the file.
            base = file.parent / os.path.expandvars(os.path.expanduser(section.get("base_path", "")))
            for name in (name for name in names if section.get(name)):
                found += [base / line.strip() for line in str(section[name]).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UniViGUError(f"{file}: cannot be read as ComfyUI's list of folders ({reason})") from None
    return found


def _how_to_get(model: Path, missing: list[str], tried: list[Path]) -> str:
    looked = f", nor does {' or '.join(str(place) for place in tried)}" if tried else ""
    flags = ", ".join(_FLAGS[part] for part in missing)
    # The tokenizer comes with the text encoder's file.
    wanted = [part for part in missing if part != "tokenizer" or "text encoder" not in missing]
    files = [f"{part}: {PARTS.get(part, _TOKENIZER)}" for part in wanted]
    return (
        f"{model}: this checkpoint does not carry a {' and a '.join(missing)}{looked}; pass --wan DIR (a Wan2.1 "
        f"folder), --comfyui FOLDER, or {flags}. What to get: {'; '.join(files)}"
    )
