"""One process at a time in a folder, one process at a file; every claim dies with its owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from uvg_core import locks
from uvg_core.errors import UniViGUError
from uvg_core.locks import Claims, owned

ROOT = Path(__file__).resolve().parents[1]
OWNS = """
import sys, time
from pathlib import Path
from uvg_core.locks import Claims, owned
folder = Path(sys.argv[1])
with owned(folder, "a training"), Claims(folder) as claims, claims.claimed(str(folder / "clip.txt")):
    print("mine", flush=True)
    time.sleep(60)
"""


def other(folder: Path) -> subprocess.Popen[str]:
    """Another process that owns the folder and has claimed ``clip.txt``."""
    made = subprocess.Popen([sys.executable, "-c", OWNS, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stdout.readline() == "mine\n"
    return made


def take(folder: Path) -> None:
    with owned(folder, "another"):
        pass


def test_a_folder_has_one_owner_until_it_dies(tmp_path: Path) -> None:
    owner = other(tmp_path)
    try:
        with pytest.raises(UniViGUError, match=rf"a training is already using this folder \(process {owner.pid} on "):
            take(tmp_path)
        with Claims(tmp_path) as claims:
            with claims.claimed(str(tmp_path / "clip.txt")) as is_ours:
                assert not is_ours
            with claims.claimed(str(tmp_path / "clip2.txt")) as is_ours:
                assert is_ours
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    take(tmp_path)
    with Claims(tmp_path) as claims, claims.claimed(str(tmp_path / "clip.txt")) as is_ours:
        assert is_ours
    assert {path.name for path in tmp_path.iterdir()} <= {locks.LOCK}


@pytest.mark.parametrize("age", [1.0, 2 * locks.STALE])
def test_an_owner_on_another_machine_counts_while_its_heart_beats(tmp_path: Path, age: float) -> None:
    record = tmp_path / locks.OWNER
    record.write_text(json.dumps({"what": "a training", "host": "far away", "pid": os.getpid(), "since": "today"}))
    os.utime(record, (time.time() - age,) * 2)
    if age < locks.STALE:
        with pytest.raises(UniViGUError, match=r"a training is already using .* on far away, since today"):
            take(tmp_path)
        assert json.loads(record.read_text())["host"] == "far away"
    else:
        with owned(tmp_path, "another"):
            assert json.loads(record.read_text())["what"] == "another"
        assert not record.exists()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with owned(tmp_path, "another"):
        record = tmp_path / locks.OWNER
        os.utime(record, (0, 0))
        for _ in range(500):
            if record.stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert record.stat().st_mtime > 0


@pytest.mark.parametrize("text", ["", "[]", "{", '{"host": 3}', "\0"])
def test_a_record_that_says_nothing_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / locks.OWNER).write_text(text)
    os.utime(tmp_path / locks.OWNER, (time.time() - 2 * locks.STALE,) * 2)
    take(tmp_path)


def test_whoever_appends_to_a_file_is_alone_with_it_also_where_it_is_replaced(tmp_path: Path) -> None:
    path, seen = tmp_path / "table", list[int]()

    def append_ten() -> None:
        for _ in range(10):
            with locks.appending(path) as handle:
                lines = int(os.pread(handle, 99, 0) or b"0")
                other_file = tmp_path / f"new{threading.get_ident()}"
                other_file.write_text(str(lines + 1))
                os.replace(other_file, path)
                seen.append(lines)

    threads = [threading.Thread(target=append_ten) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(40))
    assert path.read_text() == "40"


def test_nothing_is_appended_to_through_a_link_nor_to_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("link", "it is a link"), ("pipe", "not a regular file"), ("none/table", "No such file")):
        with (
            pytest.raises(UniViGUError, match=rf"{name}: cannot be appended to \({why}"),
            locks.appending(tmp_path / name),
        ):
            pass
    assert not (tmp_path / "elsewhere").exists()
