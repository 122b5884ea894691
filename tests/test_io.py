"""Small texts are read within bounds; files are written whole, nobody else's is written over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from uvg_core import io, locks
from uvg_core.errors import UniViGUError, printable
from uvg_core.io import (
    free_name,
    name_taken,
    read_text,
    require_writable,
    temporary_file,
    write_beside,
    write_new,
    write_text,
    written_whole,
)
from uvg_core.versions import require

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_texts_come_in_the_encodings_of_this_world(tmp_path: Path, encoding: str) -> None:
    words = "ein grüner Würfel, 5 € " if encoding != "latin-1" else "ein grüner Würfel"
    (tmp_path / "a.txt").write_bytes(words.encode(encoding))
    assert read_text(tmp_path / "a.txt") == words


def test_exact_texts_are_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes("ü".encode("latin-1"))
    with pytest.raises(UniViGUError, match=r"a\.json: is not UTF-8"):
        read_text(tmp_path / "a.json", exact=True)


def test_what_is_no_text_is_refused_by_name_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "large.txt").write_bytes(b"a" * (2**20 + 1))
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    for name, why in (("pipe", "not a regular file"), ("large", "larger than 1 MB"), ("binary", "not text")):
        with pytest.raises(UniViGUError, match=rf"{name}\.txt: is {why}"):
            read_text(tmp_path / f"{name}.txt")
    with pytest.raises(UniViGUError, match="not a regular file"):
        read_text("/dev/zero")
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none.txt")


def test_a_planted_link_leads_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".out.{os.getpid()}.part.txt").symlink_to(victim)
    write_text(tmp_path / "out.txt", "words")
    assert victim.read_text() == "precious"
    (tmp_path / "linked.txt").symlink_to(victim)
    for write in (write_text, require_writable):
        with pytest.raises(UniViGUError, match="is a link"):
            write(tmp_path / "linked.txt", *["words"] * (write is write_text))
    assert not write_new(tmp_path / "linked.txt", "words")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("length", [240, 255])
def test_long_names_are_written(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("a" * (length - 4) + ".txt")
    write_text(path, "words")
    assert path.read_text() == "words"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [("a" * 256, "name"), ("no/a.txt", "does not exist"), ("", "this is a folder"), ("nul\0.txt", "null byte")],
)
def test_where_nothing_can_be_written_that_is_said_before_work(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(UniViGUError, match=why):
        require_writable(tmp_path / name)


def test_no_other_error_hides_the_worded_one(tmp_path: Path) -> None:
    def write() -> None:
        with written_whole(tmp_path / "out.txt") as temporary:
            temporary.unlink()
            temporary.mkdir()  # cannot be unlinked
            raise OSError(28, "No space left on device")

    with pytest.raises(UniViGUError, match=r"out\.txt: could not be written .*No space left"):
        write()


def test_leftovers_of_the_dead_are_cleared_and_those_of_the_living_stay(tmp_path: Path) -> None:
    code = (
        "import sys, time; from uvg_core.io import written_whole\n"
        "with written_whole(sys.argv[1]) as path:\n    path.write_text('half'); print('on', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out.txt")]
    writers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "on\n"
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        assert len(list(tmp_path.glob(".uvg-*"))) == 2
        write_text(tmp_path / "other.txt", "words")
        assert len(list(tmp_path.glob(".uvg-*"))) == 1
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert sorted(path.name for path in tmp_path.glob("*.txt") if not path.name.startswith(".")) == ["other.txt"]


def test_a_file_that_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.txt"
    assert write_new(path, "first")
    assert not write_new(path, "second")
    assert write_beside(path, "second").name == "clip.2.txt"

    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert not write_new(path, "third")
    assert write_beside(path, "third").name == "clip.3.txt"
    assert [one.read_text() for one in sorted(tmp_path.iterdir())] == ["second", "third", "first"]


def test_permissions_are_those_of_any_other_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "words")
    (tmp_path / "b.txt").write_text("words")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_every_message_is_safe_to_print(tmp_path: Path) -> None:
    hostile = "caf\udce9 \x1b[31mred\u202egnp.exe\u2066 \x07 plain ünïcödé 動画\n\ttab"
    shown = printable(hostile)
    assert shown == "caf\\udce9 \\x1b[31mred\\u202egnp.exe\\u2066 \\x07 plain ünïcödé 動画\n\ttab"
    assert str(UniViGUError(hostile)) == shown
    assert len(str(UniViGUError("x" * 100_000 + "\n" + "y" * 100_000))) < 5000
    write_text(tmp_path / "a.txt", "caf\udce9")
    assert (tmp_path / "a.txt").read_text() == "caf\\udce9"


def test_packages_that_are_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uvg_core.versions.version", lambda package: {"old": "0.2.1", "new": "2.13.0+cpu"}[package])
    require.cache_clear()
    require("new", (2, 10), "run code")
    with pytest.raises(UniViGUError, match=r"old 0\.2\.1 is installed, 0\.2\.3 or newer is needed: older ones crash"):
        require("old", (0, 2, 3), "crash")
    require.cache_clear()


class Windows:
    """What the pack meets there: no fcntl, files that are open cannot be replaced, names that devices have."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.locked: set[tuple[int, int]] = set()
        for module in (io, locks):
            monkeypatch.setattr(module, "fcntl", None)
        monkeypatch.setattr(locks, "msvcrt", self, raising=False)
        monkeypatch.setattr(io, "WINDOWS", True)

    def locking(self, handle: int, mode: int, _: int) -> None:
        place = os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR)
        if mode == self.LK_UNLCK:
            self.locked.discard(place)
        elif place in self.locked:
            raise OSError(36, "Resource deadlock avoided")
        else:
            self.locked.add(place)


