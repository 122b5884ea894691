"""A process in ComfyUI's Python that calls check functions for the tests (started by ``in_comfyui_host.Inside``).

    python worker.py COMFYUI_FOLDER BASE_DIRECTORY PACK_NAME [options of ComfyUI's main.py]

First it says, as a line of JSON on the standard output, {"pack_problem": null or text}. Then it reads lines of JSON,
{"module", "function", "arguments"}, and answers each with {"value"} or {"traceback"}. Check modules lie in ``checks``;
they can ``from worker import pack_module, node_class``.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import io
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

CHECKS = Path(__file__).parent / "checks"

_pack_name = ""
_loop = asyncio.new_event_loop()


def pack_module(name: str = "") -> ModuleType:
    """The loaded pack, or a module in it: ``pack_module("nodes.comfy")``."""
    return importlib.import_module(f"{_pack_name}.{name}" if name else _pack_name)


def node_class(node_id: str) -> Any:
    """The class that ComfyUI runs for a node id."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[node_id]


async def load_pack(folder: str) -> str | None:
    """Load a custom node as ComfyUI does at its start. Returns what it logged when it did not take it, else None."""
    import nodes

    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        taken = await nodes.load_custom_node(folder, set(nodes.NODE_CLASS_MAPPINGS))
    finally:
        logging.getLogger().removeHandler(handler)
    return None if taken else said.getvalue()


async def start(pack: str) -> str | None:
    """ComfyUI as main.py sets it up, except that its server does not listen: the nodes it brings, then the pack."""
    import server

    import nodes

    # Nodes send it their live texts, and some register things with it as they load.
    server.PromptServer(_loop).client_id = "the tests"
    await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    return await load_pack(pack)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Call what was asked for, as ComfyUI calls nodes; never raises."""
    import torch

    try:
        function = getattr(_check_module(request["module"]), request["function"])
        with torch.inference_mode():
            value = function(**request["arguments"])
            if inspect.iscoroutine(value):
                value = _loop.run_until_complete(value)
        json.dumps(value)
        return {"value": value}
    except BaseException:  # SystemExit and ComfyUI's interruption too: the tests want to know
        return {"traceback": traceback.format_exc()}


def _check_module(name: str) -> ModuleType:
    full_name = f"check_{name}"  # no name that ComfyUI or a package may have
    if name != "made":
        _check_module("made")  # what the others share
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, CHECKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full_name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[full_name])
        except BaseException:
            del sys.modules[full_name]
            raise
    return sys.modules[full_name]


def main() -> None:
    global _pack_name
    # Whatever prints goes to the log; the tests' lines keep a pair of descriptors of their own.
    requests, answers = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    comfyui, base, pack_name = sys.argv[1:4]
    sys.argv = ["main.py", *sys.argv[4:]]
    sys.path[0] = comfyui
    sys.modules["worker"] = sys.modules[__name__]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")

    import comfy.options

    comfy.options.enable_args_parsing()
    pack = os.path.join(base, "custom_nodes", pack_name)
    _pack_name = pack.replace(".", "_x_")  # ComfyUI's name for the module of a custom node's folder
    problem = _loop.run_until_complete(start(pack))
    print(json.dumps({"pack_problem": problem}), file=answers, flush=True)
    for line in requests:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
