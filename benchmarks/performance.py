"""Write docs/performance.md and its plots from the numbers in benchmarks/numbers/.

    python benchmarks/performance.py     (pip install -e ".[results]")

What was not measured says so. The page's words stand in ``performance.template.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import saved
from forward import base_of
from measuring import GIB, ratio_of
from results import DOCS, Numbers, _finish, _plot, attribute_table, percent, share, table
from saved import read
from text_samplers import WAYS
from text_step import KINDS

MISSING = "Not measured yet."


def whole(tally: Numbers) -> str:
    """The share of clips with everything right."""
    return percent(share(tally, "exact" if "exact" in tally["hits"] else "whole"))


def both(tally: Numbers | None) -> str:
    """Attributes, and clips or captions with everything right."""
    return "–" if tally is None else f"{percent(tally['mean'])} / {whole(tally)}"


def by_device(name: str, shown: Callable[[str, Any], str]) -> str:
    """``shown(device, numbers)`` for every device that there are numbers of."""
    found = {device: read(f"{name}_{device}") for device in ("cpu", "cuda")}
    return "\n\n".join(shown(device, numbers) for device, numbers in found.items() if numbers) or MISSING


def took(seconds: float, ratio: float) -> str:
    return f"{1000 * seconds:.0f} ms ({ratio:.2f})"


def depths_of(found: Numbers) -> tuple[list[str], list[str]]:
    """The numbers of blocks, and the heads of their columns."""
    depths = sorted(found["blocks"], key=int)
    return depths, [f"{n} block{'s' * (n != '1')}" for n in depths]


def targets() -> str:
    """What was to be reached, and what was: of the GPU where there are numbers of one, else of the CPU."""

    def found(name: str) -> Numbers:
        return read(f"{name}_cuda") or read(f"{name}_cpu")

    rows: list[list[str]] = []

    def row(what: str, wanted: str, got: str, reached: bool) -> None:
        rows.append([what, wanted, got, "reached" if reached else "**missed**"])

    if captions := found("captions_time"):
        times = captions["caption"]["off"] / captions["caption"]["static, bfloat16"]
        got = f"{times:.0f} times{worked_out(captions)}"
        row("a caption at full size, static against every step", "20 times faster", got, times >= 20)
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
        ratio = ratio_of(times_of["ours"], times_of["released code, bfloat16"])
        row("a pass against the released code's", "less than 1 of the time", f"{ratio:.2f}", ratio < 1)
    if passes := [one["value"] for one in read("counted") if "over its estimate" in one["claim"]]:
        got = f"{min(passes):.2f} to {max(passes):.2f} of it is taken"
        row(
            "memory of a pass, told before it",
            "within 10 %",
            f"{got}, on a fake card",
            0.9 <= min(passes) <= max(passes) <= 1.1,
        )
    for job, limit in (("text_to_video", 8), ("video_to_text", 6)):
        taken = [one["reserved"] for one in read("limits") if (one["job"], one["gb"]) == (job, limit)]
        what, wanted = f"{job.replace('_', ' ')} at 832x480x81", f"under {limit} GB"
        if taken:
            row(what, wanted, f"{max(taken) / 1e9:.1f} GB", max(taken) < limit * 1e9)
        else:
            rows.append([what, wanted, "not measured: no GPU", "open"])
    return table(["", "target", "measured", ""], rows)


def worked_out(found: Numbers) -> str:
    depths = " and ".join(found["measured"])
    return "" if "30" in found["measured"] else f", worked out from {depths} blocks"


def about_devices() -> str:
    if not read("limits") and not list(saved.NUMBERS.glob("*_cuda.json")):
        return "**No number here comes from a GPU: none was at hand.**"
    named = {one["device"] for one in [read("captions_time_cuda"), *read("limits")] if one}
    return f"What is headed cuda ran on a GPU{': ' if named else ''}{', '.join(sorted(named))}."


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
            last = [(way, found[f"{way}, {steps[-1]}"]) for way in ways]
            parts.append(f"Attribute by attribute, {steps[-1]}:\n\n{attribute_table(last)}")
    return "\n\n".join(parts) or MISSING


def captions_time() -> str:
    def shown(_: str, found: Numbers) -> str:
        exact, one = found["caption"]["off"], found["passes"]
        frames, height, width = found["size"]
        rows = [[name, f"{s:.1f}", f"{exact / s:.1f}"] for name, s in found["caption"].items()]
        passes = []
        for name, s in one["seconds"].items():
            kept = one["kept"].get(name.partition(", ")[2], 0)
            passes.append([name, f"{s:.2f}", f"{one['peak'][name] / GIB:.2f}", f"{kept / GIB:.2f}"])
        return (
            f"{found['device']}, {width}x{height}, {frames} frames, 256 text tokens, 50 steps, 30 blocks"
            f"{worked_out(found)}:\n\n"
            + table(["video_cache", "s a caption", "times faster"], rows)
            + "\n\nIts passes. The peak is what a pass adds to what was there before: a full or a filling pass to the\n"
            "weights (the latter's contains what it keeps), a text pass to the weights and what is kept:\n\n"
            + table(["pass", "s", "peak, GiB", "kept, GiB"], passes)
        )

    return by_device("captions_time", shown)


def curves(series: dict[str, list[tuple[float, float]]], path: Path, **axes_of: Any) -> str:
    """Lines through points, drawn into a file; the line of the page that shows it."""
    plot = _plot()
    figure, axes = plot.subplots(figsize=(8.5, max(4, 0.24 * len(series))))
    for number, (name, points) in enumerate(series.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", ms=4, ls=("-", "--", ":")[number // 10], label=name)
    axes.set(xscale="log", **axes_of)
    _plain_ticks(axes.xaxis)
    _finish(figure, axes, path, loc="center left", bbox_to_anchor=(1, 0.5))
    return f"![{axes_of['ylabel']} against {axes_of['xlabel']}]({path.name})"


def text_samplers(path: Path) -> str:
    found, parts = read("text_samplers"), []
    for objects, words in (("objects_1", "One object"), ("objects_2", "Two objects")):
        ways = {name: found[objects][name] for name in WAYS if name in found.get(objects, {})}
        if not ways:
            continue
        series = {
            name: [(tally["seconds"], 100 * share(tally, "exact")) for tally in of.values()]
            for name, of in ways.items()
        }
        axes = {"xlabel": f"seconds for {found['clips']} captions", "ylabel": "exact captions, %"}
        plot = curves(series, path.with_stem(f"{path.stem}_{objects[-1]}"), **axes)
        steps = sorted({int(n) for of in ways.values() for n in of})
        rows = [[name, *(both(of.get(str(n))) for n in steps)] for name, of in ways.items()]
        parts.append(f"{words}:\n\n{plot}\n\n{table(['', *(f'{n} steps' for n in steps)], rows)}")
    return "\n\n".join(parts) or MISSING


def stopping() -> str:
    found = read("quality_final")
    rows = [
        [objects, n, f"{tally['steps']:.1f} of {tally['of']}", percent(tally["mean"]), whole(tally)]
        for objects in ("1", "2")
        for n, tally in found.get(f"objects_{objects}", {}).get("stable", {}).items()
    ]
    columns = ["objects", "stop_when_stable", "steps taken", "attributes", "exact captions"]
    return table(columns, rows) if rows else MISSING


def ending() -> str:
    found = read("quality_final")
    tallies = [t for key in ("objects_1", "objects_2") for t in found.get(key, {}).get("ending", {}).values()]
    if not tallies:
        return MISSING
    return f"{sum(t['differ'] for t in tallies)} of {sum(t['of'] for t in tallies):,} captions of `uvg_tiny` differ"


def few_steps(path: Path) -> str:
    found = read("few_steps").get("solvers", {})
    if not found:
        return MISSING
    passes = sorted({int(n) for of in found.values() for n in of})
    found = {name: found[name] for name in sorted(found, key=lambda name: " " in name)}  # the plain solvers first
    rows = [[name, *(both(of.get(str(n))) for n in passes)] for name, of in found.items()]
    cost = {name: [(tally["rows"], 100 * tally["mean"]) for tally in of.values()] for name, of in found.items()}
    axes = {"xlabel": "passes a clip, guidance's among them", "ylabel": "attributes right, %", "ylim": (90, 98)}
    plot = curves(cost, path, **axes)
    return f"{plot}\n\n{table(['passes', *map(str, passes)], rows)}"


def forward() -> str:
    def shown(device: str, found: Numbers) -> str:
        depths, heads = depths_of(found)
        block, rows = found.get("block", {}), []
        for name in found["blocks"][depths[-1]]["seconds"]:
            base = base_of(name)
            turns = [found["blocks"][depth]["seconds"] for depth in depths]
            cells = [took(median(times[name]), ratio_of(times[name], times[base])) for times in turns]
            rows.append([name, *cells, took(block[name], block[name] / block[base]) if block else "–"])
        about = f"{device}, {found['dtype']}, {found['video']} video tokens, {found['text']} text tokens"
        return f"{about}:\n\n{table(['', *heads, 'a block'], rows)}"

    return by_device("forward", shown)


def parity() -> str:
    """Between ours without text and core's Wan."""
    found = [one["difference from core"] for one in read("forward_cpu").get("blocks", {}).values()]
    return f"{max(found):g}" if found else "(not measured yet)"


