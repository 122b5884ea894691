"""The files in ComfyUI's model folders: which a widget offers, where they lie, and whether they have changed."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import folder_paths

from ...uvg_core.content import content_of
from ...uvg_core.errors import UniViGUError
from ...uvg_core.pipeline.component_files import DOWNLOADS, ENCODER, FAST, RELEASED, VAE
from .names import EMBEDDED, FOLDER

NO_FILE = "none"
_opened: dict[tuple[str, str], str] = {}  # by widget and name: the state of each file when it was opened last
_changes: Counter[str] = Counter()  # how often a file that a widget has opened was seen to be another one
LARGE = 100_000_000  # bytes
NULL_BYTES = 18_000_000  # twice 512 rows of 4096 numbers in float32
# The folders that a widget chooses a file from, and what users of the released model download for it.
FOLDERS = {
    "checkpoint": (FOLDER, "diffusion_models", "checkpoints"),
    "text_encoder": ("text_encoders",),
    "vae": ("vae",),
    "lora": ("loras", FOLDER),
    "null_embedding": ("embeddings", "text_encoders", FOLDER),
}
RELEASE = {"checkpoint": RELEASED, "text_encoder": DOWNLOADS[ENCODER], "vae": DOWNLOADS[VAE]}


def file_names(widget: str) -> list[str]:
    """What a widget offers, each name once, the embedded model first. Of null embeddings only small files outside of
    ``embeddings``: they share those folders with whole text encoders."""
    names = [(folder, name) for folder in FOLDERS[widget] for name in folder_paths.get_filename_list(folder)]
    if widget in ("checkpoint", "lora"):  # a few-step LoRA lies beside its checkpoint
        fast = {name for folder, name in names if folder == FOLDER and is_fast_lora(name, {name for _, name in names})}
        names = [(folder, name) for folder, name in names if folder != FOLDER or (name in fast) == (widget == "lora")]
    if widget == "null_embedding":
        sizes = ((folder, name, _stat(folder_paths.get_full_path(folder, name))[0]) for folder, name in names)
        names = [(folder, name) for folder, name, size in sizes if folder == "embeddings" or 0 < size < NULL_BYTES]
    return sorted(dict.fromkeys(name for _, name in names), key=lambda name: name != EMBEDDED)


def is_fast_lora(name: str, names: set[str]) -> bool:
    """Whether a file belongs to a checkpoint among ``names``, by its name."""
    stem, suffix = os.path.splitext(name)
    return stem.endswith(FAST) and stem.removesuffix(FAST) + suffix in names


def file_path(widget: str, name: str) -> str:
    """Raises UniViGUError for a name that lies in no folder, with where to get the file."""
    found = _find(widget, name)
    if found is not None:
        _opened.setdefault((widget, name), file_state(found))
        return found
    folders = FOLDERS[widget]
    what = "the released model" if widget == "checkpoint" else "what Wan 2.1 uses"
    download = f". To get {what}: {RELEASE[widget]}" if widget in RELEASE else ""
    file = re.split(r"[\\/]", name)[-1]  # no more of what a prompt says than it needs
    raise UniViGUError(
        f"{file}: found in none of ComfyUI's folders {', '.join(folders)}; put the file into models/{folders[0]}, "
        f"press R, and choose it again{download}"
    )


def fingerprint(**widgets: str | None) -> str:
    """What changes when a file that one of the widgets names is replaced, deleted or put there. Of a widget that is
    connected nobody knows the name yet (None): there any file counts that such a widget has opened."""
    states = [
        str(_changed(widget)) if name is None else file_state(_find(widget, name))
        for widget, name in widgets.items()
        if widget in FOLDERS
    ]
    return blake2b("\n".join(states).encode(errors="surrogateescape")).hexdigest()  # clients see it in the history


def _changed(widget: str) -> int:
    for (kind, name), state in list(_opened.items()):
        if kind == widget and (now := file_state(_find(widget, name))) != state:
            _opened[kind, name] = now
            _changes[widget] += 1
    return _changes[widget]


def file_state(path: str | None) -> str:
    """What changes when a file does. Files of gigabytes go by size and time: their content would cost seconds."""
    if path is not None and _stat(path)[0] < LARGE:
        with suppress(UniViGUError, OSError):
            return f"{path} {content_of(path)}"
    return f"{path} {_stat(path)}"


def _find(widget: str, name: str) -> str | None:
    if name not in file_names(widget):  # only what the owner has put into these folders, whatever else a prompt names
        return None
    paths = (folder_paths.get_full_path(folder, name) for folder in FOLDERS[widget])
    return next((path for path in paths if path is not None), None)


def _stat(path: str | Path | None) -> tuple[int, int]:
    """Size in bytes and time of change of a file; zeros for one that is not there (ComfyUI lists dangling links)."""
    try:
        facts = os.stat(path or "")
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns
