"""What ComfyUI's model folders hold, and where a name in them lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ...uvg_core.errors import UniViGUError
from ...uvg_core.pipeline.locate import DOWNLOADS, RELEASED
from .names import EMBEDDED, FOLDER

CHECKPOINTS = (FOLDER, "diffusion_models", "checkpoints")
NO_FILE = "none"
NULL_FOLDERS = ("embeddings", "text_encoders", FOLDER)
NULL_BYTES = 18_000_000  # twice 512 rows of 4096 numbers in float32


def file_names(kind: str) -> list[str]:
    """Names in one of ComfyUI's model folders."""
    return folder_paths.get_filename_list(kind)


def checkpoint_names() -> list[str]:
    """What the loader offers: the embedded model first, then ComfyUI's model folders, each name once."""
    names = [name for kind in CHECKPOINTS for name in file_names(kind)]
    return sorted(dict.fromkeys(names), key=lambda name: name != EMBEDDED)


def null_embedding_names() -> list[str]:
    """Files that may hold a prompt condition: embeddings, and what is as small in the folders of larger files."""
    small = [name for kind in NULL_FOLDERS[1:] for name in file_names(kind) if _is_small(_path((kind,), name))]
    return list(dict.fromkeys([*file_names("embeddings"), *small]))


def _is_small(path: str | None) -> bool:
    """Whether a file may hold a prompt condition; ComfyUI lists dangling links too."""
    try:
        return path is not None and Path(path).stat().st_size < NULL_BYTES
    except OSError:
        return False


def _path(kinds: Sequence[str], name: str) -> str | None:
    return next((path for kind in kinds if (path := folder_paths.get_full_path(kind, name)) is not None), None)


def checkpoint_path(name: str) -> str:
    """Raises UniViGUError for a name that lies in no folder."""
    found = _path(CHECKPOINTS, name)
    if found is None:
        raise UniViGUError(
            f"{name}: found in none of ComfyUI's folders {', '.join(CHECKPOINTS)}; put the file into models/{FOLDER} "
            f"or models/diffusion_models, press R, and choose it again. To get the released model: {RELEASED}"
        )
    return found


def null_embedding_path(name: str) -> str:
    """Raises UniViGUError for a name that lies in no folder."""
    found = _path(NULL_FOLDERS, name)
    if found is None:
        raise UniViGUError(
            f"{name}: found in none of ComfyUI's folders {', '.join(NULL_FOLDERS)}; put the file into "
            "models/embeddings, press R, and choose it again"
        )
    return found


def file_path(kind: str, name: str) -> str:
    """Raises UniViGUError for a name that is not there."""
    found = _path((kind,), name)
    if found is None:
        wanted = "".join(f". To get what Wan 2.1 uses: {part}" for part in DOWNLOADS.values() if part.folder == kind)
        raise UniViGUError(f"{name}: not found in models/{kind}; press R and choose a file that is there{wanted}")
    return found
