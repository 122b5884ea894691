"""The state of a run: safetensors and JSON, nothing that could run code; runs of earlier versions go on."""

from __future__ import annotations

import contextlib
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")

from tiny_runs import WAYS, Stop, curve, make_config, make_shards, make_start, make_trainer, same

from uvg_core.errors import UniViGUError
from uvg_core.training import checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_start(tmp_path)
    return tmp_path


class Payload:
    """Pickled, it makes a file when it is opened by whoever runs what pickles say."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


OLD_FILES = ("optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl", "scaler.pt", "scheduler.bin")


@pytest.mark.parametrize("form", ["new", "old"])
def test_nothing_in_a_run_folder_can_run(folder: Path, form: str) -> None:
    """A payload in the place of every file of a checkpoint, one after the other: as torch.save writes it, and bare."""
    data, config, trace = make_shards(folder / "cache"), make_config(folder), folder / "it ran"
    make_trainer(config, data, watch=Stop(4)).run()
    last = checkpoints.newest(folder / "run")
    assert last is not None
    if form == "old":
        as_accelerate_wrote_it(config, data, last)
    files = [path.name for path in last.iterdir()] + list(OLD_FILES)
    for name in dict.fromkeys(files):
        before = (last / name).read_bytes() if (last / name).exists() else None
        for bare in (False, True):
            if bare:
                (last / name).write_bytes(pickle.dumps(Payload(trace)))
            else:
                torch.save(Payload(trace), last / name)
            with contextlib.suppress(UniViGUError):
                make_trainer(config, data, watch=Stop(5)).run(resume=True)
            assert not trace.exists(), name
            for later in checkpoints.finished(folder / "run"):
                if later.name != last.name:
                    shutil.rmtree(later)
        if before is None:
            (last / name).unlink()
        else:
            (last / name).write_bytes(before)
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists(), "the payload does nothing"


def as_accelerate_wrote_it(config: Any, data: Any, checkpoint: Path) -> None:
    """Turn a checkpoint into one of version 0.1.1: the same numbers in pickles."""
    trainer = make_trainer(config, data)
    checkpoints.load(checkpoint, trainer.state)
    for file in checkpoint.iterdir():
        if file.name != checkpoints.FACTS:
            file.unlink()
    trainer.accelerator.register_for_checkpointing(trainer.average)
    trainer.accelerator.save_state(str(checkpoint))
    assert {"model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl"} <= {p.name for p in checkpoint.iterdir()}


@pytest.mark.parametrize("way", ["as usual", "muon in bf16", "a LoRA that drops out"])
def test_runs_of_earlier_versions_go_on(folder: Path, way: str) -> None:
    if "LoRA" in way:
        pytest.importorskip("peft")
    data = make_shards(folder / "cache")
    whole = make_config(folder, out=str(folder / "whole"), **WAYS[way])
    make_trainer(whole, data).run()
    config = make_config(folder, **WAYS[way])
    make_trainer(config, data, watch=Stop(3)).run()
    last = checkpoints.newest(folder / "run")
    assert last is not None
    as_accelerate_wrote_it(config, data, last)
    assert make_trainer(config, data).run(resume=True).finished
    assert same(curve(folder / "whole"), curve(folder / "run"))


def test_pickles_are_opened_nowhere_but_in_the_inert_reader() -> None:
    """No module of the pack unpickles, and none lets a library do it without bounds."""
    forbidden = re.compile(
        r"^\s*(import|from) (pickle|dill|shelve|marshal|joblib|cloudpickle)\b|weights_only\s*=\s*False|"
        r"register_for_checkpointing|\.load_state\(|allow_pickle|unsafe_load|torch\.load\(|(?<!\.)\beval\(|\bexec\(",
        re.MULTILINE,
    )
    root = Path(__file__).resolve().parents[2]
    for room in ("uvg_core", "nodes", "recipes", "clients"):
        for path in (root / room).rglob("*.py"):
            found = forbidden.search(path.read_text("utf-8"))
            assert found is None, f"{path}: {found and found[0]}"


def test_a_run_unpickles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, config = make_shards(folder / "cache"), make_config(folder)
    make_trainer(config, data, watch=Stop(3)).run()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    for place in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, place, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert make_trainer(config, data).run(resume=True).finished


def test_a_file_that_no_run_wrote_is_not_overwritten(folder: Path) -> None:
    data, config = make_shards(folder / "cache"), make_config(folder)
    (folder / "run").mkdir()
    (folder / "run" / "model.safetensors").write_text("mine")
    with pytest.raises(UniViGUError, match=r"model\.safetensors: already exists"):
        make_trainer(config, data).run()
    assert (folder / "run" / "model.safetensors").read_text() == "mine"
