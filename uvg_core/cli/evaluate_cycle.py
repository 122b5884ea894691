"""``evaluate cycle``: captions drawn again, as an evaluation without references."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import UniViGUError, counted
from ..io import make_folder, require_makeable, require_writable, write_text
from ..lines import Lines
from ..media.sheet import contact_sheet
from ..media.video import find_clips
from ..pipeline import evaluate as work
from ..pipeline.cycle import Cycle, cycle, mean_of
from ..pipeline.workers import Shard
from ..sampling import Sampling
from .common import TEXT, steps_on
from .output import show

if TYPE_CHECKING:
    from .evaluate import Evaluate, Run

_TABLE = "evaluate.csv"


class Cycles:
    """One clip and the sheet of it; or the clips of a folder, each with a sheet and a line in a record."""

    def __init__(self, own: Evaluate, out: Path, seed: int) -> None:
        assert own.benchmark is not None  # Evaluate asks for it
        source, shard = own.benchmark, Shard.of(own.shard)
        self.out, self.seed, self.is_folder = out, seed, os.path.isdir(source)
        self.all = find_clips(source, recursive=False, stills=False) if self.is_folder else [source]
        if not self.all:
            raise UniViGUError(f"{source}: found no videos here; check the folder")
        self.mine = shard.part(self.all)
        if self.is_folder:
            require_makeable(out, "choose another with --out")
            self.report, self.record = out / work.REPORT, Lines(out / "evaluate.record.jsonl", "a record of clips")
        else:
            self.report = out.with_name(f"{out.name}.{work.REPORT}")
            self.record = Lines(out.with_name(f"{out.name}.record.jsonl"), "a record of clips")

    def rows(self) -> dict[str, dict[str, Any]]:
        """What is done, by the name of the clip, in the order of the clips."""
        found = {str(row.get("clip")): row for _, row in self.record.read() if row}
        return {clip.name: found[clip.name] for clip in self.all if clip.name in found}

    def survey(self) -> str:
        done = sum(clip.name in self.rows() for clip in self.mine)
        return f"{counted(len(self.mine), 'clip')}: {done:,} compared, {len(self.mine) - done:,} to compare"

    def prepare(self) -> None:
        if self.is_folder:
            make_folder(self.out, "choose another with --out")
        else:
            require_writable(self.out)

    def settings(self, run: Run) -> tuple[Sampling, dict[str, Any]]:
        config = run.pipe.config.run
        words = run.sampling.resolved(config, captions=True)
        named = {name: getattr(words, name) for name in (*TEXT, "text_update", "video_cache")}
        return run.sampling, {**named, "text_steps": words.steps, "footage": asdict(run.footage)}

    def run(self, run: Run, outcome: work.Outcome) -> None:
        there, detector = self.rows(), _detector(run)
        for place, clip in enumerate(self.mine, 1):
            sheet = self.out / f"{clip.name}.png" if self.is_folder else self.out
            if clip.name in there and os.path.lexists(sheet):
                outcome.there += 1
                continue
            if self.is_folder:
                run.note(f"[{place}/{len(self.mine)}] {clip.name}")

            def compare(clip: Path = clip, sheet: Path = sheet) -> None:
                seed = work.seed_of(self.seed, clip.name)
                found = self._compared(run, clip, seed)
                facts = {"clip": clip.name, "seed": seed, **found.facts(), **detector(found)}
                contact_sheet(found.rows(), sheet, title=clip.name, subtitle=_subtitle(facts))
                self.record.add(facts)

            outcome.tried(clip.name, compare)

    def _compared(self, run: Run, clip: Path, seed: int) -> Cycle:
        pixels = run.footage.read(clip, run.size.spec(run.pipe.config.run, run.footage)).pixels
        sampling = replace(run.sampling, seed=seed)
        return cycle(run.pipe, pixels, sampling, lambda what: steps_on(run.shown, what))

    def finish(self, outcome: work.Outcome, note: Callable[[str], object]) -> dict[str, Any]:
        rows = [*self.rows().values()]
        for row in rows if not self.is_folder else ():
            show("\n".join(f"{name.replace('_', ' ')}: {_shown(value)}" for name, value in row.items()))
        means = mean_of(rows)
        if self.is_folder and rows:
            write_text(self.out / _TABLE, _as_csv(rows))
            show("\n".join([f"means over {counted(len(rows), 'clip')}", *(f"  {n}: {v:g}" for n, v in means.items())]))
        failed = [message.replace(f"{self.all[0].parent}{os.sep}", "") for message in outcome.failed]
        return {"planned": len(self.all), "made": len(rows), "failed": failed, "means": means, "rows": rows}


def _detector(run: Run) -> Callable[[Cycle], dict[str, Any]]:
    """For a model of little worlds, what its detector says of both clips; for others nothing."""
    if not str(run.pipe.config.card.get("data", "")).startswith("little worlds"):
        return lambda _: {}
    try:  # the recipe of the worlds is a package of its own
        measure: Any = import_module("recipes.worlds.measure")
    except ModuleNotFoundError as error:
        run.note(f"without the detector of little worlds, because it cannot be imported ({error})")
        return lambda _: {}
    lacking = [package for name, package in (("scipy", "scipy"), ("sklearn", "scikit-learn")) if not find_spec(name)]
    if lacking:
        run.note(f"without the detector of little worlds, which needs {' and '.join(lacking)} (pip install)")
        return lambda _: {}
    found: Callable[[str, Tensor, Tensor], dict[str, Any]] = measure.survived
    return lambda one: found(one.caption, one.pixels, one.redrawn)


def _subtitle(facts: dict[str, Any]) -> str:
    lost = [name.removeprefix("kept_") for name, value in facts.items() if name.startswith("kept_") and value is False]
    line = f"words kept {facts['words_kept']:.0%} · latent distance {facts['latent_distance']:.2f}"
    return line + (f" · lost: {', '.join(lost)}" if lost else "")


def _shown(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else "" if value is None else str(value)


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows({name: _shown(value) for name, value in row.items()} for row in rows)
    return text.getvalue()
