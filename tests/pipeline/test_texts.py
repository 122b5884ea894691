"""How the captions of a folder are worded, and the files that they are kept in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uvg_core.errors import UniViGUError
from uvg_core.pipeline.folders import Captions, caption_folder
from uvg_core.pipeline.wording import joined, pairs_of, replaced

ROOT = Path(__file__).resolve().parents[2]


def about(path: Path) -> str:
    return f"about {path.stem}"


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


@pytest.mark.parametrize("how", [Captions(format="json"), Captions(format="json", overwrite=True)])
@pytest.mark.parametrize("caption", ["null", '" "'])
def test_a_json_without_words_is_captioned(folder: Path, how: Captions, caption: str) -> None:
    (folder / "a.json").write_text(f'{{"caption": {caption}, "id": 1}}')
    (folder / "b.json").write_text('{"id": 2}' if how.overwrite else '{"caption": 1}')
    report = caption_folder(folder, about, how)
    assert json.loads((folder / "a.json").read_text()) == {"caption": "about a", "id": 1}
    assert (len(report.written), len(report.skipped)) == ((3, 0) if how.overwrite else (2, 1))


def test_json_that_says_nothing_of_a_caption_is_left_alone(folder: Path) -> None:
    (folder / "a.json").write_text('{"nodes": []}')
    assert len(caption_folder(folder, about, Captions(format="json")).written) == 2
    assert (folder / "a.json").read_text() == '{"nodes": []}'


def test_a_file_suffix_never_takes_the_text_of_another_clip(tmp_path: Path) -> None:
    clips = [tmp_path / "a.mp4", tmp_path / "a.detail.mp4"]
    for clip in clips:
        clip.write_bytes(b"")
    (tmp_path / "a.detail.txt").write_text("by hand")
    with pytest.raises(UniViGUError, match=r"a\.detail\.txt, the caption of a\.detail\.mp4"):
        caption_folder(tmp_path, lambda _: "new", Captions(file_suffix="detail", overwrite=True))
    assert (tmp_path / "a.detail.txt").read_text() == "by hand"
