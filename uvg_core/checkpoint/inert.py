"""A pickle read without running anything in it.

A pickle is a small program: it names classes and functions, and says what to call with what. Here a name stays a name
(``Named``), a call that is not known below becomes a ``Thing`` that remembers only that name, and tensors become
``View``s, places in the file. Nothing is imported, looked up or called on the pickle's word, nothing is as large as the
pickle claims but only as the bytes that are there, and the work is bounded by ``MOST_STEPS``.

The instructions are those of Python's pickletools, protocols 0 to 5.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import torch

MOST_STEPS = 2_000_000  # a checkpoint of 1500 weights with Adam's state takes 250,000
_LONGEST_TEXT = 1 << 16  # longer texts and bytes are no names: passed over without a copy
_LONGEST_NUMBER = 40  # letters, or bytes
_MOST_DIMENSIONS = 64
_MOST = 1 << 63

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}


Buffer = mmap | bytes  # a mapped file, mostly


class Malformed(Exception):
    """The file contradicts its format; the text says how."""


class Refused(Exception):
    """The file is sound but of a form that is not read here; the text says which, and what to do."""


@dataclass(slots=True, eq=False, repr=False)
class Named:
    """A class, function or constant that the pickle refers to by name. Never looked up."""

    module: str
    name: str

    def __repr__(self) -> str:
        return f"{self.module[:100]}.{self.name[:100]}".removeprefix(".")


@dataclass(slots=True, eq=False, repr=False)
class Thing:
    """In the place of an object: the class or function that would have made it, and a dict's entries."""

    of: Named
    entries: dict[Any, Any] | None = None

    @property
    def is_tensor(self) -> bool:
        """Whether it stands for a tensor of a kind that is not plain numbers: sparse, quantised, sharded."""
        return self.of.name.startswith("_rebuild_") or self.of.name.endswith("Tensor")

    def __repr__(self) -> str:
        kind = repr(self.of)
        return kind.split("._rebuild_")[-1].replace("_", " ") if "._rebuild_" in kind else kind


@dataclass(slots=True, eq=False, repr=False)
class Storage:
    """Numbers in the file: ``count`` of ``dtype`` from number ``start`` of the storage ``key``."""

    key: str
    dtype: torch.dtype
    count: int
    start: int = 0


