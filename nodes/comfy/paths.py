"""Which folders a prompt may name, and the names under which files of the server are shown to clients."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import folder_paths

from ...uvg_core.confined import confined_to, place_of
from ...uvg_core.errors import UniViGUError, printable
from ...uvg_core.io import PACK, read_text
from ...uvg_core.settings import expanded
from ...uvg_core.yaml_file import read_yaml
from .samples import READ_IN_PLACE, SAMPLES

log = logging.getLogger(__name__)

SETTINGS = "uni_vigu.yaml"
CLOSED = (
    "the folder in the widget folder cannot be opened; expected a folder inside ComfyUI's input or output folder, "
    "such as uvg_sample_clips. Check the name. How the owner of this ComfyUI opens other folders: SECURITY.md, Folders"
)
CLOSED_FILE = (
    "the file in the widget file cannot be read; expected a text file inside ComfyUI's input or output folder, "
    "such as prompts.txt. Check the name. How the owner of this ComfyUI opens other folders: SECURITY.md, Folders"
)


def settings_file() -> Path:
    """Where the owner opens folders: beside the users' own folders, where no request of ComfyUI's API writes."""
    return Path(folder_paths.get_user_directory()) / SETTINGS


def opened() -> list[str]:
    """The folders that the owner's settings file opens; none, and a line in the log, where it cannot be read."""
    path = settings_file()
    try:
        facts = path.stat()
    except OSError:
        return []
    return _opened_in(path, (facts.st_ino, facts.st_size, facts.st_mtime_ns))


@lru_cache(maxsize=2)
def _opened_in(path: Path, _: tuple[int, ...]) -> list[str]:
    """What a state of the file says; a mistake in it is logged once."""
    try:
        folders = read_yaml(path, "the folders that clients may name").get("folders")
    except UniViGUError as error:
        log.warning("Uni-ViGU: %s. No folder is opened", error)
        return []
    named = folders if isinstance(folders, list) and all(isinstance(one, str) for one in folders) else [""]
    named = [expanded(folder) for folder in named]
    if not all(map(os.path.isabs, named)):
        log.warning("Uni-ViGU: %s: expected the entry folders with a list of absolute paths. No folder is opened", path)
        return []
    return named


@contextmanager
def opened_folder(text: str, *, reads: bool = False) -> Iterator[Path]:
    """The folder that a prompt names, relative to the input folder; for the length of a block, what is listed and read
    there lies inside ComfyUI's input and output folders and those that the owner has opened, after links are followed.

    Raises UniViGUError, in the same words for a folder that is missing and for one that is refused: the server's log
    alone says more. Nothing outside is looked for before that. Who only ``reads`` finds the pack's own training clips,
    too, where the input folder has none."""
    found, roots = _place(text, "folder")
    if reads and os.path.normpath(text) == READ_IN_PLACE and found is not None and not found.exists():
        found, roots = SAMPLES / READ_IN_PLACE, [str(SAMPLES)]
    if found is None or not os.path.isdir(found):  # False also for a name that is too long
        raise UniViGUError(CLOSED)
    with confined_to(roots):
        yield found


def opened_text(text: str) -> str:
    """What stands in a text file that a prompt names; where it may lie is said at ``opened_folder``."""
    found, roots = _place(text, "file")
    if found is None or not os.path.isfile(found):
        raise UniViGUError(CLOSED_FILE)
    with confined_to(roots):
        return read_text(found)


def _place(text: str, kind: str) -> tuple[Path | None, list[str]]:
    """Where a file or folder lies that a prompt names, None where that is closed; and the open folders."""
    home = folder_paths.get_input_directory()
    roots = [home, folder_paths.get_output_directory(), *opened()]
    found = place_of(text, home, roots)
    if found is None:
        named = os.path.normpath(os.path.join(home, text))
        log.warning(
            "Uni-ViGU: a prompt names a %s outside of ComfyUI's input and output folders; it was refused. To open "
            "it, add to %s:\nfolders:\n  - %s",
            kind,
            settings_file(),
            json.dumps(named if kind == "folder" else os.path.dirname(named)),  # which is YAML, too
        )
    return found, roots


# What clients are shown


def shown(text: str) -> str:
    """A text for clients: folders of this server by their names in ComfyUI (input/..., models/...), and printable."""
    case = re.IGNORECASE if os.name == "nt" else 0
    for root, name in _names():
        text = re.sub(rf"(?<![\w.~)/\\-]){re.escape(root)}(?![\w.-])", name.replace("\\", r"\\"), text, flags=case)
    return printable(text)


def _names() -> Iterator[tuple[str, str]]:
    """The folders of this server and what they are called, inner ones first."""
    kinds = folder_paths.folder_names_and_paths
    groups = [
        {folder_paths.get_input_directory(): "input", folder_paths.get_output_directory(): "output"},
        {folder: Path(folder).name for folder in opened()},
        {
            folder: kind if kind == "custom_nodes" else f"models/{kind}"
            for kind in kinds
            for folder in folder_paths.get_folder_paths(kind)
        },
        {
            folder_paths.models_dir: "models",
            folder_paths.get_temp_directory(): "temp",
            folder_paths.get_user_directory(): "user",
            str(PACK): "Uni-ViGU",
        },
        {folder_paths.base_path: "ComfyUI", sys.prefix: "Python", tempfile.gettempdir(): "(system temp)"},
        {str(Path.home()): "~"},
    ]
    for group in groups:
        known = {path: name for root, name in group.items() for path in (str(root), os.path.realpath(root))}
        for path in sorted(known, key=len, reverse=True):
            if len(path) > len(os.sep) + 2:  # no root of a disk
                yield path, known[path]
