"""A pickle read without running anything in it.

A pickle is a small program: it names classes and functions, and says what to call with what. Here a name stays a name
(``Named``), a call that is not known below becomes a ``Thing`` that remembers only that name, and tensors become
``View``s, places in the file. Nothing is imported, looked up or called on the pickle's word, nothing is as large as the
pickle claims but only as the bytes that are there, and the work is bounded by ``MOST_STEPS``.

The instructions are those of Python's pickletools, protocols 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .inert_values import Buffer, Named, Thing, View, storage_of, view_of

MOST_STEPS = 2_000_000  # a checkpoint of 1500 weights with Adam's state takes 250,000
_LONGEST_TEXT = 1 << 16  # longer texts and bytes are no names: passed over without a copy
_LONGEST_NUMBER = 40  # letters, or bytes

_OBJECT, _PERSISTENT, _SET = Named("", "object"), Named("", "persistent object"), Named("builtins", "set")
_BROKEN = "its table of contents is not readable"
_CUT_OFF = "its table of contents ends in the middle"

# What is understood when it is called; all else becomes a Thing.
_PASSED_ON = ("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_device_tensor_from_cpu_tensor")
_KNOWN = {
    (module, name): kind
    for kind, modules, names in (
        ("tensor", ("torch._utils",), ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")),
        ("first argument", ("torch._utils",), _PASSED_ON),
        ("typed", ("torch._tensor", "torch.tensor"), ("_rebuild_from_type", "_rebuild_from_type_v2")),
        ("dict", ("collections",), ("OrderedDict", "defaultdict")),
        ("dict", ("builtins", "__builtin__"), ("dict",)),
        ("tuple", ("builtins", "__builtin__"), ("tuple",)),
        ("tuple", ("torch",), ("Size",)),
    )
    for module in modules
    for name in names
}


class Malformed(Exception):
    """The file contradicts its format; the text says how."""


class Refused(Exception):
    """The file is sound but of a form that is not read here; the text says which, and what to do."""


class Unpickler:
    """Python's pickle machine over ``data[at:end]``; ``load`` may be called again for a pickle that follows.

    ``storages`` collects the storages that were named, with their dtypes.
    """

    def __init__(self, data: Buffer, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end
        self.storages: dict[str, torch.dtype] = {}
        self._steps = 0
        self._clear()

    def load(self) -> Any:
        """Raises Malformed or Refused."""
        try:
            return self._run()
        except (LookupError, ValueError, TypeError, struct.error) as error:  # an empty stack, no such place, no number
            raise Malformed(_BROKEN) from error
        finally:
            self._clear()

    def _clear(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._below: list[list[Any]] = []

    def _run(self) -> Any:
        while self.at < self.end:
            self._charge(1)
            code = chr(self.data[self.at])
            self.at += 1
            if code == ".":
                return self.stack.pop()
            if code not in _OPERATIONS:
                raise Malformed(f"{_BROKEN}: there is no pickle instruction {code!r}")
            _OPERATIONS[code](self)
        raise Malformed(_CUT_OFF)

    # ---- reading

    def _charge(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise Refused(
                f"found a table of contents of more than {MOST_STEPS:,} steps, expected tensors and what a trainer "
                "leaves beside them. Save it anew with the weights only"
            )

    def skip(self, count: int) -> int:
        """Pass over bytes; returns where they begin."""
        begin = self.at
        if not 0 <= count <= self.end - begin:
            raise Malformed(_CUT_OFF)
        self.at = begin + count
        return begin

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, min(self.end, self.at + _LONGEST_TEXT))
        if end < 0:
            raise Malformed(f"{_BROKEN}: a line in it does not end")
        begin, self.at = self.at, end + 1
        self._charge(end - begin >> 6)
        return str(self.data[begin:end], "utf-8", "replace")

    def number_line(self, kind: type) -> Any:
        line = self.line().rstrip("L")
        return kind(line) if len(line) <= _LONGEST_NUMBER else Thing(Named("builtins", kind.__name__))

    def place(self) -> int:
        """A place of the memo, written in digits."""
        return int(self.line()[:_LONGEST_NUMBER])

    def counted(self, form: str, kind: type) -> Any:
        """A value that lies behind its own length."""
        size = self.number(form)
        begin = self.skip(size)
        if size > (_LONGEST_NUMBER if kind is int else _LONGEST_TEXT):
            return Thing(Named("builtins", kind.__name__))
        self._charge(size >> 6)
        piece = self.data[begin : self.at]
        if kind is int:
            return int.from_bytes(piece, "little", signed=True)
        return piece if kind is bytes else str(piece, "utf-8", "replace")

    # ---- putting together

    def put(self, value: Any) -> None:
        self.stack.append(value)

    def keep(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def last(self, count: int) -> list[Any]:
        """Takes the last items off the stack."""
        if len(self.stack) < count:
            raise Malformed(_BROKEN)
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Thing):
            raise Malformed(f"{_BROKEN}: items for a {type(target).__name__}")

    def enter(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Thing):
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        if not isinstance(target, dict):
            raise Malformed(f"{_BROKEN}: entries for a {type(target).__name__}")
        _filled(target, items)

    def name(self) -> Named:
        self._charge(3)
        return Named(self.line(), self.line())

    def name_from_stack(self) -> None:
        module, name = self.last(2)
        if not isinstance(name, str) or not isinstance(module, str):
            raise Malformed(_BROKEN)
        self.put(Named(module, name))

    def make(self, made: Any, *_: Any) -> None:
        """An object of a class, from whatever it is made of."""
        self.put(Thing(made if isinstance(made, Named) else _OBJECT))

    def persistent(self, label: Any) -> Any:
        """What lies outside the pickle: a storage; in the older format also the source of a class, beside the class."""
        if isinstance(label, tuple) and len(label) >= 5 and label[0] == "module" and isinstance(label[1], Named):
            return label[1]
        storage = storage_of(label)
        if storage is None:
            return Thing(_PERSISTENT)
        if self.storages.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise Malformed(f"storage {storage.key[:50]} has two types")
        return storage

    def call(self, function: Any, arguments: Any) -> None:
        """Put what a call gives: a tensor, a dict, a size; for everything else a stand-in."""
        made = None
        while _known(function) == "typed" and isinstance(arguments, tuple) and len(arguments) == 4:
            self._charge(1)
            function, made, arguments = arguments[:3]
        result = self._result(function, arguments) if isinstance(arguments, tuple) else None
        if result is None:
            self.make(made or function)
        else:
            self.put(result)

    def _result(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """None where nothing is known of the function, or the arguments are not as it takes them."""
        kind, first = _known(function), arguments[0] if arguments else None
        if kind == "dict":
            return self._dict(first)
        if kind == "tensor":
            return view_of(function.name, arguments)
        passed_on = kind == "first argument" and isinstance(first, (View, Thing))
        return first if passed_on or (kind == "tuple" and isinstance(first, tuple)) else None

    def _dict(self, given: Any) -> dict[Any, Any]:
        if not isinstance(given, (dict, list, tuple)):
            return {}
        self._charge(len(given))
        if isinstance(given, dict):
            return dict(given)
        pairs = [pair for pair in given if isinstance(pair, (list, tuple)) and len(pair) == 2]
        return _filled({}, [item for pair in pairs for item in pair])


def _known(function: Any) -> str:
    return _KNOWN.get((function.module, function.name), "") if isinstance(function, Named) else ""


def _filled(entries: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """Put keys and values, in turn, into ``entries``. Names are kept as they are. Other keys are not hashed: that of a
    nested tuple may take forever."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            key = Thing(Named("", repr(key) if isinstance(key, (int, float)) else type(key).__name__))
        entries[key] = value
    return entries


