"""Caches are found, counted, bounded and cleared, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import make_shards

from uvg_core.cli.main import main
from uvg_core.data.caches import find_caches, keep_newest
from uvg_core.errors import UniViGUError
from uvg_core.locks import LOCK, Claims, owned


def test_the_command_lists_and_clears_caches_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_shards(tmp_path / "run" / "cache")
    answers = tmp_path / "set" / ".answers"
    answers.mkdir(parents=True)
    others = [answers / "note.json", tmp_path / "run" / "cache" / "mine.safetensors", tmp_path / "set" / "clip.mp4"]
    for path in (*others, answers / f"{'0' * 64}.json"):
        path.write_text("{}")
    assert main(["cache", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"{tmp_path / 'run' / 'cache'}: 12 clips encoded for training",
        f"{answers}: 1 answer of a language model",
    ]
    assert main(["cache", str(tmp_path), "--clear", "--dry-run"]) == 0
    assert main(["cache", str(tmp_path), "--clear"]) == 0
    assert all(line.endswith("deleted") for line in capsys.readouterr().out.splitlines())
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != LOCK]
    assert sorted(left) == sorted(others)
    assert main(["cache", str(tmp_path)]) == 0
    assert "no cache found" in capsys.readouterr().err
    assert main(["cache", str(tmp_path / "nowhere")]) == 1


def test_a_cache_that_is_being_built_is_not_cleared(tmp_path: Path) -> None:
    make_shards(tmp_path)
    with owned(tmp_path, "a build"), pytest.raises(UniViGUError, match="a build is already using this folder"):
        find_caches(tmp_path)[0].clear()
    assert find_caches(tmp_path)


def test_a_cache_that_a_training_reads_is_not_cleared(tmp_path: Path) -> None:
    make_shards(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from uvg_core.locks import Claims\n"
        "with Claims(Path(sys.argv[1])) as cache, cache.claimed(sys.argv[1] + '/a reader'):\n"
        "    print('on', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "on\n"
        with Claims(tmp_path) as cache:
            assert not cache.alone()
        with pytest.raises(UniViGUError, match="a training run is using this cache"):
            find_caches(tmp_path)[0].clear()
    finally:
        reader.kill()
        reader.wait()
    find_caches(tmp_path)[0].clear()
    assert not find_caches(tmp_path)


def test_folders_of_others_are_no_caches(tmp_path: Path) -> None:
    for name, text in (("uvg-shard-00000.safetensors", "mine"), ("index.json", '{"mine": 1}'), ("contents.json", "{}")):
        (tmp_path / name).write_text(text)
    assert find_caches(tmp_path) == []


def test_the_oldest_answers_go_when_there_are_too_many(tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / f"{number:064x}.json"
        path.write_text("{}")
        os.utime(path, (number, number))
    (tmp_path / "other.txt").write_text("mine")
    keep_newest(tmp_path, 2)
    assert sorted(path.name[-6] for path in tmp_path.glob("*.json")) == ["4", "5"]
    assert (tmp_path / "other.txt").exists()
