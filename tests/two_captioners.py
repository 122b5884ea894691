"""Two processes that caption one folder at the same time, as two cards or two people do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import sys, time
from uvg_core.pipeline.folders import Captions, caption_folder

def caption(path):
    time.sleep(0.01)
    return f"{sys.argv[2]} {path.name}"

report = caption_folder(sys.argv[1], caption, Captions(format=sys.argv[3]))
print(len(report.written), len(report.failed))
"""


def caption_twice(folder: Path, format: str = "txt") -> list[tuple[int, int]]:
    """How many captions each of the two has written, and how many clips it has failed at. A caption is the name of its
    captioner, A or B, and of the clip."""
    commands = [[sys.executable, "-c", CODE, str(folder), who, format] for who in "AB"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for command in commands]
    found = []
    for run in runs:
        written, failed = map(int, run.communicate()[0].split())
        found.append((written, failed))
    return found
