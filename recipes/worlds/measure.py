"""The numbers of a model of little worlds: what is asked, how sure an answer is, tables, and two models compared.

A *row* is one finished question, as a JSON object with the answer to it clip by clip, so that two rows about the same
worlds can be compared pair by pair. Intervals hold 95 %: Wilson's where every clip gives one answer, else a bootstrap
over clips.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uvg_core.config import RunConfig
from uvg_core.errors import UniViGUError, counted
from uvg_core.io import read_text
from uvg_core.media.chart import Curve, Panel, draw_curves
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import Sampling

from .detector import read_world, score
from .drawing import digit_images
from .evaluation import BATCH, Evaluator
from .finds import distinct, hits
from .grammar import ATTRIBUTES, KINDS, VERSION, read_caption
from .stories import stories
from .vae_training import reconstruction

OBJECTS = {"one object": 1, "two objects": 2}
ENOUGH_PER_KIND = 200
_SOURCES = ("grammar", "drawing", "source", "detector", "classifier", "segmentation")
_STABLE, _SURE = (2, 3, 5), (0.5, 0.7, 0.9)
_RESAMPLES = 2000
Row = dict[str, Any]
Interval = tuple[float, float, float]  # the number, and the lowest and highest that it may be


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
_BY_KIND = ("video_to_text", "text_to_video")
_NUMBERS = ("dB", "steps", "scores", "judging", "nDCG@5", "change")
_ONLY_OF = {"vae": "one object", "find": "two objects"}


def questions(only: Sequence[str], clips: int, per_kind: int) -> list[Question]:
    """What is to be asked, cheap questions about the same worlds together. Raises UniViGUError for an unknown job."""
    for job in only:
        if job not in JOBS:
            raise UniViGUError(f"--only is {job!r}; expected one of {', '.join(JOBS)}")
    jobs = list(dict.fromkeys(only)) or list(USUAL)
    asked = [Question(of, job, clips) for of in OBJECTS for job in jobs if _ONLY_OF.get(job, of) == of]
    kinds = [Question(kind, job, per_kind) for kind in KINDS for job in jobs if job in _BY_KIND]
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
        if question.job in _BY_KIND and question.of == "one object" and not question.way:
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


# How sure the answers are


class Answers:
    """The letters of one part of a row (see ``Accuracy``), and what they say of the model."""

    def __init__(self, letters: Mapping[str, str]) -> None:
        self.letters = {name: text for name, text in letters.items() if text.strip("-")}
        self.clips = len(next(iter(letters[name] for name in ("whole", "first") if name in letters)))

    @cached_property
    def names(self) -> list[str]:
        """What can be asked for: ``mean`` over attributes, and every attribute."""
        return [*(["mean"] if any(name in self.letters for name in ATTRIBUTES) else []), *self.letters]

    def _counts(self, name: str) -> Tensor:
        """Hits and trials of every clip, ``[2,N]``."""
        letters = torch.tensor(list(self.letters[name].encode())).view(self.clips, -1)
        return torch.stack([(letters == ord("1")).sum(1), (letters != ord("-")).sum(1)]).double()

    def rates(self, name: str, weights: Tensor) -> Tensor:
        """The number of every resample, NaN where it has no trial; ``weights`` ``[R,N]``: how often it holds each
        clip."""
        if name == "mean":
            return torch.stack([self.rates(one, weights) for one in ATTRIBUTES if one in self.letters]).nanmean(0)
        hits, trials = (self._counts(name) @ weights.T).unbind()
        return hits / trials

    def interval(self, name: str) -> Interval:
        rate = float(self.rates(name, torch.ones(1, self.clips, dtype=torch.float64)))
        low, high = _middle(self.rates(name, resamples(self.clips)))
        if len(self.letters.get(name, "")) == self.clips or low == high:  # one answer a clip, or all of them alike
            trials = self.clips if name == "mean" else int((self._counts(name)[1] > 0).sum())
            low, high = wilson(rate, trials)
        return rate, low, high

    def numbers(self) -> dict[str, list[float]]:
        """Every number with its interval, for the report."""
        return {name: [round(value, 4) for value in self.interval(name)] for name in self.names}

    def ahead_of(self, other: Answers, name: str) -> Interval:
        """By how much a number is above another model's on the same clips."""
        weights = torch.cat([torch.ones(1, self.clips, dtype=torch.float64), resamples(self.clips)])
        lead = self.rates(name, weights) - other.rates(name, weights)
        return float(lead[0]), *_middle(lead[1:])


