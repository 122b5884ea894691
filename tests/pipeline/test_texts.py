"""How the captions of a folder are worded, and the files that they are kept in."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from uvg_core.errors import UniViGUError
from uvg_core.pipeline.folders import Captions, caption_folder
from uvg_core.pipeline.texts import texts_of
from uvg_core.pipeline.wording import joined, pairs_of, replaced

ROOT = Path(__file__).resolve().parents[2]


def about(path: Path) -> str:
    return f"about {path.stem}"


def rows(path: Path) -> list[dict[str, str]]:
    text = path.read_text("utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.splitlines()]


# Words


def test_words_around_a_caption(folder: Path) -> None:
    how = Captions(prefix="x, ", suffix=", film", replace="about => of\n\n a  =>  the letter A \ngone=>")
    caption_folder(folder, lambda path: f"{about(path)} gone", how)
    assert (folder / "a.txt").read_text() == "x, of the letter A , film"
    assert (folder / "b.txt").read_text() == "x, of b , film"


def test_pairs_are_plain_text_one_after_the_other() -> None:
    pairs = pairs_of("(a+)+$ => b\n.* => c\nb => d => e")
    assert pairs == [("(a+)+$", "b"), (".*", "c"), ("b", "d => e")]
    assert replaced("(a+)+$ aaaa B", pairs) == "d => e aaaa B"
    for text in ("no arrow", "=> b", "a => b\n => c"):
        with pytest.raises(UniViGUError, match=r"replace: line \d is .*; expected the words to find"):
            Captions(replace=text)


def test_pairs_that_double_each_other_end() -> None:
    with pytest.raises(UniViGUError, match="grows beyond"):
        replaced("a", pairs_of("\n".join(["a => aa"] * 64)))


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        ("a cat", "mystyle", "a cat mystyle"),
        ("a cat\n", ", on a mat", "a cat, on a mat"),
        ("mystyle, ", "a cat", "mystyle, a cat"),
        ("", "a cat", "a cat"),
    ],
)
def test_texts_are_joined_as_a_reader_would(first: str, second: str, whole: str) -> None:
    assert joined(first, second) == whole


@pytest.mark.parametrize(("existing", "whole"), [("append", "by hand, about a"), ("prepend", ", about a by hand")])
def test_a_caption_is_extended_once(folder: Path, existing: str, whole: str) -> None:
    (folder / "a.txt").write_text("by hand\n")
    how = Captions(existing=existing, prefix=", ", backup=True)
    first = caption_folder(folder, about, how)
    assert len(first.written) == 3
    assert (folder / "a.txt").read_text().rstrip("\n") == whole
    assert (folder / "a.txt.bak").read_text() == "by hand\n"
    assert (folder / "b.txt").read_text() == ", about b"
    again = caption_folder(folder, lambda path: pytest.fail("captioned twice"), how)
    assert (len(again.written), len(again.skipped)) == (0, 3)
    (folder / "a.txt").write_text("by hand\n")  # brought back
    assert [path.name for path in caption_folder(folder, about, how).written] == ["a.txt"]
    other = Captions(existing=existing, prefix=" and ")
    assert len(caption_folder(folder, about, other).written) == 3


def test_a_kill_between_the_note_and_the_text_loses_and_doubles_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.txt").write_text("by hand")
    how = Captions(existing="append")
    with monkeypatch.context() as patched:
        patched.setattr("uvg_core.pipeline.texts.write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            caption_folder(folder, about, how)
    with (folder / ".uvg.extended.jsonl").open("a") as file:
        file.write('{"file": "b.txt b.mo')
    assert len(caption_folder(folder, about, how).written) == 3
    assert (folder / "a.txt").read_text() == "by hand about a"
    assert caption_folder(folder, about, how).written == ()


def test_replacing_and_extending_exclude_each_other() -> None:
    with pytest.raises(UniViGUError, match="overwrite is on and existing is append"):
        Captions(overwrite=True, existing="append")


def test_what_is_replaced_is_kept(folder: Path) -> None:
    for number in range(3):
        caption_folder(folder, lambda path, number=number: f"text {number}", Captions(overwrite=True, backup=True))
    assert (folder / "a.txt").read_text() == "text 2"
    assert {path.name: path.read_text() for path in folder.glob("a.*.bak")} == {
        "a.txt.bak": "text 0",
        "a.txt.2.bak": "text 1",
    }


def test_seeds_depend_on_the_name_and_the_seed_alone() -> None:
    def seed(seed: int, name: str) -> int:
        return Captions(clip_seeds=True).seed(seed, Path(name))

    assert seed(7, "sub/a.mp4") == 6036429350800217593  # results depend on it
    assert len({seed(number, name) for number in (7, 8) for name in ("a.mp4", "b.mp4", "sub/a.mp4")}) == 6
    assert all(0 <= seed(7, f"{n}\udcff") < 2**63 for n in range(100))
    assert Captions().seed(7, Path("a.mp4")) == 7


# Files


def test_names_with_a_word_of_ones_own(folder: Path) -> None:
    (folder / "a.mov").touch()
    (folder / "a.txt").write_text("by hand")
    caption_folder(folder, about, Captions(file_suffix="caption"))
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.txt"))
    assert found == ["a.caption.txt", "a.mov.caption.txt", "a.txt", "b.caption.txt", "sub/c.caption.txt"]


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "a\0", "a\n", ".a", "a.", "a:b", "x" * 65, "*"])
def test_a_word_that_no_name_can_hold_is_refused(name: str) -> None:
    with pytest.raises(UniViGUError, match=r"file_suffix is .*; expected a word"):
        Captions(file_suffix=name)


def test_json_keeps_what_others_put_there(folder: Path) -> None:
    (folder / "a.json").write_text('{"title": "Ä", "caption": "old"}')
    (folder / "b.json").write_text("[1]")
    report = caption_folder(folder, about, Captions(format="json", overwrite=True, backup=True))
    assert json.loads((folder / "a.json").read_text()) == {"title": "Ä", "caption": "about a"}
    assert json.loads((folder / "sub/c.json").read_text()) == {"caption": "about c"}
    assert (folder / "a.json.bak").exists()
    assert "b.json: found something other than a JSON object" in dict(report.failed)[folder / "b.mov"]
    assert (folder / "b.json").read_text() == "[1]"
    assert len(caption_folder(folder, about, Captions(format="json")).skipped) == 3
    assert report.captions == ((folder / "a.mp4", "about a"), (folder / "sub/c.webm", "about c"))


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
        ("metadata.jsonl", b"\xff\n"), ("metadata.csv", b"video,prompt\n"), ("metadata.csv", b"file_name;caption\n"),
        ("metadata.csv", b"file_name,caption\na.mp4\n"), ("metadata.jsonl", b"words at the end"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_such_table_is_left_alone(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(
        UniViGUError, match=rf"{name}: .*(expected lines with file_name and caption|correct it, or take it away)"
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
    code = (
        "import sys, time; from uvg_core.pipeline.folders import Captions, caption_folder\n"
        "def caption(path):\n    time.sleep(0.01); return f'{sys.argv[2]} {path.name}'\n"
        "report = caption_folder(sys.argv[1], caption, Captions(format='jsonl')); print(len(report.written))"
    )
    for number in range(40):
        shutil.copy(folder / "a.mp4", folder / f"n{number:02}.mp4")
    commands = [[sys.executable, "-c", code, str(folder), who] for who in "AB"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for command in commands]
    counts = [int(run.communicate()[0]) for run in runs]
    assert sum(counts) == 43
    names = [row["file_name"] for row in rows(folder / "metadata.jsonl")]
    assert len(names) == len(set(names)) == 43


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


def test_a_file_suffix_never_takes_the_text_of_another_clip(tmp_path: Path) -> None:
    clips = [tmp_path / "a.mp4", tmp_path / "a.detail.mp4"]
    for clip in clips:
        clip.write_bytes(b"")
    (tmp_path / "a.detail.txt").write_text("by hand")
    with pytest.raises(UniViGUError, match=r"a\.detail\.txt, which is that of a\.detail\.mp4"):
        caption_folder(tmp_path, lambda _: "new", Captions(file_suffix="detail", overwrite=True))
    assert (tmp_path / "a.detail.txt").read_text() == "by hand"
