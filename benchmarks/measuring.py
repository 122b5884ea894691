"""What the benchmarks measure with: jobs timed in turn, and peaks of memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

MIB, GIB = 2**20, 2**30
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


def ratio_of(seconds: Sequence[float], base: Sequence[float]) -> float:
    """The median ratio, turn by turn, of what was timed in turn."""
    return median(a / b for a, b in zip(seconds, base, strict=True))


def alone(script: str, *arguments: str) -> dict[str, float]:
    """What ``script --measure ARGUMENTS`` prints as JSON, in a process of its own."""
    command = [sys.executable, script, "--measure", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


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


def kernels(job: Job) -> int:
    """Kernels that a job launches on CUDA, copies and fills not among them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        job()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)


def random_weights(config: Any, device: torch.device) -> Any:
    """A network of ``config`` in bfloat16 with random weights, for use only."""
    from uvg_core.model import UniViGU  # here: ComfyUI's processes know the pack by another name

    with torch.device("meta"):
        model = UniViGU(config, dtype=torch.bfloat16)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.constant_(weight, float(name.endswith("weight")))
        else:
            torch.nn.init.normal_(weight, std=0.02)
    return model


def resident(entry: str, process: int | str = "self") -> int:
    """Bytes of a process on Linux: VmRSS now, VmHWM at its peak. (A child's peak would start from its parent's.)"""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/{process}/status has no {entry}: this is measured on Linux only")


def reset_peak() -> int:
    """Set this process's peak back to what it holds now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
