"""Sources of clips as people have them: manifests, shards, pictures, long clips, portrait clips, tags."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import torch

from uvg_core.config import RunConfig
from uvg_core.data import folder as surveying
from uvg_core.data.clip_file import ClipFile
from uvg_core.data.folder import Survey, TextLimits, survey
from uvg_core.data.left_out import BAD_TEXT, NO_CAPTION
from uvg_core.data.settings import Buckets, Data
from uvg_core.data.sources import Together, digest, fingerprints, group_of
from uvg_core.data.tags import wordings
from uvg_core.errors import UniViGUError
from uvg_core.io import WINDOWS
from uvg_core.media.video import write_video
from uvg_core.pipeline.folders import Captions, caption_folder

RUN = RunConfig(height=32, width=48, frames=9, fps=8.0, text_length=16, context_length=24)
LIMITS = TextLimits(prompt=(1, 12), detail=(1, 12))


def tokens(text: str) -> list[int]:
    """A token a word, and the end."""
    return [*range(2, 2 + len(text.split())), 1]


def clip(path: Path, frames: int = 9, size: tuple[int, int] = (32, 48), caption: str | None = None) -> Path:
    """A clip at 8 fps that gets brighter by 5 with every frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gray = (20 + 5 * torch.arange(frames)).to(torch.uint8)
    write_video(path, gray[:, None, None, None].expand(frames, *size, 3), 8.0)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def picture(path: Path, gray: int = 90, size: tuple[int, int] = (64, 96)) -> Path:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (size[1], size[0]), (gray, gray, gray)).save(path)
    return path


def look(path: Path | str, buckets: Buckets | None = None, need_detail: bool = False, **how) -> Survey:
    return survey(Data(str(path), **how), RUN, tokens, limits=LIMITS, buckets=buckets, need_detail=need_detail)


def shades(found: Survey, index: int = 0) -> list[int]:
    return found.item(index).pixels.float().mean((1, 2, 3)).round().int().tolist()


def about(values: list[int], within: int = 3) -> object:
    return pytest.approx(values, abs=within)


# --- manifests --------------------------------------------------------------------------------------------------------


def test_a_manifest_names_clips_captions_and_parts(tmp_path: Path) -> None:
    clip(tmp_path / "in" / "film.mp4", 40)
    clip(tmp_path / "b.mp4")
    rows = [
        {"path": "in/film.mp4", "caption": "all of it", "start": 1, "end": 2.25},
        {"file_name": "b.mp4", "text": "other names", "detail": ["in detail", "in other words", "far too long " * 9]},
        {"video": str(tmp_path / "b.mp4"), "prompt": ["two", "prompts of one clip"]},
        {"path": "gone.mp4", "caption": "not there"},
        {"path": "b.mp4"},
        {"path": "b.mp4", "caption": 5},
        {"caption": "nowhere"},
        {"path": "b.mp4", "caption": "backwards", "start": 2, "end": 1},
        [1],
    ]
    table = tmp_path / "clips.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n", encoding="utf-8")
    found = look(table)
    assert [(one.name, one.prompt, one.others, one.detail) for one in found.usable] == [
        ("in/film.mp4 from 1 s to 2.25 s", "all of it", (), None),
        ("b.mp4", "other names", (), "in detail"),
        (str(tmp_path / "b.mp4"), "two", ("prompts of one clip",), None),
    ]
    assert shades(found) == about([20 + 5 * n for n in range(8, 17)])
    assert found.item(2).others == ("prompts of one clip",)
    assert found.usable[1].other_details == found.item(1).other_details == ("in other words",)
    assert {(one.name, one.reason) for one in found.left_out} == {
        ("gone.mp4", "unreadable"),
        ("b.mp4", "without a caption"),
        ("b.mp4", "with a caption that cannot be read"),
        ("line 7", "without a path"),
        ("b.mp4 (line 8)", "with an entry that cannot be read"),
        ("line 9", "with an entry that cannot be read"),
        ("line 10", "with an entry that cannot be read"),
    }


