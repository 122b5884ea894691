"""Captioning a folder: what is written, skipped and reported. The captioner is a stand-in."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from refusals import closed_folder
from two_captioners import caption_twice, counts, start

from uvg_core.config import RunConfig
from uvg_core.errors import UniViGUError
from uvg_core.media.video import find_clips
from uvg_core.pipeline import folders
from uvg_core.pipeline.folders import Captions, FolderReport, Pace, caption_folder, survey, text_files
from uvg_core.pipeline.workers import Shard

ROOT = Path(__file__).resolve().parents[2]


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in sorted(folder.rglob("*.txt"))}


def test_each_clip_gets_a_text_beside_it(folder: Path) -> None:
    report = caption_folder(folder, lambda path: f"ein {path.stem} fährt", Captions(prefix="trigger, "))
    assert texts(folder) == {
        "a.txt": "trigger, ein a fährt",
        "b.txt": "trigger, ein b fährt",
        "sub/c.txt": "trigger, ein c fährt",
    }
    assert report == FolderReport((folder / "a.txt", folder / "b.txt", folder / "sub/c.txt"), (), ())
    assert str(report) == "3 clips: 3 captioned, 0 skipped (already captioned), 0 failed"


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
    assert len(caption_folder(folder, caption, Captions(overwrite=True)).written) == 3
    assert texts(folder)["a.txt"] == "new"


def test_a_caption_file_is_the_caption_of_its_clip(folder: Path) -> None:
    old = folder / "a.caption"
    old.write_text("by hand")
    (folder / "b.caption").write_text(" \n")
    assert "a.mp4" not in survey(folder)[0]
    report = caption_folder(folder, lambda path: f"seen in {path.stem}")
    assert report.skipped == (old,)
    assert old.read_text() == "by hand"
    assert (folder / "b.caption").read_text("utf-8").strip() == "seen in b"
    caption_folder(folder, lambda _: "and new", Captions(existing="append", backup=True, only="a.mp4"))
    assert old.read_text("utf-8").strip() == "by hand and new"
    assert (folder / "a.caption.bak").read_text() == "by hand"
    caption_folder(folder, lambda _: "replaced", Captions(overwrite=True, only="a.mp4"))
    assert old.read_text("utf-8").strip() == "replaced"
    assert set(texts(folder)) == {"sub/c.txt"}
    (folder / "a.txt").write_text("the text of a clip comes first")
    assert caption_folder(folder, lambda _: "x").skipped[0] == folder / "a.txt"


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
        "3 clips: 1 captioned, 0 skipped (already captioned), 2 failed",
        f"  {folder / 'a.mp4'}: breaks off at 1.20 s",
        f"  {folder / 'b.mov'}: RuntimeError: out of memory",
    ]


def test_a_text_that_cannot_be_written_is_reported(folder: Path) -> None:
    (folder / "a.txt").mkdir()
    report = caption_folder(folder, lambda path: "x", Captions(overwrite=True))
    assert [path.name for path, _ in report.failed] == ["a.mp4"]
    assert "this is a folder" in report.failed[0][1]


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


def musubi() -> dict[str, Any]:
    """The data set that configs/wan/musubi.toml describes."""
    toml = pytest.importorskip("tomllib", reason="reading TOML needs Python 3.11")
    found: dict[str, Any] = toml.loads((ROOT / "configs/wan/musubi.toml").read_text())
    return found


def test_musubi_tuner_is_told_where_captions_lie_and_how_wan_draws() -> None:
    told, run = musubi(), RunConfig()
    assert text_files([Path("a.mp4")]) == [Path("a").with_suffix(told["general"]["caption_extension"])]
    assert told["general"]["resolution"] == [run.width, run.height]
    assert [one["target_frames"] for one in told["datasets"]] == [[run.frames]]


def test_musubi_tuner_accepts_its_configuration() -> None:
    loader = pytest.importorskip("musubi_tuner.dataset.config_utils", reason="needs musubi-tuner")
    found = loader.ConfigSanitizer().sanitize_user_config(musubi())
    assert found["datasets"][0]["video_directory"] == "clips"


def test_progress_counts_every_clip(folder: Path) -> None:
    (folder / "a.txt").touch()
    seen: list[tuple[object, ...]] = []
    caption_folder(
        folder, lambda path: "x", on_clip=lambda index, total, path, _: seen.append((index, total, path.name))
    )
    assert seen == [(0, 3, "a.mp4"), (1, 3, "b.mov"), (2, 3, "c.webm")]


def test_the_time_left_is_that_of_the_clips_to_be_captioned(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(folders.time, "monotonic", lambda: now[0])
    pace, said = Pace(left=300), []
    for index in range(40, 52):  # 40 of 340 were captioned before
        said.append(pace.words(index, 340))
        with pace.timed(1):
            now[0] += 90 if index < 45 else 2
    assert said[0] == "41 of 340"
    assert said[1] == "42 of 340, about 7.5 h left"
    for _ in range(30):
        with pace.timed(1):
            now[0] += 2
    assert pace.words(82, 340) == "83 of 340, about 9 min left"
    assert Pace(left=0).words(0, 1) == "1 of 1"


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UniViGUError, match="no videos"):
        caption_folder(tmp_path, lambda path: "x")
    with pytest.raises(UniViGUError, match="nothing"):
        caption_folder(tmp_path / "none", lambda path: "x")


def test_nothing_of_the_users_is_written_over_and_nothing_empty_is_written(folder: Path) -> None:
    (folder / "a.txt").write_text("\n")  # no words in it: nothing is lost

    def caption(path: Path) -> str:
        if path.name == "b.mov":
            path.with_suffix(".txt").write_text("by hand, while the model worked")
        return "" if path.name == "c.webm" else f"about {path.name}"

    report = caption_folder(folder, caption)
    assert (folder / "a.txt").read_text() == "about a.mp4"
    assert (folder / "b.txt").read_text() == "by hand, while the model worked"
    assert not (folder / "sub/c.txt").exists()
    assert folder / "b.txt" in report.skipped
    assert [(path.name, "came out empty" in why) for path, why in report.failed] == [("c.webm", True)]


def test_a_linked_text_is_neither_followed_nor_replaced(folder: Path) -> None:
    elsewhere = folder / "sub" / "elsewhere"
    (folder / "a.txt").symlink_to(elsewhere)
    (folder / "b.txt").mkdir()
    report = caption_folder(folder, lambda path: "words")
    assert "is a link" in dict(report.failed)[folder / "a.mp4"]
    assert "this is a folder" in dict(report.failed)[folder / "b.mov"]
    assert not elsewhere.exists()
    again = caption_folder(folder, lambda path: "words", Captions(overwrite=True))
    assert "is a link" in dict(again.failed)[folder / "a.mp4"]
    assert not elsewhere.exists()


def test_a_subfolder_that_cannot_be_listed_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = closed_folder(folder, monkeypatch)
    report = caption_folder(folder, lambda path: "words")
    assert (closed, "the folder cannot be read (Permission denied)") in report.failed
    assert report.written


def test_two_captioners_share_a_folder(folder: Path) -> None:
    for number in range(40):
        shutil.copy(folder / "a.mp4", folder / f"n{number:02}.mp4")
    total = len(find_clips(folder))
    counts = caption_twice(folder)
    assert sum(written for written, _ in counts) == total
    assert all(failed == 0 for _, failed in counts)
    assert len({path.read_text() for path in folder.glob("**/*.txt")}) == total
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".uvg")]


@pytest.mark.parametrize("form", ["txt", "json", "jsonl", "csv"])
def test_shards_write_what_one_run_writes(folder: Path, form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    for number in range(4):
        (folder / f"n{number}.mp4").touch()
    whole = tmp_path_factory.mktemp("whole") / "folder"
    shutil.copytree(folder, whole)
    how = Captions(format=form, prefix="trigger, ")
    caption_folder(whole, lambda path: f"about {path.stem}", how)
    reports = [
        caption_folder(folder, lambda path: f"about {path.stem}", how, shard=Shard(index, 3)) for index in (2, 3, 1)
    ]
    assert [len(report.written) for report in reports] == [2, 2, 3]
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert sorted(names) == sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for name in names:
        assert sorted((folder / name).read_text("utf-8").split("\n")) == sorted((whole / name).read_text().split("\n"))


def test_a_shard_of_fewer_clips_than_parts_is_empty(folder: Path) -> None:
    assert survey(folder, shard=Shard(2, 2)) == (
        f"3 clips: 1 to caption\n  {folder / 'b.mov'} -> {folder / 'b.txt'}",
        0,
    )
    assert caption_folder(folder, lambda path: "x", shard=Shard(4, 4)) == FolderReport((), (), ())
    assert texts(folder) == {}


def test_of_three_shards_one_is_killed_and_begun_again(folder: Path) -> None:
    for number in range(27):
        shutil.copy(folder / "a.mp4", folder / f"n{number:02}.mp4")
    runs = [start(folder, who, "jsonl", f"{index}/3", stuck=4 * (who == "C")) for index, who in enumerate("ABC", 1)]
    assert [counts(run) for run in runs[:2]] == [(10, 0), (10, 0)]

    def captions() -> list[str]:
        return [json.loads(line)["caption"] for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]

    while sum(caption.startswith("C") for caption in captions()) < 3:
        assert runs[2].poll() is None
        time.sleep(0.01)
    runs[2].kill()
    runs[2].communicate()
    assert counts(start(folder, "D", "jsonl", "3/3")) == (7, 0)
    found = captions()
    assert len(found) == len({caption[2:] for caption in found}) == 30
    assert sorted(caption[0] for caption in found) == [*"A" * 10, *"B" * 10, *"C" * 3, *"D" * 7]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".uvg")]
