"""The clips and the picture that the shipped workflows start from."""

from __future__ import annotations

import json
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import folder_paths

from ...uvg_core.errors import UniViGUError
from ...uvg_core.io import PACK, read_text, write_text, written_whole

log = logging.getLogger(__name__)

SAMPLES = PACK / "samples"
READ_IN_PLACE = "uvg_training_clips"  # a folder that nothing is written into
# What has to lie in the input folder: Load Video and Load Image read from no other, and Caption Folder writes beside
# the clips.
COPIED = (
    *("uvg_sample.mp4", "uvg_sample.png", "uvg_film.mp4"),
    *(f"uvg_sample_clips/{name}.mp4" for name in ("blue_star", "green_seven", "yellow_ring")),
)


def offer_samples() -> None:
    """Put the sample clips into ComfyUI's input folder, each of them once: what somebody has deleted since stays
    deleted. Which folder has got which is noted beside the users' folders; where that cannot be, nothing is copied."""
    home = Path(folder_paths.get_input_directory())
    notes = Path(folder_paths.get_user_directory()) / "uni_vigu_samples.json"
    known = _noted(notes)
    before = known.get(os.path.realpath(home), [])
    new = [name for name in COPIED if name not in before]
    if not new:
        return
    try:
        notes.parent.mkdir(parents=True, exist_ok=True)
        write_text(notes, json.dumps({**known, os.path.realpath(home): [*before, *new]}, indent=1))
        done = [name for name in new if _copied(SAMPLES / name, home / name)]
        if done != new:  # a read-only input folder, which may be another one tomorrow
            write_text(notes, json.dumps({**known, os.path.realpath(home): [*before, *done]}, indent=1))
    except (OSError, UniViGUError) as error:
        log.warning("Uni-ViGU: the sample clips stay in %s (%s); copy them into %s yourself", SAMPLES, error, home)


def _copied(sample: Path, target: Path) -> bool:
    """Whether the sample, or whatever has its name, lies there now."""
    if os.path.lexists(target):
        return True
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as temporary:
            shutil.copyfile(sample, temporary)
    except (OSError, UniViGUError) as error:
        log.warning("Uni-ViGU: the sample clip %s could not be put into %s (%s)", sample.name, target, error)
        return False
    return True


def _noted(notes: Path) -> dict[str, list[str]]:
    """What is noted, nothing where that cannot be read."""
    with suppress(OSError, UniViGUError, ValueError, RecursionError):
        found = json.loads(read_text(notes, exact=True))
        if isinstance(found, dict) and all(isinstance(names, list) for names in found.values()):
            return found
    return {}