@dataclass(slots=True, eq=False, repr=False)
class View:
    """A tensor: which numbers of a storage it shows; offset and strides count numbers of its own dtype."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def needed(self) -> int:
        """Bytes of as many numbers as the shape has."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Bytes from the first number to the last."""
        if 0 in self.shape:
            return 0
        return (1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        if 0 in self.shape:
            return True
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size > 1 and step != expected:
                return False
            expected *= size
        return True


_NUMBERS = {"J": "<i", "K": "<B", "M": "<H", "G": ">d"}
_CONSTANTS = {"N": None, "\x88": True, "\x89": False, ")": ()}
_COUNTED = {  # the format of the length, and what follows it
    "T": ("<i", str),
    "U": ("<B", str),
    "X": ("<I", str),
    "\x8c": ("<B", str),
    "\x8d": ("<Q", str),
    "B": ("<I", bytes),
    "C": ("<B", bytes),
    "\x8e": ("<Q", bytes),
    "\x96": ("<Q", bytes),
    "\x8a": ("<B", int),
    "\x8b": ("<i", int),
}
_PLACES = {"q": "<B", "h": "<B", "r": "<I", "j": "<I"}
_OBJECT, _PERSISTENT, _SET = Named("", "object"), Named("", "persistent object"), Named("builtins", "set")
_BROKEN = "its table of contents is not readable"


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
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def _run(self) -> Any:
        while self.at < self.end:
            self._charge(1)
            code = chr(self.data[self.at])
            self.at += 1
            if code in _NUMBERS:
                self.stack.append(self.number(_NUMBERS[code]))
            elif code in _COUNTED:
                self.stack.append(self._counted(*_COUNTED[code]))
            elif code in _CONSTANTS:
                self.stack.append(_CONSTANTS[code])
            elif code in "qrp\x94":
                self._memo[len(self._memo) if code == "\x94" else self._place(code)] = self.stack[-1]
            elif code in "hjg":
                self.stack.append(self._memo[self._place(code)])
            elif code == ".":
                return self.stack.pop()
            elif code in _OPERATIONS:
                _OPERATIONS[code](self)
            else:
                raise Malformed(f"{_BROKEN}: there is no pickle instruction {code!r}")
        raise Malformed("its table of contents ends in the middle")

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
            raise Malformed("its table of contents ends in the middle")
        self.at = begin + count
        return begin

    def number(self, form: str) -> Any:
        begin = self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self.data, begin)[0]

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

    def _place(self, code: str) -> int:
        return self.number(_PLACES[code]) if code in _PLACES else int(self.line()[:_LONGEST_NUMBER])

    def _counted(self, form: str, kind: type) -> Any:
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

    def mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

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
        if isinstance(target, Thing) and target.entries is None:
            target.entries = {}
        entries = target.entries if isinstance(target, Thing) else target
        if not isinstance(entries, dict):
            raise Malformed(f"{_BROKEN}: entries for a {type(target).__name__}")
        _fill(entries, items[::2], items[1::2])

    def name(self) -> Named:
        self._charge(3)
        module = self.line()
        return Named(module, self.line())

    def make(self, made: Any, *_: Any) -> None:
        """An object of a class, from whatever it is made of."""
        self.put(Thing(made if isinstance(made, Named) else _OBJECT))

    def name_from_stack(self) -> None:
        module, name = self.last(2)
        if not isinstance(name, str) or not isinstance(module, str):
            raise Malformed(_BROKEN)
        self.put(Named(module, name))

    def stored(self, label: Any) -> Any:
        """The storage that a label names: kind, key, device, size, and in the older format the part that is seen."""
        if not isinstance(label, tuple) or len(label) < 5 or not isinstance(label[1], Named):
            return Thing(_PERSISTENT)
        if label[0] == "module":  # the older format keeps the source of classes beside them
            return label[1]
        kind, key, _, count = label[1:5]
        part = label[5] if len(label) == 6 else None
        start, count = part[1:] if isinstance(part, tuple) and len(part) == 3 else (0, count)
        dtype = _DTYPES.get(_STORAGES.get(kind.name, ""))
        if label[0] != "storage" or dtype is None or not isinstance(key, str) or not _are_sizes((start, count)):
            return Thing(_PERSISTENT)
        if self.storages.setdefault(key, dtype) != dtype:
            raise Malformed(f"storage {key[:50]} has two types")
        return Storage(key, dtype, count, start)

    # ---- what would be called

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call gives: a tensor, a dict, a size; for everything else a stand-in."""
        made = None
        while _is(function, _TYPED) and isinstance(arguments, tuple) and len(arguments) == 4:
            self._charge(1)
            function, made, arguments = arguments[:3]
        if isinstance(arguments, tuple) and arguments:
            if _is(function, _PASSED_ON) and isinstance(arguments[0], (View, Thing)):
                return arguments[0]
            view = _tensor(function.name, arguments) if _is(function, _TENSORS) else None
            if view is not None:
                return view
            if _is(function, _SIZES) and isinstance(arguments[0], tuple):
                return arguments[0]
        if _is(function, _DICTS) and isinstance(arguments, tuple):
            return self._dict(arguments[0] if arguments else None)
        made = made or function
        return Thing(made if isinstance(made, Named) else _OBJECT)

    def _dict(self, given: Any) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        if isinstance(given, (dict, list, tuple)):
            self._charge(len(given))
        if isinstance(given, dict):
            made.update(given)
        elif isinstance(given, (list, tuple)):
            pairs = [pair for pair in given if isinstance(pair, (list, tuple)) and len(pair) == 2]
            _fill(made, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return made


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _fill(made, items[::2], items[1::2])
    return made


def _fill(entries: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    """Names are kept as they are. Other keys are not hashed: that of a nested tuple may take forever."""
    for key, value in zip(keys, values, strict=True):
        if not isinstance(key, str):
            key = Thing(Named("", repr(key) if isinstance(key, (int, float)) else type(key).__name__))
        entries[key] = value


def _are_sizes(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < _MOST for value in values)


def _tensor(function: str, arguments: tuple[Any, ...]) -> View | None:
    """The tensor that one of torch's functions makes of a storage, or None where it is no plain one."""
    if len(arguments) < 4:
        return None
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        return None
    if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS or not _are_sizes((offset, *shape, *stride)):
        return None
    if math.prod(size or 1 for size in shape) >= _MOST:
        return None
    dtype: torch.dtype | None = storage.dtype
    if function == "_rebuild_tensor_v3":
        given, arguments = arguments[6] if len(arguments) > 6 else None, arguments[1:]
        dtype = _DTYPES.get(given.name) if isinstance(given, Named) and given.module == "torch" else None
    pending = any(arguments[6:])  # to be negated or conjugated
    return None if dtype is None or pending else View(storage, dtype, offset, shape, stride)


