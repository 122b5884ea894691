"""``train``: from a configuration file to a trained network or LoRA."""

from __future__ import annotations

from pathlib import Path

from ..progress import Bars
from ..settings import Flag, setting, settings
from ..training import run
from .output import say


@settings
class Train:
    """Which run, and whether it goes on."""

    config: Path = setting("The run, see docs/train.md.", positional=True, metavar="CONFIG.yaml")
    resume: Flag = setting("Go on from the newest checkpoint in out.", default=False)
    accept_changes: Flag = setting("With --resume: go on although settings or clips have changed.", default=False)


def train(own: Train, shown: Bars) -> int:
    """Train in stages: generate, recall, refine."""
    return run.run(own.config, shown, say, resume=own.resume, accept_changes=own.accept_changes)