def released() -> str:
    def shown(device: str, found: Numbers) -> str:
        depths, heads = depths_of(found)
        rows = []
        for name, apart in found["blocks"][depths[-1]]["apart"].items():
            turns = [found["blocks"][depth]["seconds"] for depth in depths]
            cells = [took(median(times[name]), ratio_of(times["ours"], times[name])) for times in turns]
            rows.append([name, *cells, f"{100 * apart:.2f} %"])
        about = f"{device}, {found['video']} video tokens, {found['text']} text tokens"
        return f"{about}:\n\n{table(['', *heads, 'velocity, apart'], rows)}"

    return by_device("released", shown)


def counted() -> str:
    rows = [
        [
            one["claim"],
            f"{one['limit'][0]} {one['limit'][1]:g} {one['limit'][2]}",
            f"{one['value']:.2f}".rstrip("0").rstrip("."),
        ]
        for one in read("counted")
    ]
    return table(["counted on a fake card", "limit", "counted"], rows) if rows else MISSING


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
    def shown(device: str, found: Numbers) -> str:
        picture = path.with_stem(f"{path.stem}_{device}")
        _draw_growth(found, picture)
        rows = []
        for name, series in found.items():
            for one in series:
                frames, side, text, batch = one["size"]
                size = f"{4 * frames - 3}x{8 * side}x{8 * side}"
                count, seconds = one["operations"] / 1e9, one["seconds"]
                costs = [f"{value:.0f}" for value in (count, 1000 * seconds, count / seconds)]
                rows.append([name, size, str(text), str(batch), str(one["tokens"]), *costs])
        head = ["what grows", "frames x pixels", "text", "batch", "tokens a row"]
        listed = table([*head, "10^9 operations", "ms", "10^9 a second"], rows)
        return f"{device}:\n\n![time against operations]({picture.name})\n\n{listed}"

    return by_device("growth", shown)


