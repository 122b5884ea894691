"""Time and peak memory of loading and converting a full-size checkpoint (3.05B parameters, random weights).

    python benchmarks/load_memory.py --dir /tmp                          # native bf16 safetensors
    python benchmarks/load_memory.py --dir /tmp --layout release-pth     # the release's .pth, plus convert

Each measured step runs in a process of its own; its peak (VmHWM) is reported above what importing torch takes.
Requirement: loading peaks at no more than 1.15 times the file's size (an fp8 file becomes bf16: 1.57 times its own).
Numbers go into benchmarks/numbers/load_memory.json. Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from measuring import GIB, alone, reset_peak, resident
from saved import read, save

from uvg_core.checkpoint import convert, load_model
from uvg_core.checkpoint.keys import from_native
from uvg_core.checkpoint.read import Stored
from uvg_core.checkpoint.write import Pending, write_safetensors
from uvg_core.config import CheckpointConfig, ModelConfig
from uvg_core.model import UniViGU, sdpa_attention
from uvg_core.model.rope import frequencies

LIMIT = 1.15


def random_weight(shape: torch.Size) -> torch.Tensor:
    """bf16 noise; a short pattern repeated, since drawing 3 billion numbers would take minutes."""
    numel = shape.numel()
    pattern = (torch.randn(min(numel, 1 << 20)) * 0.02).bfloat16()
    return pattern.repeat(-(-numel // pattern.numel()))[:numel].clone().reshape(shape)


def make_file(path: Path, layout: str) -> None:
    config = ModelConfig()
    shapes = {n: t.shape for n, t in UniViGU(config, attention=sdpa_attention, device="meta").state_dict().items()}
    if layout == "native":
        pending = {n: Pending(Stored.like(s, torch.bfloat16), partial(random_weight, s)) for n, s in shapes.items()}
        write_safetensors(path, pending, {"config": CheckpointConfig(config).to_json(), "format": "pt"})
        return
    state = {f"_fsdp_wrapped_module.{from_native(name, 'release')}": random_weight(s) for name, s in shapes.items()}
    state["_fsdp_wrapped_module.rotary_emb_text.inv_freq"] = frequencies(config.head_dim).float()
    torch.save({"model": state, "step": 20000}, path)


def measure(job: str, path: Path) -> None:
    """Run one job in this process and print what it took as JSON."""
    before = reset_peak()
    start = time.perf_counter()
    if job == "load":
        model = load_model(path)
        loaded = time.perf_counter() - start
        for parameter in model.parameters():  # whatever was left to be read on first use is read now
            parameter.view(-1)[:: 4096 // parameter.element_size()].sum()
    else:
        convert(path, path.with_name(f"converted-{job}.safetensors"), dtype=job)
        loaded = time.perf_counter() - start
    print(json.dumps({"before": before, "added": resident("VmHWM") - before, "seconds": loaded}))


def report(job: str, path: Path) -> dict[str, float]:
    """Measure in a fresh process; print and return what it took."""
    found = {**alone(__file__, job, str(path)), "file": path.stat().st_size}
    added, size = found["added"] / GIB, found["file"] / GIB
    print(
        f"{job:<6}{found['seconds']:7.1f} s   file {size:.2f} GiB   added {added:.2f} GiB = {added / size:.3f} x file"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("/tmp"), help="where the 6 GB file goes (convert: 10 GB more)")
    parser.add_argument("--layout", choices=("native", "release-pth"), default="native")
    parser.add_argument("--keep", action="store_true", help="leave the files there for another run")
    parser.add_argument("--measure", nargs=2, metavar=("JOB", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    name = "full-native.safetensors" if arguments.layout == "native" else "full-release.pth"
    path = arguments.dir / name
    made = [path]
    try:
        if not path.exists():
            subprocess.run(  # in a process of its own: a child's peak starts from its parent's
                [
                    sys.executable,
                    "-c",
                    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
                    f"import load_memory as b; b.make_file(b.Path({str(path)!r}), {arguments.layout!r})",
                ],
                check=True,
            )
        what = "the release's `.pth`" if arguments.layout == "release-pth" else "native bf16"
        found = {f"load {what}": report("load", path)}
        ratio = found[f"load {what}"]["added"] / path.stat().st_size
        if arguments.layout == "release-pth":
            for job in ("bf16", "fp8"):
                made.append(path.with_name(f"converted-{job}.safetensors"))
                found[f"convert the `.pth` to {job}"] = report(job, path)
                found[f"load the {job} result"] = report("load", made[-1])
        save("load_memory", {**read("load_memory"), **found})
    finally:
        if not arguments.keep:
            for file in made:
                file.unlink(missing_ok=True)
    print(f"loading the file peaks at {ratio:.3f} of its size; required: at most {LIMIT}")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
