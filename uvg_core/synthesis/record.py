"""``synthesis.json``: what each clip of a data set came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import shown as shown_value
from ..errors import UniViGUError
from ..io import write_text

_VERSION = 1
_FOR_PEOPLE = ("model",)  # of the settings; the file's hash decides


@dataclass(frozen=True)
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


@dataclass
class Record:
    """``synthesis.json``: the settings of the runs so far, and the clips by name."""

    path: Path
    generators: list[dict[str, Any]] = field(default_factory=list)
    captioners: list[dict[str, Any]] = field(default_factory=list)
    clips: dict[str, ClipRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Record:
        """What the file says, or an empty record where there is none. Raises UniViGUError for a file that is damaged
        or of another version."""
        if not path.exists():
            return cls(path)
        try:
            data = json.loads(path.read_text("utf-8"))
            if data["version"] != _VERSION:
                raise ValueError(f"version {shown_value(data['version'])}, expected {_VERSION}")
            clips = {name: ClipRecord(**entry) for name, entry in data["clips"].items()}
            record = cls(path, _settings_list(data["generators"]), _settings_list(data["captioners"]), clips)
            if not all(clip.generator in range(len(record.generators)) for clip in clips.values()):
                raise ValueError("a clip names settings that are not there")
            return record
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UniViGUError(
                f"{path}: cannot be read as the record of this folder ({error}); bring it back from a copy, or choose "
                "another folder (without it, all clips here are made anew)"
            ) from None

    def write(self) -> None:
        clips = {name: asdict(clip) for name, clip in self.clips.items()}
        data = {"version": _VERSION, "generators": self.generators, "captioners": self.captioners, "clips": clips}
        write_text(self.path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")

    def require_same(self, generator: Mapping[str, Any], captioner: Mapping[str, Any] | None) -> None:
        """Raise UniViGUError, naming what differs, when the last run here had other settings."""
        differences = [
            f"{name} was {shown_value(before.get(name))} and is {shown_value(now.get(name))}"
            for earlier, settings in ((self.generators, generator), (self.captioners, captioner))
            if earlier and settings is not None
            for before, now in [(earlier[-1], plain(settings))]
            for name in {**before, **now}
            if name not in _FOR_PEOPLE and before.get(name) != now.get(name)
        ]
        if differences:
            raise UniViGUError(
                f"{self.path}: this folder was made with other settings: {'; '.join(differences)}. Take those again, "
                "choose another folder, or pass --anyway to keep what is done and go on with the new ones"
            )


def _settings_list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise TypeError("the settings are not a list of objects")
    return value


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(settings))


def place(earlier: list[dict[str, Any]], settings: Mapping[str, Any]) -> int:
    """The place of the settings in use, at the end of the list."""
    now = plain(settings)
    if not earlier or earlier[-1] != now:
        earlier.append(now)
    return len(earlier) - 1
