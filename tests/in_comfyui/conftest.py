"""Fixtures with a real ComfyUI. Each is started by the first test that asks for it; without ComfyUI all are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from in_comfyui_host import ComfyUI, Inside, NoComfyUI, Server, find_comfyui, load_client


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


@pytest.fixture(scope="session")
def inside(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """A process in ComfyUI's Python with this pack loaded; it calls the functions of ``checks``."""
    with Inside(comfyui, tmp_path_factory.mktemp("inside")) as inside:
        yield inside
