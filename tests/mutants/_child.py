"""Reads mutants in a process of its own, under limits; and starts that process."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Iterable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from mutants import Parser, modules, mutant, parsers
from uvg_core.errors import UniViGUError, printable

SECONDS = 20  # for one mutant, on a busy machine
MOST_MORE = 1 << 30  # bytes beyond what the honest file takes
_STOP = 4 << 30  # bytes of address space beyond the honest file's: the machine survives a reader that takes all
RUNS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
FINE = ("read", "refused")
_ROOT = Path(__file__).parents[2]


def outcomes(name: str, path: Path, seeds: Iterable[int]) -> dict[int, str]:
    """What became of each mutant of the honest file at ``path``, which is overwritten: ``read``, ``refused``, or what
    is wrong. A mutant that ends or blocks the process costs the process, and the next one goes on behind it."""
    honest, left, found = path.read_bytes(), list(seeds), dict[int, str]()
    report, errors = path.parent / "report.txt", path.parent / "errors.txt"
    while left:
        path.write_bytes(honest)
        report.write_text("")
        child = _server().Process(target=serve, args=(name, path, report, errors, left))
        child.start()
        child.join()
        lines, said = report.read_text().splitlines(), errors.read_text(errors="replace")[-3000:]
        assert "ready" in lines, f"{name}: the honest file cannot be read: {said}"
        found |= {int(seed): outcome for seed, outcome in (line.split(" ", 1) for line in lines[1:])}
        left = [seed for seed in left if seed not in found]
        if child.exitcode and left:
            found[left.pop(0)] = f"ended the process ({child.exitcode}): {said}"
        elif "Traceback" in said:
            found[-1] = said
    return found


@cache
def _server() -> ForkServerContext:
    """Starts processes that have imported everything already."""
    os.environ |= {"MALLOC_ARENA_MAX": "2", "PYTHONPATH": os.pathsep.join([str(_ROOT / "tests"), str(_ROOT)])}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *(f"mutants.{module}" for module in modules())])
    return context


def serve(name: str, path: Path, report: Path, errors: Path, seeds: list[int]) -> None:
    """The child: one line of ``report`` for each mutant; what it prints goes to ``errors``."""
    with errors.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    parser, honest = parsers()[name], path.read_bytes()
    parser.read(path)
    usual, ran = _status("VmHWM"), list[str]()
    limit = _status("VmPeak") + _STOP
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(lambda event, _: ran.append(event) if event in RUNS and event not in parser.does else None)
    with report.open("w") as lines:
        print("ready", file=lines, flush=True)
        for seed in seeds:
            path.write_bytes(mutant(name, parser, seed, honest))
            ran.clear()
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)
            outcome = _read(parser, path)
            faulthandler.cancel_dump_traceback_later()
            more = _status("VmHWM") - usual
            if more > MOST_MORE:
                outcome = f"took {more >> 20} MB more than the honest file ({outcome})"
            print(seed, f"ran {ran}" if ran else outcome, file=lines, flush=True)


def _read(parser: Parser, path: Path) -> str:
    try:
        parser.read(path)
    except UniViGUError as error:
        text = str(error)
        fit = len(text) < 4000 and text == printable(text)
        return "refused" if fit else f"an error not fit to print ({len(text)} characters: {text[:300]!a})"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = "; ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        return ascii(f"{type(error).__name__}: {str(error)[:300]} at {where[-300:]}")
    return "read"


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
