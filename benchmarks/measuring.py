"""What the benchmarks measure with: jobs timed in turn, and the peak of memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Job = Callable[[], Any]


def in_turn(jobs: Mapping[str, Job], turns: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every turn by job, A B A B: what the machine does beside this slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(turns):
        for name, job in jobs.items():
            _wait(device)
            started = time.perf_counter()
            job()
            _wait(device)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def peak(job: Job, device: torch.device) -> int:
    """Bytes above what was held before: on CUDA the allocator's, on the CPU those of all tensors alive (what a process
    holds there is mostly its allocator's habits)."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        job()
        return torch.cuda.max_memory_allocated(device) - before
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from tensors_alive import Alive

    with Alive() as alive:
        job()
    return alive.peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