def _is(function: Any, known: Mapping[str, tuple[str, ...]]) -> bool:
    return isinstance(function, Named) and function.name in known.get(function.module, ())


_TENSORS = {"torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
_PASSED_ON = {
    "torch._utils": ("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_device_tensor_from_cpu_tensor")
}
_TYPED = dict.fromkeys(("torch._tensor", "torch.tensor"), ("_rebuild_from_type", "_rebuild_from_type_v2"))
_DICTS = {"collections": ("OrderedDict", "defaultdict"), "builtins": ("dict",), "__builtin__": ("dict",)}
_SIZES = {"torch": ("Size",), "builtins": ("tuple",), "__builtin__": ("tuple",)}

_OPERATIONS: dict[str, Callable[[Unpickler], object]] = {
    "(": Unpickler.mark,
    "0": Unpickler.pop,
    "1": Unpickler.since_mark,
    "2": lambda m: m.put(m.stack[-1]),
    "F": lambda m: m.put(m.number_line(float)),
    "I": lambda m: m.put(m.number_line(int)),
    "L": lambda m: m.put(m.number_line(int)),
    "S": lambda m: m.put(m.line().strip("'\"")),
    "V": lambda m: m.put(m.line()),
    "P": lambda m: m.put(m.stored(m.line())),
    "Q": lambda m: m.put(m.stored(m.stack.pop())),
    "R": lambda m: m.put(m.call(*m.last(2))),
    "a": lambda m: m.add(m.last(1)),
    "b": lambda m: m.last(1),  # a state for what stays on the stack
    "c": lambda m: m.put(m.name()),
    "d": lambda m: m.put(_dict_of(m.since_mark())),
    "}": lambda m: m.put({}),
    "e": lambda m: m.add(m.since_mark()),
    "i": lambda m: m.make(m.name(), m.since_mark()),
    "l": lambda m: m.put(m.since_mark()),
    "]": lambda m: m.put([]),
    "o": lambda m: m.make(*m.since_mark()),
    "s": lambda m: m.enter(m.last(2)),
    "t": lambda m: m.put(tuple(m.since_mark())),
    "u": lambda m: m.enter(m.since_mark()),
    "\x80": lambda m: m.skip(1),
    "\x81": lambda m: m.make(*m.last(2)),
    "\x82": lambda m: m.put(Named("copyreg", f"extension {m.number('<B')}")),
    "\x83": lambda m: m.put(Named("copyreg", f"extension {m.number('<H')}")),
    "\x84": lambda m: m.put(Named("copyreg", f"extension {m.number('<i')}")),
    "\x85": lambda m: m.put(tuple(m.last(1))),
    "\x86": lambda m: m.put(tuple(m.last(2))),
    "\x87": lambda m: m.put(tuple(m.last(3))),
    "\x8f": lambda m: m.make(_SET),
    "\x90": lambda m: m.add(m.since_mark()),
    "\x91": lambda m: m.make(_SET, m.since_mark()),
    "\x92": lambda m: m.make(*m.last(3)),
    "\x93": Unpickler.name_from_stack,
    "\x95": lambda m: m.skip(8),  # a frame
    "\x97": lambda m: m.make(_OBJECT),  # a buffer kept elsewhere
    "\x98": lambda m: None,
}
