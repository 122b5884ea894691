"""Captions that wait for review: proposed once, decided about by one, and nothing lost between several."""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uvg_core.confined import confined_to
from uvg_core.errors import UniViGUError
from uvg_core.pipeline import review
from uvg_core.pipeline.folders import Captions, caption_folder
from uvg_core.pipeline.review import RECORD, Pending, clip_named, decide, decisions_of, listed

REVIEW = Captions(review=True)


@pytest.fixture
def folder(folder: Path) -> Path:
    """The same folder, with a text."""
    (folder / "a.txt").write_text("by hand")
    return folder


def about(path: Path) -> str:
    return f"about {path.stem}"


def never(path: Path) -> str:
    raise AssertionError(f"{path} is captioned again")


def items(folder: Path) -> dict[str, dict[str, str]]:
    return {item["clip"]: item for item in listed(folder)["items"]}


def decided(folder: Path, clip: str, decision: str = "accepted", **seen: str) -> dict[str, str]:
    """What becomes of a decision about the caption that is proposed now, unless ``seen`` has another ``new``."""
    values = [{"clip": clip, "decision": decision, "new": Pending(folder).proposals[clip].new, **seen}]
    (outcome,) = decide(folder, decisions_of(values))
    return outcome


def test_captions_wait_and_are_written_when_they_are_accepted(folder: Path) -> None:
    report = caption_folder(folder, about, Captions(review=True, overwrite=True, prefix="x, "))
    assert (len(report.written), report.waiting) == (3, 3)
    assert report.written[0] == folder / RECORD
    assert "3 wait for your review in captions.review.jsonl" in str(report)
    assert dict(report.captions)[folder / "a.mp4"] == "x, about a"
    assert (folder / "a.txt").read_text() == "by hand"
    assert not (folder / "b.txt").exists()
    assert items(folder)["a.mp4"] | {"problem": ""} == {
        "clip": "a.mp4", "old": "by hand", "new": "x, about a", "state": "open", "problem": "", "failed": "",
    }  # fmt: skip
    assert decided(folder, "a.mp4", text="x, corrected", old="by hand")["state"] == "accepted"
    assert decided(folder, "sub/c.webm", "skipped")["state"] == "skipped"
    assert (folder / "a.txt").read_text() == "x, corrected"
    assert not (folder / "sub/c.txt").exists()
    assert {name: item["state"] for name, item in items(folder).items()} == {
        "a.mp4": "accepted", "b.mov": "open", "sub/c.webm": "skipped",
    }  # fmt: skip
    assert decided(folder, "sub/c.webm", "open")["state"] == "open"


def test_what_waits_and_what_was_decided_is_not_captioned_again(folder: Path) -> None:
    assert len(caption_folder(folder, about, REVIEW).written) == 2  # a has a text
    assert caption_folder(folder, never, REVIEW).written == ()
    decided(folder, "b.mov", text="b", old="")
    decided(folder, "sub/c.webm", "skipped")
    assert caption_folder(folder, never, REVIEW).waiting == 0
    assert len(caption_folder(folder, about, Captions(review=True, overwrite=True)).written) == 3
    assert caption_folder(folder, never, Captions(review=True, overwrite=True)).waiting == 3
    assert len(caption_folder(folder, lambda path: "again", Captions(review=True, only="b.mov\n")).written) == 1
    assert items(folder)["b.mov"]["new"] == "again"
    (folder / "b.txt").unlink()
    decided(folder, "b.mov", text="b", old="")
    (folder / "b.txt").unlink()
    assert len(caption_folder(folder, about, REVIEW).written) == 1


def test_extended_captions_wait_as_a_whole(folder: Path) -> None:
    how = Captions(review=True, existing="append", prefix=", ", backup=True)
    caption_folder(folder, about, how)
    assert items(folder)["a.mp4"]["new"] == "by hand, about a"
    decided(folder, "a.mp4", text="by hand, about a", old="by hand")
    assert (folder / "a.txt.bak").read_text() == "by hand"
    assert caption_folder(folder, never, how).waiting == 2


@pytest.mark.parametrize("format", ["json", "jsonl", "csv"])
def test_other_formats_wait_too(folder: Path, format: str) -> None:
    caption_folder(folder, about, Captions(review=True, format=format, file_suffix="x"))
    decided(folder, "a.mp4", text="words", old="")
    decided(folder, "a.mp4", text="more words", old="words")
    assert items(folder)["a.mp4"]["old"] == "more words"
    place = folder / ("a.x.json" if format == "json" else f"metadata.x.{format}")
    assert place.read_text().count("words") == 1


def test_only_clips_of_the_folder(folder: Path) -> None:
    for name in ("../a.mp4", "none.mp4", "a.txt", str(folder / "a.mp4")):
        with pytest.raises(UniViGUError, match=r"is not a clip in this folder; expected names such as a\.mp4"):
            caption_folder(folder, never, Captions(only=name))
    assert len(caption_folder(folder, about, Captions(only="b.mov")).written) == 1
    assert len(caption_folder(folder, about, Captions(only=".\\sub\\c.webm\n./sub/c.webm")).written) == 1


