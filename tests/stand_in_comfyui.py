"""Just enough of ComfyUI to import the nodes where it is absent: whatever they ask of it is there and does nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("comfy", "comfy_api", "comfy_execution", "comfyui_version", "folder_paths", "latent_preview", "server")
PACK = "pack_beside_a_stand_in"


class Name(type):
    """The class of whatever is asked for by name; ``owner`` is what it was asked of."""

    def __getattr__(cls, name: str) -> Any:
        return named(name, cls.__name__)

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class Made(metaclass=Name):
    """What calling such a class gives: the arguments that it was called with."""

    owner = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def __getattr__(self, name: str) -> Any:
        return named(name, str(self.args[0]) if self.args else "")

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def named(name: str, owner: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Name(name, (Made,), {"owner": owner})


class StandIn:
    """Finds every module of ComfyUI."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in TOPS else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: named(name, spec.name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def schemas() -> list[dict[str, Any]]:
    """The arguments of every node's schema, in the order that the nodes are registered in."""
    known, pack = set(sys.modules), ModuleType(PACK)
    pack.__path__ = [str(ROOT)]
    sys.modules[PACK] = pack
    sys.meta_path.insert(0, StandIn())  # type: ignore[arg-type]
    try:
        files = importlib.import_module(f"{PACK}.nodes").NODES
        modules = {file: importlib.import_module(f"{PACK}.nodes.{file}") for file in files}
        return [getattr(modules[file], name).define_schema().kwargs for file, names in files.items() for name in names]
    finally:
        del sys.meta_path[0]
        for name in set(sys.modules) - known:
            if name.partition(".")[0] in (*TOPS, PACK):
                del sys.modules[name]
