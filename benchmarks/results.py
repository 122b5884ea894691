"""Write docs/results.md and its plots from the numbers in benchmarks/numbers/.

    python benchmarks/results.py [--curves WORKDIR]     (pip install -e ".[results]")

``--curves`` first thins the loss curves of a WORKDIR of ``recipes.worlds.recipe`` into ``numbers/curves.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from saved import read, save

from recipes.worlds.recipe import RUNS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ATTRIBUTES = ("kind", "colour", "size", "motion", "speed", "background", "whole")
STUDENT_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 %, by number of values
POINTS = 120  # of a thinned curve
TICKS = {
    "video": ([0.2, 0.3, 0.5, 1.0], ["0.2", "0.3", "0.5", "1"]),
    "text": ([0.1, 0.2, 0.5, 1.0, 5.0], ["0.1", "0.2", "0.5", "1", "5"]),
}
TARGETS = {"understanding": 0.97, "generation": 0.93, "joint": 0.93, "ranking": 0.97}  # one object
TARGETS_DB = {"whole": 32.0, "boxes": 24.0}
LABELS = {
    "understanding": "video to text",
    "generation": "text to video",
    "joint": "joint agreement",
    "ranking": "ranking",
}
CLAIMS = {  # what is to be better than which arm
    "starting from the generator, not from random weights": "scratch",
    "Knowledge Recall before refinement": "no recall",
    "dropping the prompt from video to text": "no dropout",
    "a feed-forward expert for each stream": "one expert",
    "discrete flow from uniform words, not from masks": "mask",
    "discrete flow, not the embedding flow": "embedding",
    "both jobs at once, against a specialist that only captions": "captioner",
    "both jobs at once, against a specialist that only generates": "generator",
}

Numbers = dict[str, Any]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def share(tally: Numbers, name: str) -> float:
    return float(tally["hits"][name] / tally["trials"][name])


def attribute_row(label: str, tally: Numbers) -> list[str]:
    shares = [percent(share(tally, name)) for name in ATTRIBUTES]
    return [label, f"**{percent(tally['mean'])}**", *shares]


def attribute_table(rows: Sequence[tuple[str, Numbers]]) -> str:
    head = ["", "mean", *ATTRIBUTES[:-1], "everything right"]
    return table(head, [attribute_row(label, tally) for label, tally in rows])


def kind_table(found: Numbers) -> str:
    """Which shapes are told apart, in captions and in clips."""
    asked = [(label, found[name]["by_kind"]) for name, label in LABELS.items() if "by_kind" in found.get(name, {})]
    kinds = list(asked[0][1])
    halves = [kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]]
    rows = [[label, *(percent(of[k][0] / of[k][1]) for k in half)] for half in halves for label, of in asked]
    tables = [table(["kind", *half], rows[i * len(asked) : (i + 1) * len(asked)]) for i, half in enumerate(halves)]
    return "\n\n".join(["Kinds, of 24 to 50 clips each:", *tables])


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of the 95 % interval (Student's t)."""
    if len(values) < 2:
        return percent(values[0])
    half = STUDENT_T[len(values)] * stdev(values) / math.sqrt(len(values))
    return f"{percent(mean(values))} ± {percent(half)}"


def about_quality(name: str) -> str:
    numbers, parts = read(f"quality_{name}"), []
    for objects, words in ((1, "One object"), (2, "Two objects")):
        found = numbers.get(f"objects_{objects}", {})
        rows = []
        for question, label in (
            ("understanding", "video to text"),
            ("generation", "text to video"),
            ("plain", "text to video, empty text stream"),
        ):
            if question in found:
                rows.append((f"{label}", found[question]))
        if "joint" in found:
            rows += [("joint: caption against clip", found["joint"]["agreement"])]
        if "detector" in found:
            rows += [("the detector on rendered clips", found["detector"]["rendered"])]
            rows += [("the detector on the VAE's reconstructions", found["detector"]["reconstructed"])]
        if rows:
            parts += [f"### {words}", attribute_table(rows)]
        if found.get("understanding", {}).get("by_kind"):
            parts.append(kind_table(found))
        told = [
            f"{percent(share(found[question], name))} % of {what}"
            for question, name, what in (
                ("understanding", "exact", "the captions are the very sentence of the truth"),
                ("generation", "alone", "the generated clips show nothing besides what they should"),
            )
            if question in found
        ]
        if told:
            parts.append(f"{', '.join(told)}.")
        if "joint" in found:
            prompt = found["joint"]["prompt"]
            share = (prompt["hits"]["kind"] + prompt["hits"]["colour"]) / (
                prompt["trials"]["kind"] + prompt["trials"]["colour"]
            )
            parts.append(
                f"In joint runs, {percent(share)} % of the brief prompt's words hold in the caption and the clip."
            )
        if "ranking" in found:
            ranking = found["ranking"]
            parts.append(
                f"Ranking: the true caption comes first among ten in {percent(ranking['share'])} % of "
                f"{ranking['trials']} clips."
            )
    return "\n\n".join(parts)