def test_files_and_claims_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Windows(monkeypatch)
    write_text(tmp_path / "a.txt", "words")
    assert (tmp_path / "a.txt").read_text() == "words"
    for name in ("con.txt", "LPT1", "nul", "dot.", "space "):
        with pytest.raises(UniViGUError, match="Windows does not allow this name"):
            write_text(tmp_path / name, "words")
    fresh, old = tmp_path / ".uvg-fresh123.part.txt", tmp_path / "sub" / ".uvg-old45678.part.txt"
    old.parent.mkdir()
    for path in (fresh, old):
        path.write_text("half")
    os.utime(old, (0, 0))
    write_text(old.with_name("b.txt"), "words")
    assert fresh.exists()
    assert not old.exists()
    first, second = locks.Claims(tmp_path), locks.Claims(tmp_path)
    with (
        first,
        second,
        first.claimed(str(tmp_path / "a.txt")) as ours,
        second.claimed(str(tmp_path / "a.txt")) as theirs,
    ):
        assert (ours, theirs) == (True, False)
    with second, second.claimed(str(tmp_path / "a.txt")) as theirs:
        assert theirs


def test_a_file_that_another_program_holds_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(source: object, target: object) -> None:
        raise PermissionError(13, "Access is denied", str(source), 5, str(target))

    monkeypatch.setattr(os, "replace", held)
    with pytest.raises(UniViGUError, match=r"a\.txt: could not be written \(Access is denied\)"):
        write_text(tmp_path / "a.txt", "words")
    assert list(tmp_path.iterdir()) == []


def test_a_console_that_lacks_letters_ends_nothing(tmp_path: Path) -> None:
    """cp1252, as on Windows, and names and prompts that are no UTF-8."""
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    clip = os.fsencode(tmp_path) + b"/caf\xe9 \x1b[31m \xe2\x80\xae.mp4"
    command = [sys.executable, "-m", "uvg_core", "caption", clip]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert b"caf\\udce9 \\x1b[31m \\u202e.mp4" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr


def test_a_free_name_is_one_where_nothing_lies(tmp_path: Path) -> None:
    first = tmp_path / "clip.mp4"
    assert free_name(first) == first
    first.write_bytes(b"")
    (tmp_path / "clip.2.mp4").symlink_to("nowhere")
    assert free_name(first) == tmp_path / "clip.3.mp4"


def test_a_taken_name_is_nobody_elses_and_given_back_unless_written(tmp_path: Path) -> None:
    first = tmp_path / "clip.mp4"
    with name_taken(first) as mine, name_taken(first) as other:
        assert (mine, other) == (first, tmp_path / "clip.2.mp4")
        write_text(other, "written")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.2.mp4"]
    with pytest.raises(UniViGUError, match="does not exist"), name_taken(tmp_path / "gone" / "clip.mp4"):
        pass


def test_utf16_that_does_not_say_so_is_refused_and_not_read_with_null_bytes(tmp_path: Path) -> None:
    text = tmp_path / "clip.txt"
    text.write_bytes("a red circle".encode("utf-16-le"))
    with pytest.raises(UniViGUError, match="null byte"):
        read_text(text)


def test_a_temporary_file_is_called_what_users_know_it_as() -> None:
    with temporary_file("clip.mp4", "clip 3 of the shard") as path:
        path.write_bytes(b"")
        assert str(UniViGUError(f"{path}: is empty")) == "clip 3 of the shard: is empty"
    assert not path.parent.exists()
    with pytest.raises(FileNotFoundError) as raised, temporary_file("clip.mp4", "a clip") as path:
        path.read_bytes()
    assert raised.value.filename == "a clip"
