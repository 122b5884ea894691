"""Work that several processes share: a shard each, or the workers of a Ray cluster.

Ray only hands out the work and says what became of it. That each piece is done once comes from what does the work: it
claims a piece, and writes it whole or not at all. The workers are plain actors. Ray Data, which would do the same with
``map_batches``, begins a batch whose worker has died again without end, and one broken file can do that.
"""

from __future__ import annotations

import os
import queue
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Annotated, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from ..errors import UniViGUError, reason_of
from ..settings import OneOf, Text, Whole, setting, settings, shown

T = TypeVar("T")

_TRIES = 3  # deaths of workers with a piece alone until it is left out, and of workers that start until none is
_ANSWER = 10.0  # seconds until an address has to answer
_JOIN = 60.0  # seconds until it has to be one that Ray can join
_PLACE = 300.0  # seconds until the cluster has to have begun one worker
_LOOK = 2.0  # seconds between two looks at how long that takes
_PORT = 6379  # of a cluster's head, where an address names none
_STORE = 2**27  # bytes for what the processes of one machine hand each other: names


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, from 1: every ``count``-th piece of the work."""

    index: int = 1
    count: int = 1

    @classmethod
    def of(cls, text: str) -> Shard:
        """From ``2/4``. Raises UniViGUError for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UniViGUError(f"--shard is {shown(text)}; expected PART/PARTS, from 1/4 to 4/4 for four parts")
        return cls(int(found[1]), int(found[2]))

    def part(self, pieces: Iterable[T]) -> list[T]:
        """The pieces of this part, of all in their order."""
        return list(pieces)[self.index - 1 :: self.count]


@settings
class Engine:
    """What runs the work."""

    engine: Annotated[str, OneOf("process", "ray")] = setting(
        "Work in this process, or in the workers of Ray, on one machine or a cluster.", default="process"
    )
    workers: Whole | None = setting(
        "Workers of --engine ray.", default=None, auto="one for each GPU, or else for each CPU core", ge=1, le=100_000
    )
    address: Text | None = setting(
        "Ray cluster to work on: HOST:PORT, or auto for one that runs on this machine.",
        default=None,
        auto="this machine alone",
    )

    def __post_init__(self) -> None:
        for name in ("workers", "address") if self.engine == "process" else ():
            if getattr(self, name) is not None:
                raise UniViGUError(f"--{name} applies to --engine ray only; add that, or leave --{name} out")


class Worker(Protocol):
    """Does pieces of tasks, in a process of its own."""

    def open(self, task: Any) -> int:
        """Begin a task; how many pieces are done at a time."""

    def __call__(self, pieces: Sequence[str], upcoming: Sequence[str]) -> Any:
        """What became of pieces; ``upcoming``: those that are given next."""

    def close(self) -> None:
        """After the last piece of a task."""


class _Actor:
    """A worker as Ray holds it. It comes to be with its first task: what cannot be made is an answer, too."""

    def __init__(self, folder: str) -> None:
        with suppress(OSError):  # paths are meant as the one who asked means them
            os.chdir(folder)
        self._worker: Worker | None = None

    def __repr__(self) -> str:  # before each line that it prints
        return "worker"

    def open(self, make: Callable[[], Worker], task: Any) -> int | str:
        try:
            self._worker = self._worker or make()
            return self._worker.open(task)
        except Exception as error:
            return reason_of(error)

    def work(self, pieces: Sequence[str], upcoming: Sequence[str]) -> tuple[Any, str]:
        assert self._worker is not None
        try:
            return self._worker(pieces, upcoming), ""
        except Exception as error:
            return None, reason_of(error)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


@dataclass(eq=False)
class _Seat:
    """One worker: its process, what it does now, and what it does next."""

    actor: Any
    placed: Any  # ready when the process runs
    together: int = 0  # pieces at a time, 0 until it has begun the task
    pieces: list[str] = field(default_factory=list)
    reserved: list[str] = field(default_factory=list)


