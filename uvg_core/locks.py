"""One process at a time in a folder, or at a file.

The lock is the system's and dies with its owner, however that ends. Not every network folder hands it on to other
machines: a record beside it, with a heartbeat, tells them.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import UniViGUError
from .io import read_text, write_text

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None  # type: ignore[assignment]

LOCK, OWNER, CLAIMS = ".uvg.lock", ".uvg.owner.json", ".uvg.claims"
_FAR = 2**31 - 2  # a byte that no file of ours has: Windows locks bytes, and others may read the rest
BEAT = 10.0  # seconds between two heartbeats
STALE = 60.0  # seconds without one after which an owner on another machine is dead


@contextmanager
def owned(folder: str | Path, what: str) -> Iterator[None]:
    """The folder is this process's for the length of a block; ``what`` names the work for others, e.g. ``training``.

    Raises UniViGUError, saying who and since when, while another process is at work in it."""
    folder = Path(folder)
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise _taken(folder, _owner(folder)) from None
    except OSError as error:
        raise UniViGUError(f"{folder}: cannot be locked ({error.strerror or error}); choose another folder") from None
    try:
        other = _owner(folder)
        if other.get("host") not in (None, _host()) and _age(folder) < STALE:
            raise _taken(folder, other)
        with _beating(folder, what):
            yield
    finally:
        lock.release()


@contextmanager
def appending(path: Path) -> Iterator[int]:
    """The handle of a file, open to be read and appended to and made where there is none, which is nobody else's for
    the length of a block: whoever comes meanwhile waits. Never through a link.

    Raises UniViGUError where it cannot be opened, and for any OSError of the block, such as of a full disk."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = -1
    try:
        while handle < 0:
            handle = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if fcntl is None:
                os.lseek(handle, _FAR, os.SEEK_SET)
                msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not os.fstat(handle).st_nlink:  # another one was put in its place while we waited
                os.close(handle)
                handle = -1
    except OSError as error:
        if handle >= 0:
            os.close(handle)
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
        raise UniViGUError(
            f"{path}: cannot be appended to ({reason}); expected a folder that can be written to, and no link"
        ) from None
    try:
        yield handle
    except OSError as error:
        raise UniViGUError(
            f"{path}: cannot be appended to ({error.strerror or error}); free some space, or choose another folder"
        ) from None
    finally:
        if fcntl is None:
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
        os.close(handle)


class Claims:
    """Which file of a folder is whose, where several processes work through it: each claims one after the other.

    A claim is a locked byte of one hidden file, and dies with its owner. The last one to leave removes the file."""

    def __init__(self, folder: Path) -> None:
        self.path, self._handle = folder / CLAIMS, -1

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle < 0:
            return
        with suppress(OSError):
            if fcntl is not None:
                fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # all of it: nobody else is here
            self.path.unlink()
        os.close(self._handle)
        self._handle = -1

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether a file is ours for the length of a block, or another process's."""
        # A file of the same folder has the same name on every machine, whatever the folder is called there.
        place = os.path.relpath(name, self.path.parent).replace(os.sep, "/")
        at = int.from_bytes(blake2b(place.encode(errors="surrogateescape"), digest_size=4).digest(), "big") >> 1
        is_ours = False
        try:
            while not (self._handle >= 0 and os.fstat(self._handle).st_nlink):
                self._open()  # anew where the last one to leave has removed the file meanwhile
                is_ours = self._lock(at)
            is_ours = is_ours or self._lock(at)
        except OSError as error:
            reason = error.strerror or error
            raise UniViGUError(f"{self.path}: cannot be opened ({reason}); choose a folder to write in") from None
        try:
            yield is_ours
        finally:
            if is_ours:
                self._lock(at, release=True)

    def alone(self) -> bool:
        """Whether nobody has claimed a file of the folder; nobody can from here on, until this one leaves."""
        if self._handle < 0:
            self._open()
        if fcntl is None:  # Windows does not delete a file that somebody reads
            return True
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _open(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)

    def _lock(self, at: int, release: bool = False) -> bool:
        try:
            if fcntl is not None:
                fcntl.lockf(self._handle, fcntl.LOCK_UN if release else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
            else:
                os.lseek(self._handle, at, os.SEEK_SET)
                msvcrt.locking(self._handle, msvcrt.LK_UNLCK if release else msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True


@contextmanager
def _beating(folder: Path, what: str) -> Iterator[None]:
    done, path = threading.Event(), folder / OWNER
    mine = {"what": what, "host": _host(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_text(path, json.dumps(mine))

    def beat() -> None:
        while not done.wait(BEAT):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="uvg lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(OSError):
            path.unlink()


def _host() -> str:
    return socket.gethostname()


def _owner(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_text(folder / OWNER, exact=True))
        if isinstance(found, dict):
            return found
    return {}


def _age(folder: Path) -> float:
    """Seconds since the last heartbeat. One in the future is a clock that is wrong, not a sign of death."""
    try:
        return time.time() - (folder / OWNER).stat().st_mtime
    except OSError:
        return STALE


def _taken(folder: Path, owner: dict[str, Any]) -> UniViGUError:
    who = f"process {owner['pid']} on {owner.get('host')}, since {owner.get('since')}" if "pid" in owner else "unknown"
    work = owner.get("what", "another run")
    return UniViGUError(
        f"{folder}: {work} is already using this folder ({who}); wait until it ends or choose another folder. If it "
        "died "
        f"on another machine, its claim expires after {STALE:g} s"
    )
