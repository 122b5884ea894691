"""What stands behind a node, run once more for each of a list, one run after the other.

ComfyUI itself takes a list through a graph node by node: the last clip would be sampled before the first one is saved,
and whoever cancels would have nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import compress, count
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder, is_link
from comfy_execution.utils import get_executing_context
from server import PromptServer

import nodes

ITEM, ENDS, START = "item", "ends", "start"  # inputs of the nodes that stand in for the list in the later runs


def runs_behind(graph: Any, source: str, items: Sequence[Sequence[Any]], outputs: int) -> io.NodeOutput:
    """What the node ``source`` of ``graph`` (ComfyUI's DYNPROMPT) returns: the first of ``items`` on its ``outputs``
    and, for each of the others, a copy of all that is connected behind it and asked for, with a node of its kind in its
    place that gives the item. Each run starts when what the run before it saves is saved; what it shows is shown where
    the original shows it.

    What a run saves can be blocked, and would block all that takes it. So a node of the same kind stands between two
    runs, whose outputs are its own, see ``once_ended``. ComfyUI forgets what it need not keep: these nodes have to wait
    before the first run begins. It takes nodes in the order in which they are added, and the results of ``source``, the
    node that gives the first item, come last."""
    asked, added = _asked(graph), GraphBuilder()
    behind = _leading_to(graph, asked, _behind(graph, source))
    kind, before = graph.get_node(source)["class_type"], {name: name for name in behind}
    first = added.node(kind, **{ITEM: list(items[0])})
    first.set_override_display_id(source)
    for item in items[1:]:
        waiting = added.node(kind, **{ENDS: _ends(graph, asked.intersection(behind), before)})
        given = added.node(kind, **{ITEM: list(item), START: waiting.out(0)})
        copies = {name: added.node(graph.get_node(name)["class_type"]) for name in behind}
        here = {source: given.id} | {name: copy.id for name, copy in copies.items()}
        for name, copy in copies.items():
            copy.inputs |= {key: _moved(value, here) for key, value in graph.get_node(name)["inputs"].items()}
        for name, copy in [(source, waiting), (source, given), *copies.items()]:
            copy.set_override_display_id(name)
        before = {name: copy.id for name, copy in copies.items()}
    return io.NodeOutput(*map(first.out, range(outputs)), expand=dict(added.finalize()))


def once_ended(ends: Sequence[Any], outputs: int) -> io.NodeOutput:
    """What a node returns that gives nothing, once all that the links ``ends`` lead to has run or is blocked: to
    ComfyUI they are results that it has from other nodes, and it takes no more of them than there are ``outputs``."""
    return io.NodeOutput(*[None] * outputs, *ends, expand={})


def gives_a_list(graph: Any, name: str, socket: str) -> bool:
    """Whether an input of a node is connected to an output that gives a list, however many are in it."""
    value = graph.get_node(name)["inputs"].get(socket)
    return is_link(value) and value[1] in compress(count(), getattr(_class_of(graph, value[0]), "OUTPUT_IS_LIST", ()))


def _asked(graph: Any) -> set[str]:
    """The nodes that ComfyUI runs for their own sake. Of the prompt, those that were chosen and are in order; of nodes
    that other nodes have added, all that save or show."""
    context, queue = get_executing_context(), getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)
    running = queue.get_current_queue_volatile()[0] if context and queue else []
    chosen = next((item[4] for item in running if item[1] == context.prompt_id), graph.get_original_prompt())
    names = graph.all_node_ids() - (graph.get_original_prompt().keys() - set(chosen))
    return {name for name in names if getattr(_class_of(graph, name), "OUTPUT_NODE", False)}


def _class_of(graph: Any, name: str) -> Any:
    return nodes.NODE_CLASS_MAPPINGS[graph.get_node(name)["class_type"]]


def _links(graph: Any, name: str) -> list[Any]:
    return [value for value in graph.get_node(name)["inputs"].values() if is_link(value)]


def _behind(graph: Any, source: str) -> list[str]:
    """The nodes that take something from ``source``, directly or through others."""
    users: dict[str, list[str]] = {}
    for name in sorted(graph.all_node_ids()):
        for value in _links(graph, name):
            users.setdefault(value[0], []).append(name)
    found, new = dict[str, None](), [source]
    while new:
        new = [name for one in new for name in users.get(one, []) if name not in found]
        found |= dict.fromkeys(new)
    return list(found)


def _leading_to(graph: Any, asked: set[str], names: Sequence[str]) -> list[str]:
    """Those of ``names`` from which one that is asked for takes something, itself included."""
    found, new = set[str](), asked.intersection(names)
    while new:
        found |= new
        new = {value[0] for name in new for value in _links(graph, name)}.intersection(names) - found
    return [name for name in names if name in found]


def _ends(graph: Any, asked: Collection[str], names: Mapping[str, str]) -> list[Any]:
    """Links to what saves and shows, among the nodes of one run. A saver without outputs stands behind what it takes:
    ComfyUI runs it as soon as it can."""
    ends = []
    for name in sorted(asked):
        if _class_of(graph, name).RETURN_TYPES:
            ends.append([names[name], 0])
        else:
            ends += [_moved(value, names) for value in _links(graph, name) if value[0] in names]
    return ends


def _moved(value: Any, names: Mapping[str, str]) -> Any:
    return [names[value[0]], value[1]] if is_link(value) and value[0] in names else value
