"""Progress bars on the terminal: tqdm where it is installed, nothing where it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """What the commands need of a bar."""

    def to(self, done: int, total: int, note: str = "") -> None:
        """Show how far things are."""
        ...


class _Silent:
    def to(self, done: int, total: int, note: str = "") -> None:
        return None


class _Tqdm:
    def __init__(self, label: str) -> None:
        from tqdm import tqdm

        # The delay keeps short jobs quiet: a bar is for what takes more than two seconds.
        self._bar = tqdm(desc=label, total=1, delay=2, leave=False, file=sys.stderr, dynamic_ncols=True)

    def to(self, done: int, total: int, note: str = "") -> None:
        self._bar.total = total
        if note:
            self._bar.set_postfix_str(note[:60], refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


@contextmanager
def bar(label: str) -> Iterator[Bar]:
    """A bar for the length of a block."""
    try:
        shown = _Tqdm(label)
    except ImportError:
        yield _Silent()
        return
    try:
        yield shown
    finally:
        shown.close()
