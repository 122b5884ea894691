"""What a kill, a full disk or a bad file costs: the thing at hand, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from uvg_core.cli.main import main
from uvg_core.media.video import probe
from uvg_core.pipeline.pipeline import EMBEDDED_MODEL

ROOT = Path(__file__).resolve().parents[1]
TESTS = Path(__file__).resolve().parent
CLIPS, BAD = 500, 25

CAPTIONS = """
import sys, time
from pathlib import Path
from uvg_core.errors import UniViGUError
from uvg_core.pipeline.folders import caption_folder
def caption(path):
    time.sleep(0.002)
    if int(path.stem) % 20 == 7:
        raise UniViGUError(f"{path}: damaged")
    with open(sys.argv[2], "a") as log:
        log.write(path.stem + "\\n")
    return f"this is clip {path.stem}"
print("on", flush=True)
report = caption_folder(sys.argv[1], caption)
print(len(report.written), len(report.skipped), len(report.failed), flush=True)
"""

TRAINING = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tiny_runs import make_config, make_trainer
from uvg_core.data.shards import Shards
folder = Path({folder!r})
config = make_config(folder, steps=60, keep={{"checkpoint_every": 1, "log_every": 1, "checkpoints": 2}})
print("on", flush=True)
result = make_trainer(config, Shards(folder / "cache", in_memory=True)).run(resume=True)
print("finished", result.finished, flush=True)
"""


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    assert run.stdout is not None
    if run.stdout.readline() != "on\n":
        raise AssertionError(run.communicate()[1])
    return run


def test_a_folder_with_bad_clips_that_is_killed_twice_has_every_caption_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "clips", tmp_path / "log"
    folder.mkdir()
    for number in range(CLIPS):
        (folder / f"{number:03}.mp4").touch()
    for _ in range(2):
        run = started(CAPTIONS, folder, log)
        time.sleep(0.4)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    run = started(CAPTIONS, folder, log)
    written, skipped, failed = map(int, run.communicate()[0].split())
    assert (written + skipped, failed) == (CLIPS - BAD, BAD)
    texts = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    assert texts == {f"{n:03}": f"this is clip {n:03}" for n in range(CLIPS) if n % 20 != 7}
    assert len(log.read_text().split()) <= CLIPS - BAD + 2  # a kill costs the clip at hand
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".uvg")]


@pytest.mark.slow
def test_a_training_that_is_killed_fifty_times_ends_with_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from tiny_runs import make_shards, make_start

    from uvg_core.checkpoint.read import open_weights

    choose = random.Random(0)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        make_start(tmp_path / name)
        make_shards(tmp_path / name / "cache")
    assert (
        "finished True" in started(TRAINING.format(tests=str(TESTS), folder=str(tmp_path / "whole"))).communicate()[0]
    )
    code = TRAINING.format(tests=str(TESTS), folder=str(tmp_path / "killed"))
    kills = 0
    while kills < 50:
        run = started(code)
        time.sleep(choose.uniform(0.0, 1.2))
        run.send_signal(signal.SIGKILL)
        out, _ = run.communicate()
        kills += 1
        if "finished" in out:  # begin again: only some of the kills come late
            (tmp_path / "killed" / "run").rename(tmp_path / "killed" / f"run{kills}")
    out, error = started(code).communicate()
    assert "finished True" in out, error
    ours, theirs = (open_weights(tmp_path / name / "run" / "model.safetensors") for name in ("killed", "whole"))
    for name in theirs.tensors:
        assert ours.read(name).equal(theirs.read(name)), name
    assert not list((tmp_path / "killed").rglob("*.part*"))


# A disk of 3 MB


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 3 MB, of which 8 kB are left."""
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root on Linux can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)  # TensorBoard keeps a file open


def filled(disk: Path, left: int) -> None:
    """Fill the disk but for ``left`` bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - left))


def command_lines(disk: Path, clip: Path, rest: Path) -> dict[str, list[str]]:
    """Every command that writes, as short as it goes, onto the disk."""
    few = ["--steps", "1"]
    train = {
        "stage": "recall", "model": str(EMBEDDED_MODEL), "data": "worlds:2", "out": str(disk / "run"), "steps": 1,
        "batch": 1, "device": "cpu",
    }  # fmt: skip
    (rest / "train.yaml").write_text(yaml.safe_dump(train))
    (rest / "cached.yaml").write_text(yaml.safe_dump({**train, "cache": str(rest / "cache")}))
    (rest / "prompts.txt").write_text("a red circle\n")
    return {
        "generate": ["generate", "a red circle", "-o", str(disk / "g.mp4"), *few],
        "joint": ["joint", "a red circle", "-o", str(disk / "j.mp4"), "--sheet", str(disk / "j.png"), *few],
        "caption": ["caption", str(clip.parent), *few],
        "convert": ["convert", str(EMBEDDED_MODEL), str(disk / "c.safetensors")],
        "synthesise": ["synthesise", str(rest / "prompts.txt"), "--out", str(disk / "s"), *few],
        "train": ["train", str(rest / "train.yaml")],
        "train with its cache elsewhere": ["train", str(rest / "cached.yaml")],
    }


NAMES = ("generate", "joint", "caption", "convert", "synthesise", "train", "train with its cache elsewhere")


@pytest.mark.parametrize("left", [0, pytest.param(40_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_leaves_nothing_half_written(
    name: str, left: int, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    if "train" in name:
        pytest.importorskip("accelerate")
    for path in small_disk.iterdir():
        subprocess.run(["rm", "-rf", str(path)], check=True)
    clip = small_disk / "clips" / "clip.mp4"
    clip.parent.mkdir()
    clip.write_bytes(next((ROOT / "samples").rglob("*.mp4")).read_bytes())
    before = clip.read_bytes()
    filled(small_disk, left)
    code = main(command_lines(small_disk, clip, tmp_path)[name])
    shown = capsys.readouterr()
    files = [path for path in small_disk.rglob("*") if path.is_file() and path.name not in ("filler", "clip.mp4")]
    assert clip.read_bytes() == before
    assert "Traceback" not in shown.err
    assert not [path for path in files if ".part" in path.name]
    for path in files:
        if path.suffix == ".mp4":
            assert probe(path).frames
        assert path.stat().st_size or path.name.startswith(".uvg") or path.suffix == ".jsonl", path
    if code:
        told = shown.err + shown.out
        assert code == 1
        assert "No space left on device" in told or "could not be written" in told or "cannot be" in told, told
    else:
        assert left, "there was no room for anything"
