"""Several draws of which the model keeps the one that it finds to fit its words best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from uvg_core import Sampling, UniViGUError
from uvg_core.cli.main import main
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import Editing, Judging, Size

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

PROMPT = "a small blue square moves up slowly on a beige background"
FEW = Sampling(steps=2, seed=2**63 - 2)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(device="cpu")


@pytest.mark.parametrize("job", ["draw", "draw_joint"])
def test_the_seed_of_the_best_makes_it_again(pipe: Pipeline, job: str) -> None:
    """To the bit, its words too; seeds go on from 0 behind the last one there is."""
    best = getattr(pipe, job)(PROMPT, sampling=FEW, best_of=3)
    draws = pipe.draws
    assert [one.seed for one in draws] == [2**63 - 2, 2**63 - 1, 0]
    assert best.score == max(one.score for one in draws)
    assert len({one.score for one in draws}) == 3
    assert pipe.sampled is best
    again = getattr(pipe, job)(PROMPT, sampling=Sampling(steps=2, seed=best.seed))
    assert torch.equal(again.latent, best.latent)
    assert again.text == best.text
    assert again.score is None


def test_a_clip_that_shows_the_words_is_found(pipe: Pipeline) -> None:
    """The right clip among those of other words, wherever it stands; each by its own words fits better."""
    words = [PROMPT, PROMPT.replace("blue", "red"), PROMPT.replace("square", "ring")]
    made = [pipe.draw(text, sampling=Sampling(steps=4)).latent for text in words]
    for judging in (Judging(), Judging(samples=3, seed=4)):
        scores = pipe.judge(torch.cat(made), words[:1], judging)
        assert int(scores.argmax()) == 0
        turned = pipe.judge(torch.cat(made[::-1]), words[:1], judging)
        torch.testing.assert_close(turned.flip(0), scores)
        assert bool((pipe.judge(torch.cat(made), words, judging)[1:] > scores[1:]).all())


@pytest.mark.parametrize("count", [0, 1000])
def test_a_number_of_draws_that_is_none_is_refused(pipe: Pipeline, count: int) -> None:
    with pytest.raises(UniViGUError, match=f"best_of is {count}.*expected"):
        pipe.generate(PROMPT, best_of=count)


def test_all_clips_are_kept_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.mp4"
    (tmp_path / "both.seed_4.mp4").write_bytes(b"mine")
    (tmp_path / "both.seed_5.mp4").write_bytes(b"mine")
    flags = "--steps 1 --seed 4 --best-of 2 --keep-all --device cpu"
    code = main(["joint", PROMPT, "-o", str(out), *flags.split()])
    said = capsys.readouterr().err
    best = int(said.partition(" without --best-of")[0].rpartition("--seed ")[2])
    other = {4: 5, 5: 4}[best]
    assert code == 0
    assert out.stat().st_size > 0
    assert (tmp_path / f"both.seed_{other}.mp4").read_bytes() == b"mine"
    assert (tmp_path / f"both.seed_{other}.2.mp4").stat().st_size > 0
    assert (tmp_path / f"both.seed_{other}.2.txt").read_text().strip()
    assert f"seed {best}: -" in said
    assert "nats, the best" in said


def test_a_data_set_keeps_the_best_of_each_prompt(tmp_path: Path) -> None:
    """The record says which, and another number of draws is another data set."""
    (prompts := tmp_path / "prompts.txt").write_text(PROMPT)
    out = tmp_path / "data"
    command = ["synthesise", str(prompts), "-o", str(out), "--steps", "1", "--device", "cpu", "--best-of"]
    assert main([*command, "2"]) == 0
    lines = [json.loads(line) for line in (out / "synthesis.jsonl").read_text().splitlines()]
    assert lines[-1]["drawn"] - lines[-1]["seed"] in (0, 1)
    assert lines[-1]["score"] < 0
    assert next(line["generator"] for line in lines if "generator" in line)["best_of"] == 2
    assert main([*command, "2"]) == 0
    assert main([*command, "3"]) == 1


def test_an_edit_is_judged_by_its_new_caption(pipe: Pipeline) -> None:
    size = Size(height=48, width=48, frames=5)
    latent = pipe.draw(PROMPT, size=size, sampling=FEW).latent
    both, few = (PROMPT, PROMPT.replace("blue", "red")), Sampling(steps=2)
    edited = pipe.edit(latent, both, sampling=few, editing=Editing(best_of=2))
    assert [one.seed for one in pipe.draws] == [0, 1]
    scores = pipe.judge(torch.cat([one.latent for one in pipe.draws]), both[1:])
    assert int(scores.argmax()) == pipe.sampled.seed
    again = pipe.edit(latent, both, sampling=Sampling(steps=2, seed=pipe.sampled.seed))
    assert torch.equal(again, edited)


def test_an_interrupt_keeps_the_best_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Pipeline.noise

    def interrupted(self: Pipeline, *given: Any) -> torch.Tensor:
        if given[-1] == 2:
            raise KeyboardInterrupt
        return draw(self, *given)

    monkeypatch.setattr(Pipeline, "noise", interrupted)
    out = tmp_path / "clip.mp4"
    command = ["generate", PROMPT, "-o", str(out), "--steps", "1", "--best-of", "4", "--device", "cpu"]
    assert main(command) == 130
    assert out.stat().st_size > 0
    assert "stopped after 2 of 4 draws" in capsys.readouterr().err
    out.unlink()
    assert main([*command, "--seed", "2"]) == 130  # nothing is drawn yet
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--best-of 0", "0 is out of range; expected between 1 and 100"),
        ("--best-of 1000", "1000 is out of range"),
        ("--keep-all", "--keep-all keeps all clips of --best-of N"),
        ("--best-of 2 --keep-all -o -", "standard output takes one"),
    ],
)
def test_flags_that_do_not_fit(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "x", *flags.split()])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_a_stored_latent_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--from-latent", str(tmp_path / "a.safetensors"), "--best-of", "2"])
    assert "leave out one of them" in capsys.readouterr().err
