"""``train``: from a configuration file to a trained network or LoRA."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..progress import Bars
from ..settings import Flag, setting, settings
from ..training import forecast, run
from ..training.config import load_config
from ..training.trainer import Watch
from .output import CANCELLED, say, show


@settings
class Train:
    """Which run, and whether it goes on."""

    config: Path = setting(
        "Training configuration (see docs/train.md); - reads it from standard input.",
        positional=True,
        metavar="CONFIG.yaml",
        stdin="file",
    )
    resume: Flag = setting("Continue from the newest checkpoint in out.", default=False)
    accept_changes: Flag = setting("With --resume: continue even if settings or clips have changed.", default=False)
    check: Flag = setting(
        "Only report what will be read, what is left out and why, and the steps, memory and disk space needed. The "
        "exit code is 1 if something is left out or does not fit.",
        default=False,
    )


def train(own: Train, shown: Bars) -> int:
    """Train in stages: generate, recall, refine."""
    config = load_config(own.config)
    if own.check:
        return 0 if forecast.check(config, resume=own.resume, say=show, progress=shown) else 1
    with _stopping() as watch:
        result = run.train(
            config, resume=own.resume, accept_changes=own.accept_changes, say=say, progress=shown, watch=watch
        )
    if not result.finished:
        say(f"stopped at step {result.step} of {result.steps}; continue with --resume. Result so far: {result.file}")
    elif result.file is not None:  # the main process
        say(f"done: {result.file}")
    return 0 if result.finished else CANCELLED


@contextmanager
def _stopping() -> Iterator[Watch]:
    """Ctrl-C and SIGTERM end the run after the step at hand, with a checkpoint; a second one at once, and so does the
    first while the data are being prepared: the cache goes on where it was."""
    learning = asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked or not learning:
            raise KeyboardInterrupt
        asked = True
        say("stopping after this step; interrupt again to stop at once without saving")

    def watch(*_: object) -> bool:
        nonlocal learning
        learning = True
        return asked

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
