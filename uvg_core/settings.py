"""One description of every setting: its default, range and one plain sentence.

A class under ``@settings`` is a frozen dataclass whose fields are checked by pydantic. Command-line flags, node widgets
with their tooltips, YAML files and the tables of the documentation are made from the same fields.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Mapping
from functools import wraps
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    AllowInfNan,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, core_schema
from typing_extensions import dataclass_transform

from .errors import UniViGUError

Class = TypeVar("Class")


def shown(value: Any) -> str:
    """A value from a file as an error message shows it: never long, never an error of its own."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to write numbers of thousands of digits
        return "a value of thousands of digits"


# The types of settings. Nothing is converted that is not written as such: "5" and 5.0 are not whole numbers.
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]


def expanded(text: str) -> str:
    """A path with ``~`` and the environment's variables filled in; those that are not set stay as they are written."""
    return os.path.expandvars(os.path.expanduser(text))


def _expanded_where_asked(text: str, info: ValidationInfo) -> str:
    return expanded(text) if (info.context or {}).get("expand") else text


# A path, as text. Only files that their owner wrote expand it (see ``from_dict``), never what reaches a server.
PathText = Annotated[str, Strict(), AfterValidator(_expanded_where_asked)]


class OneOf:
    """The words that a setting may be chosen from: ``Annotated[str, OneOf("euler", "heun")]``."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.literal_schema(list(self.words))


def setting(
    help: str = "", *, default: Any = ..., factory: Any = None, auto: str = "", expected: str = "", **limits: Any
) -> Any:
    """A field of a settings class.

    Args:
        help: one plain sentence. default: the default; without one the field must be given. factory: of a section.
        auto: what None stands for. expected: what an error says was expected, where type and limits do not tell.
        limits: ``ge``, ``gt``, ``le``, ``lt`` and other arguments of pydantic's ``Field``; what it does not know is
            kept for ``about``.
    """
    known: dict[str, Any] = {
        name: limits.pop(name) for name in ("ge", "gt", "le", "lt", "multiple_of", "max_length") if name in limits
    }
    known |= {"default": default} if factory is None else {"default_factory": factory}
    return Field(description=help, json_schema_extra={"auto": auto, "expected": expected, **limits}, **known)


@dataclass_transform(frozen_default=True, field_specifiers=(setting, Field))
def settings(cls: type[Class]) -> type[Class]:
    """Make a frozen dataclass whose values are checked. Raises UniViGUError that names the field, the value found and
    what was expected."""
    made: Any = checked_dataclass(cls, frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
    checked = made.__init__

    @wraps(checked)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            checked(self, *args, **values)
        except ValidationError as error:
            raise SettingError(error, made) from None

    made.__init__ = init
    return cast(type[Class], made)


def from_dict(cls: type[Class], values: Mapping[str, Any], *, expand: bool = False) -> Class:
    """Settings from plain values, sections among them as mappings. Raises SettingError. ``expand``: paths may begin
    with ``~`` and hold variables of the environment."""
    try:
        plain = {str(name): value for name, value in values.items()}
        return TypeAdapter(cls).validate_python(plain, context={"expand": expand})
    except ValidationError as error:
        raise SettingError(error, cls) from None


def fields_of(cls: type) -> dict[str, FieldInfo]:
    """The fields of a settings class by name, with defaults, limits and sentences."""
    return cast(dict[str, FieldInfo], getattr(cls, "__pydantic_fields__", {}))


def about(field: FieldInfo, name: str) -> Any:
    """``auto``, ``expected`` or another remark on a field; None where there is none."""
    extra = field.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None


def limits(field: FieldInfo) -> tuple[Any, Any]:
    """The lowest and highest value of a field, None where there is no limit; open limits count as limits."""
    low = next((m.ge if isinstance(m, Ge) else m.gt for m in field.metadata if isinstance(m, (Ge, Gt))), None)
    high = next((m.le if isinstance(m, Le) else m.lt for m in field.metadata if isinstance(m, (Le, Lt))), None)
    return low, high


def kind_of(annotation: Any) -> Any:
    """The type behind a field's annotation: ``int``, ``float``, ``bool``, ``str``, a tuple or a class."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return kind_of(inner[0])
    return kind_of(next(one for one in inner if one is not type(None))) if type(None) in inner else annotation


def choices(field: FieldInfo) -> tuple[str, ...]:
    """What a field may be chosen from; empty where it is free."""
    inner = [part for option in get_args(field.annotation) for part in get_args(option)]
    return next((part.words for part in (*field.metadata, *inner) if isinstance(part, OneOf)), ())


def expected(field: FieldInfo) -> str:
    """What may stand in a field, in words: ``a whole number from 1 to 10000``."""
    if about(field, "expected"):
        return str(about(field, "expected"))
    kind = kind_of(field.annotation)
    if choices(field):
        return f"one of {', '.join(filter(None, choices(field)))}"
    if fields_of(kind):
        return "a section with entries of its own, indented"
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} values in square brackets"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "another value")
    (low, high), is_open = limits(field), any(isinstance(m, Gt) for m in field.metadata)
    if low is not None and is_open:
        return f"{words} above {low:g}" + (f", at most {high:g}" if high is not None else "")
    if low is not None and high is not None and high < 10**9:
        return f"{words} from {low} to {high}"
    return words if low is None else f"{words} of {low} or more"


class SettingError(UniViGUError):
    """A value that does not fit. ``entry``: its place in the settings; ``unknown``: there is no setting of its name."""

    def __init__(self, error: ValidationError, cls: type) -> None:
        # An entry of an unknown name first: where a required one is missing, it is often that one with a slip in it.
        fault = min(error.errors(), key=lambda one: one["type"] not in _UNKNOWN)
        super().__init__(_explained(fault, cls))
        self.entry = tuple(part for part in fault["loc"] if str(part).strip())
        self.unknown = fault["type"] in _UNKNOWN


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def _explained(fault: ErrorDetails, cls: type) -> str:
    """A fault that pydantic found, in one sentence: which field, what was found, what was expected."""
    place = [part for part in fault["loc"] if isinstance(part, str) and part.strip()]  # blank: a kind of value
    owner, field = cls, None
    for depth, part in enumerate(place):
        field = fields_of(owner).get(part)
        if field is None and not depth and fault["type"] == "value_error":
            break
        inner = owner if field is None else about(field, "entries") or kind_of(field.annotation)
        if fields_of(inner) and depth + 1 < len(place):
            owner = inner
    name = ".".join(place)
    if fault["type"] in _UNKNOWN:
        return _unknown(name, owner)
    if fault["type"] in ("missing", "missing_argument") and not isinstance(fault["loc"][-1], int):
        return f"missing entry {name}; it has no default"
    raised = fault.get("ctx", {}).get("error")
    if isinstance(raised, UniViGUError):
        return f"{name}: {raised}" if name and name not in str(raised) else str(raised)
    if field is None:
        return f"{name} is {shown(fault['input'])}; {fault['msg']}"
    return f"{name} is {shown(fault['input'])}; expected {expected(field)}"


def _unknown(name: str, owner: type) -> str:
    where, _, key = name.rpartition(".")
    where += "." if where else ""
    near = difflib.get_close_matches(key, fields_of(owner), n=1)
    hint = f"did you mean {where}{near[0]}?" if near else f"expected one of {', '.join(fields_of(owner))}"
    return f"unknown entry {name}; {hint}"
