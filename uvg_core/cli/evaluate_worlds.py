"""``evaluate worlds``: how much of the truth a model of little worlds gets right."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UniViGUError, counted
from ..io import MEGABYTE, make_folder, read_text, require_makeable, write_text
from ..lines import Lines
from ..pipeline import evaluate as work
from ..pipeline.workers import Shard
from ..sampling import Sampling
from .output import show

if TYPE_CHECKING:
    from .evaluate import Evaluate, Run

_COUNT = 512
_MOST = 256 * MEGABYTE  # of a report


class Worlds:
    """Rows in a record, one for each finished question; they are the report's, with the tables that are printed."""

    def __init__(self, own: Evaluate, out: Path, seed: int) -> None:
        self.own, self.out, self.report = own, out, out / work.REPORT
        self.shard = Shard.of(own.shard)
        require_makeable(out, "choose another with --out")
        try:  # the recipe of the worlds is a package of its own, which an installation of uvg_core may lack
            self.measure: Any = import_module("recipes.worlds.measure")
            self.tables: Any = import_module("recipes.worlds.tables")
        except ModuleNotFoundError as error:
            raise UniViGUError(
                f"evaluate worlds needs the package recipes and what it imports ({error}); run it in the pack's folder "
                'after pip install -e ".[standalone,train]"'
            ) from None
        self.count = own.count or _COUNT
        self.plan(student=False)
        self.record = Lines(out / "evaluate.record.jsonl", "a record of measurements")
        self.against = None if own.against is None else (own.against.name, _read_report(own.against))

    def plan(self, student: bool) -> None:
        """What is to be measured; ``student``: with a LoRA, too."""
        if self.own.sweep:
            self.all = self.measure.sweep(self.own.only, self.count, student)
        else:
            self.all = self.measure.questions(self.own.only, self.count, self.own.per_kind or 0)
        self.mine = self.shard.part(self.all)

    def rows(self) -> dict[Any, dict[str, Any]]:
        """What has been measured, in the order of the questions."""
        found = {self.measure.key_of(row): row for _, row in self.record.read() if row}
        first = [question.key for question in self.all if question.key in found]
        return {key: found[key] for key in dict.fromkeys([*first, *found])}

    def survey(self) -> str:
        there = self.rows()
        left = [question for question in self.mine if question.key not in there]
        counts = f"{counted(len(self.mine), 'question')}: {len(self.mine) - len(left)} measured, {len(left)} to measure"
        return "\n".join([counts, *(f"  {question}" for question in left)])

    def prepare(self) -> None:
        make_folder(self.out, "choose another with --out")

    def settings(self, run: Run) -> tuple[Sampling, dict[str, Any]]:
        self.measure.require_worlds_model(run.pipe)
        settings = self.measure.settings_of(run.pipe.config.run, run.sampling)
        if self.against is not None:
            self._require_same_worlds(settings["worlds"], run.sampling.seed)
        return run.sampling, {"count": self.count, **settings}

    def _require_same_worlds(self, worlds: str, seed: int) -> None:
        assert self.against is not None
        name, report = self.against
        theirs = report["settings"]
        now: dict[str, Any] = {"seed": seed, "count": self.count, "worlds": worlds}
        other = [f"{one} {theirs.get(one)}, not {value}" for one, value in now.items() if theirs.get(one) != value]
        if other:
            raise UniViGUError(f"{name}: measured on other worlds ({'; '.join(other)}); measure both models alike")

    def run(self, run: Run, outcome: work.Outcome) -> None:
        measurer, there = self.measure.Measurer(run.pipe, run.sampling, run.without_loras), self.rows()
        for place, question in enumerate(self.mine, 1):
            if question.key in there:
                outcome.there += 1
                continue
            run.note(f"[{place}/{len(self.mine)}] {question}")

            def measure(question: Any = question) -> None:
                self.record.add(measurer.row(question))

            outcome.tried(str(question), measure)

    def finish(self, outcome: work.Outcome, note: Callable[[str], object]) -> dict[str, Any]:
        rows = self.rows()
        if shown := self.tables.tables([*rows.values()]).strip():
            show(shown)
        for job, (table, chart) in self.tables.figures(rows.values()).items():
            write_text(self.out / f"{job}.svg", chart)
            show(f"{table}\n\n{self.out / job}.svg\n")
        if self.against is not None:
            name, report = self.against
            show("\n" + self.tables.against([*rows.values()], report["rows"], name))
        made = sum(question.key in rows for question in self.all)
        return {"planned": len(self.all), "made": made, "failed": outcome.failed, "rows": list(rows.values())}


def _read_report(path: Path) -> dict[str, Any]:
    """A report with its rows. Raises UniViGUError for another file."""
    try:
        report = json.loads(read_text(path, most=_MOST, exact=True))
        if report["kind"] == "worlds" and isinstance(report["rows"], list) and isinstance(report["settings"], dict):
            return dict(report)
    except FileNotFoundError:
        raise UniViGUError(f"{path}: no such file; name the evaluate.json of another model") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UniViGUError(f"{path}: not a report of evaluate worlds; name the evaluate.json of another model")
