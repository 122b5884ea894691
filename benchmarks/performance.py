"""Write docs/performance.md and its plots from the numbers in benchmarks/numbers/.

    python benchmarks/performance.py     (pip install -e ".[results]")

What was not measured says so. The page's words stand in ``performance.template.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from results import DOCS, NUMBERS, Numbers, _finish, _plot, percent, table

GIB, MIB = 2**30, 2**20
MISSING = "Not measured yet."


def read(name: str) -> Numbers:
    path = NUMBERS / f"{name}.json"
    found: Numbers = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def whole(tally: Numbers) -> str:
    """The share of clips with everything right."""
    name = "exact" if "exact" in tally["hits"] else "whole"
    return percent(tally["hits"][name] / tally["trials"][name])


def both(tally: Numbers | None) -> str:
    """Attributes, and clips or captions with everything right."""
    return "–" if tally is None else f"{percent(tally['mean'])} / {whole(tally)}"


def targets() -> str:
    """What was to be reached, and what was: of the GPU where there are numbers of one, else of the CPU."""

    def found(name: str) -> Numbers:
        return read(f"{name}_cuda") or read(f"{name}_cpu")

    rows: list[list[str]] = []

    def row(what: str, wanted: str, got: str, reached: bool) -> None:
        rows.append([what, wanted, got, "reached" if reached else "**missed**"])

    if captions := found("captions_time").get("caption"):
        times = captions["off"] / captions["static, bfloat16"]
        row("a caption at full size, static against every step", "20 times faster", f"{times:.0f} times", times >= 20)
    if settings := read("captions_accuracy_one_way").get("settings"):
        lost = 100 * (settings["off, 50 steps"]["mean"] - settings["static, 50 steps"]["mean"])
        row("the same setting on the embedded model", "within 1 point", f"{lost:.1f} points lost", lost <= 1)
    if block := found("forward").get("block"):
        ratio = block["ours, video and text"] / block["core, equal tokens"]
        row(
            "a joint block against core's Wan on as many tokens",
            "at most 1.05 of the time",
            f"{ratio:.2f}",
            ratio <= 1.05,
        )
    if blocks := found("released").get("blocks"):
        times_of = blocks[max(blocks, key=int)]["seconds"]
        ratio = median(a / b for a, b in zip(times_of["ours"], times_of["released code, bfloat16"], strict=True))
        row("a pass against the released code's", "less than 1 of the time", f"{ratio:.2f}", ratio < 1)
    if passes := found("memory"):
        ratios = [one["estimate"] / one["peak"] for one in passes]
        inside = min(ratios) >= 0.8 and max(ratios) <= 1.2
        row(
            "memory that ComfyUI is told of",
            "within 20 %",
            f"{min(ratios):.2f} to {max(ratios):.2f} of the peak",
            inside,
        )
    for job, limit in (("text_to_video", 8), ("video_to_text", 6)):
        taken = [one["reserved"] for one in read("limits") if (one["job"], one["gb"]) == (job, limit)]
        what, wanted = f"{job.replace('_', ' ')} at 832x480x81", f"under {limit} GB"
        if taken:
            row(what, wanted, f"{max(taken) / 1e9:.1f} GB", max(taken) < limit * 1e9)
        else:
            rows.append([what, wanted, "not measured: no GPU", "open"])
    return table(["", "target", "measured", ""], rows)


def captions_accuracy() -> str:
    parts = []
    for rule, words in (
        ("one_way", "`uvg_tiny`, whose clip does not see the text"),
        ("joint", "its predecessor after `refine`, whose clip does"),
    ):
        found = read(f"captions_accuracy_{rule}").get("settings", {})
        ways = list(dict.fromkeys(name.rsplit(", ", 1)[0] for name in found))
        steps = list(dict.fromkeys(name.rsplit(", ", 1)[1] for name in found))
        rows = []
        for way in ways:
            tallies = [found[f"{way}, {count}"] for count in steps]
            rows.append([way, *(f"{both(tally)}, {tally['seconds']:.0f} s" for tally in tallies)])
        if rows:
            parts.append(f"{words}:\n\n{table(['video_cache', *steps], rows)}")
    return "\n\n".join(parts) or MISSING


def captions_time() -> str:
    parts = []
    for device in ("cpu", "cuda"):
        found = read(f"captions_time_{device}")
        if found:
            exact = found["caption"]["off"]
            rows = [[name, f"{s:.1f}", f"{exact / s:.1f}"] for name, s in found["caption"].items()]
            frames, height, width = found["size"]
            one = found["passes"]
            passes = [
                [
                    name,
                    f"{s:.2f}",
                    f"{one['peak'][name] / GIB:.2f}",
                    f"{one['kept'].get(name.partition(', ')[2], 0) / GIB:.2f}",
                ]
                for name, s in one["seconds"].items()
            ]
            parts.append(
                f"{found['device']}, {width}x{height}, {frames} frames, 256 text tokens, 50 steps, 30 blocks"
                f"{'' if '30' in found['measured'] else ', worked out from ' + ' and '.join(found['measured'])}:\n\n"
                + table(["video_cache", "s a caption", "times faster"], rows)
                + "\n\nIts passes; memory is what a pass holds at its peak beside the weights and what is kept:\n\n"
                + table(["pass", "s", "peak, GiB", "kept, GiB"], passes)
            )
    return "\n\n".join(parts) or MISSING


def curves(series: dict[str, list[tuple[float, float]]], path: Path, **axes_of: Any) -> str:
    """Lines through points, drawn into a file; the line of the page that shows it."""
    plot = _plot()
    figure, axes = plot.subplots(figsize=(8.5, 4))
    for number, (name, points) in enumerate(series.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", ms=4, ls=("-", "--", ":")[number // 10], label=name)
    axes.set(xscale="log", **axes_of)
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(plot.matplotlib.ticker.FormatStrFormatter("%g"))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    return f"![{axes_of['ylabel']} against {axes_of['xlabel']}]({path.name})"


def text_samplers(path: Path) -> str:
    found, parts = read("text_samplers"), []
    if found:
        series = {
            name: [(tally["seconds"], 100 * tally["hits"]["exact"] / tally["trials"]["exact"]) for tally in of.values()]
            for name, of in found["objects_1"].items()
        }
        axes = {"xlabel": f"seconds for {found['clips']} captions", "ylabel": "exact captions, %"}
        parts.append(curves(series, path, **axes))
    for objects, words in (("objects_1", "One object"), ("objects_2", "Two objects")):
        ways = found.get(objects)
        if ways:
            steps = sorted({int(n) for of in ways.values() for n in of})
            rows = [
                [
                    name,
                    *(f"{percent(of[str(n)]['mean'])} / {whole(of[str(n)])}" if str(n) in of else "–" for n in steps),
                ]
                for name, of in ways.items()
            ]
            parts.append(f"{words}:\n\n" + table(["", *(f"{n} steps" for n in steps)], rows))
    return "\n\n".join(parts) or MISSING


def stopping() -> str:
    found = read("quality_final").get("objects_1", {}).get("stable", {})
    rows = [
        [n, f"{tally['steps']:.1f} of {tally['of']}", percent(tally["mean"]), whole(tally)]
        for n, tally in found.items()
    ]
    return table(["stop_when_stable", "steps taken", "attributes", "exact captions"], rows) if rows else MISSING


def few_steps(path: Path) -> str:
    found = read("few_steps").get("solvers", {})
    if not found:
        return MISSING
    passes = sorted({int(n) for of in found.values() for n in of})
    rows = [[name, *(both(of.get(str(n))) for n in passes)] for name, of in found.items()]
    cost = {name: [(tally["rows"], 100 * tally["mean"]) for tally in of.values()] for name, of in found.items()}
    plot = curves(cost, path, xlabel="passes a clip, guidance's among them", ylabel="attributes right, %")
    return f"{plot}\n\n{table(['passes', *map(str, passes)], rows)}"


def forward() -> str:
    parts = []
    for device in ("cpu", "cuda"):
        found = read(f"forward_{device}")
        if not found:
            continue
        depths = sorted(found["blocks"], key=int)
        rows = []
        for name in found["blocks"][depths[-1]]["seconds"]:
            base = "core, equal tokens" if "equal" in name or "and text" in name else "core"
            cells = []
            for depth in depths:
                times = found["blocks"][depth]["seconds"]
                ratio = median(a / b for a, b in zip(times[name], times[base], strict=True))
                cells.append(f"{1000 * median(times[name]):.0f} ms ({ratio:.2f})")
            block = found.get("block", {})
            cells.append(f"{1000 * block[name]:.0f} ms ({block[name] / block[base]:.2f})" if block else "–")
            rows.append([name, *cells])
        parts.append(
            f"{device}, {found['dtype']}, {found['video']} video tokens, {found['text']} text tokens:\n\n"
            + table(["", *(f"{n} block{'s' * (n != '1')}" for n in depths), "a block"], rows)
        )
    return "\n\n".join(parts) or MISSING


def released() -> str:
    parts = []
    for device in ("cpu", "cuda"):
        found = read(f"released_{device}")
        if not found:
            continue
        depths = sorted(found["blocks"], key=int)
        rows = []
        for name in found["blocks"][depths[-1]]["seconds"]:
            cells = []
            for depth in depths:
                times = found["blocks"][depth]["seconds"]
                ratio = median(a / b for a, b in zip(times["ours"], times[name], strict=True))
                cells.append(f"{1000 * median(times[name]):.0f} ms ({ratio:.2f})")
            rows.append([name, *cells, f"{100 * found['blocks'][depths[-1]]['apart'][name]:.2f} %"])
        head = ["", *(f"{n} block{'s' * (n != '1')}" for n in depths), "velocity, apart"]
        parts.append(f"{device}, {found['video']} video tokens, {found['text']} text tokens:\n\n{table(head, rows)}")
    return "\n\n".join(parts) or MISSING


def memory() -> str:
    parts = []
    for device in ("cpu", "cuda"):
        found = read(f"memory_{device}")
        if found:
            rows = [
                [
                    one["job"],
                    f"{one['video']} + {one['text']}",
                    f"{one['peak'] / MIB:.0f}",
                    f"{one['estimate'] / MIB:.0f}",
                    f"{one['estimate'] / one['peak']:.2f}",
                ]
                for one in found
            ]
            parts.append(f"{device}:\n\n" + table(["job", "tokens", "peak, MiB", "estimate, MiB", "ratio"], rows))
    return "\n\n".join(parts) or MISSING


def limits() -> str:
    found = read("limits")
    rows = [
        [
            one["job"].replace("_", " "),
            one["how"],
            f"{one['gb']:g}",
            f"{one['allocated'] / 1e9:.2f}",
            f"{one['reserved'] / 1e9:.2f}",
            f"{one['seconds']:.1f} for {one['steps']} steps",
            one["device"],
        ]
        for one in found
    ]
    head = ["job", "", "limit, GB", "allocated, GB", "taken, GB", "s", "device"]
    return table(head, rows) if rows else "**Not measured: there was no GPU.**"


def growth(path: Path) -> str:
    parts = [_growth(device, path.with_stem(f"{path.stem}_{device}")) for device in ("cpu", "cuda")]
    return "\n\n".join(part for part in parts if part) or MISSING


def _growth(device: str, path: Path) -> str:
    found = read(f"growth_{device}")
    if not found:
        return ""
    plot = _plot()
    figure, axes = plot.subplots(figsize=(6, 3.6))
    for name, label in (("frames", "frames"), ("side", "resolution"), ("text", "text"), ("batch", "batch")):
        rows = sorted(found[name], key=lambda row: row["operations"])
        points = [(row["operations"] / 1e9, 1000 * row["seconds"]) for row in rows]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="operations a block, 10^9", ylabel="ms a block")
    _finish(figure, axes, path)
    rows = [
        [
            name,
            "{}x{}x{}".format(4 * row["size"][0] - 3, 8 * row["size"][1], 8 * row["size"][1]),
            str(row["size"][2]),
            str(row["size"][3]),
            str(row["tokens"]),
            f"{row['operations'] / 1e9:.0f}",
            f"{1000 * row['seconds']:.0f}",
            f"{row['operations'] / row['seconds'] / 1e9:.0f}",
        ]
        for name, series in found.items()
        for row in series
    ]
    head = ["what grows", "frames x pixels", "text", "batch", "tokens a row", "10^9 operations", "ms", "10^9 a second"]
    return f"{device}:\n\n![time against operations]({path.name})\n\n{table(head, rows)}"


def main() -> None:
    text = (Path(__file__).parent / "performance.template.md").read_text("utf-8")
    parts = {
        "targets": targets(),
        "captions_time": captions_time(),
        "captions_accuracy": captions_accuracy(),
        "text_samplers": text_samplers(DOCS / "performance_words.svg"),
        "stopping": stopping(),
        "few_steps": few_steps(DOCS / "performance_few_steps.svg"),
        "forward": forward(),
        "released": released(),
        "memory": memory(),
        "limits": limits(),
        "growth": growth(DOCS / "performance_growth.svg"),
    }
    for name, part in parts.items():
        text = text.replace(f"{{{{{name}}}}}", part)
    (DOCS / "performance.md").write_text(text, encoding="utf-8")
    print(f"written: {DOCS / 'performance.md'}")


if __name__ == "__main__":
    main()
