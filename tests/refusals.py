"""What a system refuses, for tests that run as root, whom nothing is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def closed_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A subfolder ``closed`` that may not be listed."""
    closed, scandir = folder / "closed", os.scandir
    closed.mkdir()

    def refusing(path: str) -> Any:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return closed
