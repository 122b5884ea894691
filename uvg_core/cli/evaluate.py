"""``evaluate``: clips and captions of benchmarks, as their own programs read them, and measurements of our own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch

from .. import __version__
from ..checkpoint.lora import Lora
from ..data.shards import sha256_of
from ..errors import UniViGUError, counted
from ..io import make_folder, require_makeable, require_writable
from ..media.video import write_video
from ..media.video.footage import Footage
from ..pipeline import evaluate as work
from ..pipeline.pipeline import Pipeline
from ..pipeline.scores import require_scorers, scores_of
from ..pipeline.workers import Shard
from ..progress import Bars
from ..sampling import Sampling, Size
from ..settings import Flag, OneOf, Text, Whole, setting, settings
from ..synthesis.settings import clip_settings
from .common import TEXT, VIDEO, Model, Video, steps_on
from .evaluate_cycle import Cycles
from .evaluate_worlds import Worlds
from .flags import Only
from .output import CANCELLED, say, show

_WORDS = (*TEXT, "text_update", "video_cache", "stop_when_stable", "stop_when_sure")
_OF = {
    **{"samples": "videos", "clips": "captions", "format": "captions", "references": "captions"},
    **dict.fromkeys(("count", "only", "per_kind", "against", "sweep"), "worlds"),
}


@settings
class Evaluate:
    """What is made of which benchmark."""

    kind: Annotated[str, OneOf("videos", "captions", "worlds", "cycle")] = setting(
        "What to make or to measure.", positional=True
    )
    benchmark: Path | None = setting(
        "For videos a text file with one prompt per line, or VBench_full_info.json; for captions a folder of clips, or "
        "the annotation file of DREAM-1K, VDC, MSR-VTT, VATEX or COCO; for cycle a clip or folder; none for worlds.",
        default=None,
        positional=True,
        metavar="SOURCE",
    )
    out: Path | None = setting(
        "Folder of the videos or measurements, file of the captions, or picture of a clip there and back; a report, "
        "evaluate.json or FILE.evaluate.json, lies with it.",
        default=None,
        short="-o",
        metavar="DIR|FILE",
    )
    samples: Whole | None = setting(
        "Videos of each prompt.", default=None, auto="5; 25 for VBench's temporal_flickering", ge=1, le=100
    )
    clips: Path | None = setting("Folder of the clips that the annotation file names.", default=None, metavar="DIR")
    format: Annotated[str, OneOf(*work.FORMATS)] | None = setting(
        "Layout of the captions; msrvtt and vatex are COCO results.",
        default=None,
        auto="that of the annotation file; coco for a folder",
    )
    references: Path | None = setting(
        "Human captions (COCO, MSR-VTT, VATEX) to compute BLEU, ROUGE-L, CIDEr-D and METEOR against.", default=None
    )
    shard: Text = setting("Do one part of the work, e.g. 2/4.", default="1/1", metavar="PART/PARTS")
    dry_run: Flag = setting("Show how much would be made, without writing anything.", default=False)
    count: Whole | None = setting("Worlds for each number.", default=None, auto="512", ge=2, le=1_000_000)
    only: tuple[Text, ...] = setting(
        "What to measure: video_to_text, text_to_video, joint, ranking, detector (its own errors), vae, plain (with "
        "an empty text stream), cycle (captions drawn again), find, stable, sure (captions that stop by themselves). "
        "Repeat the flag for several. Default: the first six.",
        default=(),
        metavar="JOB",
    )
    per_kind: Whole | None = setting(
        "Worlds of each kind beside these, for the worst kind; 200 say something.", default=None, auto="none", ge=2
    )
    against: Path | None = setting(
        "Report of another model on the same worlds; differences are printed with paired intervals.", default=None
    )
    sweep: Flag = setting(
        "Measure quality against passes and seconds instead, by samplers, caches and with a LoRA, and draw a chart of "
        "each of text_to_video, video_to_text and joint.",
        default=False,
    )

    def __post_init__(self) -> None:
        if self.out is None:
            raise UniViGUError("evaluate: name what to write with -o")
        Shard.of(self.shard)
        if self.kind == "worlds" and self.benchmark is not None:
            raise UniViGUError(f"evaluate worlds draws its own clips; leave {self.benchmark} out")
        if self.kind != "worlds" and self.benchmark is None:
            raise UniViGUError(f"evaluate {self.kind}: name what to read, e.g. a file of prompts or a folder of clips")
        for name, kind in _OF.items():
            if getattr(self, name) not in (None, (), False) and self.kind != kind:
                raise UniViGUError(f"--{name.replace('_', '-')} applies to evaluate {kind} only; leave it out")


@dataclass(frozen=True)
class Run:
    """What a kind of benchmark works with. A kind says what its settings are, filled in, and what else the results
    depend on; it does the work and says what became of it."""

    pipe: Pipeline
    sampling: Sampling
    video: Video
    size: Size
    footage: Footage
    note: Callable[[str], object]
    shown: Bars
    without_loras: Callable[[], Pipeline]


class _Videos:
    """``{prompt}-{i}.mp4`` in a folder, each from its own seed."""

    def __init__(self, own: Evaluate, out: Path, seed: int) -> None:
        self.out, self.report, shard = out, out / work.REPORT, Shard.of(own.shard)
        require_makeable(out, "choose another with --out")
        assert own.benchmark is not None  # Evaluate asks for it
        self.all = work.samples_of(work.read_prompts(own.benchmark), seed, own.samples)
        self.mine = shard.part(self.all)

    def survey(self) -> str:
        there = set(os.listdir(self.out)) if self.out.is_dir() else set()
        made, bad = sum(one.name in there for one in self.mine), [one for one in self.mine if one.problem]
        lines = [f"{counted(len(self.mine), 'video')}: {made:,} there, {len(self.mine) - made - len(bad):,} to make"]
        return "\n".join([*lines, *(f"  left out: {one.name}: the prompt {one.problem}" for one in bad)])

    def prepare(self) -> None:
        make_folder(self.out, "choose another with --out")

    def settings(self, run: Run) -> tuple[Sampling, dict[str, Any]]:
        video = run.video
        null = {} if video.null_embedding is None else {"null_embedding": video.null_embedding.name}
        return run.sampling.resolved(run.pipe.config.run), {"negative": video.negative, **null}

    def run(self, run: Run, outcome: work.Outcome) -> None:
        run.pipe.noise(run.size)  # sizes that do not fit are known now
        watch = steps_on(run.shown, "generating")

        def make(sample: work.Sample, path: Path) -> None:
            seeded = replace(run.sampling, seed=sample.seed)
            pixels = run.pipe.generate(
                sample.prompt, negative=run.video.negative, size=run.size, sampling=seeded, callback=watch
            )
            write_video(path, pixels, run.pipe.config.run.fps)

        work.make_clips(self.mine, self.out, make, outcome, run.note)

    def finish(self, outcome: work.Outcome, note: Callable[[str], object]) -> dict[str, Any]:
        there = set(os.listdir(self.out))
        found = {one.name: one.seed for one in self.all if one.name in there}
        return {
            "planned": len(self.all),
            "made": len(found),
            "failed": _without(outcome.failed, self.out),
            "seeds": found,
        }


class _Captions:
    """One file of captions, and their scores."""

    def __init__(self, own: Evaluate, out: Path, seed: int) -> None:
        self.out, self.report, shard = out, out.with_name(f"{out.name}.{work.REPORT}"), Shard.of(own.shard)
        assert own.benchmark is not None  # Evaluate asks for it
        self.form, self.all = work.read_items(own.benchmark, own.clips, own.format)
        self.mine = shard.part(self.all)
        self.record, self.seed, self.references = work.Captioned(out), seed, None
        if own.references is not None:
            require_scorers()
            self.references = work.read_references(own.references)

    def survey(self) -> str:
        done = self.record.captions()
        left = [item for item in self.mine if work.key_of(item) not in done]
        missing = [work.key_of(item) for item in left if item.clip is None]
        lines = [
            f"{counted(len(self.mine), 'clip')}: {len(self.mine) - len(left):,} captioned, {len(left):,} to caption"
        ]
        return "\n".join([*lines, *(f"  found no clip: {one}" for one in missing)])

    def prepare(self) -> None:
        require_writable(self.out)

    def settings(self, run: Run) -> tuple[Sampling, dict[str, Any]]:
        sampling = run.sampling.resolved(run.pipe.config.run, captions=True)
        words = {name: getattr(sampling, name) for name in _WORDS}
        return sampling, words | {"format": self.form, "footage": asdict(run.footage)}

    def run(self, run: Run, outcome: work.Outcome) -> None:
        watch = steps_on(run.shown, "writing the caption", run.pipe.tokenizer.text)

        def caption(clip: Path, seed: int) -> str:
            latent, _ = run.pipe.latent_of(clip, run.size, run.footage)
            return run.pipe.caption(latent, sampling=replace(run.sampling, seed=seed), callback=watch)

        self.record.make(self.mine, caption, self.seed, outcome, run.note)

    def finish(self, outcome: work.Outcome, note: Callable[[str], object]) -> dict[str, Any]:
        captions = self.record.write(self.form, self.all)
        done = {item.id: captions[key] for item in self.all if (key := work.key_of(item)) in captions}
        failed = _without(outcome.failed, *{item.clip.parent for item in self.all if item.clip is not None})
        facts = {"planned": len(self.all), "made": len(done), "failed": failed, "scores": None}
        if self.references is None:
            return facts
        if len(done) + len(outcome.failed) < len(self.all):
            note("scores are computed when all clips are captioned")
            return facts
        try:
            return facts | {"scores": scores_of(done, self.references, note)}
        except UniViGUError as error:
            outcome.failed.append(str(error))
            return facts


_KINDS: dict[str, Callable[[Evaluate, Path, int], Any]] = {
    "videos": _Videos,
    "captions": _Captions,
    "worlds": Worlds,
    "cycle": Cycles,
}


def evaluate(
    own: Evaluate,
    model: Model,
    sampling: Annotated[Sampling, Only(*VIDEO, *_WORDS)],
    video: Annotated[Video, Only("negative", "null_embedding", "fast")],
    size: Size,
    footage: Footage,
    shown: Bars,
) -> int:
    """Make a benchmark's videos or captions as its scorer reads them, or measure a model. Run it again to continue."""
    assert own.out is not None  # Evaluate asks for it
    kind = _KINDS[own.kind](own, own.out, sampling.seed)
    if isinstance(kind, Worlds):
        kind.plan(student=bool(model.lora) or video.fast)
    if own.dry_run:
        show(kind.survey())
        return 0
    kind.prepare()
    pipe = model.pipeline(shown, video.null_embedding, fast=video.fast)

    def note(text: str) -> None:
        shown.close()
        say(text)

    def without_loras() -> Pipeline:
        return replace(model, lora=()).pipeline(shown, video.null_embedding)

    run = Run(pipe, sampling, video, size, footage, note, shown, without_loras)
    sampling, settings = kind.settings(run)
    run = replace(run, sampling=sampling)
    asked = {"dtype": model.dtype, "loras": [_lora(one) for one in pipe.loras], **settings}
    facts: dict[str, Any] = {
        "kind": own.kind,
        **({} if own.benchmark is None else {"benchmark": own.benchmark.name}),
        **({} if own.references is None else {"references": own.references.name}),
        "settings": clip_settings(pipe, model.places.wan, sampling, size, **asked),
        "versions": {"uni-vigu": __version__, "torch": torch.__version__, **_version("pycocoevalcap")},
    }
    work.require_same(kind.report, facts)
    outcome, code = work.Outcome(), 0
    try:
        kind.run(run, outcome)
    except KeyboardInterrupt:
        note("stopped; what is finished is kept. Run the same command again to continue")
        code = CANCELLED
    shown.close()
    work.write_report(kind.report, {**facts, **kind.finish(outcome, note)})
    show(f"{own.out}: {outcome}")
    return code or int(bool(outcome.failed))


def _without(messages: list[str], *folders: Path) -> list[str]:
    """Messages for a report that others read: it names no folder of this machine."""
    for folder in folders:
        messages = [message.replace(f"{folder}{os.sep}", "") for message in messages]
    return messages


def _lora(lora: Lora) -> dict[str, Any]:
    return {
        "file": lora.path.name,
        "sha256": sha256_of(lora.path),
        "video": lora.choice.video,
        "text": lora.choice.text,
    }


def _version(package: str) -> dict[str, str]:
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}
