"""Oldest versions of what parses strangers' files: asked for where it does, and stated to pip alike."""

import ast
import re
from pathlib import Path

import pytest

from uvg_core import versions
from uvg_core.errors import UniViGUError

ROOT = Path(__file__).parents[1]


def floors() -> dict[str, tuple[int, ...]]:
    """All calls of ``require`` in the product, by package."""
    found = {}
    for path in (ROOT / "uvg_core").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        constants = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in ast.walk(tree):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id == "require"
                and len(call.args) > 1
            ):
                package, at_least = call.args[0], call.args[1]
                at_least = constants.get(at_least.id, at_least) if isinstance(at_least, ast.Name) else at_least
                found[ast.literal_eval(package)] = ast.literal_eval(at_least)
    return found


@pytest.mark.parametrize("file", ["requirements.txt", "pyproject.toml"])
def test_pip_is_told_the_same(file):
    text = (ROOT / file).read_text()
    stated = dict(re.findall(r"\b(av|pillow|sentencepiece)>=([\d.]+)", text))
    wanted = floors()
    assert stated.keys() == {"av", "pillow", "sentencepiece"}
    for name, numbers in stated.items():
        digits = tuple(map(int, numbers.split(".")))
        assert digits == wanted[name][: len(digits)]
        assert not any(wanted[name][len(digits) :])
    assert not re.search(r"^torch\b", text, re.MULTILINE)  # pip might replace a CUDA build


def test_the_version_found_and_wanted_are_told(monkeypatch):
    versions.require.cache_clear()
    monkeypatch.setattr(versions, "version", lambda package: "12.2.0")
    with pytest.raises(UniViGUError, match=r"pillow 12\.2\.0 is installed, 12\.3\.0 or newer is needed.*pip install"):
        versions.require_pillow()
    monkeypatch.setattr(versions, "version", lambda package: "12.10.0.dev1+local")
    versions.require.cache_clear()
    versions.require_pillow()
    versions.require.cache_clear()


def test_pillow_opens_two_formats_in_one_place_and_torch_unpickles_none():
    opened = []
    for room in ("uvg_core", "nodes", "recipes", "clients"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call):
                    assert ast.unparse(node.func) != "torch.load", path
                    if ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                        opened.append((path.name, ast.unparse(node)))
    assert opened == [("animation.py", "Image.open(BytesIO(data), formats=(self.kind,))")]
