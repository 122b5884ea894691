"""Command-line flags made from settings classes: name, help, range, choices and default are those of the field."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from annotated_types import Gt
from pydantic.fields import FieldInfo

from ..checkpoint import LoraChoice
from ..errors import UniViGUError
from ..settings import about, choices, expanded, fields_of, kind_of, limits


class Only:
    """The fields of a settings class that a command offers, as in ``Annotated[Sampling, Only("steps", "seed")]``;
    ``text_update=("bridge", "euler")`` narrows the choices of one."""

    def __init__(self, *names: str, **narrowed: tuple[str, ...]) -> None:
        self.fields: dict[str, tuple[str, ...]] = {**dict.fromkeys(names, ()), **narrowed}


def _groups(owner: Any) -> Iterator[tuple[str, type, dict[str, tuple[str, ...]]]]:
    """What is settings among a command's parameters, or among the fields of settings: name, class, and its flags."""
    for name, hint in get_type_hints(owner, include_extras=True).items():
        cls, *marks = get_args(hint) or (hint,)
        if fields_of(cls):
            offered = next((mark.fields for mark in marks if isinstance(mark, Only)), None)
            single = [name for name, field in fields_of(cls).items() if not fields_of(kind_of(field.annotation))]
            yield name, cls, offered or dict.fromkeys(single, ())


_TITLES = {
    "places": "text encoder and VAE",
    "chat": "language model",
    "holds": "parts that stay",
    "where": "several processes and machines",
}  # of groups, in place of the setting's name


def add_flags(parser: argparse.ArgumentParser, owner: Any) -> None:
    """Flags for the settings that a command takes, a group for each class; ``own`` is the command itself."""
    for title, cls, offered in _groups(owner):
        group = parser if title == "own" else parser.add_argument_group(_TITLES.get(title, title))
        for name, narrowed in offered.items():
            field = fields_of(cls)[name]
            flags = [about(field, "short"), about(field, "flag") or f"--{name.replace('_', '-')}"]
            if about(field, "positional"):
                added = group.add_argument(name, **_options(field, narrowed))
            else:
                added = group.add_argument(*filter(None, flags), dest=name, **_options(field, narrowed))
            added.is_path = item_of(field) in (Path, LoraChoice)  # type: ignore[attr-defined]
        add_flags(parser, cls)


def streams_of(owner: Any) -> Iterator[tuple[str, str]]:
    """The flags for which ``-`` is the standard input: name, and ``file`` or ``text``."""
    for _, cls, offered in _groups(owner):
        for name in offered:
            if (kind := about(fields_of(cls)[name], "stdin")) is not None:
                yield name, kind
        yield from streams_of(cls)


def settings_of(owner: Any, args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as the settings that a command takes. Raises UniViGUError for values that do not fit."""
    return {
        title: cls(**{name: getattr(args, name) for name in offered}, **settings_of(cls, args))
        for title, cls, offered in _groups(owner)
    }


def _options(field: FieldInfo, narrowed: tuple[str, ...]) -> dict[str, Any]:
    """The keyword arguments of ``add_argument``."""
    kind, words = kind_of(field.annotation), narrowed or choices(field)
    many, positional = get_origin(kind) is tuple, about(field, "positional")
    default = [] if many else None if field.is_required() else field.default
    options: dict[str, Any] = {"help": _help(field), "default": None if positional else default}
    if kind is bool:
        return {**options, "action": "store_true"}
    kind = item_of(field)
    options["metavar"] = about(field, "metavar") or {int: "N", float: "N", Path: "FILE"}.get(kind_of(kind), "TEXT")
    if words:
        options |= {"choices": words, "metavar": None}
    elif kind in (int, float):
        options["type"] = _number(kind, field)
    elif kind is Path:
        takes_streams = bool(about(field, "stdin") or about(field, "stdout"))
        options["type"] = _path(*about(field, "suffixes") or (), takes_streams=takes_streams)
    elif kind is LoraChoice:
        options["type"] = _lora
    if positional:
        options["nargs"] = {(True, True): "+", (True, False): "*", (False, False): "?"}.get((many, field.is_required()))
    elif many:
        options["action"] = "append"
    return options


def item_of(field: FieldInfo) -> Any:
    """The type of a flag's value, of each where there are several."""
    kind = kind_of(field.annotation)
    return get_args(kind)[0] if get_origin(kind) is tuple else kind


def _help(field: FieldInfo) -> str:
    default = about(field, "auto") or ("" if field.is_required() else field.default)
    if default in ("", None, (), False):
        return field.description or ""
    return f"{field.description or ''} Default: {default}.".strip().replace("%", "%%")


def _number(kind: type, field: FieldInfo) -> Callable[[str], Any]:
    """An argparse type: a finite number of ``kind`` within the limits of the field."""
    (low, high), is_open = limits(field), any(isinstance(mark, Gt) for mark in field.metadata)
    step, first = about(field, "grid") or (0, 0)

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number")
        if (low is not None and (value < low or (is_open and value == low))) or (high is not None and value > high):
            form = "d" if kind is int else "g"
            bounds = f"above {low:{form}}" if is_open else f"at least {low:{form}}"
            if high is not None:
                bounds = f"{bounds}, at most {high:{form}}" if is_open else f"between {low:{form}} and {high:{form}}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; expected {bounds}")
        if step and (over := (value - first) % step):
            near = [number for number in (value - over, value - over + step) if low <= number <= high]
            form = f"{step}n+{first}" if first else f"a multiple of {step}"
            raise argparse.ArgumentTypeError(f"{text} is not {form}; the nearest is {' or '.join(map(str, near))}")
        return value

    return parse


def _path(*suffixes: str, takes_streams: bool = False) -> Callable[[str], Path]:
    """An argparse type: a path that is not empty (an unset shell variable would mean the working directory), of a kind
    that can be written where there are ``suffixes``; ``~`` and variables are filled in, as no shell does behind ``=``
    or in a script of another language. ``takes_streams``: ``-`` may stand for the standard input or output."""

    def parse(text: str) -> Path:
        if not text.strip():
            raise argparse.ArgumentTypeError("the path is empty")
        if text == "-" and takes_streams:
            return Path(text)
        if text == "-":
            raise argparse.ArgumentTypeError("'-' (standard input or output) is not supported here; pass a file name")
        text = expanded(text)
        if Path(text).name.lower() in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r} has no file name before {Path(text).name}")
        if suffixes and Path(text).suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(suffixes)}")
        return Path(text)

    return parse


def _lora(text: str) -> LoraChoice:
    try:
        return LoraChoice.of(expanded(text))
    except UniViGUError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