def share_of(question: str, answers: Numbers) -> float:
    """The one number of a question's answer."""
    found = answers["agreement"] if question == "joint" and "agreement" in answers else answers
    return float(found["share"] if question == "ranking" else found["mean"])


def about_targets() -> str:
    """What was aimed at, and what was reached."""
    found = read("quality_final").get("objects_1", {})
    rows = []
    for question, wanted in TARGETS.items():
        if question in found:
            share = share_of(question, found[question])
            rows.append([LABELS[question], f"{percent(wanted)} %", f"{percent(share)} %", reached(share, wanted)])
    for name, label in (("whole", "VAE, whole clip"), ("boxes", "VAE, inside the objects' boxes")):
        if "vae" in found:
            value = found["vae"][name]
            rows.append([label, f"{TARGETS_DB[name]:.0f} dB", f"{value:.1f} dB", reached(value, TARGETS_DB[name])])
    return table(["one object, held-out combinations", "target", "measured", ""], rows) if rows else ""


def reached(value: float, wanted: float) -> str:
    return "reached" if value >= wanted else "**not reached**"


def about_generator() -> str:
    """Text to video with an empty text stream, from stage to stage."""
    rows = []
    for name, label in (
        ("generate", "before stage 1"),
        ("recall", "after stage 1"),
        ("refine", "after stage 2, its first run"),
        ("final", "the shipped model"),
    ):
        for objects in (1, 2):
            found = read(f"quality_{name}").get(f"objects_{objects}", {})
            if "plain" in found:
                rows.append((f"{label}, {objects} object{'s' * (objects == 2)}", found["plain"]))
    return attribute_table(rows) if rows else ""


def about_claims() -> str:
    """Differences between the unified model and every other arm, seed by seed."""
    arms = read("ablations").get("arms", {})
    unified, rows = arms.get("unified", {}), []
    for claim, arm in CLAIMS.items():
        cells = []
        for question in ("understanding", "generation", "joint"):
            other = arms.get(arm, {})
            seeds = [s for s in unified if s in other and question in other[s] and question in unified[s]]
            differences = [unified[s][question]["mean"] - other[s][question]["mean"] for s in seeds]
            cells.append(verdict(differences) if differences else "–")
        if any(cell != "–" for cell in cells):
            rows.append([claim, *cells])
    return table(["", *(LABELS[name] for name in ("understanding", "generation", "joint"))], rows) if rows else ""


def verdict(differences: Sequence[float]) -> str:
    """Points by which one arm is ahead, and whether that could be chance."""
    if len(differences) < 2:
        return f"{100 * differences[0]:+.1f}, one seed"
    middle = mean(differences)
    half = STUDENT_T[len(differences)] * stdev(differences) / math.sqrt(len(differences))
    word = "no difference shown" if abs(middle) <= half else "better" if middle > 0 else "**worse**"
    return f"{100 * middle:+.1f} ± {100 * half:.1f}: {word}"


def about_steps() -> str:
    """The plot's numbers."""
    found = read("quality_final").get("objects_1", {}).get("steps")
    if not found:
        return ""
    counts = sorted(map(int, found["understanding"]))
    rows = [[LABELS[name], *(percent(found[name][str(n)]["mean"]) for n in counts)] for name in found]
    return table(["steps", *map(str, counts)], rows)


