"""What a file holds, as a short text that is the same wherever the file lies and whenever it was written."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from .errors import UniViGUError
from .io import open_regular, read_text, write_text

_MOST = 100_000  # files that are remembered
_SETTLED = 2 * 10**9  # ns after a change in which another one may bear the same time

_Key = tuple[int, ...]  # device, inode, size, and when it and its entry were changed
_known: dict[_Key, str] = {}
_lock = threading.Lock()


def content_of(path: str | Path) -> str:
    """The size and the BLAKE2b hash of a file, in 48 hexadecimal digits: another byte anywhere gives another text, a
    copy, another name or another time the same.

    A file is read once in a process, and again after it has changed: by its device, inode, size and times. Raises
    UniViGUError, naming the file, for what is no regular file or cannot be read; FileNotFoundError stays what it is.
    """
    handle = open_regular(path, "one")
    try:
        key = _key(os.fstat(handle))
        found = _known.get(key)
        if found is None:
            found = _hashed(handle)
            _remember(key, os.fstat(handle), found)
        return found
    except OSError as error:
        raise UniViGUError(f"{path}: cannot be read ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            os.close(handle)


@contextmanager
def remembered(file: Path) -> Iterator[None]:
    """What ``content_of`` finds in a block is kept in ``file`` and known to the next process: ten thousand clips that
    have not changed then cost a look at each, not a reading of all. The file may be deleted at any time."""
    with suppress(UniViGUError, OSError, ValueError, RecursionError, AttributeError):
        stored = json.loads(read_text(file, most=_MOST * 200, exact=True)).items()
        known = {tuple(map(int, key.split())): str(value) for key, value in stored}
        with _lock:
            _known.update({key: value for key, value in known.items() if len(key) == 5})
    before = len(_known)
    yield
    if len(_known) != before or not file.exists():
        with suppress(UniViGUError), _lock:
            write_text(file, json.dumps({" ".join(map(str, key)): value for key, value in _known.items()}))


def _hashed(handle: int) -> str:
    digest, size = blake2b(digest_size=16), 0
    while block := os.read(handle, 2**20):
        digest.update(block)
        size += len(block)
    return f"{size:016x}{digest.hexdigest()}"


def _remember(key: _Key, facts: os.stat_result, found: str) -> None:
    """Unless the file was changed while it was read, or so lately that its time may not tell of a change to come."""
    if key != _key(facts) or time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) < _SETTLED:
        return
    with _lock:
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = found


def _key(facts: os.stat_result) -> _Key:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
