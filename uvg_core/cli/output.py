"""What the commands show: notes, clips large enough to look at, the contact sheet of a joint run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from ..errors import counted, named, printable
from ..io import name_taken
from ..media.sheet import SheetRow, contact_sheet
from ..media.video import Sound, write_video
from ..pipeline.pipeline import JointStep

# Clips of toy models are a few dozen pixels wide; players show them as a stamp, so they are enlarged in whole steps.
ENLARGE_BELOW, ENLARGE_TO = 128, 288
USED_WRONGLY, CANCELLED = 2, 130  # exit codes beside 0 and 1


_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether notes are left out from now on."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether notes are left out."""
    return _quiet


def say(text: str) -> None:
    """A note for the user, on the standard error; with ``--quiet`` left out."""
    if not _quiet:
        print(printable(named(text)), file=sys.stderr, flush=True)


def complain(text: object) -> None:
    """What went wrong, on the standard error."""
    print(printable(named(f"error: {text}")), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A result, on the standard output."""
    print(printable(named(text)), flush=True)


def enlarged(pixels: Tensor, scale: int | None) -> Tensor:
    """uint8 ``[T,H,W,3]`` with every pixel repeated; None picks the scale for small clips, 1 leaves them alone."""
    side = min(pixels.shape[1:3])
    factor = scale or (max(1, ENLARGE_TO // side) if side < ENLARGE_BELOW else 1)
    return pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2) if factor > 1 else pixels


def show_clip(
    path: Path,
    pixels: Tensor,
    fps: float,
    scale: int | None = None,
    *,
    anew: bool = False,
    sound: Sound | None = None,
) -> Path:
    """Write a clip, enlarged as ``enlarged`` does, and say so. ``anew``: under a free name like ``path``. Returns the
    name."""
    big = enlarged(pixels, scale)
    with name_taken(path) if anew else nullcontext(path) as path:
        write_video(path, big, fps, sound)
    grown = "" if big.shape == pixels.shape else f", enlarged to {big.shape[2]}x{big.shape[1]}"
    say(f"{path}: {counted(len(pixels), 'frame')} of {pixels.shape[2]}x{pixels.shape[1]} at {fps:g} fps{grown}")
    return path


def joint_sheet(path: Path, prompt: str, text: str, pixels: Tensor, trace: Sequence[JointStep]) -> None:
    """The contact sheet of a joint run: the clip each recorded step points at, and its text."""
    rows = [
        SheetRow(f"step {s.step}/{s.steps} · noise {s.sigma:.2f}", s.pixels, s.text)
        for s in trace
        if s.step < s.steps  # the last step is the result
    ]
    rows.append(SheetRow("result", pixels, text))
    contact_sheet(rows, path, title=f"“{prompt}”", subtitle="video and text, generated together by one network")