def about_ablations() -> str:
    numbers = read("ablations")
    if not numbers:
        return "Not measured yet."
    rows = []
    for name, seeds in numbers["arms"].items():
        values = {
            question: [answers[question]["mean"] for answers in seeds.values() if question in answers]
            for question in ("understanding", "generation", "joint")
        }
        says = next(iter(seeds.values()))["says"]
        shown = [interval(values[q]) if values[q] else "–" for q in ("understanding", "generation", "joint")]
        rows.append([f"**{name}**: {says}", *shown, str(len(seeds))])
    return (
        f"Every arm: {numbers['steps']} steps of {numbers['batch']} clips on one thread; {numbers['clips']} held-out "
        "one-object clips a question and seed; mean over attributes in percent, ± half of the 95 % interval over "
        "seeds.\n\n" + table(["arm", "video to text", "text to video", "joint agreement", "seeds"], rows)
    )


def draw_steps(path: Path) -> bool:
    found = read("quality_final").get("objects_1", {}).get("steps")
    if not found:
        return False
    plot = _plot()
    figure, axes = plot.subplots(figsize=(6, 3.4))
    for name, label in (("understanding", "video to text"), ("generation", "text to video"), ("joint", "joint")):
        points = sorted((int(steps), 100 * tally["mean"]) for steps, tally in found[name].items())
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", xlabel="steps", ylabel="attributes right, %")
    axes.set_xticks([4, 8, 16, 32, 64], labels=["4", "8", "16", "32", "64"])
    axes.minorticks_off()
    _finish(figure, axes, path)
    return True


def draw_curves(path: Path) -> bool:
    curves = read("curves")
    if not curves:
        return False
    plot = _plot()
    figure, panels = plot.subplots(1, 2, figsize=(9, 3.2))
    for axes, stream in zip(panels, ("video", "text"), strict=True):
        offset = 0
        for number, (stage, curve) in enumerate(curves.items()):
            if stream in curve:
                steps = [(offset + step) / 1000 for step in curve["step"]]
                axes.plot(steps, curve[stream], label=stage, color=f"C{number}")
            offset += curve["step"][-1]
        axes.set(xlabel="thousand steps over all runs", ylabel=f"{stream} loss", yscale="log")
        axes.set_yticks(*TICKS[stream])
        axes.minorticks_off()
        _finish(figure, axes, path)
    return True


def _plot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "uvg", "font.size": 9, "svg.fonttype": "none"})
    import matplotlib.pyplot as plot

    return plot


def _finish(figure: Any, axes: Any, path: Path, **legend: Any) -> None:
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, **legend)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def thin_curves(workdir: Path) -> None:
    """Means over equal stretches of each stage's ``losses.jsonl``."""
    curves: Numbers = {}
    for stage in RUNS:
        path = workdir / stage / "losses.jsonl"
        if not path.exists():
            continue
        entries = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        size = max(1, len(entries) // POINTS)
        groups = [entries[i : i + size] for i in range(0, len(entries) - size + 1, size)]
        curve: Numbers = {"step": [group[-1]["step"] for group in groups]}
        for stream in ("video", "text"):
            if stream in entries[0]:
                curve[stream] = [round(mean(e[stream] for e in g if stream in e), 4) for g in groups]
        curve["hours"] = round(sum(entry["seconds"] for entry in entries) / 3600, 2)
        curves[stage] = curve
    save("curves", curves, indent=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, metavar="WORKDIR")
    args = parser.parse_args()
    if args.curves is not None:
        thin_curves(args.curves)
    text = (Path(__file__).parent / "results.template.md").read_text("utf-8")
    parts = {
        "targets": about_targets(),
        "final": about_quality("final"),
        "generator": about_generator(),
        "ablations": about_ablations(),
        "claims": about_claims(),
        "steps": f"{about_steps()}\n\n![steps against quality](results_steps.svg)"
        if draw_steps(DOCS / "results_steps.svg")
        else "",
        "curves": "![loss curves](results_curves.svg)" if draw_curves(DOCS / "results_curves.svg") else "",
    }
    for name, part in parts.items():
        text = text.replace(f"{{{{{name}}}}}", part or "Not measured yet.")
    (DOCS / "results.md").write_text(text, encoding="utf-8")
    print(f"written: {DOCS / 'results.md'}")


if __name__ == "__main__":
    main()
