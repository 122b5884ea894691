"""``completion``: words and files that a shell can fill in."""

from __future__ import annotations

import argparse
from typing import Annotated

from ..errors import UniViGUError
from ..progress import Bars
from ..settings import OneOf, setting, settings
from .output import show

PROGRAM = "uni-vigu"  # as pip installs it: shells complete the name of a program, not python -m


@settings
class Completion:
    """For which shell."""

    shell: Annotated[str, OneOf("bash", "zsh", "tcsh")] = setting(
        "Shell to print the completion script for.", positional=True
    )


def completion(own: Completion, shown: Bars) -> None:
    """Print what makes a shell complete the command uni-vigu, for a file that it reads at its start."""
    try:
        import shtab
    except ImportError:
        raise UniViGUError("completion needs shtab: pip install shtab") from None
    from .main import make_parser

    parser = make_parser()
    parser.prog = PROGRAM
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, sub in commands.choices.items():
        sub.prog = f"{PROGRAM} {name}"
        for action in sub._actions:
            if getattr(action, "is_path", False):
                action.complete = shtab.FILE
    show(shtab.complete(parser, own.shell))