def gap_closed(one: Answers, own: Answers, oracle: Answers) -> Interval:
    """The share of the gap between one draw and an oracle that a choice closes; NaN where there is none."""
    weights = torch.cat([torch.ones(1, own.clips, dtype=torch.float64), resamples(own.clips)])
    low, mine, high = (answers.rates("whole", weights) for answers in (one, own, oracle))
    share = (mine - low) / (high - low)
    share = share.masked_fill(~share.isfinite(), math.nan)
    return (float(share[0]), *_middle(share[1:])) if not share.isnan().all() else (math.nan,) * 3


def area(scores: Sequence[float], right: str) -> Interval:
    """The area under the ROC curve of scores that should tell right clips from wrong ones (Mann-Whitney)."""
    values, is_right = torch.tensor(scores, dtype=torch.float64), torch.tensor([one == "1" for one in right])
    ahead = values[is_right][:, None] - values[~is_right]
    wins = (ahead > 0).double() + (ahead == 0).double() / 2
    weights = torch.cat([torch.ones(1, len(right), dtype=torch.float64), resamples(len(right))])
    good, bad = weights[:, is_right], weights[:, ~is_right]
    areas = ((good @ wins) * bad).sum(1) / (good.sum(1) * bad.sum(1))
    return (float(areas[0]), *_middle(areas)) if wins.numel() else (math.nan,) * 3


def wilson(rate: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.959964
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def resamples(clips: int) -> Tensor:
    """How often each of the bootstrap's resamples holds every clip, ``[R,N]``; the same for all numbers."""
    drawn = torch.randint(clips, (_RESAMPLES, clips), generator=torch.Generator().manual_seed(0))
    return torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(1).double().expand_as(drawn))


