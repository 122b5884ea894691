"""Which files of a folder are clips: the one list of suffixes."""

from __future__ import annotations

import os
from pathlib import Path

from ...confined import is_open
from ...errors import UniViGUError

_MOVING = (
    "mp4 m4v mov qt mkv webm avi divx gif mpg mpeg m2v vob ts m2ts mts wmv asf flv f4v 3gp 3g2 ogv mxf webp apng avif"
)
MOVING = frozenset(f".{suffix}" for suffix in _MOVING.split())
STILL = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff"})
# What find_clips picks up; read_clip itself looks at the content, not at the name.
CLIP_SUFFIXES = MOVING | STILL


def find_clips(
    folder: str | Path,
    *,
    recursive: bool = True,
    stills: bool = True,
    unreadable: list[tuple[Path, str]] | None = None,
) -> list[Path]:
    """The videos and, with ``stills``, pictures in a folder (by suffix, see ``CLIP_SUFFIXES``), sorted; with
    ``recursive`` those in its subfolders too, though not in linked ones. Left out are hidden ones, unfinished ones
    (``*.part``, ``*.part.mp4``), and still pictures of a video's name: they are its covers. Subfolders that may not be
    entered are added to ``unreadable``, each with the reason.

    Returns paths that start with ``folder``; maybe none. Raises UniViGUError when ``folder`` is not a folder.
    """

    def note(error: OSError) -> None:
        if unreadable is not None:
            unreadable.append((Path(error.filename), f"the folder cannot be read ({error.strerror})"))

    root = Path(folder)
    if not os.path.isdir(root):
        found = "a file" if os.path.exists(root) else "nothing"
        raise UniViGUError(f"{root}: expected a folder of videos, found {found}. Check the name")
    videos: list[Path] = []
    for place, folders, names in os.walk(root, onerror=note):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        clips = [path for path in paths if path.suffix.lower() in CLIP_SUFFIXES and not path.stem.endswith(".part")]
        films = {path.stem for path in clips if path.suffix.lower() in MOVING}
        clips = [p for p in clips if p.suffix.lower() in MOVING or (stills and p.stem not in films)]
        videos += [path for path in clips if is_open(path) and path.is_file()]
    return sorted(videos)
