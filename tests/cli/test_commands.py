"""The command line keeps its commands, flags and defaults (``flags.json``), and its help fits a terminal."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

from uvg_core.cli.flags import settings_of
from uvg_core.cli.main import COMMANDS, main, make_parser

RECORDED = json.loads((Path(__file__).parent / "flags.json").read_text("utf-8"))


def flags(command: str) -> dict[str, dict[str, Any]]:
    parser = make_parser()
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found = {}
    for action in subparsers.choices[command]._actions:
        if action.dest == "help":
            continue
        default = str(action.default) if isinstance(action.default, Path) else action.default
        facts = {"default": default, "choices": action.choices and list(action.choices), "nargs": action.nargs}
        name = " ".join(action.option_strings) or action.dest
        found[name] = {key: value for key, value in facts.items() if key == "default" or value is not None}
    return found


def test_every_command_is_there() -> None:
    assert set(RECORDED) <= {command.__name__ for command in COMMANDS}


@pytest.mark.parametrize("command", RECORDED)
def test_flags_choices_and_defaults(command: str) -> None:
    found = flags(command)
    assert {name: found.get(name) for name in RECORDED[command]} == RECORDED[command]


def test_short_and_shortened_flags_negative_numbers_and_several_loras() -> None:
    command = ["generate", "-o", "a.mp4", "--guidance", "-1", "--lora", "a:0.5", "--lora", "b:1:2", "--", "-red"]
    args = make_parser().parse_args(command)
    given = settings_of(args.run, args)
    assert (given["own"].prompt, given["own"].out, given["sampling"].guidance_scale) == ("-red", Path("a.mp4"), -1)
    assert [(str(lora.path), lora.video, lora.text) for lora in given["model"].lora] == [("a", 0.5, 0.5), ("b", 1, 2)]
    assert make_parser().parse_args(["caption", "a.mp4", "--tempe", "0"]).temperature == 0


@pytest.mark.parametrize("command", RECORDED)
def test_help_fits_a_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["generate", "a", "--from-latent", "b"], ["rank"], ["caption", "a", "--video-c", "x"]]
)
def test_errors_of_usage_are_one_message(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    usage, _, error = capsys.readouterr().err.partition("error: ")
    assert usage.startswith("usage:")
    assert "--help" in error


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["generate"], "See python -m uvg_core generate --help"),
        (["generate", "x", "-o", ".mp4"], "'.mp4' has no file name before .mp4"),
        (["generate", "x", "--seed", "-1"], "expected between 0 and 9223372036854775807"),
        (["caption", "a.mp4", "--shard", "1/2"], "a.mp4 is not a folder"),
        (["caption", "a.mp4", "--engine", "ray"], "a.mp4 is not a folder"),
        (["caption", ".", "--workers", "2"], "--workers applies to --engine ray only"),
        (["caption", ".", "--engine", "ray", "--shots"], "--engine ray captions clips, not films"),
        (["caption", ".", "--engine", "ray", "--device", "cuda:1"], "--device cuda:1 names one card"),
        (["caption", ".", "--shard", "3/2"], "--shard is '3/2'; expected PART/PARTS"),
    ],
)
def test_an_error_of_usage_names_its_command_and_what_is_wrong(
    command: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(command)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("device", ["meta", "cpu:7"])
def test_a_device_that_is_not_there_is_refused(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--device", device]) == 1
    assert f"device '{device}' cannot be used (there is no such device)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"), [("a" * 300 + ".mp4", "file name too long"), (os.devnull, "this is a pipe or a device")]
)
def test_clips_that_are_none_are_said_to_be_what_they_are(
    name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", name, "--device", "cpu"]) == 1
    assert words in capsys.readouterr().err


def test_results_that_nobody_named_take_a_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"mine")
    assert main(["generate", "a red circle", "--steps", "1", "--device", "cpu"]) == 0
    assert (tmp_path / "clip.mp4").read_bytes() == b"mine"
    assert (tmp_path / "clip.2.mp4").stat().st_size > 0
