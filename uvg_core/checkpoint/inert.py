"""A pickle read without running anything in it.

``pickletools`` decodes the instructions. A name stays a ``Named``, a tensor becomes a ``View``, any other object a
``StandIn``: nothing is imported, looked up or called. Memory and time are bounded by the bytes that are there and by
``MOST_STEPS``, whatever the pickle claims.
"""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from pickletools import OpcodeInfo, genops, markobject
from typing import IO, Any, cast

import torch

from ..errors import UniViGUError
from .inert_values import Named, StandIn, View, storage_of, view_of
from .weight_file import damaged

MOST_STEPS = 5_000_000  # reads, or 256 bytes; a checkpoint of 1500 weights with Adam's state takes 340,000
_LONGEST_LINE = 1 << 16
_LARGEST_KEY = 1 << 32
# Called with a tensor as the first argument, these give that tensor.
_PASS_ON = {
    f"torch._utils.{name}"
    for name in ("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_device_tensor_from_cpu_tensor")
}
_TYPED = {"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2", "torch.tensor._rebuild_from_type"}


class Unpickler:
    """Python's pickle machine over ``data[at:end]``; ``load`` may be called again for a pickle that follows.

    ``storages`` collects the storages that were named, with their dtypes.
    """

    def __init__(self, path: Path, data: mmap, at: int, end: int) -> None:
        self.path, self.data, self.at, self.end = path, data, at, end
        self.storages: dict[str, torch.dtype] = {}
        self._steps = 0

    def load(self) -> Any:
        """Raises UniViGUError for what is no whole pickle, or too long a one."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._below: list[list[Any]] = []  # the stacks below each mark
        try:
            for opcode, argument, _ in genops(cast(IO[bytes], self)):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._run(opcode, argument)
        except UniViGUError:
            raise
        except (LookupError, ValueError, TypeError) as error:  # an empty stack, no such place, no number
            raise damaged(self.path, "its table of contents is not readable or ends in the middle") from error

    def _run(self, opcode: OpcodeInfo, argument: Any) -> None:
        if opcode.name == "MARK":
            self._below.append(self.stack)
            self.stack = []
            return
        taken = self._take(opcode)
        if opcode.name in _MAKE:
            self.stack.append(_MAKE[opcode.name](self, argument, taken))
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif isinstance(argument, str):  # surrogates could not be printed
            self.stack.append(argument.encode("utf-8", "replace").decode())
        elif isinstance(argument, (int, float, bytes, bytearray)) and opcode.stack_after:
            self.stack.append(argument)
        elif opcode.stack_after:  # what torch.save does not write, such as buffers outside the pickle
            raise ValueError(opcode.name)

    def _take(self, opcode: OpcodeInfo) -> list[Any]:
        """Take what an instruction works on off the stack."""
        items, count = [], len(opcode.stack_before)
        if markobject in opcode.stack_before:
            items, self.stack = self.stack, self._below.pop()
            count = opcode.stack_before.index(markobject)
        start = len(self.stack) - count
        if start < 0:
            raise ValueError("an empty stack")
        items = self.stack[start:] + items
        del self.stack[start:]
        return items

    # ---- the file that pickletools reads from

    def read(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise ValueError("the end")
        self._steps += 1 + (count >> 8)
        if self._steps > MOST_STEPS:
            raise UniViGUError(
                f"{self.path}: found a table of contents of more than {MOST_STEPS:,} steps, expected tensors and what "
                "a trainer leaves beside them. Save it anew with the weights only"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def readline(self) -> bytes:
        end = self.data.find(b"\n", self.at, min(self.end, self.at + _LONGEST_LINE))
        return self.read(end + 1 - self.at) if end >= 0 else b""

    # ---- what the instructions make

    def memoised(self, value: Any) -> Any:
        self.memo[len(self.memo)] = value
        return value

    def persistent(self, label: Any) -> Any:
        """What lies outside the pickle: a storage; in the older format also the source of a class, beside the class."""
        if isinstance(label, tuple) and len(label) >= 5 and label[0] == "module" and isinstance(label[1], Named):
            return label[1]
        storage = storage_of(label)
        if storage is None:
            return StandIn(Named("persistent object"))
        if self.storages.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise damaged(self.path, f"storage {storage.key[:50]} has two types")
        return storage


def _called(function: Any, arguments: Any) -> Any:
    """What a call gives: a tensor, or a stand-in."""
    made = function
    if _name(function) in _TYPED and isinstance(arguments, tuple) and len(arguments) == 4:
        function, made, arguments = arguments[:3]
    name = _name(function)
    result: View | StandIn | None = None
    if isinstance(arguments, tuple) and arguments:
        if name.startswith("torch._utils._rebuild_tensor"):
            result = view_of(arguments)
        elif name in _PASS_ON and isinstance(arguments[0], (View, StandIn)):
            result = arguments[0]
    return _object(made) if result is None else result


def _name(function: Any) -> str:
    return function.name if isinstance(function, Named) else ""


def _object(of: Any) -> StandIn:
    return StandIn(of if isinstance(of, Named) else Named("object"))


def _extended(target: Any, *items: Any) -> Any:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, StandIn):
        raise TypeError("items for no list")
    return target


def _filled(target: Any, *items: Any) -> Any:
    """Put keys and values, in turn, into a dict. Only texts and small whole numbers stay keys: the hash of a nested
    tuple may take forever."""
    if isinstance(target, StandIn):
        entries = target.entries = {} if target.entries is None else target.entries
    elif isinstance(target, dict):
        entries = target
    else:
        raise TypeError("entries for no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str) and not (type(key) is int and abs(key) < _LARGEST_KEY):
            key = StandIn(Named(repr(key) if isinstance(key, (int, float)) else type(key).__name__))
        entries[key] = value
    return target


# From the machine, the instruction's argument, and what it takes off the stack: what it puts there.
_Make = Callable[[Unpickler, Any, list[Any]], Any]
_MAKE: dict[str, _Make] = {
    "NONE": lambda m, a, taken: None,
    "NEWTRUE": lambda m, a, taken: True,
    "NEWFALSE": lambda m, a, taken: False,
    "GLOBAL": lambda m, name, taken: Named(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, a, taken: Named(".".join(taken)),
    "INST": lambda m, name, taken: StandIn(Named(name.replace(" ", ".", 1))),
    "OBJ": lambda m, a, taken: _object(taken[0]),
    "REDUCE": lambda m, a, taken: _called(*taken),
    "PERSID": lambda m, label, taken: m.persistent(label),
    "BINPERSID": lambda m, a, taken: m.persistent(taken[0]),
    "MEMOIZE": lambda m, a, taken: m.memoised(taken[0]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, place, taken: m.memo[place]),
    **dict.fromkeys(("NEWOBJ", "NEWOBJ_EX"), lambda m, a, taken: _object(taken[0])),
    **dict.fromkeys(("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), lambda m, a, taken: tuple(taken)),
    **dict.fromkeys(("EMPTY_LIST", "LIST"), lambda m, a, taken: taken),
    **dict.fromkeys(("EMPTY_DICT", "DICT"), lambda m, a, taken: _filled({}, *taken)),
    **dict.fromkeys(("EMPTY_SET", "FROZENSET"), lambda m, a, taken: StandIn(Named("builtins.set"))),
    **dict.fromkeys(("APPEND", "APPENDS", "ADDITEMS"), lambda m, a, taken: _extended(*taken)),
    **dict.fromkeys(("SETITEM", "SETITEMS"), lambda m, a, taken: _filled(*taken)),
    "BUILD": lambda m, a, taken: taken[0],  # no state is set
}
