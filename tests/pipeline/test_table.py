"""Captions in a table: what is read, appended to and left alone."""

from __future__ import annotations

import csv
import gc
import json
import os
import shutil
from codecs import BOM_UTF8
from contextlib import suppress
from pathlib import Path

import pytest
from two_captioners import caption_twice

from uvg_core.data.left_out import LeftOut
from uvg_core.data.listing import listed
from uvg_core.errors import UniViGUError
from uvg_core.lines import breaks_off
from uvg_core.pipeline import review
from uvg_core.pipeline.folders import Captions, caption_folder, survey
from uvg_core.pipeline.review import RECORD
from uvg_core.pipeline.table import Table
from uvg_core.pipeline.texts import texts_of


def about(path: Path) -> str:
    return f"about {path.stem}"


def rows(path: Path) -> list[dict[str, str]]:
    text = path.read_text("utf-8-sig")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_table_is_appended_to_and_has_each_clip_once(folder: Path, format: str) -> None:
    path = folder / f"metadata.{format}"
    report = caption_folder(folder, lambda clip: f'a "{clip.stem}",\nb', Captions(format=format))
    wanted = 'a "a", b' if format == "csv" else 'a "a",\nb'
    assert [row["file_name"] for row in rows(path)] == ["a.mp4", "b.mov", "sub/c.webm"]
    assert rows(path)[0]["caption"] == wanted
    assert len(report.written) == 3
    before = path.read_bytes()
    assert len(caption_folder(folder, about, Captions(format=format)).skipped) == 3
    assert path.read_bytes() == before
    (folder / "d.mp4").touch()
    caption_folder(folder, about, Captions(format=format))
    assert path.read_bytes().startswith(before)
    caption_folder(folder, about, Captions(format=format, overwrite=True, backup=True))
    assert [row["caption"] for row in rows(path)] == ["about a", "about b", "about c", "about d"]
    assert (folder / f"metadata.{format}.bak").read_bytes().startswith(before)


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_table_of_somebody_else_keeps_its_columns(folder: Path, format: str) -> None:
    path = folder / f"metadata.{format}"
    theirs = {
        "jsonl": '{"id": 3, "file_name": "b.mov", "caption": "theirs"}\n{"id": 4, "file_name": "gone.mp4"}',
        "csv": "\ufeffid,file_name,caption\r\n3,b.mov,theirs\r\n4,gone.mp4,",
    }[format]
    path.write_text(theirs, "utf-8", newline="")
    caption_folder(folder, about, Captions(format=format))
    assert path.read_bytes().startswith(theirs.encode())
    caption_folder(folder, lambda clip: f"new {clip.stem}", Captions(format=format, overwrite=True))
    found = {row["file_name"]: row for row in rows(path)}
    assert found["b.mov"] == {"id": 3 if format == "jsonl" else "3", "file_name": "b.mov", "caption": "new b"}
    assert set(found) == {"a.mp4", "b.mov", "gone.mp4", "sub/c.webm"}


