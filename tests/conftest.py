"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
import torch
from tiny_networks import random_network

from uvg_core import UniViGU

# What takes longest, side by side, longest first: a group that starts late keeps one process busy and the other idle.
LONGEST = ("server", "inside", "test_trainer.py", "test_embedded_model.py", "test_on_a_gpu.py", "test_run.py")
# The files of in_comfyui whose tests share a running server; the others share the process that calls the nodes.
ON_A_SERVER = (
    "test_browser.py", "test_harness.py", "test_prompt_list.py", "test_record.py", "test_review_panel.py",
    "test_workflows.py",
)  # fmt: skip


def group_of(test: str) -> str:
    """What stays in one process with a test: its file, or all that shares one ComfyUI."""
    path = PurePosixPath(test.partition("::")[0])
    if path.parent.name == "in_comfyui":
        return "server" if path.name in ON_A_SERVER else "inside"
    return str(path)


def place_of(item: pytest.Item) -> int:
    name = PurePosixPath(group_of(item.nodeid)).name
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=place_of)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The groups of ``-n 2 --dist loadgroup``. xdist 3.8 writes its own marks where pytest 9.2 no longer reads them, so
    that each test went to whichever process was free, and everything that tests share was started twice."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    if config.option.dist != "loadgroup":
        return None
    config.option.loadscopereorder = False  # which is by the number of tests
    return Groups(config, log)


@pytest.fixture(scope="session")
def network() -> UniViGU:
    return random_network()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """A batch of two for the tiny network."""
    g = torch.Generator().manual_seed(1)
    return {
        "video": torch.randn(2, 16, 2, 4, 6, generator=g),
        "text": torch.randint(31, (2, 5), generator=g),
        "time_video": torch.tensor([300.0, 800.0]),
        "time_text": torch.tensor([0.0, 512.0]),
        "context": torch.randn(2, 7, 20, generator=g),
    }