def _plain_ticks(axis: Any) -> None:
    """1, 2, 5, 10 and so on, on a logarithmic axis."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def _draw_growth(found: Numbers, path: Path) -> None:
    figure, axes = _plot().subplots(figsize=(6, 3.6))
    for name, label in (("frames", "frames"), ("side", "resolution"), ("text", "text"), ("batch", "batch")):
        rows = sorted(found[name], key=lambda row: row["operations"])
        points = [(row["operations"] / 1e9, 1000 * row["seconds"]) for row in rows]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="operations a block, 10^9", ylabel="ms a block")
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    _finish(figure, axes, path)


def text_step() -> str:
    rows = [
        [KINDS[kind], f"{median(one['bytes']) / GIB:.2f}", f"{median(one['seconds']):.2f}"]
        for kind, one in read("text_step").items()
    ]
    return table(["", "GiB more", "s"], rows) if rows else MISSING


def load_memory() -> str:
    rows = []
    for name, one in read("load_memory").items():
        sizes = [f"{one[what] / GIB:.2f}" for what in ("file", "added")]
        rows.append([name, f"{one['seconds']:.1f}", *sizes, f"{one['added'] / one['file']:.3f}"])
    return table(["step", "s", "file, GiB", "added, GiB", "x file"], rows) if rows else MISSING


def full_size() -> str:
    rows = [[name, f"{one['seconds']:.1f}", f"{one['peak'] / GIB:.2f}"] for name, one in read("full_size").items()]
    return table(["command", "s", "peak, GiB"], rows) if rows else MISSING


def in_comfyui() -> str:
    found = read("in_comfyui")
    rows = [[name, f"{one['seconds']:.1f}", f"{one['peak'] / GIB:.1f}"] for name, one in found.get("jobs", {}).items()]
    if not rows:
        return MISSING
    return f"{table(['job', 's', 'peak until then, GiB'], rows)}\n\nThe files are {found['files'] / 1e9:.1f} GB."


def main() -> None:
    text = (Path(__file__).parent / "performance.template.md").read_text("utf-8")
    parts = {
        "devices": about_devices(),
        "targets": targets(),
        "captions_time": captions_time(),
        "captions_accuracy": captions_accuracy(),
        "text_samplers": text_samplers(DOCS / "performance_words.svg"),
        "stopping": stopping(),
        "ending": ending(),
        "few_steps": few_steps(DOCS / "performance_few_steps.svg"),
        "forward": forward(),
        "parity": parity(),
        "released": released(),
        "counted": counted(),
        "limits": limits(),
        "growth": growth(DOCS / "performance_growth.svg"),
        "text_step": text_step(),
        "load_memory": load_memory(),
        "full_size": full_size(),
        "in_comfyui": in_comfyui(),
    }
    for name, part in parts.items():
        text = text.replace(f"{{{{{name}}}}}", part)
    (DOCS / "performance.md").write_text(text, encoding="utf-8")
    print(f"written: {DOCS / 'performance.md'}")


if __name__ == "__main__":
    main()