def test_a_missing_source_says_what_was_expected_and_what_is_near(tmp_path: Path) -> None:
    clip(tmp_path / "train" / "Clips" / "a.mp4", caption="a")
    (tmp_path / "train" / "clips.jsonl").write_text("")
    for wrong, near in (
        ("train/clisp", "Did you mean {}/train/Clips?"),
        ("trian/Clips", "Did you mean {}/train?"),
        ("train/clips.json", "Did you mean {}/train/clips.jsonl?"),
        ("train\\Clips", "Did you mean {}/train/Clips?"),
        ("elsewhere/x", "There is no elsewhere in {}"),
    ):
        with pytest.raises(UniViGUError) as error:
            look(f"{tmp_path}/{wrong}")
        assert str(error.value) == (
            f"{tmp_path}/{wrong}: no such file or folder; expected a folder of clips, a manifest (.jsonl, .csv, .tsv, "
            f".parquet) or .tar shards. {near.format(tmp_path)}"
        )
    with pytest.raises(UniViGUError, match=r"a\.mp4: found another file; expected a folder of clips"):
        look(tmp_path / "train" / "Clips" / "a.mp4")
    with pytest.raises(UniViGUError, match=r"x-0\.tar: no such file"):
        look(tmp_path / "x-{0..1}.tar")


@pytest.mark.skipif(WINDOWS, reason="of paths that are not this system's")
def test_a_manifest_from_windows_finds_its_clips(tmp_path: Path) -> None:
    clip(tmp_path / "clips" / "a.mp4")
    clip(tmp_path / "clips\\b.mp4")
    names = ["clips\\a.mp4", "clips\\b.mp4", "clips\\gone.mp4", "Q:\\clips\\a.mp4", "Q:/clips/a.mp4"]
    table = tmp_path / "clips.jsonl"
    table.write_text("".join(json.dumps({"path": name, "caption": "x"}) + "\n" for name in names), encoding="utf-8")
    found = look(table)
    assert [one.path for one in found.usable] == [tmp_path / "clips" / "a.mp4", tmp_path / "clips\\b.mp4"]
    assert ["a path of Windows" in one.found for one in found.left_out] == [False, True, True]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_is_a_manifest(tmp_path: Path, suffix: str) -> None:
    clip(tmp_path / "b.mp4", 40)
    mark = "," if suffix == "csv" else "\t"
    lines = [
        ["path", "caption", "start", "end"],
        ["b.mp4", '"two lines\nin one cell"', "", ""],
        ["b.mp4", "x", "1", "3"],
    ]
    (tmp_path / f"c.{suffix}").write_text("\n".join(mark.join(line) for line in lines), encoding="utf-8-sig")
    found = look(tmp_path / f"c.{suffix}", windows="first")
    assert [(one.prompt, one.start, one.seconds) for one in found.usable] == [
        ("two lines\nin one cell", 0.0, None),
        ("x", 1.0, None),
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_has_the_separator_of_any_language(tmp_path: Path, mark: str) -> None:
    clip(tmp_path / "b.mp4")
    (tmp_path / "c.csv").write_text(f"path{mark}caption\r\nb.mp4{mark}a ball\r\n")
    assert [one.prompt for one in look(tmp_path / "c.csv").usable] == ["a ball"]


def test_a_table_loses_no_part_of_a_caption_unsaid(tmp_path: Path) -> None:
    clip(tmp_path / "b.mp4")
    table = tmp_path / "c.csv"
    table.write_text('path,caption\nb.mp4,a ball, red, round\nb.mp4,"a ball, blue"\n')
    found = look(table)
    assert [one.prompt for one in found.usable] == ["a ball, blue"]
    assert [(one.name, one.reason) for one in found.left_out] == [("line 2", "with an entry that cannot be read")]
    assert "more cells than the header row has names" in str(found)
    table.write_text('path,caption\nb.mp4,"a ball\nb.mp4,another\n')
    with pytest.raises(UniViGUError, match=r"c\.csv: the row after line 1: unexpected end of data"):
        look(table)
    table.write_text("b.mp4,a ball\n")
    with pytest.raises(UniViGUError, match=r"the header row is .*b\.mp4.*; expected a column path"):
        look(table)
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(UniViGUError, match=r"none of 0 clips .* with its prompt$"):
        look(tmp_path / "c.jsonl")


def test_a_part_beyond_the_end_counts_as_long_as_it_is(tmp_path: Path) -> None:
    clip(tmp_path / "b.mp4", 32)
    row = {"path": "b.mp4", "caption": "x", "start": 2, "end": 6}
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    assert "up to 1.78 times" in str(look(tmp_path / "c.jsonl"))  # 16 frames of which 9 are taken


def test_parquet_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "clips.parquet"
    table.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UniViGUError, match=r"\.parquet needs pyarrow: pip install pyarrow$"):
        look(table)


