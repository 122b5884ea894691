"""What ``measure.py`` found, as Markdown tables and charts; and two models compared, clip by clip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uvg_core.media.chart import Curve, Panel, draw_curves

from .answers import Answers, area, gap_closed, wilson
from .evaluation import BATCH
from .grammar import ATTRIBUTES, KINDS
from .measure import BY_KIND, OBJECTS, STUDENT, WAYS, Row, key_of

ENOUGH_PER_KIND = 200
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
    by_job: dict[str, dict[str, str]] = {job: {} for job in BY_KIND}
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
