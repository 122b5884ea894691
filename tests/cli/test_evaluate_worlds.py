"""``evaluate worlds``: numbers with intervals, kept over stops, compared pair by pair, and for worlds models only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

from uvg_core.cli.main import main
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import Sampling

pytest.importorskip("sklearn")
pytest.importorskip("diffusers")

from recipes.worlds import measure, tables
from recipes.worlds.answers import Answers, gap_closed, wilson
from recipes.worlds.evaluation import Evaluator, held_out_worlds
from recipes.worlds.grammar import is_held_out

LORA = {"A": (4, 192), "B": (192, 4)}
FEW = ["--count", "3", "--steps", "1", "--device", "cpu", "-q"]


def letters(share: float, clips: int = 400, seed: int = 0) -> str:
    drawn = torch.rand(clips, generator=torch.Generator().manual_seed(seed)) < share
    return "".join("01"[right] for right in drawn.tolist())


# Numbers


def test_wilson_s_interval_is_the_textbook_s() -> None:
    assert wilson(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)  # Newcombe 1998, table of methods
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_clips_and_not_objects_are_what_a_bootstrap_draws() -> None:
    """Where both objects of a clip are always right or wrong together, the second one says nothing new."""
    alone = letters(0.8)
    twice = "".join(one * 2 for one in alone)
    single = Answers({"kind": alone, "whole": alone}).interval("kind")
    pair = Answers({"kind": twice, "whole": alone}).interval("kind")
    assert pair == pytest.approx(single, abs=0.006)
    assert single[1] < 0.8 < single[2]


def test_what_is_not_scored_is_no_trial() -> None:
    answers = Answers({"kind": "1101", "speed": "1-0-", "size": "----", "whole": "1101"})
    assert answers.names == ["mean", "kind", "speed", "whole"]
    assert answers.interval("speed")[0] == 0.5
    assert answers.interval("mean")[0] == pytest.approx((0.75 + 0.5) / 2)


def test_the_share_of_a_gap_that_a_choice_closes() -> None:
    names = ("one draw", "a random one", "its own choice", "an oracle", "one draw, as many steps as all together")
    texts = ("1000" * 50, "0100" * 50, "1010" * 50, "1110" * 50, "1000" * 50)
    one, _, own, oracle, _ = (Answers({"whole": text}) for text in texts)
    share, low, high = gap_closed(one, own, oracle)
    assert share == pytest.approx(0.5)
    assert 0.35 < low < share < high < 0.65
    assert str(gap_closed(one, one, one)[0]) == "nan"  # nothing to close
    answers = dict(zip(names, ({"whole": text} for text in texts), strict=True))
    row = {"of": "one object", "job": "best_of", "clips": 200, "numbers": {}, "answers": answers}
    table = tables.tables([{**row, "judging": {"passes": 6.25, "time": 5.5}}])
    assert "| one object: its own choice | 50.0 (" in table
    assert "| one object: one draw | 25.0 (19.5 to 31.4) | +25.0 (+" in table
    assert "6.25 % of the passes, 5.5 % of the time" in table


def test_a_choice_is_among_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge's, here the detector's own; every draw from other noise."""
    evaluator = Evaluator(Pipeline(device="cpu"), 2)
    drawn = []

    def judge(denoise: Any, videos: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        drawn.append(videos)
        return torch.full((len(videos),), float(len(drawn) == 2))

    monkeypatch.setattr("recipes.worlds.evaluation.clip_likelihood", judge)
    found, cost = evaluator.best_of(2, 1)
    assert not torch.equal(*drawn)
    assert cost["passes"] == 0  # the stand-in makes none
    rights = {name: accuracy.hits["whole"] for name, accuracy in found.items()}
    assert rights["an oracle"] >= max(rights[name] for name in ("one draw", "a random one", "its own choice"))


def test_a_paired_interval_sees_what_two_single_ones_do_not() -> None:
    mine = letters(0.8)
    worse = mine.replace("1", "0", 12)  # twelve clips of four hundred
    rows = [
        {"of": "one object", "job": "plain", "clips": 400, "answers": {"": {"whole": one}}} for one in (mine, worse)
    ]
    first, second = (Answers({"whole": one}) for one in (mine, worse))
    lead, low, high = first.ahead_of(second, "whole")
    assert (lead, low > 0.01, high < 0.05) == (pytest.approx(0.03), True, True)
    assert first.interval("whole")[1] < second.interval("whole")[2]  # overlap: the single intervals decide nothing
    table = tables.against(rows[:1], rows[1:], "other.json")
    assert "| +3.0 (+1." in table


# Worlds


def test_other_seeds_and_kinds_draw_other_held_out_worlds() -> None:
    size: dict[str, Any] = {"objects": 1, "side": 48, "frames": 9}
    usual, other = held_out_worlds(6, **size), held_out_worlds(6, seed=1, **size)
    assert [world for world, _ in usual] != [world for world, _ in other]
    assert [world for world, _ in held_out_worlds(3, **size)] == [world for world, _ in usual[:3]]
    eights = held_out_worlds(6, kind="eight", **size)
    assert {world.shapes[0].kind for world, _ in eights} == {"eight"}
    assert len({world.shapes[0].colour for world, _ in eights}) > 1
    assert all(is_held_out(world.shapes[0]) for world, _ in (*other, *eights))


# The command


def test_a_stopped_measurement_goes_on_and_equals_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "worlds", *FEW, "--only", "video_to_text"]
    video_to_text, calls = Evaluator.video_to_text, 0

    def stopped(self: Evaluator, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return video_to_text(self, **how)

    monkeypatch.setattr(Evaluator, "video_to_text", stopped)
    assert main([*command, "-o", str(tmp_path / "one")]) == 130
    monkeypatch.undo()
    assert "1 made" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "one")]) == 0
    out = capsys.readouterr().out
    assert "1 made, 1 already there, 0 failed" in out
    assert "| video to text, without a prompt |" in out
    for shard in ("2/2", "1/2"):
        assert main([*command, "-o", str(tmp_path / "parts"), "--shard", shard]) == 0
    one, parts = (json.loads((tmp_path / name / "evaluate.json").read_text()) for name in ("one", "parts"))
    for report in (one, parts):
        for row in report["rows"]:
            row.pop("seconds")
    assert one == parts
    assert (one["made"], one["settings"]["worlds"], one["settings"]["count"]) == (2, measure.fingerprint(), 3)
    assert str(tmp_path) not in json.dumps(one)
    capsys.readouterr()
    other = ["--against", str(tmp_path / "parts" / "evaluate.json")]
    assert main([*command, "-o", str(tmp_path / "one"), *other]) == 0
    assert "+0.0 (+0.0 to +0.0) |" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "new"), *other, "--seed", "1"]) == 1
    assert "seed 0, not 1" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "one"), "--count", "5"]) == 1
    assert "count was 3 and is 5" in capsys.readouterr().err


