"""What strangers name stays inside the folders that are open, in every spelling, on Windows too."""

from __future__ import annotations

import ntpath
import os
import shutil
from pathlib import Path

import pytest

from uvg_core.checkpoint.config import read_config
from uvg_core.confined import confined_to, is_open, place_of
from uvg_core.content import content_of
from uvg_core.data.folder import TextLimits, survey
from uvg_core.errors import UniViGUError
from uvg_core.io import read_text
from uvg_core.media.video import find_clips, probe
from uvg_core.pipeline.folders import caption_folder

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "uvg_sample.mp4"
WINDOWS = (
    r"C:\secret", r"c:\secret", "C:/secret", "D:", r"D:\x", r"\secret", r"\\host\share", "//host/share",
    r"\\?\C:\secret", r"\\.\C:\secret", r"\\.\pipe\x", r"\\?\UNC\host\share", r"..\..\secret", "../../secret",
    r"a\..\..\..\secret", r"a/../../../secret", r"C:\Comfy\input\..\..\secret", r"C:\Comfy\inputs",
    r"C:\Comfy\input2\x",
    "con", "NUL", "nul.txt", r"clips\aux", "com1", "COM1.mp4", "lpt9:", "a:b", "clips::$DATA",
    "clips.", "clips ", r"clips\... ", r".. \secret", r"...\secret", r"clips\.. \x",
    "clips\0", "clips\n", "\x1b[31m", "file:///C:/secret", "http://host/x", r"CONOUT$", "com¹",
)  # fmt: skip


@pytest.mark.parametrize("text", WINDOWS)
def test_on_windows_no_spelling_leads_out(text: str) -> None:
    assert place_of(text, r"C:\Comfy\input", [r"C:\Comfy\input", r"C:\Comfy\output"], ntpath) is None


@pytest.mark.parametrize(
    "text", ["clips", r"clips\day one", "CLIPS/x", r"C:\Comfy\INPUT\clips", r"..\output\x", ".", ""]
)
def test_on_windows_what_is_inside_is_found(text: str) -> None:
    found = place_of(text, r"C:\Comfy\input", [r"C:\Comfy\input", r"C:\Comfy\output"], ntpath)
    assert found is not None
    assert str(found).lower().startswith(r"c:\comfy")


OUTSIDE = (
    "/", "/etc", "//etc", "///etc", "/etc/./", "..", "../", "../..", "../secret", "./../secret", "clips/../../secret",
    "clips//..//..//secret", "../input2", "../input2/x", "link", "link/deeper", "chain", "dangling", "clips/out",
    "loop", "clips\0", "\0", "clips\n/../..", "/proc/self/cwd", "/dev/fd/0",
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """``input`` and ``secret`` beside each other, with every kind of link."""
    home = tmp_path / "input"
    for folder in ("input/clips", "input2/x", "secret/deeper"):
        (tmp_path / folder).mkdir(parents=True)
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "chain").symlink_to(home / "link")
    (home / "clips" / "out").symlink_to("../../secret")
    (home / "dangling").symlink_to(tmp_path / "nothing")
    (home / "loop").symlink_to(home / "loop")
    (home / "fine").symlink_to(home / "clips")
    return home


@pytest.mark.parametrize("text", OUTSIDE)
def test_no_spelling_leads_out(home: Path, text: str) -> None:
    assert place_of(text, home, [home]) in (None, home / "loop")


def test_what_is_inside_is_found_also_through_links_and_in_whole(home: Path) -> None:
    clips = Path(os.path.realpath(home / "clips"))
    for text in ("clips", "fine", "./clips/", "clips/../clips", str(home / "clips"), str(clips)):
        assert place_of(text, home, [home]) == clips
    assert place_of("~", home, [home]) == home / "~"
    assert place_of("../secret", home, [home, home.parent / "secret"]) == home.parent / "secret"


def test_a_spelling_that_leads_out_is_looked_for_nowhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **more: (seen.append(str(path)), lstat(path, **more))[1])
    secret = str(home.parent / "secret")
    for text in (secret, "../secret", f"{secret}/deeper", "/etc/passwd"):
        assert place_of(text, home, [home]) is None
    assert [path for path in seen if "secret" in path or "etc" in path] == []


def test_nothing_that_links_out_is_listed_read_or_told(home: Path) -> None:
    """Not even whether there is something."""
    clips, secret = home / "clips", home.parent / "secret"
    for name in ("mine", "theirs"):
        shutil.copy(SAMPLE, clips / f"{name}.mp4")
    shutil.copy(SAMPLE, secret / "a.mp4")
    (secret / "a.txt").write_text("the secret")
    (clips / "theirs.txt").symlink_to(secret / "a.txt")
    (clips / "mine.detail.txt").symlink_to(secret / "a.txt")
    (clips / "mine.txt").write_text("my words")
    (clips / "linked.mp4").symlink_to(secret / "a.mp4")
    (clips / "nothing.mp4").symlink_to(secret / "b.mp4")
    run = read_config(ROOT / "models" / "uvg_tiny.safetensors").run
    assert len(find_clips(clips)) == 3
    with confined_to([home]):
        assert [path.name for path in find_clips(clips)] == ["mine.mp4", "theirs.mp4"]
        found = survey(clips, run, lambda text: list(range(9)), limits=TextLimits((0, 99), (0, 99)))
        assert [(one.prompt, one.detail) for one in found.usable] == [("my words", None)]
        assert "1 without a caption: theirs.mp4" in str(found)
        report = caption_folder(clips, lambda path: "new words")
        assert "secret" not in str(report)
        with pytest.raises(UniViGUError, match="leads out"):
            probe(clips / "linked.mp4")
        for name in ("theirs.txt", "nothing.mp4"):
            assert not is_open(clips / name)
            for read in (read_text, content_of):
                with pytest.raises(FileNotFoundError):
                    read(clips / name)
    assert (secret / "a.txt").read_text() == "the secret"
    assert read_text(clips / "theirs.txt") == "the secret"
