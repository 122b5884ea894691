"""``synthesis.json``: what each clip of a data set came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UniViGUError
from ..io import write_text
from ..settings import from_dict, settings, shown

VERSION = 1
_FOR_PEOPLE = ("model",)  # of the settings; the file's hash decides


@settings
class ClipRecord:
    """What a clip came from. ``generator`` and ``captioner`` are places in the lists of settings of the same file;
    ``caption_tokens`` counts the end-of-text token, ``answers`` those that the caption took."""

    prompt: str
    seed: int
    frames: int
    generator: int
    captioner: int | None = None
    caption_tokens: int | None = None
    answers: int | None = None


@settings
class Record:
    """The settings of the runs so far, the last ones at the end, and the clips by name."""

    version: int
    generators: list[dict[str, Any]]
    captioners: list[dict[str, Any]]
    clips: dict[str, ClipRecord]

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise UniViGUError(f"version {shown(self.version)}, expected {VERSION}")
        if not all(clip.generator in range(len(self.generators)) for clip in self.clips.values()):
            raise UniViGUError("a clip names settings that are not there")

    @classmethod
    def read(cls, path: Path) -> Record:
        """What the file says, or an empty record where there is none. Raises UniViGUError for a file that is damaged
        or of another version."""
        try:
            return from_dict(cls, json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return cls(VERSION, [], [], {})
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise UniViGUError(
                f"{path}: cannot be read as the record of this folder ({error}); bring it back from a copy, or choose "
                "another folder (without it, all clips here are made anew)"
            ) from None

    def write(self, path: Path) -> None:
        plain = asdict(self)
        write_text(path, json.dumps(plain, ensure_ascii=False, indent=1) + "\n")

    def require_same(self, path: Path, generator: Mapping[str, Any], captioner: Mapping[str, Any] | None) -> None:
        """Raise UniViGUError, naming what differs, when the last run here had other settings."""
        differences = [
            f"{name} was {shown(before.get(name))} and is {shown(now.get(name))}"
            for earlier, now in ((self.generators, generator), (self.captioners, captioner))
            if earlier and now is not None
            for before in earlier[-1:]
            for name in {**before, **now}
            if name not in _FOR_PEOPLE and before.get(name) != now.get(name)
        ]
        if differences:
            raise UniViGUError(
                f"{path}: this folder was made with other settings: {'; '.join(differences)}. Take those again, "
                "choose another folder, or pass --anyway to keep what is done and go on with the new ones"
            )


def place(earlier: list[dict[str, Any]], now: Mapping[str, Any]) -> int:
    """The place of the settings in use, at the end of the list."""
    if earlier[-1:] != [now]:
        earlier.append(dict(now))
    return len(earlier) - 1
