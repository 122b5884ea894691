"""What a data set keeps: its record through kills, full disks and other processes, and whatever is somebody else's."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from uvg_core.errors import UniViGUError
from uvg_core.media.video import write_video
from uvg_core.synthesis import engine
from uvg_core.synthesis import record as module
from uvg_core.synthesis.captioner import Caption, Captioner
from uvg_core.synthesis.engine import KEPT, ClipJob, Generator, SynthesisReport, plan, synthesise
from uvg_core.synthesis.record import RECORD, ClipRecord, Record

JOBS = plan(["a red circle", "a green square", "a blue star"], 1, 0)
SETTINGS = {"model": "a.safetensors", "sha256": "12", "steps": 4}
OTHER = {**SETTINGS, "steps": 8}
FILES = pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def flat(path: Path, frames: int = 5) -> None:
    write_video(path, torch.full((frames, 32, 32, 3), 80, dtype=torch.uint8), 8)


class Captions:
    """Stands in for a captioner that asks nobody."""

    def __init__(self, on_call: Callable[[str, Path], object] = lambda prompt, clip: None) -> None:
        self.settings, self.on_call, self.asked = {"llm": "m"}, on_call, list[str]()

    def caption(self, prompt: str, clip: Path) -> Caption:
        self.asked.append(prompt)
        self.on_call(prompt, clip)
        return Caption(f"the model says: {prompt}", 6, 1)


def go(
    folder: Path,
    captions: Captions | None = None,
    *,
    jobs: list[ClipJob] = JOBS,
    generator: dict[str, Any] = SETTINGS,
    make: Callable[[ClipJob, Path], object] = lambda job, path: flat(path),
    **options: Any,
) -> SynthesisReport:
    how = Generator(make, generator, lambda text: len(text.split()), (0, 6))
    return synthesise(jobs, folder, how, cast("Captioner | None", captions), **options)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files if not path.name.startswith((".", "synthesis"))}


# What is somebody else's


def test_a_clip_that_the_record_does_not_know_stays(tmp_path: Path) -> None:
    clip = tmp_path / f"{JOBS[1].name}.mp4"
    clip.write_bytes(b"mine")
    report = go(tmp_path, Captions())
    assert (len(report.made), [problem.reason for problem in report.problems]) == (2, [KEPT])
    assert f"{clip}: already exists and is not listed in synthesis.jsonl" in str(report)
    assert clip.read_bytes() == b"mine"
    assert not clip.with_suffix(".txt").exists()
    clip.unlink()
    assert len(go(tmp_path, Captions()).made) == 1


def test_a_clip_that_was_changed_stays(tmp_path: Path) -> None:
    go(tmp_path)
    clip = tmp_path / f"{JOBS[0].name}.mp4"
    flat(clip, 3)
    trimmed = clip.read_bytes()
    report = go(tmp_path)
    assert (
        "found 3 frames, expected 5. The file was changed after it was made, and is left alone"
        in report.problems[0].message
    )
    assert clip.read_bytes() == trimmed


@FILES
@pytest.mark.parametrize("suffix", [".txt", ".detail.txt"])
def test_texts_by_hand_stay_in_every_encoding(tmp_path: Path, encoding: str, suffix: str) -> None:
    go(tmp_path)
    text = tmp_path / f"{JOBS[0].name}{suffix}"
    text.write_bytes("ein Kreis, größer als früher".encode(encoding))
    before, captions = text.read_bytes(), Captions()
    assert not go(tmp_path, captions).failed
    assert text.read_bytes() == before
    assert (JOBS[0].prompt in captions.asked) is (suffix == ".txt")
    # The same settings give the same clip again: it still fits.
    (tmp_path / f"{JOBS[0].name}.mp4").unlink()
    assert go(tmp_path, captions).made == [JOBS[0]]
    assert text.read_bytes() == before


@FILES
def test_an_edited_caption_is_not_put_beside_another_clip(tmp_path: Path, encoding: str) -> None:
    go(tmp_path, Captions())
    clip, detail = (tmp_path / f"{JOBS[0].name}{suffix}" for suffix in (".mp4", ".detail.txt"))
    detail.write_bytes("ein Kreis, größer als früher".encode(encoding))
    before, made = detail.read_bytes(), list[str]()
    clip.unlink()
    report = go(tmp_path, Captions(), generator=OTHER, anyway=True, make=lambda job, path: made.append(job.name))
    assert [(problem.job, problem.reason) for problem in report.problems] == [(JOBS[0], KEPT)]
    assert (made, detail.read_bytes()) == ([], before)
    # One that was written here and never touched goes with its clip.
    (tmp_path / f"{JOBS[1].name}.mp4").unlink()
    detail.unlink()
    captions = Captions()
    assert go(tmp_path, captions, generator=OTHER, anyway=True).made == JOBS[:2]
    assert captions.asked == [job.prompt for job in JOBS[:2]]


@pytest.mark.parametrize("suffix", [".txt", ".detail.txt"])
@pytest.mark.parametrize("kind", ["binary", "pipe", "folder", "large", "link"])
def test_what_is_no_text_is_left_alone_and_never_waited_for(tmp_path: Path, kind: str, suffix: str) -> None:
    text = tmp_path / f"{JOBS[0].name}{suffix}"
    if kind == "pipe":
        os.mkfifo(text)
    elif kind == "folder":
        text.mkdir()
    elif kind == "link":
        text.symlink_to(tmp_path / "nowhere.txt")
    else:
        text.write_bytes(b"\x00\x01\xff" if kind == "binary" else b"x" * (2**20 + 1))
    before = text.lstat()
    report = go(tmp_path, Captions())
    assert [problem.job for problem in report.problems] == [JOBS[0]]
    assert str(text) in report.problems[0].message
    assert len(report.made) == 2
    assert text.lstat().st_ino == before.st_ino
    assert not (tmp_path / "nowhere.txt").exists()


def test_a_caption_that_somebody_writes_meanwhile_stays(tmp_path: Path) -> None:
    captions = Captions(lambda prompt, clip: clip.with_suffix(".detail.txt").write_text("mine"))
    notes = list[str]()
    assert not go(tmp_path, captions, note=notes.append).failed
    assert all((tmp_path / f"{job.name}.detail.txt").read_text() == "mine" for job in JOBS)
    assert sum("another program wrote this file meanwhile; it was left alone" in note for note in notes) == 3
    assert all(clip.captioner is None for clip in Record(tmp_path).clips.values())


def test_any_failure_of_the_captioner_costs_one_clip(tmp_path: Path) -> None:
    def fail(prompt: str, clip: Path) -> None:
        if prompt == JOBS[0].prompt:
            raise RuntimeError("a fault of ours")

    report = go(tmp_path, Captions(fail))
    assert (len(report.made), report.stopped) == (2, None)
    assert "RuntimeError: a fault of ours" in report.problems[0].message


# The record


def test_the_record_of_version_1_is_carried_over(tmp_path: Path) -> None:
    go(tmp_path, Captions())
    known, new = Record(tmp_path), tmp_path / "synthesis.jsonl"
    clips = {
        name: {"prompt": clip.prompt, "seed": clip.seed, "frames": 5, "generator": 0, "captioner": 0}
        for name, clip in known.clips.items()
    }
    old = {"version": 1, "generators": [SETTINGS], "captioners": known.captioners, "clips": clips}
    (tmp_path / "synthesis.json").write_text(json.dumps(old))
    new.unlink()
    before, notes = contents(tmp_path), list[str]()
    assert go(tmp_path, Captions(), note=notes.append).complete == JOBS
    assert any("copied to synthesis.jsonl" in note for note in notes)
    with pytest.raises(UniViGUError, match="steps was 4 and is 8"):
        go(tmp_path, generator=OTHER)
    more = plan(["a new one"], 1, 0)
    assert go(tmp_path, Captions(), jobs=JOBS + more).made == more
    assert contents(tmp_path).items() >= before.items()
    assert json.loads((tmp_path / "synthesis.json").read_text()) == old
    (tmp_path / "synthesis.json").unlink()
    assert go(tmp_path, Captions(), jobs=JOBS + more).complete == JOBS + more


def test_a_line_that_was_cut_off_anywhere_costs_that_line(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.place("generator", {**SETTINGS, "instructions": "one\u2028two\x85größer"})
    for job in JOBS:
        record.keep(job.name, ClipRecord("größer", job.seed, 5, 0))
    data = record.path.read_bytes()
    starts = [at + 1 for at, byte in enumerate(data) if byte == 10]
    for cut in range(starts[1], len(data) + 1):
        record.path.write_bytes(data[:cut])
        found = Record(tmp_path)
        whole = sum(start <= cut + 1 for start in starts)  # a line that lacks but its end is whole
        assert len(found.clips) == whole - 2
        assert found.generators == record.generators
        assert record.path.read_bytes() == data[: starts[whole - 1]]
        found.keep("another", ClipRecord("x", 1, 5, 0))
        assert len(Record(tmp_path).clips) == whole - 1


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "5",
        '"clip"',
        "[]",
        "{}",
        '{"version": 3}',
        '{"clip": []}',
        '{"clip": "a", "prompt": 1, "seed": 1}',
        "[" * 9999,
        '{"clip": "a", "prompt": "b", "seed": 1, "frames": 5, "generator": 7}',
        '{"generator": 7}',
        '{"odd": {}}',
        "\x00",
    ],
)
def test_a_record_that_is_damaged_is_refused_and_stays(tmp_path: Path, line: str) -> None:
    go(tmp_path, jobs=JOBS[:1])
    path = tmp_path / "synthesis.jsonl"
    path.write_text(path.read_text() + line + "\n" + '{"generator": {}}\n')
    before = path.read_bytes()
    with pytest.raises(UniViGUError, match=r"synthesis\.jsonl: cannot be read as the record of this folder"):
        go(tmp_path)
    assert path.read_bytes() == before


def test_two_records_of_one_folder_lose_nothing(tmp_path: Path) -> None:
    """On a network folder that knows no locks."""
    one, two = Record(tmp_path), Record(tmp_path)
    for number in range(12):
        for record, name in ((one, "one"), (two, "two")):
            record.keep(f"{name}-{number}", ClipRecord(name, number, 5, record.place("generator", SETTINGS)))
    found = Record(tmp_path)
    assert len(found.clips) == 24
    assert all(found.generators[clip.generator or 0] == SETTINGS for clip in found.clips.values())


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, write = Record(tmp_path), os.write
    record.keep("a", ClipRecord("x", 1))
    before = record.path.read_bytes()
    with monkeypatch.context() as full:
        full.setattr(module.os, "write", lambda handle, data: write(handle, data[:7]))
        with pytest.raises(UniViGUError, match=r"synthesis\.jsonl: cannot be appended to"):
            record.keep("b", ClipRecord("x", 1))
    assert record.path.read_bytes() == before
    assert record.clips.keys() == {"a"}
    record.keep("b", ClipRecord("x", 1))
    assert Record(tmp_path).clips.keys() == {"a", "b"}


def test_a_record_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "synthesis.jsonl").symlink_to(victim)
    with pytest.raises(UniViGUError, match="is a link"):
        go(tmp_path / "out")
    assert victim.read_text() == ""


# Processes


def forked(work: Callable[[], object]) -> int:
    """Run something in a child that ends with it; its process id."""
    child = os.fork()
    if child:
        return child
    with suppress(BaseException):
        work()
    os._exit(0)


@FORKS
def test_a_second_process_is_refused(tmp_path: Path) -> None:
    def slow(job: ClipJob, path: Path) -> None:
        (tmp_path / "begun").touch()
        time.sleep(20)

    child = forked(lambda: go(tmp_path / "out", make=slow))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    with pytest.raises(UniViGUError, match=f"synthesise is already using this folder \\(process {child} on "):
        go(tmp_path / "out")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(go(tmp_path / "out", Captions()).made) == 3


@FORKS
@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_a_kill_costs_at_most_the_clip_at_hand(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "probe", lambda path: SimpleNamespace(frames=len(path.read_bytes())))
    jobs, out = plan([f"prompt {n}" for n in range(count)], 1, 0), tmp_path / "out"

    def log(name: str, what: str) -> None:
        with (tmp_path / name).open("a") as file:
            file.write(f"{what}\n")

    def make(job: ClipJob, path: Path) -> None:
        log("clips", job.prompt)
        time.sleep(0.001)
        path.write_bytes(b"clip")

    def run() -> SynthesisReport:
        return go(out, Captions(lambda prompt, clip: log("captions", prompt)), jobs=jobs, make=make)

    chance, kills, made = random.Random(count), 0, tmp_path / "clips"
    made.touch()
    child, before = forked(run), 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if made.stat().st_size > before:  # it is at work, and not still looking through what is done
            time.sleep(0.012 * chance.random())
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            before, kills = made.stat().st_size, kills + 1
            child = forked(run)
        time.sleep(0.001)
    assert kills > count // 30
    print(f"{kills} kills")
    report = run()
    assert (report.complete, report.problems) == (jobs, [])
    for name in ("clips", "captions"):
        counts = Counter((tmp_path / name).read_text().splitlines())
        assert counts.keys() == {job.prompt for job in jobs}
        assert counts.total() <= len(jobs) + kills
    record = Record(out)
    assert all(record.clips[job.name].frames == 4 for job in jobs)
    assert all((out / f"{job.name}.detail.txt").read_text() == f"the model says: {job.prompt}\n" for job in jobs)
    assert not list(out.glob(".uvg-*"))


def test_a_record_that_is_a_link_or_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("no newline")
    (tmp_path / RECORD).symlink_to(secret)
    with pytest.raises(UniViGUError, match="is a link"):
        Record(tmp_path)
    assert secret.read_text() == "no newline"
    (tmp_path / RECORD).unlink()
    for text in ('{"my": "own notes"}', "my own notes", '{"my": "own'):
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(UniViGUError, match=RECORD):
            Record(tmp_path)
        assert (tmp_path / RECORD).read_text() == text


def test_a_record_whose_last_line_lost_its_end_in_an_editor_is_whole(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for name in "ab":
        record.keep(name, ClipRecord("a prompt", 1, frames=9))
    path = tmp_path / RECORD
    whole = path.read_bytes()
    path.write_bytes(whole.rstrip(b"\n"))
    assert set(Record(tmp_path).clips) == {"a", "b"}
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-9])
    assert set(Record(tmp_path).clips) == {"a"}