@pytest.mark.parametrize(
    ("format", "torn"),
    [("jsonl", '{"file_name": "b.mov", "capt'), ("jsonl", "{"), ("csv", '"b.mov","abo'), ("csv", '"b')],
)
def test_a_line_that_a_kill_cut_is_written_again(folder: Path, format: str, torn: str) -> None:
    caption_folder(folder, about, Captions(format=format), recursive=False)
    path = folder / f"metadata.{format}"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + torn)
    report = caption_folder(folder, about, Captions(format=format), recursive=False)
    assert len(report.written) == 1
    assert path.read_text() == whole
    path.write_text(whole.rstrip("\n"))  # as editors leave it
    assert caption_folder(folder, about, Captions(format=format), recursive=False).written == ()
    assert path.read_text() == whole


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b"no json\n"), ("metadata.jsonl", b"[1]\n"), ("metadata.jsonl", b'{"file_name": 3}\n'),
        ("metadata.jsonl", b"\xff\n"), ("metadata.csv", b"video,prompt\n"), ("metadata.csv", b"file_name|caption\n"),
        ("metadata.csv", b"file_name,caption\na.mp4\n"), ("metadata.jsonl", b"words at the end"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_such_table_is_left_alone(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(
        UniViGUError, match=rf"{name}: .*(expected lines with file_name and caption|correct or delete that line)"
    ):
        caption_folder(folder, about, Captions(format=name.partition(".")[2]))
    assert (folder / name).read_bytes() == content


def test_a_table_is_not_written_through_a_link(folder: Path) -> None:
    (folder / "metadata.jsonl").symlink_to(folder / "elsewhere")
    with pytest.raises(UniViGUError, match="is a link"):
        caption_folder(folder, about, Captions(format="jsonl"))
    assert not (folder / "elsewhere").exists()


def test_names_that_a_table_cannot_hold(folder: Path) -> None:
    (folder / "x\ny.mp4").touch()
    report = caption_folder(folder, about, Captions(format="csv"))
    assert [path.name for path, why in report.failed if "cannot hold this name" in why] == ["x\ny.mp4"]
    assert len(report.written) == 3
    assert len(caption_folder(folder, about, Captions(format="jsonl")).written) == 4
    assert caption_folder(folder, about, Captions(format="jsonl")).written == ()


def test_several_captioners_share_a_table(folder: Path) -> None:
    for number in range(40):
        shutil.copy(folder / "a.mp4", folder / f"n{number:02}.mp4")
    assert sum(written for written, _ in caption_twice(folder, "jsonl")) == 43
    names = [row["file_name"] for row in rows(folder / "metadata.jsonl")]
    assert len(names) == len(set(names)) == 43


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_after_a_kill_training_reads_each_clip_once_and_the_next_run_tidies(folder: Path, format: str) -> None:
    for name in ("a.mp4", "b.mov", "sub/c.webm"):
        (folder / name).write_bytes(b"x")
    path, doubled = folder / f"metadata.{format}", "gone.mp4"
    caption_folder(folder, about, Captions(format=format))
    with path.open("a") as file:  # somebody else's clip with two lines
        for words in ("one", "two"):
            row = {"file_name": doubled, "caption": words}
            file.write(json.dumps(row) + "\n" if format == "jsonl" else f'"{doubled}","{words}"\n')

    def dies(clip: Path) -> str:
        if clip.name == "c.webm":
            raise KeyboardInterrupt
        return f"new {clip.stem}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Table, "close", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            caption_folder(folder, dies, Captions(format=format, overwrite=True))
    assert len(rows(path)) == 7
    read = [(one[0].name, *one[1](True)) for one in listed(path) if not isinstance(one, LeftOut)]
    assert read == [
        ("sub/c.webm", "about c"), (doubled, "one"), (doubled, "two"), ("a.mp4", "new a"), ("b.mov", "new b"),
    ]  # fmt: skip
    before = sorted((name, name.read_bytes()) for name in folder.rglob("*") if name.is_file())
    assert "0 to caption" in survey(folder, Captions(format=format))[0]
    assert sorted((name, name.read_bytes()) for name in folder.rglob("*") if name.is_file()) == before
    assert caption_folder(folder, about, Captions(format=format)).written == ()
    found = [(row["file_name"], row["caption"]) for row in rows(path)]
    assert sorted(found) == sorted(read)
    assert not list(folder.glob(".uvg*"))


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_dry_run_changes_no_byte_of_a_table(folder: Path, format: str) -> None:
    caption_folder(folder, about, Captions(format=format), recursive=False)
    path = folder / f"metadata.{format}"
    whole = path.read_bytes()
    for data, left in ((whole[:-5], 2), (whole[:-1], 1)):
        path.write_bytes(data)
        assert f"3 clips: {left} to caption" in survey(folder, Captions(format=format))[0]
        assert path.read_bytes() == data
    (folder / RECORD).write_text(
        json.dumps({"clip": "a.mp4", "new": "x", "format": format, "file_suffix": "", "backup": False}) + "\n"
    )
    path.write_bytes(whole[:-5])
    assert review.listed(folder)["items"][0]["old"] == "about a"
    gc.collect()
    assert path.read_bytes() == whole[:-5]


@pytest.mark.parametrize(
    "row",
    [
        {"file_name": "größer\u2028", "caption": 'a "b" \\ \x01', "n": [1.5e-20, -2, 1e300, True, False, None, {}]},
        {"a": {}},
    ],
)
def test_every_beginning_of_a_line_breaks_off_and_no_slip_of_a_pen_does(row: dict[str, object]) -> None:
    line = json.dumps(row, ensure_ascii=False).encode()
    assert all(breaks_off(line[:end]) for end in range(1, len(line)))
    for other in (line, b"", b"{5", b"words", b'{"a": b"', b'{"a": 5}}', b'{"a": "b" "c"}', b'{"a": tru }', b"[1, 2"):
        assert not breaks_off(other)


ENDS = {  # of a table without a last newline, as somebody typed it: whole, or with a slip of the pen
    "csv": ['"b, 2.mp4",my own caption', '"b.mp4","my long "handwritten", nice caption"', '"b.mp4","mine",'],
    "jsonl": [
        '{"file_name": "b.mp4", "caption": "my long handwritten "quoted" caption"}',
        '{"file_name": "b.mp4", "caption": "mine"}}',
        '{"file_name": "b, 2.mp4", "caption": "my own"}',
    ],
}


@pytest.mark.parametrize("end", [(kind, end) for kind, ends in ENDS.items() for end in ends])
def test_the_last_line_of_a_table_that_somebody_wrote_is_never_cut_off(end: tuple[str, str], tmp_path: Path) -> None:
    kind, line = end
    clip = tmp_path / "c.mp4"
    clip.write_bytes(b"")
    table = tmp_path / f"metadata.{kind}"
    table.write_text(("file_name,caption\n" if kind == "csv" else "") + line, encoding="utf-8")
    with suppress(UniViGUError), texts_of(tmp_path, [clip], Captions(format=kind)) as texts:
        texts.put(clip, lambda _: "about c")
    assert line in table.read_text(encoding="utf-8")


def test_lines_of_others_in_a_table_stay_as_they_are(tmp_path: Path) -> None:
    clips = [tmp_path / f"{name}.mp4" for name in "abc"]
    for clip in clips:
        clip.write_bytes(b"")
    lines = ['{"file_name":"a.mp4","caption":"two","lang":"en","n":1.10}', '{"file_name":"a.mp4","caption":"zwei"}']
    old = '{"file_name":"c.mp4","caption":"old"}'
    table = tmp_path / "metadata.jsonl"
    table.write_text("\n".join([*lines, old]) + "\n", encoding="utf-8")
    with texts_of(tmp_path, clips, Captions(format="jsonl", overwrite=True)) as texts:
        assert texts.read(clips[0]) == "zwei"
        texts.put(clips[2], lambda _: "new")
    found = table.read_text(encoding="utf-8").splitlines()
    assert found[:2] == lines
    assert [json.loads(line)["caption"] for line in found[2:]] == ["new"]


def test_a_table_that_somebody_edits_meanwhile_is_read_anew(tmp_path: Path) -> None:
    clips = [tmp_path / f"{name}.mp4" for name in "ab"]
    for clip in clips:
        clip.write_bytes(b"")
    table = tmp_path / "metadata.jsonl"
    with texts_of(tmp_path, clips, Captions(format="jsonl")) as texts:
        texts.put(clips[0], lambda _: "short")
        edited = table.read_text(encoding="utf-8").replace("short", "a much longer caption that somebody typed")
        table.write_text(edited, encoding="utf-8")
        texts.put(clips[1], lambda _: "about b")
        assert texts.read(clips[0]) == "a much longer caption that somebody typed"
    assert len(table.read_text(encoding="utf-8").splitlines()) == 2


def test_line_breaks_in_other_columns_of_a_csv_stay(tmp_path: Path) -> None:
    clips = [tmp_path / f"{name}.mp4" for name in "ac"]
    for clip in clips:
        clip.write_bytes(b"")
    table = tmp_path / "metadata.csv"
    table.write_text('file_name,caption,note\na.mp4,A,"one\ntwo"\nc.mp4,,\n', encoding="utf-8")
    with texts_of(tmp_path, clips, Captions(format="csv")) as texts:
        texts.put(clips[1], lambda _: "about\nc")
        assert texts.read(clips[1]) == "about c"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [["a.mp4", "A", "one\ntwo"], ["c.mp4", "about c", ""]]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
@pytest.mark.parametrize("name", ["./sub/c.webm", "sub\\c.webm", ".\\sub\\c.webm", "sub//c.webm"])
def test_a_clip_is_known_by_other_spellings_of_its_name(folder: Path, format: str, name: str) -> None:
    table = folder / f"metadata.{format}"
    theirs = {"id": "1", "file_name": name, "caption": "theirs"}
    table.write_text("id,file_name,caption\n1," + name + ",theirs\n" if format == "csv" else json.dumps(theirs) + "\n")
    report = caption_folder(folder, about, Captions(format=format))
    assert (len(report.written), len(report.skipped)) == (2, 1)
    assert dict(report.captions)[folder / "sub/c.webm"] == "theirs"
    caption_folder(folder, about, Captions(format=format, overwrite=True))
    assert [(row["file_name"], row["caption"]) for row in rows(table)] == [
        (name, "about c"), ("a.mp4", "about a"), ("b.mov", "about b"),
    ]  # fmt: skip


def test_a_name_with_a_backslash_is_its_own_clip(folder: Path) -> None:
    (folder / "sub\\c.webm").touch()
    (folder / "sub/u\u0308.mp4").touch()  # as macOS writes it
    (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": "sub\\c.webm", "caption": "mine"})
        + "\n"
        + json.dumps({"file_name": "sub/\u00fc.mp4", "caption": "composed"})
    )
    report = caption_folder(folder, about, Captions(format="jsonl"))
    assert {clip.relative_to(folder).as_posix(): words for clip, words in report.captions} == {
        "a.mp4": "about a", "b.mov": "about b", "sub/c.webm": "about c", "sub\\c.webm": "mine",
        "sub/u\u0308.mp4": "composed",
    }  # fmt: skip


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_stays_of_its_kind(folder: Path, separator: str, end: str, mark: str) -> None:
    table = folder / "metadata.csv"
    lines = [["file_name", "caption", "note"], ["b.mov", "gr\u00fcn", "a"]]
    theirs = mark + "".join(separator.join(line) + end for line in lines)
    table.write_bytes(theirs.encode().removesuffix(end.encode()))

    def read() -> list[list[str]]:
        text = table.read_bytes().decode()
        assert text.startswith(f"{mark}file_name" if text.startswith(theirs) else f'{mark}"file_name"')
        assert text.count("\n") == text.count(end)
        return list(csv.reader(text.removeprefix(mark).split(end), delimiter=separator, strict=True))[:-1]

    caption_folder(folder, lambda clip: f"{clip.stem}, {clip.stem}; it is", Captions(format="csv"))
    assert table.read_bytes().startswith(theirs.encode())
    assert read() == [*lines, ["a.mp4", "a, a; it is", ""], ["sub/c.webm", "c, c; it is", ""]]
    with table.open("ab") as file:
        file.write(f'"a.mp4"{separator}"killed'.encode())
    caption_folder(folder, about, Captions(format="csv", overwrite=True))
    assert [line[1:] for line in read()[1:]] == [["about b", "a"], ["about a", ""], ["about c", ""]]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_table_in_another_encoding_is_refused_with_what_to_do(folder: Path, format: str, encoding: str) -> None:
    table = folder / f"metadata.{format}"
    text = {
        "csv": "file_name;caption\na.mp4;gr\u00fcn\n",
        "jsonl": '{"file_name": "a.mp4", "caption": "gr\u00fcn"}\n',
    }[format]
    table.write_bytes(text.encode(encoding))
    words = "save it as CSV UTF-8" if format == "csv" else "save it as UTF-8"
    with pytest.raises(UniViGUError, match=rf"metadata.{format}: .*is not UTF-8; {words}"):
        caption_folder(folder, about, Captions(format=format))
    assert table.read_bytes() == text.encode(encoding)


@pytest.mark.parametrize("caption", ["null", '""'])
def test_a_line_without_a_caption_waits_for_one(folder: Path, caption: str) -> None:
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "a.mp4", "caption": {caption}, "id": 1}}\n')
    assert len(caption_folder(folder, about, Captions(format="jsonl")).written) == 3
    assert rows(folder / "metadata.jsonl")[0] == {"file_name": "a.mp4", "caption": "about a", "id": 1}


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_full_disk_costs_a_line_and_not_the_table(folder: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"metadata.{format}").write_bytes(BOM_UTF8)  # as editors leave an empty file
    write, calls = os.write, []

    def full_at_first(handle: int, data: bytes) -> int:
        calls.append(data)
        return write(handle, data[:3] if len(calls) == 1 else data)

    with monkeypatch.context() as patched:
        patched.setattr("uvg_core.io.os.write", full_at_first)
        report = caption_folder(folder, about, Captions(format=format))
    assert [path.name for path, why in report.failed if "No space left on device" in why] == ["a.mp4"]
    assert [row["file_name"] for row in rows(folder / f"metadata.{format}")] == ["b.mov", "sub/c.webm"]
    assert len(caption_folder(folder, about, Captions(format=format)).written) == 1
