"""``cache``: what is kept to save time, and how to be rid of it."""

from __future__ import annotations

from pathlib import Path

from ..data.caches import find_caches
from ..errors import UniViGUError
from ..progress import Bars
from ..settings import Flag, setting, settings
from .output import complain, say, show


@settings
class CacheSettings:
    """Where caches are looked for."""

    folders: tuple[Path, ...] = setting("Folders of training runs and data sets.", positional=True, metavar="FOLDER")
    clear: Flag = setting("Delete the caches found, and nothing else.", default=False)
    dry_run: Flag = setting("With --clear: show what would be deleted, without deleting it.", default=False)


def cache(own: CacheSettings, shown: Bars) -> int:
    """List the caches in folders, and delete them with --clear. They are made again when they are needed."""
    failed = 0
    for folder in own.folders:
        try:
            found = find_caches(folder)
            for one in found:
                line = str(one)
                if own.clear and own.dry_run:
                    line += ", would be deleted"
                elif own.clear:
                    one.clear()
                    line += ", deleted"
                show(line)
            if not found:
                say(f"{folder}: no cache found")
        except UniViGUError as error:
            complain(error)
            failed += 1
    return 1 if failed else 0