def test_the_worst_kind_is_measured_on_worlds_of_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "worlds", *FEW, "--only", "video_to_text", "-o", str(tmp_path)]
    assert main([*command, "--per-kind", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "18 questions: 0 measured, 18 to measure" in out
    assert "  video_to_text, eight, 2 clips" in out
    rows = [
        {
            "of": kind,
            "job": "video_to_text",
            "clips": 200,
            "answers": {"": {"kind": letters(share, 200)}},
            "numbers": {},
        }
        for kind, share in (("circle", 0.99), ("eight", 0.6))
    ]
    found = tables.tables(rows)
    assert "| video to text | eight | " in found
    assert "Too few clips" not in found


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["worlds", "clips", "-o", "x"], "evaluate worlds draws its own clips; leave clips out"),
        (["videos", "-o", "x"], "evaluate videos: name what to read"),
        (["videos", "p.txt", "-o", "x", "--per-kind", "3"], "--per-kind applies to evaluate worlds only"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", *flags])
    assert words in capsys.readouterr().err


def test_jobs_reports_and_models_of_other_kinds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "worlds", *FEW, "-o", str(tmp_path / "out")]
    assert main([*command, "--only", "captions"]) == 1
    assert "--only is 'captions'; expected one of video_to_text, " in capsys.readouterr().err
    other = tmp_path / "evaluate.json"
    other.write_text('{"kind": "videos"}')
    assert main([*command, "--against", str(other)]) == 1
    assert "not a report of evaluate worlds" in capsys.readouterr().err
    monkeypatch.setattr(measure, "VERSION", 99)
    assert main(command) == 1
    assert "not a model of little worlds, version 99 (its data are 'little worlds" in capsys.readouterr().err
    assert not (tmp_path / "out" / "evaluate.json").exists()


# Cost beside quality


def test_cost_beside_quality_with_and_without_a_lora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "OBJECTS", {"one object": 1})
    monkeypatch.setattr(measure, "_STEPS", {"video_to_text": (1, 2), "joint": (1,)})
    monkeypatch.setattr(measure, "_STUDENT_STEPS", (2,))
    name, generator = "transformer.blocks.{}.attn1.to_v.lora_{}.weight", torch.Generator().manual_seed(0)
    sides = [(block, *one) for block in range(6) for one in LORA.items()]
    factors = {name.format(block, side): torch.randn(*shape, generator=generator) for block, side, shape in sides}
    save_file(factors, tmp_path / "lora.safetensors")
    command = ["evaluate", "worlds", "--sweep", "--count", "3", "--device", "cpu", "-q", "-o", str(tmp_path / "out")]
    command += ["--only", "video_to_text", "--lora", str(tmp_path / "lora.safetensors")]
    assert main([*command, "--dry-run"]) == 0
    assert "7 questions: 0 measured, 7 to measure" in capsys.readouterr().out
    assert main(command) == 0
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "evaluate.json").read_text())["rows"]
    passes = {(row["way"], row["steps_asked"]): row["passes"] for row in rows}
    assert passes["every step", 2] == passes["every step", 1] + 1 == 2
    ways = {row["way"]: row["answers"][""] for row in rows if row["steps_asked"] == 2}
    assert ways["every step"] == ways["clip read once"]  # without the LoRA
    assert ways["with the LoRA"] != ways["every step"]
    assert "| every step | one object | 2 | 2 |" in said
    assert "percent right" not in said  # that is another table
    chart = ElementTree.parse(tmp_path / "out" / "video_to_text.svg")
    assert {"with the LoRA", "every step", "passes of the network per clip"} <= set(chart.getroot().itertext())
    assert main([*command, "--only", "ranking"]) == 1
    assert "--only is 'ranking'; with --sweep expected one of text_to_video, " in capsys.readouterr().err


def test_samplers_guidance_and_steps_cost_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    unread = lambda self, _, worlds: self.score([None] * len(worlds), worlds)  # noqa: E731
    monkeypatch.setattr(Evaluator, "score_clips", unread)  # the detector takes seconds to begin
    measurer = measure.Measurer(Pipeline(device="cpu"), Sampling(), lambda: pytest.fail("there is no LoRA"))
    costs = {"euler": 4, "heun": 6, "first half guided": 3, "no guidance": 2}  # of two steps
    for way, passes in costs.items():
        assert measurer.row(measure.Question("one object", "text_to_video", 2, way, 2))["passes"] == passes