class RayWorkers:
    """The workers of a Ray cluster, or of one that runs for the length of a block.

    Args:
        make: makes a worker, in its process; sent there by pickle. gpu: whether each needs one, where there are any.
        note: told what the user should know. quiet: what workers print is not shown.

    Raises UniViGUError where Ray is missing, or no cluster answers."""

    def __init__(
        self,
        engine: Engine,
        make: Callable[[], Worker],
        *,
        gpu: bool = True,
        note: Callable[[str], object] = lambda _: None,
        quiet: bool = False,
    ) -> None:
        self._make, self._note = make, note
        self._ray, self._is_ours = _connected(engine, quiet)
        there = self._ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if gpu else 0
        most = gpus or int(there.get("CPU", 1)) or 1
        self.count = min(engine.workers or most, gpus or engine.workers or most)
        self._needs = {"num_cpus": 1, "num_gpus": int(gpus > 0)}
        self.problem = ""  # why workers are fewer
        self._seats: list[_Seat] = []

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for seat in self._seats:
            self._end(seat)
        if self._is_ours:
            self._ray.shutdown()

    def map(self, task: Any, pieces: Iterable[str]) -> Iterator[tuple[list[str], Any]]:
        """The pieces of a task, some at a time in no order, each with what the worker returned or, where none could do
        them, a UniViGUError. ``pieces`` are taken as they are needed. A piece whose worker dies is done by another,
        alone, and left out when three have died with it. Raises UniViGUError when no worker is left."""
        yield from _Task(self, task, iter(pieces)).results()

    # The rest is for the task

    def seats(self) -> list[_Seat]:
        """The workers; those that are missing are begun."""
        while len(self._seats) < self.count:
            actor = self._ray.remote(_Actor).options(**self._needs, max_restarts=0).remote(os.getcwd())
            self._seats.append(_Seat(actor, actor.__ray_ready__.remote()))
        return list(self._seats)

    def drop(self, seat: _Seat) -> None:
        self._end(seat)
        self._seats.remove(seat)

    def _end(self, seat: _Seat) -> None:
        with suppress(Exception):  # it may be dead already, or the cluster gone
            self._ray.kill(seat.actor)


class _Task:
    """A task on its way: a worker that is free gets what is to be done again, else the next pieces."""

    def __init__(self, workers: RayWorkers, task: Any, pieces: Iterator[str]) -> None:
        self._workers, self._ray, self._pieces = workers, workers._ray, pieces
        self._call = (self._ray.put(workers._make), self._ray.put(task))
        self._again = deque[str]()
        self._deaths, self._stillborn = Counter[str](), 0
        self._running: dict[Any, _Seat] = {}
        self._is_placed, self._began = False, time.monotonic()

    def results(self) -> Iterator[tuple[list[str], Any]]:
        self._begin()
        errors = self._ray.exceptions
        try:
            while self._running:
                done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_LOOK)
                self._require_place()
                for ref in done:
                    seat = self._running.pop(ref)
                    try:
                        found = self._ray.get(ref)
                    except errors.RayTaskError as error:  # what it returned cannot be sent, for example
                        found = (None, _line(error, -1)) if seat.together else _line(error, -1)
                    except errors.RayError as error:
                        yield from self._lost(seat, _line(error, -1))
                        continue
                    yield from self._found(seat, found)
            if self._is_left():
                raise UniViGUError(
                    f"no worker is left: {self._workers.problem}. What is done stays; run the command again"
                )
        except errors.RayError as error:
            raise UniViGUError(
                f"the Ray cluster no longer answers ({_line(error)}). What is done stays; run the command again"
            ) from None
        except BaseException:  # nobody takes the rest: what runs is of no task
            for seat in list(self._workers._seats):
                self._workers.drop(seat)
            raise
        self._finish()

    def _begin(self) -> None:
        busy = list(self._running.values())
        for seat in self._workers.seats():
            if not seat.together and seat not in busy:
                self._running[seat.actor.open.remote(*self._call)] = seat

    def _found(self, seat: _Seat, found: Any) -> Iterator[tuple[list[str], Any]]:
        """Take the answer of a worker, and give it the next pieces."""
        if seat.together:
            value, why = found
            yield seat.pieces, UniViGUError(why) if why else value
            seat.pieces = []
        elif isinstance(found, str):
            self._workers.problem = found
            self._workers.drop(seat)
            self._workers.count -= 1  # another one could not do better
            if self._workers.count:
                self._workers._note(f"a worker could not begin: {found}")
            return
        else:
            seat.together, self._stillborn = found, 0
        self._give(seat)
        for idle in [one for one in self._workers._seats if one.together and not one.pieces]:
            self._give(idle)  # something may have come back

    def _give(self, seat: _Seat) -> None:
        if self._again:
            seat.pieces, upcoming = [self._again.popleft()], list[str]()
        else:
            seat.pieces = seat.reserved or self._next(seat.together) or self._taken_over()
            seat.reserved = upcoming = self._next(seat.together)
        if seat.pieces:
            self._running[seat.actor.work.remote(seat.pieces, upcoming)] = seat

    def _next(self, count: int) -> list[str]:
        return list(islice(self._pieces, count))

    def _taken_over(self) -> list[str]:
        """What another worker would do next."""
        for other in self._workers._seats:
            if other.reserved:
                pieces, other.reserved = other.reserved, []
                return pieces
        return []

    def _lost(self, seat: _Seat, why: str) -> Iterator[tuple[list[str], Any]]:
        """A worker has died: others do what it did, one piece at a time, so that the one that it died of is found."""
        self._workers.drop(seat)
        if not seat.together:
            self._stillborn += 1
            self._workers.problem = f"they die while they start ({why}); try fewer --workers if memory is short"
            if self._stillborn >= _TRIES:
                self._workers.count = len(self._workers._seats)
        self._pieces = chain(seat.reserved, self._pieces)
        for piece in seat.pieces:
            self._deaths[piece] += 1
            if self._deaths[piece] < _TRIES:
                self._again.append(piece)
            else:
                yield [piece], UniViGUError(f"{_TRIES} workers died while they worked on it; it was left out")
        self._begin()

    def _is_left(self) -> bool:
        pieces = [*self._again, *self._next(1), *(piece for seat in self._workers._seats for piece in seat.reserved)]
        return bool(pieces)

    def _require_place(self) -> None:
        """Raise UniViGUError where the cluster has no room for a single worker."""
        if self._is_placed or time.monotonic() - self._began < _PLACE:
            return
        placed = [seat.placed for seat in self._workers._seats]
        self._is_placed = not placed or bool(self._ray.wait(placed, timeout=0)[0])
        if self._is_placed:
            return
        needs = "a GPU and a CPU core" if self._workers._needs["num_gpus"] else "a CPU core"
        raise UniViGUError(
            f"no worker has begun for {_PLACE:.0f} s; expected {needs} in the cluster that nobody uses. Free some, or "
            "leave --address out"
        )

    def _finish(self) -> None:
        for seat in list(self._workers._seats):
            if not seat.together:
                self._workers.drop(seat)  # has not begun yet, and nothing is left to do
        closing = {seat.actor.close.remote(): seat for seat in self._workers._seats}
        if closing:
            self._ray.wait(list(closing), num_returns=len(closing), timeout=_PLACE)
        for seat in closing.values():
            seat.together = 0


