"""What stands behind a node, run once more for each of a list, one run after the other.

ComfyUI itself takes a list through a graph node by node: the last clip would be sampled before the first one is saved,
and whoever cancels would have nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_execution.graph_utils import GraphBuilder, is_link

import nodes

ITEM, AFTER = "item", "after"  # inputs of the nodes that give the values of the later runs


def runs_behind(graph: Any, source: str, items: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Nodes to add to ``graph`` (ComfyUI's DYNPROMPT): for each of ``items`` a copy of all that is connected behind the
    node ``source``, and in its place a node of its kind that gives the item. Each run starts when what the run before
    it saves is saved; what it shows is shown where the original shows it."""
    behind, added = _behind(graph, source), GraphBuilder()
    before = {name: name for name in behind}
    for item in items:
        given = added.node(graph.get_node(source)["class_type"])
        given.inputs |= {ITEM: list(item)} | {f"{AFTER}{n}": end for n, end in enumerate(_ends(graph, behind, before))}
        given.set_override_display_id(source)
        copies = {name: added.node(graph.get_node(name)["class_type"]) for name in behind}
        here = {source: given.id} | {name: copy.id for name, copy in copies.items()}
        for name, copy in copies.items():
            copy.inputs |= {key: _moved(value, here) for key, value in graph.get_node(name)["inputs"].items()}
            copy.set_override_display_id(name)
        before = {name: copy.id for name, copy in copies.items()}
    return dict(added.finalize())


def _behind(graph: Any, source: str) -> list[str]:
    """The nodes that take something from ``source``, directly or through others."""
    users: dict[str, list[str]] = {}
    for name in sorted(graph.all_node_ids()):
        for value in graph.get_node(name)["inputs"].values():
            if is_link(value):
                users.setdefault(value[0], []).append(name)
    found, new = dict[str, None](), [source]
    while new:
        new = [name for one in new for name in users.get(one, []) if name not in found]
        found |= dict.fromkeys(new)
    return list(found)


def _ends(graph: Any, behind: Sequence[str], names: Mapping[str, str]) -> list[Any]:
    """Links to what saves and shows, among the nodes of one run. A saver without outputs stands behind what it takes:
    ComfyUI runs it as soon as it can."""
    ends = []
    for name in behind:
        kind = nodes.NODE_CLASS_MAPPINGS[graph.get_node(name)["class_type"]]
        if not getattr(kind, "OUTPUT_NODE", False):
            continue
        if kind.RETURN_TYPES:
            ends.append([names[name], 0])
        else:
            ends += [_moved(v, names) for v in graph.get_node(name)["inputs"].values() if is_link(v) and v[0] in names]
    return ends


def _moved(value: Any, names: Mapping[str, str]) -> Any:
    return [names[value[0]], value[1]] if is_link(value) and value[0] in names else value
