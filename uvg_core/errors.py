"""The one exception that users are meant to read, and what makes any text safe to print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Control characters but line ends and tabs, halves of surrogate pairs, marks that reorder or break lines.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


LONGEST_LINE = 2000

_called: dict[str, str] = {}


class UniViGUError(ValueError):
    """Something the user can put right. The message says what was found, what was expected, what to do, and which
    file it concerns; the command line prints it alone, without a traceback. It is ``printable``, and a line longer than
    ``LONGEST_LINE`` is shown without its middle: names and values in files can be of any length."""

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(map(_shortened, printable(named(str(message))).split("\n"))))


class WrongUsage(UniViGUError):
    """What is asked for cannot be meant, whatever lies in the files that are named."""


def printable(text: str) -> str:
    r"""A text that no terminal, log or file chokes on: what would steer a terminal, reorder a line or cannot be
    encoded is shown as an escape, such as ``\x1b`` or ``\u202e``. Names of files and texts of strangers hold it."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


@contextmanager
def called(path: Path, name: str) -> Iterator[None]:
    """For the length of a block, a temporary file is called what users know it as, in errors and in ``named``."""
    _called[str(path)] = name
    try:
        yield
    except OSError as error:
        if error.filename == str(path):
            error.filename = name
        raise
    finally:
        del _called[str(path)]


def named(text: str) -> str:
    """A text in which temporary files have the names that ``called`` gives them."""
    for path, name in list(_called.items()):
        text = text.replace(path, name)
    return text


def reason_of(error: Exception) -> str:
    """Why something failed, in words: what a UniViGUError says; of others the kind too."""
    if isinstance(error, UniViGUError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def counted(number: int, thing: str) -> str:
    """``1 clip``, ``2 clips``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _shortened(line: str) -> str:
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]}…{line[-half:]}"
