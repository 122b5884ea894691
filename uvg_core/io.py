"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import UniViGUError

# The folder of the pack: models, samples and pyproject.toml lie in it.
PACK = Path(__file__).resolve().parents[1]


def require_folder(path: str | Path) -> None:
    """Raise UniViGUError when no file can lie at ``path``. Ask before hours of work, not after."""
    folder = Path(path).parent
    if Path(path).is_dir():
        raise UniViGUError(f"{path}: a folder lies here; expected the name of a file to write")
    if not folder.is_dir():
        raise UniViGUError(f"{path}: there is no folder {folder}; make it or choose another")


def make_folder(path: Path, choose: str) -> None:
    """Make a folder where there is none. Raises UniViGUError where the system refuses; ``choose`` says how to name
    another one, e.g. ``choose another with --out``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniViGUError(f"{path}: the folder cannot be made ({error.strerror or error}); {choose}") from None


def require_others(target: str | Path, read: Iterable[str | Path]) -> None:
    """Raise UniViGUError when ``target`` is one of the files that a run reads."""
    for path in read:
        if os.path.exists(target) and os.path.exists(path) and os.path.samefile(target, path):
            raise UniViGUError(f"{target}: would be written onto a file that is being read; choose another name")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flushed(*paths: Path) -> None:
    """Wait until files are on the disk: a rename that is there before its data would be a whole file after a power
    cut, with nothing in it."""
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it into place on success, remove it on any failure.

    The temporary name keeps the suffix, since writers choose a format by it. Raises UniViGUError with the file, the
    reason and the remedy when the system refuses (full disk, missing folder, no permission).
    """
    final = Path(path)
    require_folder(final)
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.part{final.suffix}")
    try:
        yield temporary
        flushed(temporary)
        os.replace(temporary, final)
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        reason = getattr(error, "strerror", None) or error
        raise UniViGUError(
            f"{final}: could not be written ({reason}); nothing was left under that name. Free some space or choose a "
            "folder that exists and can be written to"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
