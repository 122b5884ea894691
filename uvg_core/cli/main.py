"""The command line: generate, caption, find, joint, rank, edit, inspect, convert, check, synthesise, describe, train,
evaluate, demo, cache, completion.

    python -m uvg_core generate "a red circle moves left slowly on a navy background" -o clip.mp4
    python -m uvg_core caption clip.mp4 other.mov folder/
    python -m uvg_core find folder/ "a red circle moves left"
    python -m uvg_core joint "a green square" -o both.mp4
    python -m uvg_core rank clip.mp4 "a red circle" "a blue circle"
    python -m uvg_core edit clip.mp4 --change "red=blue" -o edited.mp4

Results go to the standard output, notes and progress to the standard error. The exit code is 0 when all is done, 1 when
something failed or was left out, 2 when the command is used wrongly, and 130 after Ctrl-C. A command is a function of
settings; its flags are made from them (``flags.py``).
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import UniViGUError, WrongUsage, printable
from ..io import require_others, require_writable
from ..pipeline.components import OutOfMemory
from ..progress import bars
from .cache import cache
from .caption import caption
from .completion import completion
from .demo import demo
from .describe import describe
from .edit import edit
from .evaluate import evaluate
from .files import check, convert, inspect
from .find import find
from .flags import add_flags, settings_of
from .generate import generate
from .joint import joint
from .output import CANCELLED, USED_WRONGLY, be_quiet, complain, say
from .rank import rank
from .streams import is_stream, standard_input
from .synthesise import synthesise
from .train import train

COMMANDS = (
    generate,
    caption,
    find,
    joint,
    rank,
    edit,
    inspect,
    convert,
    check,
    synthesise,
    describe,
    train,
    evaluate,
    demo,
    cache,
    completion,
)


class _Parser(argparse.ArgumentParser):
    """Errors of usage as one message, with where help is."""

    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        complain(f"{message}\nSee {self.prog} --help")
        raise SystemExit(USED_WRONGLY)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; parsed arguments carry their ``run``."""
    parser = _Parser(
        prog="python -m uvg_core", description="Uni-ViGU: videos from text, text from videos, both at once."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for run in COMMANDS:
        sub = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run, error=sub.error)
        add_flags(sub, run)
        sub.add_argument("-q", "--quiet", action="store_true", help="Print results and errors only.")
    return parser


class _Printable(logging.Formatter):
    """Messages alone, safe to print: they hold names of files and texts of strangers."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _quiet_libraries(quiet: bool) -> None:
    """Libraries print notes about their own options; users of a command want to see ours, but for ``--quiet``."""
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable())
        handler.setLevel(logging.ERROR if quiet else logging.NOTSET)
    logging.getLogger("uvg_core.checkpoint").setLevel(logging.INFO)
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


WRITTEN = ("out", "write", "json", "sheet")
READ = (
    *("model", "input", "text_encoder", "vae", "tokenizer", "null_embedding", "from_latent", "clip", "texts_file"),
    *("clips", "files", "prompts", "instructions", "benchmark", "references", "mask", "against"),
    *("first_frame", "last_frame", "hold", "story"),
)


def _require_files(args: argparse.Namespace) -> None:
    """Raise WrongUsage where a run would write onto a file that it reads, and UniViGUError where it could not write
    its report in the end."""
    if sys.stdout is None and any(is_stream(getattr(args, name, None)) for name in WRITTEN):
        raise UniViGUError("'-' was given, but standard output is closed")
    if sys.stdout is not None and sys.stdout.isatty() and is_stream(getattr(args, "out", None)):
        raise WrongUsage("-o - writes a video, which a terminal cannot show; pipe it to a program or redirect it")
    report = getattr(args, "json", None)
    if report is not None and not is_stream(report):
        require_writable(report)
    named = (getattr(args, name, None) for name in READ)
    read = [path for one in named for path in (one if isinstance(one, list) else [one]) if isinstance(path, Path)]
    read += [lora.path for lora in getattr(args, "lora", ())]
    for name in WRITTEN:
        if isinstance(target := getattr(args, name, None), Path) and not target.is_dir():
            require_others(target, read)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a run as an exception does, so that nothing half-written stays; training has its own way."""

    def end(*_: object) -> None:
        raise SystemExit(143)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _explained(error: BaseException, command: str) -> str:
    """An error in one line, for a user."""
    if isinstance(error, (UniViGUError, OutOfMemory)):
        return str(error)
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"out of memory ({first[:120]}); use a smaller --height or --width, fewer --frames, a checkpoint converted "
            "to bf16, or close other programs on the device"
        )
    return f"{command} failed: {first[:300]} (UVG_DEBUG=1 shows where)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that cannot show a caption's letters must not end a run
            stream.reconfigure(errors="backslashreplace")
    args = make_parser().parse_args(argv)
    be_quiet(args.quiet)
    _quiet_libraries(args.quiet)
    with bars(hidden=args.quiet) as shown, _ended_by_sigterm():
        try:
            with standard_input(args):
                try:
                    given = settings_of(args.run, args)
                except UniViGUError as error:
                    args.error(str(error))
                try:
                    _require_files(args)
                    code = int(args.run(**given, shown=shown) or 0)
                except WrongUsage as error:
                    args.error(str(error))
            if sys.stdout is not None:  # None where it was closed
                sys.stdout.flush()
            return code
        except BrokenPipeError:  # `... | head` has read enough; what is left to write at the exit goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (UniViGUError, OSError, MemoryError, RuntimeError) as error:
            # Not all are ours: some are what a system or a library refuses that no check foresaw.
            shown.close()
            if os.environ.get("UVG_DEBUG") and not isinstance(error, (UniViGUError, torch.OutOfMemoryError)):
                raise
            complain(_explained(error, args.command))
            return 1
        except KeyboardInterrupt:
            shown.close()
            say("stopped; no partial files were left behind")
            return CANCELLED
