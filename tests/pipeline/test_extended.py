"""A caption is extended once, however it was written; a text that replaces it begins anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvg_core.pipeline.folders import Captions, caption_folder, survey
from uvg_core.pipeline.review import RECORD, decide, decisions_of, listed

HOWS = [
    pytest.param({"existing": existing, "format": format}, id=f"{existing}-{format}")
    for existing, format in (("append", "txt"), ("prepend", "json"), ("append", "jsonl"), ("prepend", "csv"))
]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """The only clip of a folder."""
    path = tmp_path / "a.mp4"
    path.touch()
    return path


def run(clip: Path, text: str, **how: object) -> tuple[int, str]:
    """Caption the folder; how many captions were written or proposed, and the one that the clip has now."""
    report = caption_folder(clip.parent, lambda _: text, Captions(**how))  # type: ignore[arg-type]
    assert not report.failed
    return len(report.written), dict(report.captions).get(clip, "")


def accept(clip: Path, text: str | None = None, decision: str = "accepted") -> None:
    (item,) = listed(clip.parent)["items"]
    seen = {name: item[name] for name in ("clip", "old", "new")}
    values = [{**seen, "decision": decision, "text": text or item["new"]}]
    assert decide(clip.parent, decisions_of(values))[0]["state"] == decision


def whole(how: dict[str, str], old: str, new: str) -> str:
    return f"{old} {new}" if how["existing"] == "append" else f"{new} {old}"


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("edited", [None, "corrected"])
def test_what_was_accepted_is_not_extended_again(clip: Path, how: dict[str, str], edited: str | None) -> None:
    run(clip, "old", format=how["format"])
    assert run(clip, "new", **how, review=True)[0] == 1
    accept(clip, edited)
    extended = edited or whole(how, "old", "new")
    assert run(clip, "again", **how) == (0, extended)
    assert run(clip, "again", **how, review=True) == (0, extended)
    accept(clip, f"{extended}, better")  # decided again
    assert run(clip, "again", **how) == (0, f"{extended}, better")
    assert run(clip, "more", **{**how, "prefix": "and "})[0] == 1  # other words are another matter


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("by", ["run", "review"])
def test_what_was_replaced_is_extended_anew(clip: Path, how: dict[str, str], by: str) -> None:
    run(clip, "old", format=how["format"])
    assert run(clip, "new", **how) == (1, whole(how, "old", "new"))
    assert run(clip, "replaced", format=how["format"], overwrite=True, review=by == "review")[0] == 1
    if by == "review":
        accept(clip)
    assert run(clip, "new", **how) == (1, whole(how, "replaced", "new"))
    assert run(clip, "new", **how)[0] == 0


def test_an_extended_text_that_somebody_corrects_is_not_extended_again(clip: Path) -> None:
    assert run(clip, "first", existing="append") == (1, "first")
    assert run(clip, "again", existing="append")[0] == 0  # all of it is what was appended
    clip.with_suffix(".txt").write_text("corrected")
    assert run(clip, "again", existing="append") == (0, "corrected")
    clip.with_suffix(".txt").unlink()
    assert run(clip, "anew", existing="append") == (1, "anew")
    clip.with_suffix(".txt").write_text("\n")
    assert run(clip, "kept", existing="keep") == (1, "kept")  # a first text, not an extended one
    assert run(clip, "new", existing="append") == (1, "kept new")


def test_a_skipped_extension_is_not_proposed_again(clip: Path) -> None:
    run(clip, "old")
    run(clip, "new", existing="append", review=True)
    accept(clip, decision="skipped")
    assert run(clip, "new", existing="append", review=True)[0] == 0
    assert run(clip, "new", existing="append", suffix="!", review=True)[0] == 1


def test_an_extension_that_is_accepted_while_the_model_works_is_the_only_one(clip: Path) -> None:
    run(clip, "old")
    run(clip, "new", existing="append", review=True)

    def during(path: Path) -> str:
        accept(path)
        return "again"

    assert caption_folder(clip.parent, during, Captions(existing="append")).written == ()
    assert clip.with_suffix(".txt").read_text() == "old new"


@pytest.mark.parametrize("format", ["txt", "json", "jsonl"])
def test_what_another_run_extends_meanwhile_is_not_extended_again(clip: Path, format: str) -> None:
    clip.with_name("b.mp4").touch()
    caption_folder(clip.parent, lambda _: "old", Captions(format=format))
    how = Captions(format=format, existing="append")

    def during(_: Path) -> str:
        caption_folder(clip.parent, lambda _: "theirs", how)  # all of the folder
        return "ours"

    report = caption_folder(clip.parent, during, how)
    assert report.written == ()
    assert [words for _, words in report.captions] == ["old theirs"] * 2


@pytest.mark.parametrize("review", [False, True])
def test_a_text_that_cannot_be_read_costs_its_clip_alone(clip: Path, review: bool) -> None:
    clip.with_suffix(".json").write_text("[1]")
    clip.with_name("b.mp4").touch()
    how = Captions(format="json", existing="append", review=review)
    planned = survey(clip.parent, how)[0].splitlines()
    assert planned[0] == "2 clips: 1 to caption"
    assert "a.json: found something other than a JSON object" in planned[2]
    report = caption_folder(clip.parent, lambda _: "new", how)
    assert (len(report.written), [path.name for path, _ in report.failed]) == (1, ["a.mp4"])


# Formats that change on the way


def test_a_run_in_another_format_proposes_anew_and_each_is_written_as_its_run_said(clip: Path) -> None:
    assert run(clip, "first", review=True)[0] == 1
    assert run(clip, "again", review=True)[0] == 0
    assert run(clip, "second", review=True, format="json") == (1, "second")
    accept(clip)
    assert not clip.with_suffix(".txt").exists()
    assert '"second"' in clip.with_suffix(".json").read_text()
    assert run(clip, "third", review=True, format="json")[0] == 0
    assert run(clip, "third", review=True, file_suffix="short")[0] == 1
    assert run(clip, "fourth", review=True, format="json", existing="append") == (1, "second fourth")
    assert run(clip, "fifth") == (1, "fifth")  # what waits for another file is none of its captions
    assert run(clip, "sixth", review=True) == (0, "fifth")


def test_the_report_tells_what_waits_from_what_is_captioned(clip: Path) -> None:
    for name in ("b", "c", "gone"):
        clip.with_name(f"{name}.mp4").touch()
    clip.with_name("c.txt").write_text("by hand")
    how = Captions(review=True)
    report = caption_folder(clip.parent, lambda _: "new", how)
    assert str(report).splitlines() == [
        "4 clips: 3 captioned, 1 skipped (already captioned), 0 failed",
        f"  3 wait for your review in {RECORD}: open Review captions in ComfyUI",
    ]
    clip.with_name("gone.mp4").unlink()
    clip.with_name("d.mp4").touch()
    report = caption_folder(clip.parent, lambda _: "new", how)
    assert str(report).splitlines() == [
        "4 clips: 1 captioned, 1 skipped (already captioned), 0 failed, 2 already proposed",
        f"  3 wait for your review in {RECORD}: open Review captions in ComfyUI",
    ]
    assert len(report.captions) == 4
