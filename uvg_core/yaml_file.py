"""YAML files that people write: entries, and the line and column of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .errors import UniViGUError
from .io import read_text
from .settings import SettingError, shown

Entry = tuple[Any, ...]  # the keys on the way to a value, numbers for places in a list


class Entries(dict[str, Any]):
    """The entries of a YAML file, and where they stand in it."""

    def __init__(self, path: str | Path, values: dict[str, Any], keys: dict[Entry, Any], marks: dict[Entry, Any]):
        super().__init__(values)
        self.path, self._keys, self._marks = path, keys, marks

    def located(self, error: UniViGUError) -> UniViGUError:
        """An error about these entries that says the file and, where it is about one of them, its line and column."""
        place, entry = "", tuple(error.entry) if isinstance(error, SettingError) else ()
        while entry and not place:  # some entries of pydantic's are no key: the kinds that a value may be
            mark = (self._keys if isinstance(error, SettingError) and error.unknown else self._marks).get(entry)
            place, entry = _words(mark) if mark else "", entry[:-1]
        return UniViGUError(f"{self.path}: {place}{error}")


def read_yaml(path: str | Path, what: str) -> Entries:
    """The entries of a YAML file that is ``what``. Numbers are those of YAML 1.2: ``1e-4`` is one, without a dot.

    Raises UniViGUError, naming the file, where it cannot be read, is something else, or has a key twice."""
    try:
        return parse_yaml(read_text(path, exact=True), path)
    except FileNotFoundError as error:
        raise UniViGUError(f"{path}: cannot be read ({error.strerror}); pass {what} in YAML") from None


def parse_yaml(text: str, path: str | Path) -> Entries:
    """As ``read_yaml``, of a text that ``path`` names in errors."""
    import yaml

    Loader: Any = type("Loader", (yaml.SafeLoader,), {})  # it makes plain values only
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
    )
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        keys, marks = _places(path, root)
        values = loader.construct_document(root) if root is not None else None
    except UniViGUError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: text that is no UTF-8, dates
        raise UniViGUError(f"{path}: {_invalid(error)}") from None
    if values is None:
        raise UniViGUError(f"{path}: has no entries; expected some such as 'stage: recall', one per line")
    if not isinstance(values, dict):
        raise UniViGUError(f"{path}: found {shown(values)}; expected entries such as 'stage: recall', one per line")
    return Entries(path, values, keys, marks)


def _places(path: str | Path, root: Any) -> tuple[dict[Entry, Any], dict[Entry, Any]]:
    """Where the keys of a document stand, and the values. Raises UniViGUError where a mapping has a key twice."""
    import yaml

    keys: dict[Entry, Any] = {}
    marks: dict[Entry, Any] = {}
    seen: set[int] = set()
    open_nodes: list[tuple[Any, Entry]] = [(root, ())]
    while open_nodes:
        node, entry = open_nodes.pop()
        if node is None or id(node) in seen:  # an alias stands where its anchor does
            continue
        seen.add(id(node))
        marks[entry] = node.start_mark
        if isinstance(node, yaml.SequenceNode):
            open_nodes += [(value, (*entry, index)) for index, value in enumerate(node.value)]
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            here = (*entry, key.value)
            if here in keys:
                raise UniViGUError(
                    f"{path}: {_words(key.start_mark)}{'.'.join(map(str, here))} is already set in line "
                    f"{keys[here].line + 1}; remove one of them"
                )
            keys[here] = key.start_mark
            open_nodes.append((value, here))
    return keys, marks


def _invalid(error: Exception) -> str:
    """What PyYAML found wrong, and where, in one line; its own words call every file a "<unicode string>"."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return f"not valid YAML ({' '.join(str(error).split())})"
    found = ": ".join(filter(None, (getattr(error, "context", None), problem)))
    return f"{_words(mark)}not valid YAML ({found})"


def _words(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: "
