"""Set up and run this project on a machine with nothing but Python 3.10 or later.

    python run.py demo     make .venv, install what the demo needs, run all three jobs on the embedded model
    python run.py test     make .venv, install what the tests need, run them (further arguments go to pytest)

The environment lies in .venv beside this file and is made once; it is renewed when the requirements change.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# torch's plain wheel is CPU-only on Windows and macOS, and as large as CUDA on Linux; the tests run on the CPU.
TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST_PYTHON = (3, 10)
EXTRAS = {"demo": "standalone", "test": "standalone,train,film,dev"}


def environment() -> Path:
    """The Python of .venv; the folder is made when it is not there. UVG_VENV names another place for it."""
    folder = Path(os.environ.get("UVG_VENV") or ROOT / ".venv")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making {folder}", flush=True)
        venv.create(folder, with_pip=True)
    return python


def install(python: Path, extras: str) -> None:
    """Install this project with ``extras``, unless that was done for these very requirements before."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + extras.encode()).hexdigest()
    stamp = python.parent.parent / f"installed-{extras.replace(',', '-')}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    print("installing (a few minutes the first time)", flush=True)
    if not succeeds([str(python), "-c", "import torch"]):
        # The CPU index where it is reached; else the usual index, which is larger on Linux and works the same.
        cpu_only = ["--retries", "0", "--timeout", "15", "--index-url", CPU_INDEX]
        if not succeeds([*pip, TORCH, *cpu_only]):
            subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "--editable", f"{ROOT}[{extras}]"], check=True)
    stamp.write_text(wanted)


def succeeds(command: list[str]) -> bool:
    """Whether a command ends well; its output is not shown."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> int:
    if sys.version_info[:2] < OLDEST_PYTHON:
        print(f"Python {sys.version.split()[0]} is too old; {'.'.join(map(str, OLDEST_PYTHON))} or later is needed")
        return 1
    job, *rest = sys.argv[1:] or ["help"]
    if job not in EXTRAS:
        print(__doc__)
        return 0 if job in ("help", "-h", "--help") else 1
    try:
        python = environment()
        install(python, EXTRAS[job])
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"the environment could not be made: {error}\nDelete the folder .venv and try again.")
        return 1
    command = ["-m", "uvg_core", "demo"] if job == "demo" else ["-m", "pytest", "-n", "2", "--dist", "loadgroup"]
    if job == "test":  # two processes that each take every core wait for each other most of the time
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return subprocess.run([str(python), *command, *rest], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
