"""Captioning a folder: what is written, skipped and reported. The captioner is a stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvg_core.errors import UniViGUError
from uvg_core.pipeline.folders import FolderReport, caption_folder, text_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mov", "sub/c.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in sorted(folder.rglob("*.txt"))}


def test_each_clip_gets_a_text_beside_it(folder: Path) -> None:
    report = caption_folder(folder, lambda path: f"ein {path.stem} fährt", prefix="trigger, ")
    assert texts(folder) == {
        "a.txt": "trigger, ein a fährt",
        "b.txt": "trigger, ein b fährt",
        "sub/c.txt": "trigger, ein c fährt",
    }
    assert report == FolderReport((folder / "a.txt", folder / "b.txt", folder / "sub/c.txt"), (), ())
    assert str(report) == "3 clips: 3 captioned, 0 skipped (captioned before), 0 failed"


def test_subfolders_are_optional(folder: Path) -> None:
    caption_folder(folder, lambda path: "x", recursive=False)
    assert set(texts(folder)) == {"a.txt", "b.txt"}


def test_existing_captions_stay_and_cost_nothing(folder: Path) -> None:
    (folder / "a.txt").write_text("by hand")
    asked: list[str] = []

    def caption(path: Path) -> str:
        asked.append(path.name)
        return "new"

    report = caption_folder(folder, caption)
    assert asked == ["b.mov", "c.webm"]
    assert texts(folder)["a.txt"] == "by hand"
    assert report.skipped == (folder / "a.txt",)
    assert caption_folder(folder, caption).written == ()
    assert len(caption_folder(folder, caption, overwrite=True).written) == 3
    assert texts(folder)["a.txt"] == "new"


def test_a_bad_clip_is_reported_and_the_work_goes_on(folder: Path) -> None:
    def caption(path: Path) -> str:
        if path.name == "a.mp4":
            raise UniViGUError(f"{path}: breaks off at 1.20 s")
        if path.name == "b.mov":
            raise RuntimeError("out of memory")
        return "fine"

    report = caption_folder(folder, caption)
    assert texts(folder) == {"sub/c.txt": "fine"}
    assert report.failed == (
        (folder / "a.mp4", f"{folder / 'a.mp4'}: breaks off at 1.20 s"),
        (folder / "b.mov", "RuntimeError: out of memory"),
    )
    assert str(report).splitlines() == [
        "3 clips: 1 captioned, 0 skipped (captioned before), 2 failed",
        f"  {folder / 'a.mp4'}: breaks off at 1.20 s",
        f"  {folder / 'b.mov'}: RuntimeError: out of memory",
    ]


def test_a_text_that_cannot_be_written_is_reported(folder: Path) -> None:
    (folder / "a.txt").mkdir()
    report = caption_folder(folder, lambda path: "x", overwrite=True)
    assert [path.name for path, _ in report.failed] == ["a.mp4"]
    assert "a folder lies here" in report.failed[0][1]


def test_interrupting_stops_and_keeps_what_is_done(folder: Path) -> None:
    def caption(path: Path) -> str:
        if path.name == "b.mov":
            raise KeyboardInterrupt
        return "done"

    with pytest.raises(KeyboardInterrupt):
        caption_folder(folder, caption)
    assert texts(folder) == {"a.txt": "done"}
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "a.txt", "b.mov", "sub"]


def test_clips_that_share_a_stem_do_not_share_a_text(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.webm", "clip.MOV"):
        (tmp_path / name).touch()
    caption_folder(tmp_path, lambda path: path.suffix)
    assert texts(tmp_path) == {"clip.txt": ".mp4", "clip.MOV.txt": ".MOV", "clip.webm.txt": ".webm"}


def test_text_files_never_collide() -> None:
    clips = [Path(name) for name in ("a.mov", "a.mov.mp4", "a.mp4", "A.webm", "b.gif", "sub/a.mov")]
    found = [str(path) for path in text_files(clips)]
    assert found == ["a.mov.2.txt", "a.mov.txt", "a.txt", "A.webm.txt", "b.txt", "sub/a.txt"]


def test_progress_counts_every_clip(folder: Path) -> None:
    (folder / "a.txt").touch()
    seen: list[tuple[int, int, str]] = []
    caption_folder(folder, lambda path: "x", on_clip=lambda index, total, path: seen.append((index, total, path.name)))
    assert seen == [(0, 3, "a.mp4"), (1, 3, "b.mov"), (2, 3, "c.webm")]


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UniViGUError, match="no videos"):
        caption_folder(tmp_path, lambda path: "x")
    with pytest.raises(UniViGUError, match="nothing there"):
        caption_folder(tmp_path / "none", lambda path: "x")
