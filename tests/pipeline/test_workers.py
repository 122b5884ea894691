"""Folders that the workers of Ray caption: dying ones, bad clips, clusters that are not there."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_captioners import Deadly

from uvg_core.errors import UniViGUError
from uvg_core.pipeline.folders import Captions, FolderReport, caption_folder
from uvg_core.pipeline.workers import Engine, RayWorkers


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayWorkers]:
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray>=2.40'")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where the workers find ``Deadly``
    with RayWorkers(Engine(engine="ray", workers=2), Deadly.worker, quiet=True) as workers:
        yield workers


def unused_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_without_ray_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UniViGUError, match="pip install"):
        RayWorkers(Engine(engine="ray"), Deadly.worker)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:PORT", "no answer .*refused"),
        ("ray://127.0.0.1:PORT", "no answer"),
        ("127.0.0.1:x", "expected HOST"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(address: str, words: str) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray>=2.40'")
    address = address.replace("PORT", str(unused_port()))
    with pytest.raises(UniViGUError, match=words):
        RayWorkers(Engine(engine="ray", address=address), Deadly.worker)


@pytest.mark.slow
def test_folders_are_captioned_whatever_workers_die_of(
    workers: RayWorkers, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for number in range(20):
        (folder / f"n{number:02}.mp4").touch()
    (folder / "once.mp4").touch()  # a worker dies with it, the next one does not
    (folder / "deadly.mp4").touch()
    (folder / "bad.mp4").touch()
    (folder / "n00.txt").write_text("by hand")
    other = tmp_path_factory.mktemp("other")
    shutil.copy(folder / "a.mp4", other / "alone.mp4")
    told: list[int] = []
    report = caption_folder(
        folder, workers, Captions(prefix="it is "), on_clip=lambda index, total, _, __: told.append(index)
    )
    assert told == list(range(26))
    assert dict(report.failed) == {
        folder / "bad.mp4": f"{folder / 'bad.mp4'}: no video",
        folder / "deadly.mp4": "3 workers died while they worked on it; it was left out",
    }
    texts = {path.stem: path.read_text("utf-8") for path in folder.rglob("*.txt")}
    assert texts.pop("n00") == "by hand"
    assert texts == {name: f"it is {name}" for name in ("a", "b", "c", "once", *(f"n{i:02}" for i in range(1, 20)))}
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".uvg")]
    table = caption_folder(other, workers, Captions(format="jsonl"))  # the model stays with the workers
    assert json.loads((other / "metadata.jsonl").read_text())["caption"] == "alone"
    assert table == FolderReport((other / "metadata.jsonl",), (), ())
