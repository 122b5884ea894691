"""Several processes that caption one folder at the same time, as cards, machines or people do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from uvg_core.errors import UniViGUError
from uvg_core.pipeline.folders import Captioner, FolderWorker

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import sys, time
from uvg_core.pipeline.folders import Captions, caption_folder
from uvg_core.pipeline.workers import Shard

folder, who, format, shard, stuck = sys.argv[1:]
asked = 0

def caption(path):
    global asked
    asked += 1
    time.sleep(600 if asked == int(stuck) else 0.01)
    return f"{who} {path.name}"

report = caption_folder(folder, caption, Captions(format=format), shard=Shard.of(shard))
print(len(report.written), len(report.failed))
"""


def start(folder: Path, who: str, format: str = "txt", shard: str = "1/1", stuck: int = 0) -> subprocess.Popen[str]:
    """A captioner; its captions are its name and that of the clip. ``stuck``: it never ends with its so manieth."""
    command = [sys.executable, "-c", CODE, str(folder), who, format, shard, str(stuck)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def counts(run: subprocess.Popen[str]) -> tuple[int, int]:
    """How many captions a captioner has written in the end, and how many clips it has failed at."""
    written, failed = map(int, run.communicate()[0].split())
    return written, failed


def caption_twice(folder: Path, format: str = "txt") -> list[tuple[int, int]]:
    """The counts of two, A and B."""
    return list(map(counts, [start(folder, who, format) for who in "AB"]))


class Deadly(Captioner):
    """Three clips at a time; some of them end the process, or are bad."""

    together = 3

    def __init__(self, folder: Path) -> None:
        super().__init__(lambda clip: self.about(folder, clip))

    @staticmethod
    def about(folder: Path, clip: Path) -> str:
        time.sleep(0.05)
        if clip.stem == "bad":
            raise UniViGUError(f"{clip}: no video")
        if clip.stem == "deadly":
            os._exit(1)
        if clip.stem == "once" and not (folder / ".died").exists():
            (folder / ".died").touch()
            os._exit(1)
        return clip.stem

    @classmethod
    def worker(cls) -> FolderWorker:
        return FolderWorker(cls)
