"""``-`` is the standard input or output; results as JSON, quiet runs, and what a shell completes."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from uvg_core import checkpoint
from uvg_core.__main__ import main as program
from uvg_core.cli import streams
from uvg_core.cli.caption import Describe
from uvg_core.cli.flags import settings_of
from uvg_core.cli.main import main, make_parser
from uvg_core.media.video import probe, write_video
from uvg_core.pipeline import together

Feed = Callable[[bytes], None]
ROOT = Path(__file__).resolve().parents[2]
CPU = ["--device", "cpu"]


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Feed:
    """What the standard input holds from now on."""
    return lambda data: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "clip.mp4"
    write_video(path, torch.randint(0, 256, (9, 48, 48, 3), dtype=torch.uint8, generator=generator), 8)
    return path


def test_a_clip_from_the_standard_input_is_ranked_as_json(
    clip: Path, feed: Feed, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["a red circle", "a blue square"]
    assert main(["rank", str(clip), *texts, *CPU, "--json", str(clip.with_suffix(".json"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    feed(clip.read_bytes())
    assert main(["rank", "-", *texts, *CPU, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranking"] == json.loads(clip.with_suffix(".json").read_text())["ranking"]
    assert [row["text"] for row in found["ranking"]] == [line.split("nats  ")[1] for line in lines]
    assert sum(row["probability"] for row in found["ranking"]) == pytest.approx(1)


def test_a_prompt_goes_in_and_a_video_comes_out(
    feed: Feed, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    feed(b"a red circle\n")
    assert main(["generate", "-", "-o", "-", "--steps", "1", *CPU]) == 0
    assert not list(tmp_path.iterdir())
    (tmp_path / "found.mp4").write_bytes(capsysbinary.readouterr().out)
    assert probe(tmp_path / "found.mp4").frames == 9


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["caption", "-"], "standard input is empty"),
        (["joint", "-"], "standard input is not UTF-8 text"),
        (["rank", "-", "a"], "more than 4 GiB"),
    ],
)
def test_what_cannot_come_from_the_standard_input_is_refused(
    command: list[str],
    words: str,
    feed: Feed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed({"joint": b"\xff\xfe\xff", "rank": b"12345"}.get(command[0], b""))
    monkeypatch.setattr(streams, "_MOST_BYTES", 4)
    assert main([*command, *CPU]) == 1
    assert words in capsys.readouterr().err


def test_the_standard_input_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["caption", "-", "-"])
    assert "can be used only once" in capsys.readouterr().err


def test_streams_are_called_what_they_are(clip: Path, feed: Feed, capsys: pytest.CaptureFixture[str]) -> None:
    feed(clip.read_bytes())
    assert main(["caption", "-", "--json", "-", "--steps", "1", *CPU]) == 0
    assert json.loads(capsys.readouterr().out)[0]["clip"] == "standard input"
    feed(b"no video")
    assert main(["caption", "-", *CPU]) == 1
    assert capsys.readouterr().err.startswith("error: standard input: cannot be opened as a video")


def test_closed_streams(clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as closed:
        closed.setattr("sys.stderr", None)
        closed.setattr("sys.argv", ["uni-vigu", "caption", str(clip), "--steps", "1", *CPU])
        assert program() == 0
        sys.stderr.close()
    assert len(capsys.readouterr().out.splitlines()) == 1  # the caption, without the note
    with monkeypatch.context() as closed:
        closed.setattr("sys.stdout", None)
        assert main(["generate", "a red circle", "-o", "-", *CPU]) == 1
    assert "standard output is closed" in capsys.readouterr().err


def test_a_report_is_not_written_onto_a_caption(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = clip.with_suffix(".json")
    command = ["caption", str(clip.parent), "--steps", "1", "--format", "json", "--json", str(report), *CPU]
    assert main(command) == 1
    assert "holds a clip's caption and was not changed" in capsys.readouterr().err
    assert isinstance(json.loads(report.read_text()), dict)


def test_a_dry_run_misses_what_is_not_there(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(clip), str(clip.with_name("gone.mp4")), "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{clip}: would be captioned")
    assert "gone.mp4: no such file or folder" in err
    (clip.parent / "empty").mkdir()
    assert main(["caption", str(clip.parent / "empty"), str(clip), "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{clip}: would be captioned")  # it goes on
    assert "found no videos here" in err
    with pytest.raises(SystemExit, match="2"):
        main(["caption", str(clip), "--dry-run", "--json", "-"])


def test_a_dry_run_fails_where_folders_cannot_be_read(
    clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (locked := clip.parent / "locked").mkdir()
    scan = os.scandir

    def scandir(path: object = ".") -> object:  # root may read everything
        if Path(str(path)) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert main(["caption", str(clip.parent), "--dry-run"]) == 1
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "1 clip: 1 to caption"
    assert "locked" in lines[-1]
    assert main(["caption", str(clip.parent), "--dry-run", "--no-recursive"]) == 0


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "a.json", "--json", "a.json"],
        ["convert", "a.safetensors", "a.safetensors"],
        ["convert", "b.safetensors", "a.safetensors", "--lora", "a.safetensors"],
        ["check", "--model", "a.safetensors", "--write", "a.safetensors"],
        ["rank", "clip.mp4", "--texts-file", "a.json", "--json", "a.json"],
        ["caption", "a.json", "--json", "a.json"],
        ["synthesise", "a.json", "-o", "a.json"],
    ],
)
def test_a_file_that_is_read_is_not_written_onto(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "a.safetensors", "b.safetensors"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "would be written onto a file that is being read; choose another name" in capsys.readouterr().err
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def test_the_folder_of_a_checkpoint_is_not_written_into_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    model.parent.mkdir()
    shutil.copy(ROOT / "models" / "uvg_tiny.safetensors", model)
    before = model.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(model.parent), str(model)])
    assert "written onto a file that is being read" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_caches_are_listed_behind_a_folder_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "data" / ".answers"
    answers.mkdir(parents=True)
    (answers / f"{'0' * 64}.json").write_text("{}")
    assert main(["cache", str(tmp_path / "gone"), str(tmp_path / "data")]) == 1
    out, err = capsys.readouterr()
    assert "1 answer of a language model" in out
    assert "gone: expected the folder" in err


def test_a_file_that_cannot_be_a_stream_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "-", "a.safetensors"])
    assert "'-' (standard input or output) is not supported here; pass a file name" in capsys.readouterr().err


def test_paths_of_flags_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("HERE", "/data")
    args = make_parser().parse_args(["caption", "~/a.mp4", "$HERE/b.mp4", "c$d.mp4", "--lora=~/l.safetensors:0.5"])
    given = settings_of(args.run, args)
    assert given["own"].clips == (Path("/home/me/a.mp4"), Path("/data/b.mp4"), Path("c$d.mp4"))
    assert [lora.path for lora in given["model"].lora] == [Path("/home/me/l.safetensors")]


def test_quiet_leaves_results_and_errors(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(clip), str(clip.with_name("gone.mp4")), "-q", *CPU]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{clip}\t")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_captions_as_json_and_what_would_be_captioned(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clip.parent
    (folder / "b.mp4").write_bytes(b"no video")
    (folder / "c.mp4").write_bytes(clip.read_bytes())
    (folder / "c.txt").write_text("mine")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main(["caption", str(folder), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 clips: 2 to caption",
        f"  {folder / 'b.mp4'} -> {folder / 'b.txt'}",
        f"  {clip} -> {clip.with_suffix('.txt')}",
    ]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert main(["caption", str(folder), str(clip), "--json", "-", *CPU]) == 1
    bad, mine, good, alone = json.loads(capsys.readouterr().out)
    assert (bad["clip"], bad["outcome"], bad["caption"]) == (str(folder / "b.mp4"), "failed", None)
    assert "b.mp4" in bad["reason"]
    assert good == {"clip": str(clip), "outcome": "written", "caption": alone["caption"], "reason": None}
    assert clip.with_suffix(".txt").read_text().strip() == good["caption"]
    assert (mine["outcome"], mine["caption"]) == ("skipped", "mine")


def test_a_report_that_could_not_be_written_is_refused_before_the_work(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(clip), "--json", str(clip.parent / "nowhere" / "a.json"), *CPU]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "does not exist" in err


def test_a_cancelled_run_ends_at_once_and_says_what_stays(clip: Path) -> None:
    command = [sys.executable, "-m", "uvg_core", "caption", str(clip.parent), "--steps", "10000", *CPU]
    # A shell has what it starts in the background ignore the signal, and that is inherited
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=heed) as run:
        assert run.stderr is not None
        assert "1 of 1" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        words = run.stderr.read()
    assert "captions written so far are kept. Run the same command again" in words
    assert run.returncode == 130
    assert not clip.with_suffix(".txt").exists()


def test_a_cancelled_run_writes_what_was_done_as_json(
    clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clip.parent / "folder"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(clip.read_bytes())
    (folder / "a.mp4").write_bytes(b"no video")
    describe = Describe.__call__

    def described(self: Describe, clips: object, paths: list[Path], folder: Path) -> list[str]:
        if paths[0].name == "c.mp4":
            raise KeyboardInterrupt
        return describe(self, clips, paths, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(Describe, "__call__", described)
    monkeypatch.setattr(together, "MOST", 2)
    assert main(["caption", str(clip), str(folder), str(clip), "--json", "-", "--steps", "1", *CPU]) == 130
    found = [(Path(one["clip"]).name, one["outcome"]) for one in json.loads(capsys.readouterr().out)]
    assert found == [("clip.mp4", "written"), ("a.mp4", "failed"), ("b.mp4", "written")]
    assert main(["caption", str(folder / "c.mp4"), "--json", str(folder / "all.json"), *CPU]) == 130
    assert json.loads((folder / "all.json").read_text()) == []


def test_a_cancelled_inspection_writes_what_was_done_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = checkpoint.inspect_checkpoint

    def inspected(path: Path) -> object:
        if path.name == "stop.safetensors":
            raise KeyboardInterrupt
        return look(path)

    monkeypatch.setattr(checkpoint, "inspect_checkpoint", inspected)
    model = ROOT / "models" / "uvg_tiny.safetensors"
    files = [str(model), str(tmp_path / "gone.safetensors"), str(tmp_path / "stop.safetensors"), str(model)]
    assert main(["inspect", *files, "--json", str(tmp_path / "all.json")]) == 130
    assert len(json.loads((tmp_path / "all.json").read_text())) == 1
    out, err = capsys.readouterr()
    assert "uvg_tiny" in out
    assert "stopped before all files were inspected" in err


def test_a_dry_run_of_synthesise_makes_nothing(clip: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na bird\n")
    command = ["synthesise", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "data"), "--dry-run"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 clips: 0 complete, 0 without a caption, 3 to make\n")
    assert not (tmp_path / "data").exists()
    cat, dog, _ = (line.split(":")[0].strip() for line in out.splitlines()[1:])
    (tmp_path / "data").mkdir()
    for name in (cat, dog):
        (tmp_path / "data" / f"{name}.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "data" / f"{cat}.detail.txt").write_text("a cat that sleeps\n")
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("3 clips: 1 complete, 1 without a caption, 1 to make\n")


def test_inspect_goes_on_behind_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no")
    model = ROOT / "models" / "uvg_tiny.safetensors"
    assert main(["inspect", str(tmp_path / "a.safetensors"), str(model), "--json", "-"]) == 1
    out, err = capsys.readouterr()
    (report,) = json.loads(out)
    assert (report["layout"], report["complete"], report["run"]["frames"]) == ("native", True, 9)
    assert "a.safetensors" in err


def test_a_shell_completes_commands_and_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "uni-vigu"
    script.write_text(capsys.readouterr().out)
    words = 'COMP_WORDS=(uni-vigu "${@:2}"); COMP_CWORD=$(($# - 1))'
    asks = f'source "$1"; {words}; _shtab_uni_vigu; echo "${{COMPREPLY[@]}}"'

    def completed(*typed: str) -> list[str]:
        command = ["bash", "-c", asks, "bash", str(script), *typed]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert completed("synth") == ["synthesise"]
    assert completed("rank", "--texts") == ["--texts-file"]
    assert completed("joint", "--solver", "h") == ["heun"]
