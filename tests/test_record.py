"""The three jobs and the ranking on the embedded model give what they gave when ``record.json`` was written.

Texts are compared exactly, 16 numbers of each latent to 1e-5 on the kind of machine that the record was made on (to
1e-4 elsewhere), scores to 1e-3 relative. A change that is meant to change results writes the record anew:

    UVG_WRITE_RECORD=1 OMP_NUM_THREADS=1 python -m pytest tests/test_record.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records import WRITE, machine, read_record, write_record
from torch import Tensor

from uvg_core import Ranking, Sampling
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import Size

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

RECORD = Path(__file__).with_name("record.json")
SAMPLE = Path(__file__).parents[1] / "samples" / "uvg_sample.mp4"
PROMPT = "a large yellow star grows quickly on a navy background"
TEMPLATE = "a ___ ___ circle moves ___"
CANDIDATES = (
    "a large red circle moves right quickly on a navy background",
    "a small red circle moves right quickly on a navy background",
    "a large blue circle moves left slowly on a gray background",
)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(device="cpu")


@pytest.fixture(scope="module")
def sample(pipe: Pipeline) -> Tensor:
    return pipe.latent_of(SAMPLE)[0]


def numbers(latent: Tensor) -> list[float]:
    """16 numbers, spread evenly over the latent."""
    flat = latent.flatten()
    return [round(number, 6) for number in flat[:: flat.numel() // 16][:16].tolist()]


def drawn(pipe: Pipeline) -> Tensor:
    """The final latent ``[1,C,F,h,w]`` of the last run."""
    assert pipe.sampled is not None
    return pipe.sampled.latent


def check(name: str, *, text: Any = None, latent: Tensor | None = None, scores: Tensor | None = None) -> None:
    """Compare a result with the record's entry of that name, or write the entry."""
    found: dict[str, Any] = {"text": text}
    if latent is not None:
        found |= {"shape": list(latent.shape), "latent": numbers(latent)}
    if scores is not None:
        found["scores"] = [round(score, 6) for score in scores.tolist()]
    here = machine()
    if WRITE:
        write_record(RECORD, name, here, found)
    record = read_record(RECORD)
    expected, near = record[name], 1e-5 if here == record["machine"] else 1e-4
    assert found.keys() == expected.keys()
    assert (found["text"], found.get("shape")) == (expected["text"], expected.get("shape"))
    assert found.get("latent", []) == pytest.approx(expected.get("latent", []), rel=0, abs=near)
    assert found.get("scores", []) == pytest.approx(expected.get("scores", []), rel=1e-3, abs=1e-5)


def test_generate(pipe: Pipeline) -> None:
    pipe.generate(PROMPT, sampling=Sampling(seed=3))
    check("generate", latent=drawn(pipe))


def test_generate_in_another_size_with_every_setting(pipe: Pipeline) -> None:
    sampling = Sampling(steps=5, shift=2.0, guidance_scale=3.0, guidance_end=0.5, solver="heun", seed=8)
    size = Size(height=32, width=64, frames=5)
    pipe.generate(PROMPT, text="a large star", negative="a circle", size=size, sampling=sampling)
    check("generate with settings", latent=drawn(pipe))


def test_the_latent_of_a_file(sample: Tensor) -> None:
    check("latent of a file", latent=sample)


@pytest.mark.parametrize("update", ["bridge", "euler"])
def test_caption(pipe: Pipeline, sample: Tensor, update: str) -> None:
    """At the checkpoint's temperature, and in few steps and hot enough for every draw to count."""
    texts = [
        pipe.caption(sample, sampling=Sampling(seed=0, text_update=update)),
        pipe.caption(sample, sampling=Sampling(seed=4, steps=3, temperature=2.0, top_p=0.95, text_update=update)),
    ]
    check(f"caption, {update}", text=texts)


def test_caption_by_a_template_and_a_hint(pipe: Pipeline, sample: Tensor) -> None:
    texts = [
        pipe.caption(sample, template=TEMPLATE),
        pipe.caption(sample, hint="a red circle", sampling=Sampling(seed=2)),
    ]
    check("caption by a template and a hint", text=texts)


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("joint", Sampling(seed=5)),
        ("joint, euler", Sampling(steps=6, guidance_scale=2.0, temperature=1.5, text_update="euler", seed=9)),
        ("joint, release", Sampling(steps=6, guidance_end=0.5, text_update="release", seed=10)),
    ],
)
def test_joint(pipe: Pipeline, name: str, sampling: Sampling) -> None:
    _, text, trace = pipe.joint("a magenta star", sampling=sampling, record=4)
    check(name, text=[text, *[f"{step.step}/{step.steps}: {step.text}" for step in trace]], latent=drawn(pipe))


def test_rank(pipe: Pipeline, sample: Tensor) -> None:
    check("rank", scores=pipe.rank(sample, CANDIDATES, Ranking(samples=8, seed=1)))