def test_a_text_that_somebody_changed_meanwhile_is_not_written_over(folder: Path) -> None:
    caption_folder(folder, about, Captions(review=True, overwrite=True))
    (folder / "a.txt").write_text("theirs")
    outcome = decided(folder, "a.mp4", text="mine", old="by hand")
    assert outcome == {"clip": "a.mp4", "state": "conflict", "now": "theirs", "new": "about a", "problem": ""}
    assert (folder / "a.txt").read_text() == "theirs"
    assert items(folder)["a.mp4"]["state"] == "open"
    assert decided(folder, "a.mp4", text="mine", old="theirs")["state"] == "accepted"
    assert decided(folder, "a.mp4", text="mine", old="by hand")["state"] == "accepted"  # the same, by two
    assert decided(folder, "a.mp4", "skipped")["state"] == "accepted"


@pytest.mark.parametrize("decision", ["accepted", "skipped"])
def test_a_proposal_that_nobody_has_seen_is_not_decided_about(folder: Path, decision: str) -> None:
    caption_folder(folder, about, REVIEW)
    caption_folder(folder, lambda path: "again", Captions(review=True, only="b.mov"))
    outcome = decided(folder, "b.mov", decision, text="mine", new="about b")
    assert outcome == {"clip": "b.mov", "state": "conflict", "now": "", "new": "again", "problem": ""}
    assert not (folder / "b.txt").exists()
    assert items(folder)["b.mov"] | {"problem": ""} == {
        "clip": "b.mov", "old": "", "new": "again", "state": "open", "problem": "", "failed": "",
    }  # fmt: skip
    assert decided(folder, "b.mov", decision, text="mine", new="again")["state"] == decision


