"""What all nodes of the pack share: their base class, their schema, and the sockets that ComfyUI does not have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from comfy_api.latest import io

from ..uvg_core.errors import UniViGUError
from .comfy.errors import for_clients
from .widgets import FIELDS

UvgText = io.Custom("UVG_TEXT")  # a GeneratedText
LoraModel, LossMap = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")  # core's own


class Node(io.ComfyNode):
    """A node whose errors and reports are for clients: no path of the server, and nothing that cannot be printed."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        execute = vars(cls).get("execute")
        if execute is not None and not hasattr(execute.__func__, "__wrapped__"):  # ComfyUI copies these classes
            cls.execute = classmethod(_guarded(execute.__func__))  # type: ignore[method-assign]


def _guarded(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    @wraps(execute)
    def run(cls: type, *inputs: Any, **named: Any) -> io.NodeOutput:
        with for_clients():
            try:
                for name, value in named.items():
                    _require_sound(name, value)
                return execute(cls, *inputs, **named)
            except UniViGUError as error:
                error.args = (_in_widgets(str(error), cls),)
                if type(error) is not UniViGUError:  # the name that clients know
                    raise UniViGUError(*error.args) from error
                raise

    return run


def _require_sound(name: str, value: Any) -> None:
    """Raise UniViGUError for numbers and texts that no widget gives, but a script or a connected node may."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and not math.isfinite(one):
            raise UniViGUError(f"{FIELDS.get(name, name)} is {one}; expected a number")
        if isinstance(one, str) and not one.isascii() and re.search("[\ud800-\udfff]", one):
            raise UniViGUError(f"{name}: the text holds half of a character (a lone surrogate); type it again")


def _in_widgets(message: str, node: Any) -> str:
    """What is said of a field, said of the widget that sets it, by the name that the widget shows."""
    for one in node.define_schema().inputs:
        field = f"{FIELDS.get(one.id, one.id)} is "
        if message.startswith(field):
            return f"{one.display_name or one.id} is {message.removeprefix(field)}"
    return message


def schema(node: type, title: str, description: str, *, says: bool = False, **parts: Any) -> io.Schema:
    """The schema of a node: its id is the name of its class. ``says``: it returns words that stay in the node; core
    sends them even where nothing asks for the node because all behind it is cached. ``parts``: inputs, outputs, and
    what else a schema has."""
    return io.Schema(
        node_id=node.__name__,
        display_name=title,
        category="Uni-ViGU",
        description=description,
        has_intermediate_output=says,
        **parts,
    )


def output(kind: Any, name: str, tooltip: str, **options: Any) -> Any:
    """An output that is not shown under the name of its type."""
    return kind.Output(display_name=name, tooltip=tooltip, **options)