def _middle(values: Tensor) -> tuple[float, float]:
    """The middle 95 % of what resamples say."""
    low, high = values[~values.isnan()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


# Tables

_LABELS = {
    ("video_to_text", ""): "video to text, without a prompt",
    ("text_to_video", ""): "text to video, from detailed captions",
    ("plain", ""): "the same with an empty text stream",
    ("joint", ""): "joint, from brief prompts: caption against clip",
    ("joint", "prompt"): "joint: kinds and colours of the prompt in both",
    ("ranking", ""): "ranking: the true caption first among ten",
    ("cycle", ""): "there and back: both clips show the same",
    ("edit", "changed"): "edited by words: what was asked for has changed",
    ("edit", "kept"): "edited by words: everything else has stayed",
    ("edit", ""): "edited by words: both",
    ("fill", "first frame"): "first frame held, from detailed captions",
    ("fill", "first and last"): "first and last frame held",
    ("fill", "region"): "objects formed anew in the held rest",
    ("fill", "joint"): "first frame held, joint from brief prompts: caption against clip",
    ("fill", "blank"): "sentences with one blank, beside the clip",
    ("story", "followed"): "stories: each shot against its prompt",
    ("story", "kept"): "stories: what should stay of the first shot",
    ("detector", "rendered"): "detector, rendered clips",
    ("detector", "through the VAE"): "detector, after the VAE",
}


_WHOLE = (("edit", "changed"), ("edit", ""), ("fill", "blank"))  # answers of which the share of whole clips counts


def tables(rows: Sequence[Row]) -> str:
    """The rows as Markdown: percent of what is right, with 95 % intervals."""
    rows = [row for row in rows if "way" not in row]
    known = {(row["of"], row["job"]): row for row in rows if row["of"] in OBJECTS}
    attributes = (_attributes(known, of) for of in OBJECTS)
    parts = [
        _means(known),
        *attributes,
        _decibels(known),
        _vae_line(known),
        _rules(known),
        _areas(known),
        _choices(known),
        _finds(known),
        _told(known),
    ]
    return "\n\n".join(part for part in (*parts, _kinds(rows)) if part) + "\n"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if body else ""


def percent(interval: Sequence[float], *, signed: bool = False) -> str:
    form = "+.1f" if signed else ".1f"
    rate, low, high = (format(100 * value, form) for value in interval)
    return f"{rate} ({low} to {high})"


def _means(known: Mapping[tuple[str, str], Row]) -> str:
    clips = {row["clips"] for row in known.values()}
    body = []
    for (job, part), label in _LABELS.items():
        name = "first" if job == "ranking" else "whole" if (job, part) in _WHOLE else "mean"
        cells = [_number(known.get((of, job)), part, name) for of in OBJECTS]
        body += [[label, *cells]] if any(cells) else []
    return _table([f"percent right, {', '.join(map(str, sorted(clips)))} clips", *OBJECTS], body)


def _number(row: Row | None, part: str, name: str) -> str:
    numbers = row["numbers"].get(part, {}) if row else {}
    return percent(numbers[name]) if name in numbers else ""


def _attributes(known: Mapping[tuple[str, str], Row], of: str) -> str:
    body = []
    for (job, part), label in _LABELS.items():
        numbers = known.get((of, job), {}).get("numbers", {}).get(part, {})
        if "kind" in numbers and part != "prompt":
            rates = [format(100 * numbers[name][0], ".1f") if name in numbers else "–" for name in ATTRIBUTES]
            body.append([label, *rates, percent(numbers["whole"])])
    return _table([of, *ATTRIBUTES, "everything"], body)


def _vae_line(known: Mapping[tuple[str, str], Row]) -> str:
    row = known.get(("one object", "vae"))
    return f"VAE: whole clips {row['dB']['whole']} dB, inside the objects' boxes {row['dB']['boxes']} dB" if row else ""


def _decibels(known: Mapping[tuple[str, str], Row]) -> str:
    """How well clips survive what is done to them."""
    body = [
        [job, of, name, f"{value:.2f}"]
        for (of, job), row in known.items()
        if job in ("edit", "fill")
        for name, value in row["dB"].items()
    ]
    return _table(["PSNR in dB", "worlds", "of what", "dB"], body)


def _rules(known: Mapping[tuple[str, str], Row]) -> str:
    """Captions that stop by themselves."""
    body = [
        [f"stop_when_{job}: {value}", of, f"{row['steps'][value]:g}", percent(found["mean"]), percent(found["whole"])]
        for (of, job), row in known.items()
        if "steps" in row
        for value, found in row["numbers"].items()
    ]
    return _table(["captions", "worlds", "steps", "attributes", "everything"], body)


def _choices(known: Mapping[tuple[str, str], Row]) -> str:
    """Several draws and the model's own choice among them: everything right, against the own choice clip by clip."""
    body = []
    for of in OBJECTS:
        row = known.get((of, "best_of"))
        if row is None:
            continue
        answers = {name: Answers(letters) for name, letters in row["answers"].items()}
        own = answers["its own choice"]
        for name, one in answers.items():
            lead = "" if one is own else percent(own.ahead_of(one, "whole"), signed=True)
            body.append([f"{of}: {name}", percent(one.interval("whole")), lead])
        closed = gap_closed(answers["one draw"], own, answers["an oracle"])
        shown = "–" if math.isnan(closed[0]) else percent(closed)
        body.append([f"{of}: share of the gap to the oracle that is closed", shown, ""])
        cost = ", ".join(f"{value:g} % of the {name}" for name, value in row["judging"].items())
        body.append([f"{of}: judging, beside drawing", cost, ""])
    return _table(["best of 4 draws of 8 steps", "everything right", "its own choice is ahead by"], body)


def _finds(known: Mapping[tuple[str, str], Row]) -> str:
    """How well ``find`` finds, and its words alone."""
    row = known.get(("two objects", "find"), {"answers": {}})
    body = []
    for part, letters in row["answers"].items():
        cells = [percent(Answers(letters).interval(name)) for name in ("first", "five")]
        body.append([f"{part}, {len(letters['first'])} queries", *cells, f"{100 * row['nDCG@5'][part]:.1f}"])
    head = [
        f"find among {row.get('clips')} clips of two objects",
        "the first is right",
        "one of five is",
        "nDCG@5 x 100",
    ]
    return _table(head, body)


def _told(known: Mapping[tuple[str, str], Row]) -> str:
    """How smooth films are where their shots meet."""
    body = []
    for of in OBJECTS:
        if (row := known.get((of, "story"))) is not None:
            smooth = Answers(row["answers"]["smooth"])
            cells = [percent(smooth.interval(name)) for name in ("jumps", "colour")]
            body.append([of, *cells, f"{row['change']['borders over inside']:.2f}"])
    return _table(["stories", "borders without a jump", "mean colour stays", "change at borders over inside"], body)


def _areas(known: Mapping[tuple[str, str], Row]) -> str:
    """How well the scores of there and back tell clip by clip whether the caption is right."""
    rows = [known.get((of, "cycle"), {}) for of in OBJECTS]
    names = dict.fromkeys(name for row in rows for name in row.get("scores", {}))
    right = [row["answers"]["caption right"]["whole"] if row else "" for row in rows]
    body = [
        [name.replace("_", " "), *(_area(row, name, letters) for row, letters in zip(rows, right, strict=True))]
        for name in names
    ]
    counts = [f"{of}, {letters.count('0')} captions wrong" for of, letters in zip(OBJECTS, right, strict=True)]
    return _table(["there and back: AUROC x 100 for a right caption", *counts], body)


def _area(row: Row, name: str, right: str) -> str:
    return percent(area(row["scores"][name], right)) if "0" in right and "1" in right else ""


def _kinds(rows: Sequence[Row]) -> str:
    """Every kind's own share, from worlds drawn per kind or else from those of one object."""
    by_job: dict[str, dict[str, str]] = {job: {} for job in _BY_KIND}
    for row in rows:
        letters, found = row["answers"].get("", {}).get("kind", ""), by_job.get(row["job"], {})
        if "kinds" in row:
            for kind in KINDS:
                own = [one for one, other in zip(letters, row["kinds"], strict=True) if other == kind]
                found.setdefault(kind, "".join(own))
        elif row["of"] in KINDS:
            found[row["of"]] = letters
    body, worst, fewest = [], [], ENOUGH_PER_KIND
    for job, of_kinds in by_job.items():
        shares = {kind: one.count("1") / len(one) for kind, one in of_kinds.items() if one}
        if not shares:
            continue
        last = min(shares, key=lambda kind: shares[kind])
        clips = len(of_kinds[last])
        fewest = min(fewest, clips)
        worst.append([job.replace("_", " "), last, percent((shares[last], *wilson(shares[last], clips))), str(clips)])
        body.append([job.replace("_", " "), *(f"{100 * shares[kind]:.1f}" if kind in shares else "" for kind in KINDS)])
    lines = [_table(["kinds, one object", *KINDS], body), _table(["worst kind", "", "percent right", "clips"], worst)]
    note = f"Too few clips for a worst kind: add `--per-kind {ENOUGH_PER_KIND}`." if fewest < ENOUGH_PER_KIND else ""
    return "\n\n".join(part for part in (*lines, note) if part)


# Cost beside quality


def figures(rows: Iterable[Row]) -> dict[str, tuple[str, str]]:
    """By job what ``sweep`` asked for: a Markdown table, and a chart as SVG."""
    found: dict[str, tuple[str, str]] = {}
    rows = [row for row in rows if "way" in row]
    for job in WAYS:
        if mine := [row for row in rows if row["job"] == job]:
            found[job] = _costs(job, mine), _chart(job, mine)
    return found


def _costs(job: str, rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        numbers = row["numbers"][""]
        cost = [str(row["steps_asked"]), f"{row['passes']:g}", f"{row['seconds']:g}"]
        body.append([row["way"], row["of"], *cost, percent(numbers["mean"]), percent(numbers["whole"])])
    head = [_LABELS[job, ""], "worlds", "steps", "passes", "seconds", "attributes", "everything"]
    return _table(head, body)


def _chart(job: str, rows: Sequence[Row]) -> str:
    panels = []
    for of in OBJECTS:
        for cost, along in (
            ("passes", "passes of the network per clip"),
            ("seconds", "seconds of the network per clip"),
        ):
            points: dict[str, list[tuple[float, float, float, float]]] = {}
            for row in sorted(rows, key=lambda row: int(row["steps_asked"])):
                if row["of"] == of:
                    rate, low, high = row["numbers"][""]["mean"]
                    points.setdefault(row["way"], []).append((row[cost], rate, low, high))
            curves = [Curve(way, points[way]) for way in (*WAYS[job], STUDENT) if way in points]
            panels += [Panel(of, along, curves)] if curves else []
    counts = " and ".join(sorted({f"{row['clips']}" for row in rows}))
    note = f"percent of correct attributes and 95 % intervals, {counts} held-out worlds, in batches of {BATCH}"
    return draw_curves(panels, _LABELS[job, ""], note)


# Two models


def against(rows: Iterable[Row], others: Iterable[Row], name: str) -> str:
    """The differences to another report on the same worlds, with paired intervals, as Markdown."""
    there = {key_of(row): row for row in others}
    body = []
    for row in rows:
        other = there.get(key_of(row), {"answers": {}})
        for part, letters in row["answers"].items():
            if part not in other["answers"] or row["job"] == "detector":
                continue
            mine, theirs = Answers(letters), Answers(other["answers"][part])
            for what in ("mean", "whole", "first") if row["of"] in OBJECTS else ("kind",):
                if what in mine.names and what in theirs.names:
                    lead = mine.ahead_of(theirs, what)
                    label = f"{_LABELS.get((row['job'], part), row['job'])}, {row['of']}"
                    label += f", {row['way']}, {row['steps_asked']} steps" if "way" in row else ""
                    numbers = [percent(one.interval(what)) for one in (mine, theirs)]
                    shown = {"mean": "attributes", "whole": "everything"}.get(what, what)
                    body.append([label, shown, *numbers, percent(lead, signed=True)])
    return _table(["paired, same worlds and noise", "", "this", name, "difference"], body)


def quality_of(rows: Iterable[Row]) -> dict[str, Any]:
    """For a checkpoint's card: the VAE's quality in dB, and means in percent by number of objects and job."""
    known = {(row["of"], row["job"]): row for row in rows if row["of"] in OBJECTS and "way" not in row}
    percents: dict[str, Any] = {"clips": known["one object", "video_to_text"]["clips"]}
    names = {"video_to_text": "understanding", "text_to_video": "generation", "joint": "joint agreement"}
    for of, objects in OBJECTS.items():
        means = {
            names.get(job, job): round(100 * row["numbers"][""]["first" if job == "ranking" else "mean"][0], 1)
            for (other, job), row in known.items()
            if other == of and job in (*names, "ranking")
        }
        percents[f"objects_{objects}"] = means
    vae = known["one object", "vae"]["dB"]
    return {"vae_psnr": vae["whole"], "vae_psnr_boxes": vae["boxes"], "right_percent": percents}
