"""Time and peak memory of loading and converting a full-size checkpoint (3.05B parameters, random weights).

    python benchmarks/load_memory.py --dir /tmp                          # native bf16 safetensors
    python benchmarks/load_memory.py --dir /tmp --layout release-pth     # the release's .pth, plus convert

Each measured step runs in a process of its own; its peak (VmHWM) is reported above what importing torch takes.
Requirement: loading peaks at no more than 1.15 times the file's size (an fp8 file becomes bf16: 1.57 times its own).
Numbers go into benchmarks/numbers/load_memory.json. Linux.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from measuring import GIB, read, save
from networks import meta_network, random_weight, write_random

from uvg_core.checkpoint import convert, load_model
from uvg_core.checkpoint.keys import from_native
from uvg_core.config import ModelConfig
from uvg_core.model import UniViGU
from uvg_core.model.rope import frequencies

LIMIT = 1.15


def make_file(path: Path, layout: str) -> None:
    config = ModelConfig()
    if layout == "native":
        write_random(path, config, "bf16")
        return
    shapes = {name: weight.shape for name, weight in meta_network(config).state_dict().items()}
    state = {f"_fsdp_wrapped_module.{from_native(name, 'release')}": random_weight(s) for name, s in shapes.items()}
    state["_fsdp_wrapped_module.rotary_emb_text.inv_freq"] = frequencies(config.head_dim).float()
    torch.save({"model": state, "step": 20000}, path)


def resident(entry: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def measure(job: Callable[[], Any]) -> dict[str, float]:
    """What a job takes in this process: seconds, and bytes before it and added at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
    before, started = resident("VmRSS"), time.perf_counter()
    made = job()
    seconds = time.perf_counter() - started
    if isinstance(made, UniViGU):
        for parameter in made.parameters():  # whatever was left to be read on first use is read now
            parameter.view(-1)[:: 4096 // parameter.element_size()].sum()
    return {"before": before, "added": resident("VmHWM") - before, "seconds": seconds}


def alone(job: Callable[..., Any], *given: Any) -> Any:
    """What a job returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(job, *given).result()


def report(name: str, path: Path, job: Callable[[], Any]) -> dict[str, dict[str, float]]:
    """Measure a job on the file ``path`` in a fresh process; print and return what it took."""
    found = {**alone(measure, job), "file": path.stat().st_size}
    added, size = found["added"] / GIB, found["file"] / GIB
    took = f"{found['seconds']:7.1f} s   file {size:.2f} GiB   added {added:.2f} GiB"
    print(f"{name:30}{took} = {added / size:.3f} x file", flush=True)
    return {name: found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("/tmp"), help="where the 6 GB file goes (convert: 10 GB more)")
    parser.add_argument("--layout", choices=("native", "release-pth"), default="native")
    parser.add_argument("--keep", action="store_true", help="leave the files there for another run")
    args = parser.parse_args()
    native = args.layout == "native"
    path = args.dir / ("full-native.safetensors" if native else "full-release.pth")
    converted = {} if native else {kind: args.dir / f"converted-{kind}.safetensors" for kind in ("bf16", "fp8")}
    first = "load native bf16" if native else "load the release's `.pth`"
    try:
        if not path.exists():
            alone(make_file, path, args.layout)
        found = report(first, path, partial(load_model, path))
        for kind, target in converted.items():
            found |= report(f"convert the `.pth` to {kind}", path, partial(convert, path, target, dtype=kind))
            found |= report(f"load the {kind} result", target, partial(load_model, target))
        save("load_memory", {**read("load_memory"), **found})
    finally:
        if not args.keep:
            for file in (path, *converted.values()):
                file.unlink(missing_ok=True)
    ratio = found[first]["added"] / found[first]["file"]
    print(f"loading the file peaks at {ratio:.3f} of its size; required: at most {LIMIT}")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