def test_parquet_is_a_manifest(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    clip(tmp_path / "b.mp4")
    table = pyarrow.table({"path": ["b.mp4", "b.mp4"], "caption": ["one", "two"], "x": [1, 2]})
    parquet.write_table(table, tmp_path / "clips.parquet")
    assert [one.prompt for one in look(tmp_path / "clips.parquet").usable] == ["one", "two"]


def test_a_manifest_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips.json").write_text("[]")
    with pytest.raises(UniViGUError, match=r"expected the lines of a \.jsonl file"):
        look(tmp_path / "clips.json")
    with pytest.raises(UniViGUError, match="no such file"):
        look(tmp_path / "gone.jsonl")
    (tmp_path / "clips.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UniViGUError, match="line 1 is not UTF-8"):
        look(tmp_path / "clips.jsonl")
    with pytest.raises(UniViGUError, match=r"found no videos here.*To read a manifest, pass its file: .*clips\.jsonl"):
        look(tmp_path)
    clip(tmp_path / "a.mp4")
    with pytest.raises(UniViGUError, match=r"none of 1 clip .*To read a manifest, pass its file: .*jsonl\. Left out"):
        look(tmp_path)


def test_a_long_manifest_fits_into_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a clip is little more than its words: a kilobyte, of a line of two."""
    clip(tmp_path / "b.mp4")
    row = {"path": "b.mp4", "caption": "red " * 10, "detail": "blue " * 10}
    count, table = 2_000, tmp_path / "clips.jsonl"
    with table.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({**row, "caption": f"{row['caption']}{number}", "ignored": "x" * 2000}) + "\n")
    monkeypatch.setattr(surveying, "content_of", lambda path: "the same")  # read anew each time while it is so young
    tracemalloc.start()
    found = look(table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == count
    assert peak < 1200 * count


# --- shards -----------------------------------------------------------------------------------------------------------


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_webdataset_shards(tmp_path: Path) -> None:
    data = clip(tmp_path / "x" / "b.mp4").read_bytes()
    shard(
        tmp_path / "clips-0000.tar",
        {
            "a/1.mp4": data,
            "a/1.txt": b"a red ball",
            "a/1.detail.txt": b"a red ball in detail",
            "2.json": json.dumps({"caption": "from json"}).encode(),
            "2.mp4": data,
            "3.mp4": data,
            "4.txt": b"no clip",
            "5.mp4": b"no video",
            "5.txt": b"a red ball",
        },
    )
    shard(tmp_path / "clips-0001.tar", {"6.mp4": data, "6.txt": b"the last one"})
    found = look(tmp_path / "clips-{0000..0001}.tar")
    assert [(one.name, one.prompt, one.detail) for one in found.usable] == [
        ("clips-0000.tar/a/1.mp4", "a red ball", "a red ball in detail"),
        ("clips-0000.tar/2.mp4", "from json", None),
        ("clips-0001.tar/6.mp4", "the last one", None),
    ]
    assert {(one.name, one.reason) for one in found.left_out} == {
        ("clips-0000.tar/3.mp4", "without a caption"),
        ("clips-0000.tar/5.mp4", "unreadable"),
    }
    assert shades(found, 2) == about([20 + 5 * n for n in range(9)])
    assert len({found.key(index) for index in range(3)}) == 3
    (tmp_path / "x" / "b.mp4").unlink()
    assert len(look(tmp_path)) == 3  # a folder that holds nothing but shards
    shard(tmp_path / "clips.tgz", {})
    with pytest.raises(UniViGUError, match="not compressed"):
        look(tmp_path / "clips.tgz")


def test_shards_with_covers_dots_and_damage(tmp_path: Path) -> None:
    data, cover = clip(tmp_path / "b.mp4", caption="beside").read_bytes(), picture(tmp_path / "p.jpg").read_bytes()
    path = shard(
        tmp_path / "s.tar",
        {
            "1.jpg": cover,
            "1.mp4": data,
            "1.txt": b"a red ball",
            "dog.v2.mp4": data,
            "dog.v2.txt": b"a dog",
            "3.mp4": data,
            "3.json": b"{bad",
            "4.mp4": b"",
            "4.txt": b"empty",
        },
    )
    found = look(path, Buckets(frames=(1, 9)))
    assert [(one.name, one.spec.frames) for one in found.usable] == [("s.tar/1.mp4", 9)]
    lost = {one.name: one for one in found.left_out}
    assert "several dots" in lost["s.tar/dog.v2.mp4"].reason
    assert lost["s.tar/3.mp4"].reason == "with a caption that cannot be read"
    assert lost["s.tar/4.mp4"].found.startswith("s.tar/4.mp4: ")
    assert "1 .tar shard not read" in str(look(tmp_path))  # a folder with clips


def test_a_shard_that_lies_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"\0" * 100 + b"no tar" * 500)
    with pytest.raises(UniViGUError, match=r"a\.tar: cannot be read as a \.tar file"):
        look(tmp_path / "a.tar")
    header = tarfile.TarInfo("x")
    header.size, header.type = 2**40, tarfile.XHDTYPE
    (tmp_path / "b.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    with pytest.raises(UniViGUError, match="a header is too large"):
        look(tmp_path / "b.tar")


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_caption_of_a_long_clip_is_not_paired_with_its_beginning(tmp_path: Path) -> None:
    """Two seconds, of which the model sees 1.125: the frames are spread over both."""
    clip(tmp_path / "a.mp4", 17, caption="a b")
    clip(tmp_path / "b.mp4", 9, caption="a b")
    found = look(tmp_path)
    assert shades(found) == about([20 + 10 * n for n in range(9)])
    assert shades(found, 1) == about([20 + 5 * n for n in range(9)])
    assert "1 of 2 clips longer than 1.12 s: their frames are spread over all" in found.cut
    assert "1.89 times as fast" in found.cut
    first = look(tmp_path, windows="first")
    assert shades(first) == about([20 + 5 * n for n in range(9)])
    assert first.key(0) != found.key(0)
    assert first.key(1) == found.key(1)


def test_too_long_a_clip_is_left_out_and_says_what_to_do(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 40, caption="a b")
    clip(tmp_path / "b.mp4", caption="a b")
    found = look(tmp_path)
    (left,) = found.left_out
    assert left.name == "a.mp4"
    assert "too long for one caption (1.12 s are used, fastest is 2; set windows: all" in left.reason
    assert len(look(tmp_path, fastest=5).usable) == 2


def test_windows_cover_a_long_clip(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 30, caption="a b")  # 3.75 s, and windows of 1.125 s
    found = look(tmp_path, windows="all")
    assert [one.start for one in found.usable] == pytest.approx([0, 0.875, 1.75, 2.625])
    seen = [shade for index in range(4) for shade in shades(found, index)]
    assert (seen[0], max(seen)) == about([20, 20 + 5 * 29])
    assert [one.name for one in found.usable][:2] == ["a.mp4 from 0.00 s", "a.mp4 from 0.88 s"]
    assert found.cut == "1 of 1 clip longer than 1.12 s: cut into 4 windows, each with the caption of its clip"
    assert len(set(fingerprints(found))) == 2
    assert str(found).startswith(f"{tmp_path}: 1 clip, 1 usable, 0 left out")


# --- buckets ----------------------------------------------------------------------------------------------------------


def test_portrait_clips_stay_portrait(tmp_path: Path) -> None:
    clip(tmp_path / "wide.mp4", size=(32, 48), caption="a b")
    clip(tmp_path / "tall.mp4", size=(96, 48), caption="a b")
    alone = look(tmp_path)
    assert "1 of 2 clips lose more than a third of the picture" in alone.reshaped
    assert "worst: tall.mp4, 33% kept" in alone.reshaped
    found = look(tmp_path, Buckets(shapes=5))
    sizes = {one.name: (one.spec.height, one.spec.width) for one in found.usable}
    assert sizes["wide.mp4"] == (32, 48)
    assert sizes["tall.mp4"][0] > sizes["tall.mp4"][1]
    assert found.reshaped == ""
    for height, width in sizes.values():
        assert height % 16 == width % 16 == 0
        assert height * width <= RUN.height * RUN.width
    assert found.item(0).pixels.shape[1:3] == found.group(0)[1:]


def test_short_clips_and_pictures_have_lengths_of_their_own(tmp_path: Path) -> None:
    clip(tmp_path / "long.mp4", 10, caption="a b")
    clip(tmp_path / "short.mp4", 6, caption="a b")
    clip(tmp_path / "brief.mp4", 2, caption="a b")
    for name in ("still.jpg", "other.png", "long.jpg"):
        picture(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a b")
    (tmp_path / "long.txt").write_text("of the clip")
    assert [one.name for one in look(tmp_path).usable] == ["long.mp4"]
    assert "pictures not read because buckets.frames does not contain 1: 2" in str(look(tmp_path, Buckets()))
    found = look(tmp_path, Buckets(frames=(1, 5, 9)))
    assert [(one.name, one.spec.frames) for one in found.usable] == [
        ("other.png", 1),
        ("still.jpg", 1),
        ("short.mp4", 5),
        ("long.mp4", 9),
    ]
    assert found.usable[3].prompt == "of the clip"
    assert shades(found) == about([90])
    assert found.item(1).pixels.shape == (1, 32, 48, 3)
    assert {one.name: one.reason for one in found.left_out} == {"brief.mp4": "too short for 5 frames at 8 fps"}


def test_pictures_are_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    """A photograph that a phone stored lying on its side, a transparent drawing, and what is none."""
    image = pytest.importorskip("PIL.Image")
    clip(tmp_path / "a.mp4", caption="a b")
    stored, turned = image.new("RGB", (64, 96), "white"), image.Exif()
    stored.paste("black", (0, 0, 64, 48))  # its upper half; shown, the right one
    turned[0x112] = 6
    stored.save(tmp_path / "photo.jpg", exif=turned)
    image.new("RGBA", (96, 64), (255, 255, 255, 0)).save(tmp_path / "drawing.png")
    image.new("CMYK", (96, 64), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:300])
    for name in ("photo", "drawing", "print", "torn"):
        (tmp_path / f"{name}.txt").write_text("a b")
    found = look(tmp_path, Buckets(frames=(1, 9)))
    names = [one.name for one in found.usable]
    photo = found.item(names.index("photo.jpg")).pixels[0].float()
    assert found.usable[names.index("photo.jpg")].kept == 1
    assert (photo[16, 8].mean(), photo[16, 40].mean()) == (pytest.approx(255, abs=5), pytest.approx(0, abs=5))
    assert shades(found, names.index("drawing.png")) == about([0])
    assert shades(found, names.index("print.jpg")) == about([255])
    assert [(one.name, one.reason) for one in found.left_out] == [("torn.jpg", "unreadable")]


def test_a_folder_of_pictures_says_how_they_are_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(
        UniViGUError, match=r"found no videos .*Its 1 picture can be used if buckets\.frames contains 1"
    ):
        look(tmp_path)


# --- which part of a clip is read, and how ----------------------------------------------------------------------------


def test_a_source_leaves_out_the_beginning_and_the_end_of_its_clips(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 40, caption="a b")  # 5 s, of which 1.125 s are seen
    found = look(tmp_path, start=1, seconds=1.25)
    assert shades(found) == about([20 + 5 * n for n in range(8, 17)])
    assert found.cut == ""  # no more is used
    whole = look(tmp_path, start=1, seconds=2.25)
    assert whole.cut.endswith("up to 2.00 times as fast")
    assert shades(whole)[::8] == about([60, 145])
    assert len(look(tmp_path, start=0.5, windows="all").usable) == 4
    with pytest.raises(UniViGUError, match=r"too short for 9 frames at 8 fps: a\.mp4 \(0\.50 s\)"):
        look(tmp_path, start=4.5)


def test_of_a_part_that_a_manifest_names_what_the_source_uses_is_read(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 40)
    rows = [{"start": 0, "end": 2.5}, {"start": 2, "end": 3.25}, {"start": 2.5}, {"end": 1.25}, {}]
    lines = (json.dumps({"path": "a.mp4", "caption": "a b", **row}) for row in rows)
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    found = look(tmp_path / "clips.jsonl", start=1, seconds=2.5, fastest=5)
    assert [(one.start, one.seconds) for one in found.usable] == [(1, 1.5), (2, None), (1, 2.5)]  # None: 9 frames
    assert [one.name for one in found.left_out] == ["a.mp4 from 2.5 s", "a.mp4 from 0 s to 1.25 s"]


def test_a_source_has_a_rate_of_its_own(tmp_path: Path) -> None:
    """Clips in slow motion, for example: a model's 9 frames at 8 fps come from twice the time."""
    clip(tmp_path / "a.mp4", 18, caption="a b")
    clip(tmp_path / "b.mp4", 15, caption="a b")
    found = look(tmp_path, fps=4)
    assert shades(found) == about([20 + 10 * n for n in range(9)])
    assert found.retimed == "1 of 1 clip is retimed from 8 fps to 4 fps"
    assert [(one.name, one.reason) for one in found.left_out] == [("b.mp4", "too short for 9 frames at 4 fps")]


def test_pictures_have_no_beginning_to_leave_out(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("a b")
    found = look(tmp_path, Buckets(frames=(1, 9)), start=2, seconds=1, fps=2)
    assert shades(found) == about([90])


@pytest.mark.parametrize(
    ("fit", "seen", "said"),
    [
        ("crop", (60, 60), "lose more than a third of the picture to cropping (worst: tall.mp4, 33% kept)"),
        ("pad", (255, 60), "get bars over more than a third of the picture (worst: tall.mp4, 67% bars)"),
        ("stretch", (60, 60), "are stretched by more than half (worst: tall.mp4, 3.0 times)"),
    ],
)
def test_what_becomes_of_clips_of_another_shape(fit: str, seen: tuple[int, int], said: str, tmp_path: Path) -> None:
    clip(tmp_path / "tall.mp4", size=(96, 48), caption="a b")
    found = look(tmp_path, fit=fit, background="white")
    assert found.reshaped.startswith(f"1 of 1 clip {said}; set buckets.shapes")
    last = found.item(0).pixels[-1].float()
    assert (last[:, :8].mean(), last[:, 22:26].mean()) == about(list(seen))


def test_which_part_is_kept_of_clips_that_are_cropped(tmp_path: Path) -> None:
    pixels = torch.zeros(9, 96, 48, 3, dtype=torch.uint8)
    pixels[:, :32] = 200
    write_video(tmp_path / "a.mp4", pixels, 8.0)
    (tmp_path / "a.txt").write_text("a b")
    assert shades(look(tmp_path))[0] < 20
    assert shades(look(tmp_path, crop="top"))[0] > 180


def test_clips_that_are_read_in_another_way_are_other_clips(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 20, caption="a b")
    usual = look(tmp_path, windows="first")
    file = usual.usable[0]
    assert usual.key(0) == digest([file.content, "a b", None, 9, 32, 48, 8.0])  # as earlier versions had it
    others: list[dict] = [{"start": 0.5}, {"fps": 4}, {"fit": "pad"}, {"fit": "stretch"}, {"crop": "smart"}]
    others += [{"background": "white"}, {"fit": "pad", "background": "#ffffff"}]
    keys = [look(tmp_path, windows="first", **how).key(0) for how in [{}, *others]]
    assert len(set(keys)) == len(keys)
    with pytest.raises(UniViGUError, match="background is 'beige'; expected black"):
        Data("x", background="beige")


# --- texts ------------------------------------------------------------------------------------------------------------


def test_words_around_every_text(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", caption="a red ball\n")
    path.with_suffix(".detail.txt").write_text("in detail")
    found = look(tmp_path, prefix="mystyle, ", suffix=", 35 mm")
    assert (found.usable[0].prompt, found.usable[0].detail) == (
        "mystyle, a red ball, 35 mm",
        "mystyle, in detail, 35 mm",
    )
    assert found.key(0) != look(tmp_path).key(0)


def test_captions_may_end_in_caption(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4").with_suffix(".caption").write_text("as kohya's tools write them")
    found = look(tmp_path)
    assert found.usable[0].prompt == "as kohya's tools write them"
    assert ".caption" not in str(found)


def test_of_a_text_and_a_caption_file_the_text_is_used_and_that_is_said(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", caption="the text").with_suffix(".caption").write_text("another")
    clip(tmp_path / "b.mp4", caption="alone")
    found = look(tmp_path)
    assert [one.prompt for one in found.usable] == ["the text", "alone"]
    assert "1 clip with both a .txt and a .caption, of which the .txt is used: a.mp4" in str(found)


def test_captions_may_lie_in_json(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")

    for name in "abcdef":
        clip(tmp_path / f"{name}.mp4")
    caption_folder(tmp_path, lambda path: f"seen in {path.stem}", Captions(format="json", only="a.mp4"))
    caption_folder(
        tmp_path, lambda path: f"all of {path.stem}", Captions(format="json", file_suffix="detail", only="a.mp4\nb.mp4")
    )
    put("b.txt", "a text")
    put("b.json", '{"caption": "passed over", "detail": "passed over, too"}')
    put("c.json", '{"caption": ["one", "other"], "detail": "in detail"}')
    put("d.json", "[1, 2]")
    put("e.json", '{"width": 64}')
    put("f.json", "{}")
    put("f.txt", "a text beside what is somebody else's")
    found = look(tmp_path)
    assert [(one.name, one.prompt, one.others, one.detail) for one in found.usable] == [
        ("a.mp4", "seen in a", (), "all of a"),
        ("b.mp4", "a text", (), "all of b"),
        ("c.mp4", "one", ("other",), "in detail"),
        ("f.mp4", "a text beside what is somebody else's", (), None),
    ]
    assert [(one.name, one.reason) for one in found.left_out] == [("d.mp4", BAD_TEXT), ("e.mp4", NO_CAPTION)]
    assert f"{tmp_path / 'd.json'}: found [1, 2]; expected a JSON object" in found.left_out[0].found


def test_tags_are_shuffled_and_some_are_dropped(tmp_path: Path) -> None:
    how = Data("x", prefix="style, ", shuffle_tags=True, keep_tags=1, drop_tags=0.5, wordings=8)
    made = wordings("style, cat, red, big, old, sad", how)
    assert made == wordings("style, cat, red, big, old, sad", how)
    assert len(set(made)) > 4
    for text in made:
        assert text.startswith("style, cat")
        assert set(text.split(", ")) <= {"style", "cat", "red", "big", "old", "sad"}
    assert any(len(text.split(", ")) < 6 for text in made)
    assert wordings("no tags here", Data("x", shuffle_tags=True, drop_tags=1.0)) == ["no tags here"] * 4
    clip(tmp_path / "a.mp4", caption="cat, red, big, old, sad")
    item = look(tmp_path, shuffle_tags=True, keep_tags=0, wordings=6).item(0)
    assert len({item.prompt, *item.others}) > 3
    assert all(sorted(text.split(", ")) == ["big", "cat", "old", "red", "sad"] for text in (item.prompt, *item.others))


# --- several ----------------------------------------------------------------------------------------------------------


def test_several_sources_are_one(tmp_path: Path) -> None:
    clip(tmp_path / "a" / "1.mp4", caption="one")
    clip(tmp_path / "b" / "2.mp4", caption="two")
    clip(tmp_path / "b" / "3.mp4", caption="three")
    one, two = look(tmp_path / "a"), look(tmp_path / "b")
    both = Together([one, two])
    assert [both.name(index) for index in range(len(both))] == ["1.mp4", "2.mp4", "3.mp4"]
    assert both.item(2).prompt == "three"
    assert both.key(1) == two.key(0)
    assert [group_of(both, index)[0] for index in range(3)] == [0, 1, 1]


def test_a_clip_is_read_where_it_lies(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    with ClipFile(str(path), "a.mp4").opened() as opened:
        assert opened == path
