"""Reading small texts and writing files: within bounds, whole or not at all."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOENT, ENOSPC
from itertools import chain, count
from pathlib import Path

from safetensors import SafetensorError

from .confined import DEVICE, is_open
from .errors import UniViGUError, WrongUsage, called

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# The folder of the pack: models, samples and pyproject.toml lie in it.
PACK = Path(__file__).resolve().parents[1]
MEGABYTE = 2**20
WINDOWS = os.name == "nt"
_PART = ".uvg-"  # begins the names of unfinished files
_OLD_PART = 3600.0  # seconds after which an unfinished file is nobody's, where no lock can tell
_LONGEST_SUFFIX = 16
_OURS = re.compile(rf"{re.escape(_PART)}[a-z0-9_]{{8}}\.part(\.[^.]*)?")  # as mkstemp names them
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")

_UMASK = os.umask(0o077)  # it can only be read by setting it
os.umask(_UMASK)
_swept: set[Path] = set()


# Reading


def open_regular(path: str | Path, what: str) -> int:
    """The handle of a regular file, open for reading; a pipe or a device is refused and never waited for.

    Raises UniViGUError, naming the file and ``what`` was expected, for anything else; FileNotFoundError stays what it
    is, also for what ``confined_to`` leaves out."""
    if not is_open(path):
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(path))
    try:
        # A pipe that nobody writes to would block already when it is opened.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UniViGUError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UniViGUError(f"{path}: is not a regular file; expected {what}")
    return handle


def read_bytes(path: str | Path, most: int, what: str = "a file") -> bytes:
    """The contents of a file of at most ``most`` bytes. Raises as ``open_regular``, and UniViGUError for more."""
    with os.fdopen(open_regular(path, what), "rb") as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise UniViGUError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(data) > most:
        raise UniViGUError(f"{path}: is larger than {most / MEGABYTE:g} MB; expected {what}")
    return data


def read_text(path: str | Path, *, most: int = MEGABYTE, exact: bool = False) -> str:
    """The text of a regular file of at most ``most`` bytes, without a byte order mark.

    People's texts come in UTF-8, UTF-16 or Latin-1. ``exact``: UTF-8 and nothing else, as for JSON, YAML and records.
    Raises UniViGUError, naming the file, for what is no text; FileNotFoundError stays what it is.
    """
    data = read_bytes(path, most, "a text file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if exact:
            raise UniViGUError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    else:
        if "\0" in text:  # no text holds it, unless it is UTF-16 that does not say so
            raise UniViGUError(f"{path}: is not text (found a null byte); expected a text file in UTF-8")
        return text
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if wide else "cp1252")
    except UnicodeDecodeError:
        text = data.decode("utf-16" if wide else "latin-1", "replace")
    if _BINARY.search(text):
        raise UniViGUError(f"{path}: is not text; expected a text file, best in UTF-8")
    return text


@contextmanager
def temporary_file(name: str, known_as: str) -> Iterator[Path]:
    """A path in a folder of its own, for the length of a block. In errors it is called what users know it as."""
    with tempfile.TemporaryDirectory(prefix="uvg-") as folder, called(path := Path(folder, name), known_as):
        yield path


# Before writing


def require_writable(path: str | Path) -> None:
    """Raise UniViGUError when no file can be written at ``path``. Ask before hours of work, not after."""
    path = Path(path)
    folder, problem = path.parent, ""
    try:
        if path.is_dir():
            problem = "this is a folder; expected the name of a file to write"
        elif path.is_symlink():
            problem = "is a link; name the file that it leads to, or remove the link"
        elif not folder.is_dir():
            problem = f"the folder {folder} does not exist; create it or choose another"
        elif not os.access(folder, os.W_OK | os.X_OK):
            problem = f"the folder {folder} cannot be written to; choose another"
        elif "\0" in path.name:
            problem = "a name cannot hold a null byte; choose another"
        elif len(os.fsencode(path.name)) > 255:
            problem = "the name is longer than the 255 bytes that file systems allow; choose a shorter one"
        elif WINDOWS and DEVICE.fullmatch(path.name):
            problem = "Windows does not allow this name; choose another"
    except (OSError, ValueError) as error:  # a name that is too long, or with a null byte
        problem = f"cannot be a file's name ({getattr(error, 'strerror', None) or error}); choose another"
    if problem:
        raise UniViGUError(f"{path}: {problem}")


def make_folder(path: Path, choose: str) -> None:
    """Make a folder where there is none. Raises UniViGUError where the system refuses, or nothing can be written in
    it; ``choose`` says how to name another one, e.g. ``choose another with --out``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UniViGUError(f"{path}: the folder cannot be made ({reason}); {choose}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UniViGUError(f"{path}: the folder cannot be written to; {choose}")


def require_makeable(path: Path, choose: str) -> None:
    """Raise UniViGUError where ``make_folder`` would, as far as that can be told; nothing is made."""
    there = next((one for one in (path, *path.absolute().parents) if os.path.lexists(one)), path)
    if not there.is_dir():
        raise UniViGUError(f"{path}: the folder cannot be made ({there} is not a folder); {choose}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UniViGUError(f"{path}: the folder cannot be made ({there} cannot be written to); {choose}")


def require_others(target: str | Path, read: Iterable[str | Path]) -> None:
    """Raise WrongUsage when ``target`` is one of the files that a run reads."""
    for path in read:
        if os.path.exists(target) and os.path.exists(path) and os.path.samefile(target, path):
            raise WrongUsage(f"{target}: would be written onto a file that is being read; choose another name")


# Writing


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(_encoded(text))


def write_new(path: str | Path, text: str) -> bool:
    """Write a text file that is not there yet; False, and nothing is changed, where one is by now."""
    final = Path(path)
    if os.path.lexists(final):
        return False
    with _temporary(final) as temporary:
        temporary.write_bytes(_encoded(text))
        flushed(temporary)
        try:
            os.link(temporary, final)  # unlike a rename, never onto a file
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            with suppress(FileExistsError):
                os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                os.replace(temporary, final)
                return True
            return False
    return True


def write_beside(path: str | Path, text: str) -> Path:
    """Write a text file without touching one that is there: ``clip.txt``, else ``clip.2.txt`` and so on."""
    return next(name for name in _names(Path(path)) if write_new(name, text))


def free_name(path: str | Path) -> Path:
    """A name under which nothing lies yet: ``clip.mp4``, else ``clip.2.mp4`` and so on; for names that nobody asked
    for."""
    return next(name for name in _names(Path(path)) if not os.path.lexists(name))


@contextmanager
def name_taken(path: str | Path) -> Iterator[Path]:
    """As ``free_name``, for the length of a block in which the file is written: two runs at once do not write onto each
    other's. The name is given back if nothing was written."""
    for name in _names(Path(path)):
        if os.path.lexists(name):
            continue
        require_writable(name)
        with suppress(FileExistsError):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
    try:
        yield name
    finally:
        with suppress(OSError):
            if not name.stat().st_size:
                name.unlink()


def _names(first: Path) -> Iterator[Path]:
    return chain([first], (first.with_name(f"{first.stem}.{number}{first.suffix}") for number in count(2)))


def append(handle: int, data: bytes) -> None:
    """Append all of ``data`` to an open file, or nothing, and wait until it is on the disk. Raises OSError."""
    start = os.fstat(handle).st_size
    try:
        if os.write(handle, data) < len(data):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, start)
        raise


def flushed(*paths: Path) -> None:
    """Wait until files are on the disk: a rename that is there before its data would be a whole file after a power
    cut, with nothing in it."""
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def flushed_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can."""
    if not WINDOWS:
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it into place on success, remove it on any failure.

    The temporary name cannot be guessed and keeps the suffix, since writers choose a format by it. What killed
    processes left in the folder is cleared away. Raises UniViGUError with the file, the reason and the remedy when the
    system refuses (full disk, missing folder, no permission).
    """
    final = Path(path)
    with _temporary(final) as temporary:
        yield temporary
        flushed(temporary)
        os.replace(temporary, final)
        flushed_folder(final.parent)


@contextmanager
def _temporary(final: Path) -> Iterator[Path]:
    """A new, empty file beside ``final`` that nobody else can have planted; removed at the end if it is still there."""
    require_writable(final)
    _sweep(final.parent)
    suffix = final.suffix if len(final.suffix) <= _LONGEST_SUFFIX else ""
    temporary, handle = None, None
    try:
        handle, name = tempfile.mkstemp(f".part{suffix}", _PART, final.parent)
        temporary = Path(name)
        if fcntl is None:
            os.close(handle)  # Windows does not rename an open file
            handle = None
        else:
            os.fchmod(handle, 0o666 & ~_UMASK)
            with suppress(OSError):  # it tells others that this file is being written
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        reason = getattr(error, "strerror", None) or error
        raise UniViGUError(
            f"{final}: could not be written ({reason}); nothing was left under that name. Free some space or choose a "
            "folder that exists and can be written to"
        ) from error
    finally:
        with suppress(OSError):
            if temporary is not None:
                temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove, once for each folder, the unfinished files of processes that are gone."""
    if folder in _swept:
        return
    _swept.add(folder)
    for path in folder.glob(f"{_PART}*.part*"):
        with suppress(OSError):
            if _OURS.fullmatch(path.name) and not path.is_symlink() and path.is_file() and _is_abandoned(path):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    if fcntl is None:
        return time.time() - path.stat().st_mtime > _OLD_PART
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError while its writer lives
    return True


def _encoded(text: str) -> bytes:
    """UTF-8; halves of surrogate pairs, which it cannot hold, as escapes."""
    return text.encode("utf-8", "backslashreplace")
