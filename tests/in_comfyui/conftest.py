"""Fixtures with a real ComfyUI. Each is started by the first test that asks for it; without ComfyUI all are skipped."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from in_comfyui_canvas import CHROMIUM, FLAGS, Browser, Canvas, missing_browser
from in_comfyui_host import ROOT, ComfyUI, Inside, NoComfyUI, Server, find_comfyui, load_client, put_stand_ins


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    try:
        return find_comfyui()
    except NoComfyUI as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def server(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI server with this pack."""
    with Server(comfyui, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Any:
    """``clients/api_client.py``'s Client for that server."""
    return load_client().Client(server.url)


@dataclass(frozen=True)
class ShippedRun:
    """What the client returned and saw, and the files, each with the id of the node that saved it."""

    result: Any
    events: list[Any]
    files: list[tuple[str, Path]]


@pytest.fixture(scope="session")
def shipped(client: Any, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ShippedRun]:
    """Runs a shipped workflow, by its name, once a session. A node ``pixels`` saves decoded frames as pictures too."""

    @functools.cache
    def run(name: str) -> ShippedRun:
        graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        nodes = {node["class_type"]: (id_, node["inputs"]) for id_, node in graph.items()}
        if "VAEDecode" in nodes:
            inputs = {"images": [nodes["VAEDecode"][0], 0], "filename_prefix": "pixels"}
            graph["pixels"] = {"class_type": "SaveImage", "inputs": inputs}
        if name == "first_try":
            put_stand_ins(server.base / "models")
            nodes["UniViGUEmptyLatent"][1].update(width=64, height=48)
        if name == "caption_folder":  # captions that another test left would be skipped
            for old in (server.base / "input" / "uvg_sample_clips").glob("*.txt"):
                old.unlink()
        events: list[Any] = []
        result = client.run(graph, on_event=events.append)
        folder = tmp_path_factory.mktemp(name)
        files = [(file.node, client.download(file, folder)) for file in result.files]
        return ShippedRun(result, events, files)

    return run


@pytest.fixture(scope="session")
def inside(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """A process in ComfyUI's Python with this pack loaded; it calls the functions of ``checks``."""
    with Inside(comfyui, tmp_path_factory.mktemp("inside")) as inside:
        settings = inside.base / "user" / "uni_vigu.yaml"  # the tests' own folders lie outside of input and output
        settings.parent.mkdir(exist_ok=True)
        settings.write_text(f"folders:\n  - {json.dumps(str(tmp_path_factory.getbasetemp()))}\n", encoding="utf-8")
        yield inside


@pytest.fixture(scope="session")
def browser(server: Server) -> Iterator[Browser]:
    if missing_browser():
        pytest.skip(missing_browser())
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield Browser(chromium, server.url)
        chromium.close()


@pytest.fixture
def canvas(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Canvas]]:
    """Gives the page of ComfyUI, made fresh: ``canvas(modern=True)`` with Nodes 2.0. After a test that failed, whatever
    it left open, the next one opens a page of its own."""
    failed = request.session.testsfailed
    yield browser.canvas
    if request.session.testsfailed > failed:
        browser.forget()
