"""Whether the numbers of a run are finite, found out without waiting for a card."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UniViGUError


class FiniteCheck:
    """Raises UniViGUError with the message of the first check that failed.

    On CUDA the answer to a check makes its own way into pinned memory, and is looked at with the checks after it, once
    it is there: a pass or two late, and without holding up what the card is given to do. ``close`` waits for the rest.
    Elsewhere a check is answered at once.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Tensor, Tensor, str]] = []  # on the card; its copy, 0 until it is there; the message

    def add(self, finite: Tensor, message: str) -> None:
        """``finite``: a boolean scalar."""
        on_cuda, answer = finite.device.type == "cuda", torch.zeros((), dtype=torch.uint8)
        answer = answer.pin_memory() if on_cuda else answer
        answer.copy_(finite.to(torch.uint8) + 1, non_blocking=on_cuda)
        self._open.append((finite, answer, message))
        while self._open and int(self._open[0][1]):
            _, answer, earlier = self._open.pop(0)
            if int(answer) == 1:
                raise UniViGUError(earlier)

    def close(self) -> None:
        """Wait for the answers that are not there yet: once, however many there are."""
        still, self._open = self._open, []
        if still and not bool(torch.stack([finite for finite, _, _ in still]).all()):
            raise UniViGUError(next(message for finite, _, message in still if not bool(finite)))