_CONSTANTS = {"N": None, "\x88": True, "\x89": False, ")": ()}
_NUMBERS = {"J": "<i", "K": "<B", "M": "<H", "G": ">d"}
_EXTENSIONS = {"\x82": "<B", "\x83": "<H", "\x84": "<i"}
_TUPLES = {"\x85": 1, "\x86": 2, "\x87": 3}
_COUNTED: dict[type, dict[str, str]] = {  # by the format of the length
    str: {"T": "<i", "U": "<B", "X": "<I", "\x8c": "<B", "\x8d": "<Q"},
    bytes: {"B": "<I", "C": "<B", "\x8e": "<Q", "\x96": "<Q"},
    int: {"\x8a": "<B", "\x8b": "<i"},
}
_OPERATIONS: dict[str, Callable[[Unpickler], object]] = {
    "(": Unpickler.mark,
    "0": lambda m: m.stack.pop() if m.stack else m.since_mark(),
    "1": Unpickler.since_mark,
    "2": lambda m: m.put(m.stack[-1]),
    "F": lambda m: m.put(m.number_line(float)),
    "I": lambda m: m.put(m.number_line(int)),
    "L": lambda m: m.put(m.number_line(int)),
    "P": lambda m: m.put(m.persistent(m.line())),
    "Q": lambda m: m.put(m.persistent(m.stack.pop())),
    "R": lambda m: m.call(*m.last(2)),
    "S": lambda m: m.put(m.line().strip("'\"")),
    "V": lambda m: m.put(m.line()),
    "]": lambda m: m.put([]),
    "a": lambda m: m.add(m.last(1)),
    "b": lambda m: m.last(1),  # a state for what stays on the stack
    "c": lambda m: m.put(m.name()),
    "d": lambda m: m.put(_filled({}, m.since_mark())),
    "e": lambda m: m.add(m.since_mark()),
    "g": lambda m: m.put(m.memo[m.place()]),
    "h": lambda m: m.put(m.memo[m.number("<B")]),
    "i": lambda m: m.make(m.name(), m.since_mark()),
    "j": lambda m: m.put(m.memo[m.number("<I")]),
    "l": lambda m: m.put(m.since_mark()),
    "o": lambda m: m.make(*m.since_mark()),
    "p": lambda m: m.keep(m.place()),
    "q": lambda m: m.keep(m.number("<B")),
    "r": lambda m: m.keep(m.number("<I")),
    "s": lambda m: m.enter(m.last(2)),
    "t": lambda m: m.put(tuple(m.since_mark())),
    "u": lambda m: m.enter(m.since_mark()),
    "}": lambda m: m.put({}),
    "\x80": lambda m: m.skip(1),
    "\x81": lambda m: m.make(*m.last(2)),
    "\x8f": lambda m: m.make(_SET),
    "\x90": lambda m: m.add(m.since_mark()),
    "\x91": lambda m: m.make(_SET, m.since_mark()),
    "\x92": lambda m: m.make(*m.last(3)),
    "\x93": Unpickler.name_from_stack,
    "\x94": lambda m: m.keep(len(m.memo)),
    "\x95": lambda m: m.skip(8),  # a frame
    "\x97": lambda m: m.make(_OBJECT),  # a buffer kept elsewhere
    "\x98": lambda m: None,
}


def _reading(read: Callable[[Unpickler], Any]) -> Callable[[Unpickler], object]:
    return lambda m: m.put(read(m))


for _code, _value in _CONSTANTS.items():
    _OPERATIONS[_code] = _reading(partial(lambda value, m: value, _value))
for _code, _form in _NUMBERS.items():
    _OPERATIONS[_code] = _reading(partial(lambda form, m: m.number(form), _form))
for _code, _form in _EXTENSIONS.items():
    _OPERATIONS[_code] = _reading(partial(lambda form, m: Named("copyreg", f"extension {m.number(form)}"), _form))
for _code, _count in _TUPLES.items():
    _OPERATIONS[_code] = _reading(partial(lambda count, m: tuple(m.last(count)), _count))
for _kind, _forms in _COUNTED.items():
    for _code, _form in _forms.items():
        _OPERATIONS[_code] = _reading(partial(lambda form, kind, m: m.counted(form, kind), _form, _kind))
