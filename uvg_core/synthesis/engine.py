"""A data set from a list of prompts: ``clip.mp4``, ``clip.txt`` (the brief prompt), ``clip.detail.txt`` (the detailed
caption), as ``data/folder.py`` reads them (arXiv 2604.08121, the training data of both stages).

Every file is written whole, and ``synthesis.json`` says what each clip came from; running the same command again does
what is not done yet.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from ..errors import UniViGUError
from ..io import make_folder, write_text
from ..media.video import probe
from .captioner import Captioner
from .chat import LengthError
from .endpoint import EndpointError
from .record import ClipRecord, Record, place

RECORD = "synthesis.json"

PROMPT_LENGTH = "prompt outside the token limits"
NO_CLIP = "clip could not be made"
CAPTION_LENGTH = "caption never within the token limits"
NO_CAPTION = "no caption from the language model"

# What fails so often in succession fails for a reason that the next clip shares.
_IN_A_ROW = 3
_SLUG = 40  # letters of the prompt in a file's name


@dataclass(frozen=True)
class ClipJob:
    """One clip to make: the name of its files without suffix, its prompt, the seed of its noise."""

    name: str
    prompt: str
    seed: int


def read_prompts(path: Path) -> tuple[list[str], int]:
    """The prompts of a text file, one a line, without blank lines and those that begin with ``#``, each once; and how
    many were there more than once. Raises UniViGUError when the file cannot be read or holds none."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UniViGUError(
            f"{path}: cannot be read ({error}); pass a text file in UTF-8 with one prompt a line"
        ) from None
    found = [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise UniViGUError(f"{path}: there is no prompt in it; expected one a line (# begins a comment)")
    prompts = list(dict.fromkeys(found))
    return prompts, len(found) - len(prompts)


def plan(prompts: Sequence[str], clips_per_prompt: int, seed: int) -> list[ClipJob]:
    """The jobs of a list of prompts. Name and seed follow from a prompt's words, not from its place: a list may grow,
    shrink and change its order between runs."""
    jobs = []
    for prompt in prompts:
        digest = hashlib.sha256(prompt.encode()).hexdigest()[:10]
        plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
        slug = "-".join(re.findall("[a-z0-9]+", plain))[:_SLUG].strip("-") or "clip"
        for number in range(1, clips_per_prompt + 1):
            drawn = hashlib.sha256(f"{seed} {number} {prompt}".encode()).digest()
            jobs.append(ClipJob(f"{slug}-{digest}-{number}", prompt, int.from_bytes(drawn[:4], "big")))
    return jobs


@dataclass(frozen=True)
class Problem:
    """A job that was left out: its reason, one of the above, and the message."""

    job: ClipJob
    reason: str
    message: str


@dataclass(frozen=True)
class Generator:
    """What makes the clips.

    make           writes the clip of a job, whole or not at all
    settings       everything that clips depend on, plain values for the record
    count          tokens of a prompt, end-of-text included
    prompt_tokens  fewest and most that a prompt may have
    """

    make: Callable[[ClipJob, Path], object]
    settings: Mapping[str, Any]
    count: Callable[[str], int]
    prompt_tokens: tuple[int, int]


@dataclass
class SynthesisReport:
    """What became of each job.

    made         completed in this run
    complete     complete before
    uncaptioned  have a clip and a prompt; no endpoint was named
    problems     left out, with the reason; what is done of them stays
    stopped      why the run ended before its last job; None if it did not

    ``str()`` gives the counts by reason and, on a line each, the problems.
    """

    total: int
    made: list[ClipJob] = field(default_factory=list)
    complete: list[ClipJob] = field(default_factory=list)
    uncaptioned: list[ClipJob] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    stopped: str | None = None

    @property
    def failed(self) -> bool:
        return bool(self.problems) or self.stopped is not None

    def __str__(self) -> str:
        counts = [f"{len(self.made)} made", f"{len(self.complete)} complete before"]
        if self.uncaptioned:
            counts.append(f"{len(self.uncaptioned)} without a caption (no --endpoint)")
        if self.problems:
            reasons = Counter(problem.reason for problem in self.problems)
            named = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            counts.append(f"{len(self.problems)} left out ({named})")
        untouched = self.total - len(self.made + self.complete + self.uncaptioned) - len(self.problems)
        if untouched:
            counts.append(f"{untouched} not begun")
        lines = [f"{self.total} clip{'' if self.total == 1 else 's'}: {', '.join(counts)}"]
        lines += [
            f"  {p.reason}: {p.job.name} (“{shorten(p.job.prompt, 60, placeholder='…')}”): {p.message}"
            for p in self.problems
        ]
        return "\n".join(lines)


def synthesise(
    jobs: Sequence[ClipJob],
    out: Path,
    generator: Generator,
    captioner: Captioner | None,
    *,
    anyway: bool = False,
    note: Callable[[str], object] = lambda _: None,
) -> SynthesisReport:
    """Make what is missing of each job in the folder ``out``: clip, prompt, and with a captioner its caption.

    ``anyway`` goes on in a folder that was made with other settings. ``note`` is called with lines for the user.

    A job that fails is left out and the work goes on, except where every job would fail: an endpoint that refuses or
    is not there, memory that does not suffice, or the same step failing three times in a row. Raises UniViGUError for
    other settings than before, a damaged record, and a folder that cannot be made.
    """
    make_folder(out, "choose another with --out")
    record = Record.read(out / RECORD)
    if not anyway:
        record.require_same(out / RECORD, generator.settings, None if captioner is None else captioner.settings)
    data_set = _DataSet(out, generator, captioner, record, note)
    report = SynthesisReport(len(jobs))
    recent: list[str] = []  # reasons of failures since a job was done
    for index, job in enumerate(jobs):
        note(f"[{index + 1}/{len(jobs)}] {job.name}: {job.prompt}")
        try:
            done = data_set.complete(job, report)
        except _LeftOut as left:
            message = str(left.error)
            report.problems.append(Problem(job, left.reason, message))
            note(f"     left out, {left.reason}: {message}")
            if isinstance(left.error, EndpointError):
                report.stopped = message
                break
            if left.reason != PROMPT_LENGTH:
                recent.append(left.reason)
            if left.reason in (NO_CLIP, NO_CAPTION) and recent[-_IN_A_ROW:] == _IN_A_ROW * [left.reason]:
                report.stopped = f"{left.reason}, {_IN_A_ROW} times in a row; the last time: {message}"
                break
        else:
            done.append(job)
            if done is not report.complete:
                recent.clear()
    return report


class _LeftOut(Exception):
    """A job ends here, for one of the reasons above."""

    def __init__(self, reason: str, error: Exception | str) -> None:
        super().__init__(reason)
        self.reason, self.error = reason, error


@dataclass(frozen=True)
class _DataSet:
    out: Path
    generator: Generator
    captioner: Captioner | None
    record: Record
    note: Callable[[str], object]

    def complete(self, job: ClipJob, report: SynthesisReport) -> list[ClipJob]:
        """Do what is missing of one job; returns where in the report it belongs. Raises _LeftOut."""
        tokens, (fewest, most) = self.generator.count(job.prompt), self.generator.prompt_tokens
        if not fewest <= tokens <= most:
            raise _LeftOut(PROMPT_LENGTH, f"{tokens} tokens; expected {fewest} to {most}. Rewrite it")
        clip = self.out / f"{job.name}.mp4"
        prompt, detail = clip.with_suffix(".txt"), clip.with_suffix(".detail.txt")
        known = self.record.clips.get(job.name)
        fresh = known is None or not self._is_whole(clip, known)
        try:
            if fresh:
                self._make(job, clip, detail, known)
            if not _has_text(prompt):
                write_text(prompt, job.prompt + "\n")
        except (torch.OutOfMemoryError, MemoryError):
            raise  # the next clip is of the same size
        except UniViGUError as error:
            raise _LeftOut(NO_CLIP, error) from error
        except Exception as error:  # one bad clip must not cost the others; the report names it
            named = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise _LeftOut(NO_CLIP, named) from error
        if _has_text(detail):
            return report.made if fresh else report.complete
        if self.captioner is None:
            return report.uncaptioned
        try:
            caption = self.captioner.caption(job.prompt, clip)
            write_text(detail, caption.text + "\n")
        except UniViGUError as error:
            raise _LeftOut(CAPTION_LENGTH if isinstance(error, LengthError) else NO_CAPTION, error) from error
        index = place(self.record.captioners, self.captioner.settings)
        self._keep(job, captioner=index, caption_tokens=caption.tokens, answers=caption.answers)
        self.note(f"     {caption.tokens} tokens: {caption.text}")
        return report.made

    def _is_whole(self, clip: Path, known: ClipRecord) -> bool:
        """Whether a clip that was made before is there and whole."""
        if not clip.exists():
            return False
        try:
            if (frames := probe(clip).frames) == known.frames:
                return True
            problem = f"{clip}: found {frames} frames, expected {known.frames}"
        except UniViGUError as error:
            problem = str(error)
        self.note(f"     {problem}; made anew")
        return False

    def _make(self, job: ClipJob, clip: Path, detail: Path, known: ClipRecord | None) -> None:
        """The clip and its record; a caption stays only where the same settings give the same clip again."""
        record, settings = self.record, self.generator.settings
        if known is not None and (known.seed != job.seed or record.generators[known.generator] != settings):
            # Before the clip: a run that ends between the two must not leave a clip with another's record.
            del record.clips[job.name]
            record.write(self.out / RECORD)
            known = None
        if known is None and detail.exists():
            self.note(f"     {detail}: removed, since the clip is made anew")
            detail.unlink()
        self.generator.make(job, clip)
        index, frames = place(record.generators, settings), probe(clip).frames
        if known is None or not detail.exists():
            record.clips[job.name] = ClipRecord(job.prompt, job.seed, frames, index)
        self._keep(job, frames=frames, generator=index)

    def _keep(self, job: ClipJob, **facts: Any) -> None:
        clips = self.record.clips
        clips[job.name] = replace(clips[job.name], **facts)
        self.record.write(self.out / RECORD)


def _has_text(path: Path) -> bool:
    """Whether a text file is there and holds words; one that is not UTF-8 does not."""
    try:
        return bool(path.read_text("utf-8").strip())
    except (FileNotFoundError, UnicodeDecodeError):
        return False
