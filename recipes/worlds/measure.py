"""What a model of little worlds is asked, and what it answers.

A *row* is one finished question, as a JSON object with the answer to it clip by clip, so that two rows about the same
worlds can be compared pair by pair.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from uvg_core.config import RunConfig
from uvg_core.errors import UniViGUError, counted
from uvg_core.io import read_text
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import Sampling

from .answers import Answers
from .detector import read_world, score
from .drawing import digit_images
from .evaluation import Evaluator
from .finds import distinct, hits
from .grammar import ATTRIBUTES, KINDS, VERSION, read_caption
from .stories import stories
from .vae_training import reconstruction

OBJECTS = {"one object": 1, "two objects": 2}
_SOURCES = ("grammar", "drawing", "source", "detector", "classifier", "segmentation")
_STABLE, _SURE = (2, 3, 5), (0.5, 0.7, 0.9)
Row = dict[str, Any]


# What is asked


@dataclass(frozen=True)
class Question:
    """``of``: the worlds, ``one object``, ``two objects`` or a kind; ``job``: of ``JOBS``. ``way``: of ``WAYS`` and
    ``STUDENT``, at ``steps``, where cost is held against quality."""

    of: str
    job: str
    clips: int
    way: str = ""
    steps: int | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return self.of, self.job, self.clips, self.way, self.steps

    def __str__(self) -> str:
        way = f", {self.way}, {counted(self.steps or 0, 'step')}" if self.way else ""
        return f"{self.job}{way}, {self.of}, {self.clips} clips"


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("of"), row.get("job"), row.get("clips"), row.get("way", ""), row.get("steps_asked")


def _detector(evaluator: Evaluator) -> dict[str, Any]:
    decoded = evaluator.decode(evaluator.latents)
    clips = {"rendered": evaluator.pixels, "through the VAE": decoded}
    return {name: evaluator.score_clips(pixels, evaluator.worlds).answers for name, pixels in clips.items()}


def _vae(evaluator: Evaluator) -> dict[str, Any]:
    run, clips = evaluator.run, len(evaluator.latents)
    with evaluator.pipe.components.using("vae") as vae:
        found = reconstruction(vae, side=run.height, frames=run.frames, clips=clips, seed=7 + evaluator.seed)
    return {"dB": {"whole": round(found.psnr, 2), "boxes": round(found.psnr_boxes, 2)}}


def _joint(evaluator: Evaluator) -> dict[str, Any]:
    agreement, prompt = evaluator.joint()
    return {"": agreement.answers, "prompt": prompt.answers}


def _cycle(evaluator: Evaluator) -> dict[str, Any]:
    right, kept, scores = evaluator.cycle()
    rounded = {name: [round(value, 4) for value in values] for name, values in scores.items()}
    return {"": kept.answers, "caption right": {"whole": right}, "scores": rounded}


def _edit(evaluator: Evaluator) -> dict[str, Any]:
    found, decibels = evaluator.edits()
    return {**found, "dB": {name: round(value, 2) for name, value in decibels.items()}}


def _fill(evaluator: Evaluator) -> dict[str, Any]:
    found, decibels = evaluator.fills()
    return {**found, "dB": {name: round(value, 2) for name, value in decibels.items()}}


def _find(evaluator: Evaluator) -> dict[str, Any]:
    worlds, latents = distinct(evaluator)
    letters, gains = {}, {}
    for how, kinds in hits(evaluator.pipe, worlds, latents).items():
        for kind, all in kinds.items():
            part = kind if how == "judged" else f"{kind}, {how}"
            letters[part] = {name: "".join("01"[getattr(one, name)] for one in all) for name in ("first", "five")}
            gains[part] = round(sum(one.gain for one in all) / len(all), 4) if all else math.nan
    return {**letters, "nDCG@5": gains}


def _story(evaluator: Evaluator) -> dict[str, Any]:
    found, change = stories(evaluator)
    return {**found, "change": {name: round(value, 3) for name, value in change.items()}}


def _best_of(evaluator: Evaluator) -> dict[str, Any]:
    found, cost = evaluator.best_of()
    answers = {name: accuracy.answers for name, accuracy in found.items()}
    return {**answers, "judging": {name: round(value, 2) for name, value in cost.items()}}


def _stopped(rules: Mapping[str, Any]) -> Callable[[Evaluator], dict[str, Any]]:
    """Captions stopped one by one, by several values of a rule of ``Sampling``."""

    def measure(evaluator: Evaluator) -> dict[str, Any]:
        found: dict[str, Any] = {"steps": {}}
        for name, values in rules.items():
            for value in values:
                accuracy, steps = evaluator.one_by_one(**{name: value})
                found[f"{value:g}"], found["steps"][f"{value:g}"] = accuracy.answers, round(steps, 2)
        return found

    return measure


# A job answers with letters (see ``Accuracy``) by part; what ``_NUMBERS`` names are numbers.
JOBS: dict[str, Callable[[Evaluator], dict[str, Any]]] = {
    "video_to_text": lambda evaluator: {"": evaluator.video_to_text().answers},
    "text_to_video": lambda evaluator: {"": evaluator.text_to_video().answers},
    "joint": _joint,
    "ranking": lambda evaluator: {"": {"first": "".join("01"[right] for right in evaluator.ranking())}},
    "detector": _detector,
    "vae": _vae,
    "plain": lambda evaluator: {"": evaluator.text_to_video(plain=True).answers},
    "cycle": _cycle,
    "edit": _edit,
    "fill": _fill,
    "stable": _stopped({"stop_when_stable": _STABLE}),
    "sure": _stopped({"stop_when_sure": _SURE}),
    "best_of": _best_of,
    "find": _find,
    "story": _story,
}
USUAL = ("video_to_text", "text_to_video", "joint", "ranking", "detector", "vae")
BY_KIND = ("video_to_text", "text_to_video")
_NUMBERS = ("dB", "steps", "scores", "judging", "nDCG@5", "change")
_ONLY_OF = {"vae": "one object", "find": "two objects"}


def questions(only: Sequence[str], clips: int, per_kind: int) -> list[Question]:
    """What is to be asked, cheap questions about the same worlds together. Raises UniViGUError for an unknown job."""
    for job in only:
        if job not in JOBS:
            raise UniViGUError(f"--only is {job!r}; expected one of {', '.join(JOBS)}")
    jobs = list(dict.fromkeys(only)) or list(USUAL)
    asked = [Question(of, job, clips) for of in OBJECTS for job in jobs if _ONLY_OF.get(job, of) == of]
    kinds = [Question(kind, job, per_kind) for kind in KINDS for job in jobs if job in BY_KIND]
    return [*asked, *(kinds if per_kind else [])]


# Ways of doing a job: what each changes of ``Sampling``. A student is the model with its LoRA, as that recommends.
STUDENT = "with the LoRA"
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "text_to_video": {
        "euler": {"solver": "euler"},
        "heun": {"solver": "heun"},
        "first half guided": {"guidance_end": 0.5},
        "no guidance": {"guidance_scale": 1.0},
    },
    "video_to_text": {
        "clip read once": {"video_cache": "static"},
        "every 4th step": {"video_cache": "refresh=4"},
        "every step": {"video_cache": "off"},
    },
    "joint": {"euler": {"solver": "euler"}, "heun": {"solver": "heun"}, "no guidance": {"guidance_scale": 1.0}},
}
_STEPS = {"text_to_video": (2, 4, 8, 16, 32), "video_to_text": (1, 2, 4, 8, 16), "joint": (2, 4, 8, 16, 32)}
_STUDENT_STEPS = (1, 2, 4, 8)


def sweep(only: Sequence[str], clips: int, student: bool) -> list[Question]:
    """Every way of the jobs at several numbers of steps, cheap ones first. Raises UniViGUError for other jobs."""
    for job in only:
        if job not in WAYS:
            raise UniViGUError(f"--only is {job!r}; with --sweep expected one of {', '.join(WAYS)}")
    asked = []
    for of in OBJECTS:
        for job in dict.fromkeys(only or WAYS):
            plan = [(way, steps) for way in WAYS[job] for steps in _STEPS[job]]
            plan += [(STUDENT, steps) for steps in _STUDENT_STEPS] if student else []
            asked += [Question(of, job, clips, way, steps) for way, steps in sorted(plan, key=lambda one: one[1])]
    return sorted(asked, key=lambda one: one.way == STUDENT)  # the network is loaded once without the LoRA, once with


def require_worlds_model(pipe: Pipeline) -> None:
    """Raise UniViGUError for a model of anything else."""
    run, data = pipe.config.run, str(pipe.config.card.get("data", ""))
    if run.height != run.width or run.frames != round(2 * run.fps) + 1 or data != f"little worlds, version {VERSION}":
        raise UniViGUError(
            f"{pipe.components.path}: not a model of little worlds, version {VERSION} (its data are "
            f"{data or 'not stated'!r}, its clips {run.width}x{run.height}, {run.frames} frames); evaluate worlds "
            "measures the models that recipes.worlds trains. Use evaluate videos, captions or cycle"
        )


def fingerprint() -> str:
    """SHA-256 of what the worlds are and how they are read: grammar, split, renderer, handwriting and detector."""
    hashed = hashlib.sha256()
    for name in _SOURCES:
        text = read_text(Path(__file__).with_name(f"{name}.py"), exact=True)
        hashed.update("\n".join(text.splitlines()).encode())
    for split in ("train", "test"):
        for images in digit_images(split).values():
            hashed.update(images.numpy().tobytes())
    return hashed.hexdigest()


def settings_of(run: RunConfig, sampling: Sampling) -> dict[str, Any]:
    """What else the answers depend on, beside the settings of clips."""
    joint, captions = sampling.resolved(run, joint=True), sampling.resolved(run, captions=True)
    return {
        "joint_steps": joint.steps,
        "joint_temperature": joint.temperature,
        "text_steps": captions.steps,
        "text_temperature": captions.temperature,
        "guidance_end": sampling.guidance_end,
        **{name: getattr(captions, name) for name in ("top_p", "text_length", "text_update", "video_cache")},
        **{name: getattr(sampling, name) for name in ("stop_when_stable", "stop_when_sure")},
        "worlds": fingerprint(),
        "scikit-learn": version("scikit-learn"),
    }


def _one_way(evaluator: Evaluator, question: Question) -> dict[str, Any]:
    """The answer to a question about cost."""
    way = WAYS[question.job].get(question.way, {})
    found = getattr(evaluator, question.job)(question.steps, **way)
    return {"": (found[0] if question.job == "joint" else found).answers}


class Measurer:
    """Asks a model; worlds are drawn and encoded once for the questions about them that follow each other. ``teacher``:
    the pipeline without LoRAs, where there are some, for the ways that need none."""

    def __init__(self, pipe: Pipeline, sampling: Sampling, teacher: Callable[[], Pipeline]) -> None:
        self.pipe, self.sampling, self._teacher = pipe, sampling, teacher
        self._last: tuple[Any, Evaluator] | None = None

    @cached_property
    def teacher(self) -> Pipeline:
        return self._teacher() if self.pipe.loras else self.pipe

    def _evaluator(self, question: Question) -> Evaluator:
        pipe = self.teacher if question.way not in ("", STUDENT) else self.pipe
        worlds = question.of, question.clips, id(pipe)
        if self._last is None or self._last[0] != worlds:
            objects, kind = OBJECTS.get(question.of, 1), "" if question.of in OBJECTS else question.of
            seed = self.sampling.seed
            how: dict[str, Any] = {"objects": objects, "kind": kind, "seed": seed, "sampling": self.sampling}
            self._last = worlds, Evaluator(pipe, question.clips, **how)
        return self._last[1]

    def row(self, question: Question) -> Row:
        """The answer to a question, with how long the network took and through how many passes a clip went."""
        evaluator = self._evaluator(question)
        evaluator.passes, evaluator.seconds = 0, 0.0
        found = _one_way(evaluator, question) if question.way else JOBS[question.job](evaluator)
        row: Row = {"of": question.of, "job": question.job, "clips": question.clips, "answers": {}}
        row |= {"way": question.way, "steps_asked": question.steps} if question.way else {}
        row |= {name: found.pop(name) for name in _NUMBERS if name in found}
        passes, seconds = evaluator.passes / question.clips, evaluator.seconds / question.clips
        row |= {"passes": round(passes, 2), "seconds": round(seconds, 4)} if passes else {}
        if question.job in BY_KIND and question.of == "one object" and not question.way:
            row["kinds"] = [world.shapes[0].kind for world in evaluator.worlds]
        row["numbers"] = {part: Answers(letters).numbers() for part, letters in found.items()}
        return row | {"answers": found}


def survived(caption: str, pixels: Tensor, redrawn: Tensor) -> dict[str, Any]:
    """What the detector says of a clip, its caption and the clip that was drawn from that: ``caption_right``, and by
    attribute whether both clips show the same, in all objects. Empty where it sees nothing in the first clip."""
    said = read_caption(caption)
    objects = min(2, max(1, len(said.shapes))) if said else 1
    shown, drawn = (read_world(clip, objects) for clip in (pixels, redrawn))
    if shown is None:
        return {}
    right = [score(shown, said, index) for index in range(len(shown.shapes))]
    kept = [score(shown, drawn, index) for index in range(len(shown.shapes))]
    alike = {name: all(one[name] is not False for one in kept) for name in ATTRIBUTES}
    return {
        "caption_right": all(one is not False for scores in right for one in scores.values()),
        **{f"kept_{name}": value for name, value in alike.items()},
        "kept_all": all(alike.values()),
    }
