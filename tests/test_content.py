"""The fingerprint of a file goes by what it holds, and is cheap the second time."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from uvg_core import content
from uvg_core.content import content_of
from uvg_core.errors import UniViGUError


def aged(path: Path, seconds: int = 60) -> Path:
    """Its time of change, which nobody can set, is passed over by the tests that need it."""
    past = time.time_ns() - seconds * 10**9
    os.utime(path, ns=(past, past))
    return path


def test_neither_place_nor_name_nor_time_counts(tmp_path: Path) -> None:
    first = tmp_path / "a.mp4"
    first.write_bytes(os.urandom(3_000_000))
    found = content_of(first)
    (tmp_path / "elsewhere").mkdir()
    copied = shutil.copyfile(first, tmp_path / "elsewhere/b.mp4")
    os.utime(first)
    assert content_of(first) == content_of(aged(copied)) == found
    assert len(found) == 48
    assert int(found[:16], 16) == 3_000_000


def test_a_changed_byte_is_noticed_even_under_the_same_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(2_000_001))
    before, facts = content_of(path), path.stat()
    with path.open("rb+") as file:
        file.seek(1_234_567)
        file.write(b"\1")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert content_of(path) != before


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(content, "_SETTLED", 0)
    reads: list[int] = []
    hashed = content._hashed
    monkeypatch.setattr(content, "_hashed", lambda handle: (reads.append(1), hashed(handle))[1])
    assert content_of(path) == content_of(path)
    assert len(reads) == 1
    path.write_bytes(b"new")
    assert content_of(path) == content_of(path)
    assert len(reads) == 2


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    """Another change within the same tick of the file system's clock would bear the same time."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    content_of(path)
    assert content._key(path.stat()) not in content._known


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_SETTLED", 0)
    monkeypatch.setattr(content, "_MOST", 5)
    monkeypatch.setattr(content, "_known", {})
    for number in range(20):
        (tmp_path / str(number)).write_bytes(b"a")
        content_of(tmp_path / str(number))
    assert len(content._known) <= 5


def test_ten_thousand_known_files_take_less_than_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_SETTLED", 0)
    paths = [tmp_path / f"{number}.txt" for number in range(10_000)]
    for path in paths:
        path.write_bytes(path.name.encode())
    first = [content_of(path) for path in paths]
    start = time.process_time()
    assert [content_of(path) for path in paths] == first
    assert len(set(first)) == 10_000
    assert time.process_time() - start < 1


def test_only_regular_files_have_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null"), Path("a\0b")):
        with pytest.raises(UniViGUError):
            content_of(path)
    with pytest.raises(FileNotFoundError):
        content_of(tmp_path / "none")
