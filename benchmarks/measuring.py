"""What the benchmarks share: their files of numbers, jobs timed in turn, counts, and processes in ComfyUI."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "benchmarks" / "numbers"
GB, GIB = 1e9, 2**30
Job = Callable[[], Any]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # uvg_core of this checkout, and the tests' helpers


def read(name: str) -> Any:
    """The numbers saved as ``benchmarks/numbers/NAME.json``; an empty dict if there are none."""
    path = NUMBERS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def save(name: str, found: Any) -> None:
    NUMBERS.mkdir(exist_ok=True)
    (NUMBERS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def digest(model: Path) -> str:
    """SHA-256 of a safetensors file without its header: what the metadata say does not matter."""
    data = model.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio_of(seconds: Sequence[float], base: Sequence[float]) -> float:
    """The median ratio, turn by turn, of what was timed in turn."""
    return median(a / b for a, b in zip(seconds, base, strict=True))


def kernels(job: Job) -> int:
    """Kernels that a job launches on CUDA, without copies and fills."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        job()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)


@contextmanager
def comfyui(device: str, *options: str) -> Iterator[Callable[..., Any]]:
    """A process in the Python of the tests' ComfyUI, as a function that calls those of ``inside.py`` there."""
    from in_comfyui_host import Inside, find_comfyui, options_for

    with (
        tempfile.TemporaryDirectory() as folder,
        Inside(find_comfyui(), Path(folder) / "base", (*options_for(device), *options)) as process,
    ):
        yield partial(process.call, "../../../benchmarks/inside")