def _connected(engine: Engine, quiet: bool) -> tuple[Any, bool]:
    """Ray, connected, and whether that is ours to end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
    except ImportError:
        raise UniViGUError(
            '--engine ray needs Ray, which is not installed; run pip install "ray>=2.40", or share the work with '
            "--shard"
        ) from None
    if ray.is_initialized():  # by a program that calls us
        return ray, False
    options: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": "ERROR"}
    if engine.address is None:
        cores = max(engine.workers or 1, os.cpu_count() or 1)
        ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=_STORE, **options)
        return ray, True
    address = _answering(engine.address)
    if why := _joined(lambda: ray.init(address, **options)):
        raise UniViGUError(
            f"--address {engine.address}: cannot be joined ({why}); expected a Ray cluster that this machine "
            f"is part of, with Ray {ray.__version__} and the same Python. What is done stays"
        )
    return ray, True


def _joined(join: Callable[[], object]) -> str:
    """Why a cluster was not joined, empty where it was. Ray tries for minutes where something else answers: its tries
    are left behind."""
    result = queue.Queue[str]()

    def run() -> None:
        try:
            join()
            result.put("")
        except BaseException as error:  # of many kinds, some of them grpc's
            result.put(_line(error))

    threading.Thread(target=run, name="uvg ray", daemon=True).start()
    try:
        return result.get(timeout=_JOIN)
    except queue.Empty:
        return f"nothing that Ray understands for {_JOIN:.0f} s"


def _answering(address: str) -> str:
    """An address at which something answers. Raises UniViGUError for others, soon: Ray would try for long."""
    if address == "auto":
        return address
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port or _PORT
    except ValueError:
        host, port = None, _PORT
    if not host:
        raise UniViGUError(f"--address is {shown(address)}; expected HOST:PORT, such as 10.0.0.1:{_PORT}, or auto")
    try:
        socket.create_connection((host, port), timeout=_ANSWER).close()
    except OSError as error:
        raise UniViGUError(
            f"--address {address}: no answer ({error.strerror or error}); expected the head of a Ray cluster, which "
            f"ray start --head --port {port} begins. What is done stays"
        ) from None
    return address if parts.port else f"{address}:{port}"


def _line(error: BaseException, at: int = 0) -> str:
    """The first line of what a library says, or another one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[at].strip()[:200]
