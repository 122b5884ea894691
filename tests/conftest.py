"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_networks import random_network

from uvg_core import UniViGU

# What takes longest, side by side, longest first: a group that starts late keeps one process busy and the other idle.
LONGEST = ("server", "inside", "test_trainer.py", "test_embedded_model.py", "test_on_a_gpu.py", "test_run.py")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # by the number of tests, which says nothing of their time
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)  # before xdist puts the groups into the tests' names: later ones count for nothing
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side (``-n 2 --dist loadgroup``) a file stays whole, and so does all that shares one ComfyUI: its server,
    or the process that calls its nodes."""
    places: dict[pytest.Item, int] = {}
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = str(item.path)
            if "in_comfyui" in item.path.parts:
                group = "server" if "server" in getattr(item, "fixturenames", ()) else "inside"
            item.add_marker(pytest.mark.xdist_group(group))
            name = Path(group).name
            places[item] = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: places[item])


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
