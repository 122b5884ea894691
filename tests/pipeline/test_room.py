"""Sizes that no memory of the machine holds: refused before anything is read, encoded or allocated."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_networks import TINY

from recipes.worlds.source import open_source
from uvg_core.config import CheckpointConfig, RunConfig
from uvg_core.errors import UniViGUError
from uvg_core.model import memory
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import Size
from uvg_core.training.config import TrainConfig
from uvg_core.training.run import require_memory


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """On a machine of 1 GB; without components: none may be asked for."""
    (tmp_path / "meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 10 kB\n")
    monkeypatch.setattr(memory, "MEMORY_OF_LINUX", tmp_path / "meminfo")
    made = Pipeline.__new__(Pipeline)
    made.config, made.components = CheckpointConfig(model=TINY), SimpleNamespace(device=torch.device("cpu"))  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(("frames", "side"), [(99_997, 8192), (99_997, 64)])
def test_sizes_beyond_memory_are_refused_before_work(pipeline: Pipeline, frames: int, side: int) -> None:
    size = Size(frames=frames, height=side, width=side)
    jobs: list[Any] = [
        lambda: pipeline.noise(size),
        lambda: pipeline.generate("words", size=size),
        lambda: pipeline.joint("words", size=size),
        lambda: pipeline.latent_of("nowhere.mp4", size),
    ]
    tracemalloc.start()
    for job in jobs:
        with pytest.raises(
            UniViGUError, match=rf"a clip of {frames} frames of {side}x{side} takes at least .* 1\.0 GB"
        ):
            job()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_what_fits_is_not_refused(pipeline: Pipeline) -> None:
    assert pipeline.noise(Size(frames=5, height=64, width=64)).shape == (1, 16, 2, 8, 8)


def test_a_system_that_says_nothing_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY_OF_LINUX", Path("nowhere"))
    memory.require_room(1e30, torch.device("cpu"), "anything")


@pytest.mark.parametrize(
    ("batch", "accumulate", "what"), [(10**9, 1, "a step of"), (1, 10**9, "a step of"), (100, 1, "a batch of")]
)
def test_batches_beyond_memory_are_refused_before_work(
    pipeline: Pipeline, batch: int, accumulate: int, what: str
) -> None:
    config = TrainConfig(stage="generate", steps=1, model="m", data="d", out="o", batch=batch, accumulate=accumulate)
    with pytest.raises(UniViGUError, match=f"{what} .* takes at least"):
        require_memory(config, pipeline.config, torch.device("cpu"))
    require_memory(replace(config, batch=1, accumulate=1), pipeline.config, torch.device("cpu"))


@pytest.mark.parametrize("count", ["9" * 9, "9" * 5000])
def test_more_worlds_than_memory_lists(pipeline: Pipeline, count: str) -> None:
    run = RunConfig(height=32, width=32, frames=17, fps=8)
    config = TrainConfig(stage="generate", steps=1, model="m", data=f"worlds:{count}", out="o")
    with pytest.raises(UniViGUError, match="little worlds takes at least"):
        open_source(count, config, run)
    assert len(open_source("1000", config, run) or ()) == 1000
