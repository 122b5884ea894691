"""Which files a path means, and whether they are weights at all: decided by content, never by suffix."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UniViGUError
from ..io import read_text

# Names as diffusers and transformers give them: BASE.safetensors, or shards BASE-00001-of-00002.safetensors and their
# index BASE.safetensors.index.json. A precision (.fp16) may stand before any dot or dash.
_WEIGHTS = re.compile(r"(?P<base>.+?)(?:-\d+-of-\d+)?\.(?P<kind>safetensors|sft|pth|pt|bin)(?P<index>\.index\.json)?")
_VARIANT = re.compile(r"\.(?:fp16|bf16|fp32|fp8\w*)(?=[.-])")
_AGAIN = "Download the file again"
_ELSEWHERE = re.compile(r"[/\\:\x00]|^\.{0,2}$")  # in a name: a folder, a drive, this folder or the one above
_MOST_JSON = 1 << 24  # bytes
# What is often found in the place of weights: how it begins, and the error.
_NO_WEIGHTS = {
    rb"$": f"the file is empty (0 bytes); expected weights. {_AGAIN}",
    rb"version https://git-lfs": "found a Git LFS pointer, expected the weights themselves. Run 'git lfs pull', or "
    "download the file through the browser or the Hugging Face command line",
    rb"(?i)\s*<(!doctype|html|\?xml|head)": "found a web page, expected weights: the download was answered with an "
    f"error or a login page. {_AGAIN}, from the file's own link",
    rb"GGUF": "found a GGUF file, which is not read here; use the model's safetensors version",
    rb"(?s)[^{]{257}ustar": "found a tar archive, which is not read here (torch wrote such files until 2017). Unpack "
    "it, or ask for a safetensors version",
}


@dataclass(frozen=True)
class Location:
    """The files that hold the weights, one or all shards, what a ``config.json`` beside them says, and the name of the
    shard that each tensor is in, as an index says."""

    path: Path
    files: tuple[Path, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)


def locate(path: str | Path) -> Location:
    """Resolve a weights file, a shard index, or a folder (with an index, one weights file, or ``transformer/``).

    In a folder, safetensors go before pickles, an index before its shards, and weights before their half precision.
    Raises UniViGUError when nothing is there, a shard is missing, or the folder holds several candidates.
    """
    if not str(path):  # Path("") would be the working directory
        raise UniViGUError("'': found an empty path, expected a checkpoint file or folder. Name one")
    try:
        path = Path(path).expanduser()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UniViGUError(
            f"{path}: no such file or folder. Check the path, or download the checkpoint first"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:  # too long; a zero byte; a home that does not exist
        reason = getattr(error, "strerror", None) or error
        raise UniViGUError(f"{str(path)[:200]}: cannot be looked up ({reason}). Check the path") from None
    if stat.S_ISDIR(mode):
        return _in_folder(path)
    if not stat.S_ISREG(mode):
        raise UniViGUError(f"{path}: found a device or a pipe, expected a checkpoint file or folder. Name another")
    if (name := _named(path)) and name["index"]:
        return _indexed(path, path)
    # Only a file that diffusers named belongs to the config.json beside it.
    facts = _facts(path.parent) if path.name.startswith("diffusion_pytorch_model") else {}
    return Location(path, (path,), facts)


def kind_of(path: Path) -> str:
    """``safetensors`` or ``torch``, from the first bytes.

    Raises UniViGUError for everything that is often found in the place of weights: an empty file, a web page, a
    Git LFS pointer, GGUF, text.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UniViGUError(f"{path}: cannot be read ({error.strerror or error})") from error
    for beginning, problem in _NO_WEIGHTS.items():
        if re.match(beginning, start):
            raise UniViGUError(f"{path}: {problem}")
    if start[8:9] == b"{":  # first: a header's length may begin like a pickle
        return "safetensors"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    raise UniViGUError(
        f"{path}: neither safetensors nor a torch checkpoint. {_AGAIN}, or choose the file that holds the weights"
    )


def _in_folder(folder: Path) -> Location:
    if (folder / "transformer").is_dir():  # the root of a diffusers model
        folder = folder / "transformer"
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file())
    except OSError as error:
        raise UniViGUError(
            f"{folder}: this folder cannot be read ({error.strerror or error}). Check its permissions"
        ) from error
    named = {file: match for file in files if (match := _named(file))}
    # What a trainer keeps of its own, such as optimizer.bin, is no model.
    found = [file for file, match in named.items() if match["kind"] in ("safetensors", "sft")] or [
        file for file, match in named.items() if match["kind"] != "bin" or match["base"].endswith("model")
    ]
    plain = {named[file]["base"] for file in found if not _VARIANT.search(file.name)}
    found = [file for file in found if named[file]["base"] not in plain or not _VARIANT.search(file.name)]
    indices = [file for file in found if named[file]["index"]]
    candidates = indices or found
    if not candidates:
        raise UniViGUError(
            f"{folder}: no weights in this folder; expected a *.safetensors, *.pth or *.index.json file. "
            "Check the path, or name the file itself"
        )
    if len(candidates) > 1:
        names = ", ".join(file.name for file in candidates[:5])
        raise UniViGUError(f"{folder}: several files could be meant ({names}); name the one to load")
    return _indexed(folder, indices[0]) if indices else Location(folder, (candidates[0],), _facts(folder))


def _named(file: Path) -> re.Match[str] | None:
    return _WEIGHTS.fullmatch(_VARIANT.sub("", file.name))


def _indexed(path: Path, index: Path) -> Location:
    """The shards that an index lists. They lie beside it: as files, or links as the Hugging Face cache makes them."""
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UniViGUError(f"{index}: not a shard index (no 'weight_map' in it). {_AGAIN}")
    names = sorted(set(shards.values()))
    elsewhere = next((name for name in names if _ELSEWHERE.search(name)), None)
    if elsewhere is not None:
        raise UniViGUError(
            f"{index}: names a shard outside its folder ({elsewhere[:100]}), which was not opened; expected files that "
            f"lie beside it. {_AGAIN}"
        )
    missing = [name[:200] for name in names if not _is_file(index.parent / name)]
    if missing:
        raise UniViGUError(
            f"{index}: lists {len(names)} shards, of which {len(missing)} are missing (first: {missing[0]}). "
            "Download the missing ones into the same folder"
        )
    return Location(path, tuple(index.parent / name for name in names), _facts(index.parent), shards)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _facts(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    return _json(config) if config.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path, most=_MOST_JSON, exact=True))
    except UniViGUError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UniViGUError(f"{path}: cannot be read as JSON ({error}). {_AGAIN}") from error
    if not isinstance(data, dict):
        raise UniViGUError(f"{path}: expected a JSON object, found a {type(data).__name__}. {_AGAIN}")
    return data
