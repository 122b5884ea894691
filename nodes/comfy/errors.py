"""Errors as clients may see them, and as ComfyUI can print them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...uvg_core.errors import UniViGUError, printable
from .paths import shown

# ComfyUI shows clients the module of an error, and names a pack's modules by their place on the disk.
UniViGUError.__module__ = "uni_vigu.errors"


@contextmanager
def for_clients() -> Iterator[None]:
    """What a block raises names no folder of the server and can be printed.

    ComfyUI logs errors as they are: half of a surrogate pair in one, from the name of a file or from a prompt, ends the
    thread that runs all prompts. The kind of an error stays: ComfyUI frees memory after some."""
    try:
        yield
    except UniViGUError as error:
        _clean_chain(error)
        raise
    except Exception as error:
        _clean_chain(error)
        if (text := str(error)) != shown(text):
            raise UniViGUError(f"{type(error).__name__}: {shown(text)}") from None
        raise


def _clean_chain(error: BaseException) -> None:
    """Clean an error and those that led to it, as far as they let themselves be changed; the others are dropped."""
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        _clean(one)
        following = one.__cause__ or one.__context__
        if following is not None:
            _clean(following)
            if str(following) != printable(str(following)):
                one.__cause__, one.__suppress_context__ = None, True
                return
        one = following


def _clean(error: BaseException) -> None:
    if isinstance(error, UnicodeError):  # its text is in escapes; what it holds is the text that failed
        return
    with suppress(Exception):
        error.args = tuple(shown(one) if isinstance(one, str) else one for one in error.args)
        for name in ("filename", "filename2", "strerror"):
            if isinstance(getattr(error, name, None), str):
                setattr(error, name, shown(getattr(error, name)))