def test_of_two_reviewers_one_is_first(folder: Path) -> None:
    caption_folder(folder, about, Captions(review=True, overwrite=True))
    outcomes: list[dict[str, str]] = []

    def reviewer(text: str) -> None:
        outcomes.append(decided(folder, "a.mp4", text=text, old="by hand"))

    threads = [threading.Thread(target=reviewer, args=(f"text {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (one for one in outcomes if one["state"] == "accepted")
    assert {one["now"] for one in outcomes} == {winner["now"]} == {(folder / "a.txt").read_text()}


def test_what_cannot_be_decided_says_why_and_the_others_are(folder: Path) -> None:
    caption_folder(folder, about, Captions(review=True, overwrite=True))
    (folder / "b.mov").unlink()
    (folder / "sub/c.txt").mkdir()
    values = [
        {"clip": "a.mp4", "decision": "accepted", "text": " ", "old": "by hand", "new": "about a"},
        {"clip": "b.mov", "decision": "accepted", "text": "x"},
        {"clip": "../a.mp4", "decision": "skipped"},
        {"clip": "sub/c.webm", "decision": "accepted", "text": "x", "new": "about c"},
        {"clip": "a.mp4", "decision": "accepted", "text": "x", "old": "by hand", "new": "about a"},
    ]
    outcomes = decide(folder, decisions_of(values))
    assert [one["state"] for one in outcomes] == ["failed"] * 4 + ["accepted"]
    for one, words in zip(
        outcomes, ("is empty", "no caption waits", "no caption waits", "is not a regular file", ""), strict=True
    ):
        assert words in one["problem"]
    assert listed(folder)["gone"] == 1


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["uvg_core.lines.append", "uvg_core.pipeline.texts.write_text"])
def test_a_full_disk_loses_no_decision(folder: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    caption_folder(folder, about, Captions(review=True, overwrite=True))
    proposed = [
        {"clip": name, "decision": "accepted", "text": "corrected", "old": item["old"], "new": item["new"]}
        for name, item in items(folder).items()
    ]

    def full(*_: object) -> None:
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(place, full)
        outcomes = decide(folder, decisions_of(proposed))
    failed = [one for one in outcomes if one["state"] == "failed"]
    assert all("(No space left on device)" in one["problem"] for one in failed)
    if place.endswith("append"):
        assert len(failed) == 3  # the texts are written, and nothing says so yet
        assert [item["state"] for item in items(folder).values()] == ["open"] * 3
    else:
        assert [one["clip"] for one in failed] == ["a.mp4"]  # the others had no text to be replaced
        assert (folder / "a.txt").read_text() == "by hand"
    outcomes = decide(folder, decisions_of(proposed))  # again, as it was
    assert [one["state"] for one in outcomes] == ["accepted"] * 3
    assert (folder / "a.txt").read_text() == "corrected"


def test_a_table_that_cannot_be_tidied_holds_what_was_decided(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caption_folder(folder, lambda _: "old", Captions(format="csv"))
    caption_folder(folder, about, Captions(format="csv", review=True, overwrite=True, backup=True))

    def full(*_: object) -> None:
        raise UniViGUError("could not be written")

    for name in ("write_beside", "write_text"):
        monkeypatch.setattr(f"uvg_core.pipeline.table.{name}", full)
    assert decided(folder, "a.mp4", text="corrected", old="old")["state"] == "accepted"
    assert items(folder)["a.mp4"]["old"] == "corrected"
    report = caption_folder(folder, about, Captions(format="csv", overwrite=True, backup=True))
    assert len(report.written) == 3
    assert dict(report.captions)[folder / "a.mp4"] == "about a"


@pytest.mark.parametrize(
    "values",
    [
        None, {}, [1], [{"clip": 3, "decision": "accepted"}], [{"clip": "a"}], [{"clip": "a", "decision": "delete"}],
        [{"clip": "a", "decision": "accepted", "text": "x" * 100_001}],
        [{"clip": "a", "decision": "open", "path": "/"}],
    ],
)  # fmt: skip
def test_what_is_no_decision_is_refused(values: object) -> None:
    with pytest.raises(UniViGUError):
        decisions_of(values)


def test_a_record_that_was_cut_or_is_not_ours_costs_its_lines_alone(folder: Path) -> None:
    how = {"format": "txt", "file_suffix": "", "backup": False}
    lines = [
        {"clip": "a.mp4", "new": "fine", **how}, {"clip": "b.mov", "new": 3, **how}, {"clip": ["x"], "new": "x", **how},
        {"clip": "b.mov", "new": "x", **how, "file_suffix": "../x"}, {"clip": "b.mov", "decision": "accepted"},
        [1], None,
        {"clip": "a.mp4", "decision": "erased"}, {"clip": "../out.mp4", "new": "x", **how},
    ]  # fmt: skip
    data = b"\xff\n" + b"".join(json.dumps(line).encode() + b"\n" for line in lines) + b'{"clip": "a.mp4", "new": "to'
    (folder / RECORD).write_bytes(data)
    assert {name: (item["new"], item["state"]) for name, item in items(folder).items()} == {"a.mp4": ("fine", "open")}
    assert len(caption_folder(folder, about, REVIEW).written) == 2
    assert items(folder)["b.mov"]["new"] == "about b"
    assert (folder / RECORD).read_bytes().startswith(data + b"\n")


def test_a_caption_that_could_not_be_made_again_says_why(folder: Path) -> None:
    caption_folder(folder, about, REVIEW)

    def again(path: Path) -> str:
        if path.name == "b.mov":
            raise UniViGUError(f"{path}: cannot be opened")
        return about(path)

    caption_folder(folder, again, replace(REVIEW, only="a.mp4\nb.mov"))
    assert {name: item["failed"] for name, item in items(folder).items()} == {
        "a.mp4": "", "b.mov": "b.mov: cannot be opened", "sub/c.webm": "",
    }  # fmt: skip
    assert items(folder)["b.mov"]["state"] == "open"
    caption_folder(folder, about, replace(REVIEW, only="b.mov"))
    assert items(folder)["b.mov"]["failed"] == ""


def test_the_record_is_bounded_and_no_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review, "_MOST_BYTES", 200)
    report = caption_folder(folder, lambda path: "x" * 80, REVIEW)
    assert [why.partition(": ")[2] for _, why in report.failed] == [
        "is full (0 MB); review what it holds, and move it away"
    ]
    (folder / RECORD).unlink()
    (folder / RECORD).symlink_to(folder / "elsewhere")
    report = caption_folder(folder, about, REVIEW)
    assert "it is a link" in report.failed[0][1]
    assert not (folder / "elsewhere").exists()


def test_two_runs_propose_each_clip_once(folder: Path) -> None:
    def during(path: Path) -> str:
        if path.name == "b.mov":
            Pending(folder).propose("sub/c.webm", "theirs", REVIEW)
        return about(path)

    assert len(caption_folder(folder, during, REVIEW).written) == 1
    assert items(folder)["sub/c.webm"]["new"] == "theirs"


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../a.mp4", "sub/../a.mp4", "/etc/passwd", "//a.mp4", "a.mp4/", "a.mp4/..", "a.txt", "sub",
        "sub/",
        ".hidden.mp4", ".h/a.mp4", "a.mp4\0", "sub\\c.webm", "linked.mp4", "dangling.mp4", "pipe.mp4", "x" * 5000,
        "a/" * 3000, "none.mp4", "\udcff.mp4",
    ],
)  # fmt: skip
def test_a_name_leads_to_a_clip_of_the_folder_or_nowhere(folder: Path, name: str, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.mp4"
    outside.write_bytes(b"secret")
    (folder / ".hidden.mp4").touch()
    (folder / ".h").mkdir()
    (folder / ".h" / "a.mp4").touch()
    (folder / "linked.mp4").symlink_to(outside)
    (folder / "dangling.mp4").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.mp4")
    with confined_to([folder]):
        with pytest.raises(UniViGUError, match=r"^no clip of this name is in the folder; load the list again$"):
            clip_named(folder, name)
        assert clip_named(folder, "sub/c.webm") == folder / "sub/c.webm"
