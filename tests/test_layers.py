"""The layers of the code: imports inside the pack are relative and point down, and no two modules import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPS = ("uvg_core", "recipes", "nodes", "clients")
# From the bottom up. Modules that lie in uvg_core itself (config, settings, errors, io, progress) are below its rooms.
LAYERS = (
    "uvg_core",
    "uvg_core.flow",
    "uvg_core.model",
    "uvg_core.checkpoint",
    "uvg_core.media",
    "uvg_core.sampling",
    "uvg_core.pipeline",
    "uvg_core.data",
    "uvg_core.training",
    "uvg_core.synthesis",
    "uvg_core.cli",
    "recipes.worlds",
    "nodes.comfy",
    "nodes",
)
ENTRANCES = {"uvg_core.__init__", "uvg_core.__main__"}  # they show what lies below them
STILL_UPWARD: set[tuple[str, str]] = {("uvg_core.data", "uvg_core.training")}


@cache
def modules() -> dict[str, Path]:
    files = (path for top in TOPS for path in sorted((ROOT / top).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def room(module: str) -> str:
    names = module.split(".")[:-1]
    return ".".join(names[:2])


def imports(module: str, at_start_only: bool = False) -> Iterator[tuple[str, int]]:
    """The modules of the pack that a module imports, and the dots it does that with (0: by its absolute name)."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    late = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.If))
        and (not isinstance(outer, ast.If) or "TYPE_" in ast.dump(outer.test))
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (at_start_only and id(node) in late):
            continue
        package = module.split(".")[: -node.level] if node.level else []
        source = ".".join([*package, *(node.module.split(".") if node.module else [])])
        for alias in node.names:
            for name in (f"{source}.{alias.name}", f"{source}.{alias.name}.__init__", source, f"{source}.__init__"):
                if name in modules():
                    yield name, node.level
                    break


def test_imports_inside_the_pack_are_relative() -> None:
    absolute = [
        (module, name)
        for module in modules()
        for name, dots in imports(module)
        if dots == 0 and module.split(".")[0] != "recipes"
    ]
    assert absolute == []


def test_imports_point_down() -> None:
    upward = {
        (room(module), room(name))
        for module in modules()
        if module not in ENTRANCES
        for name, _ in imports(module)
        if room(module) in LAYERS and LAYERS.index(room(name)) > LAYERS.index(room(module))
    }
    assert upward == STILL_UPWARD


def test_no_module_imports_itself_over_others() -> None:
    needs = {module: {name for name, _ in imports(module, at_start_only=True)} - {module} for module in modules()}
    while free := {module for module, needed in needs.items() if not needed & needs.keys()}:
        needs = {module: needed for module, needed in needs.items() if module not in free}
    assert sorted(needs) == []
