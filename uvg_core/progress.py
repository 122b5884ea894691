"""Progress on the terminal: one tqdm bar at a time where tqdm is installed, nothing where it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from torch import nn

# What is under way, how much of it is done, how much there is.
Report = Callable[[str, int, int], object]


class Bars:
    """Call it with (what, done, total, note); a new ``what`` begins a new bar."""

    def __init__(self, hidden: bool = False) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            tqdm = None
        self._tqdm: Any = None if hidden else tqdm
        self._what = ""
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        if self._tqdm is None:
            return
        if what != self._what or self._bar is None:
            self.close()
            # The delay keeps short jobs quiet: a bar is for what takes more than two seconds.
            # Bytes are shown as 0.8G of 3.9G, steps as they are.
            look = {"leave": False, "dynamic_ncols": True, "unit_scale": total >= 10**6}
            self._what, self._bar = what, self._tqdm(desc=what, total=total, delay=2, file=sys.stderr, **look)
        if note:
            self._bar.set_postfix_str(note[:60], refresh=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def bars(hidden: bool = False) -> closing[Bars]:
    """Bars for the length of a block."""
    return closing(Bars(hidden))


@contextmanager
def counted_calls(modules: list[nn.Module], what: str, total: int, report: Report | None) -> Iterator[None]:
    """Report every forward pass of ``modules``: how code of other libraries tells how far it is."""
    if report is None:
        yield
        return
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        report(what, min(done, total), total)

    report(what, 0, total)
    hooks = [module.register_forward_hook(count) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
