"""A data set from a list of prompts: ``clip.mp4``, ``clip.txt`` (the brief prompt), ``clip.detail.txt`` (the detailed
caption), as ``data/folder.py`` reads them (arXiv 2604.08121, the training data of both stages).

Every file is written whole, and ``synthesis.jsonl`` says what each clip came from; running the same command again does
what is not done yet. What somebody else wrote or changed stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from ..errors import UniViGUError, counted, reason_of
from ..io import MEGABYTE, make_folder, read_bytes, read_text, write_new, write_text
from ..locks import owned
from ..media.video import probe
from ..prompts import lines_of
from .captioner import Captioner
from .chat import LengthError
from .endpoint import EndpointError
from .record import EARLIER, RECORD, ClipRecord, Record

PROMPT_LENGTH = "prompt outside the token limits"
NO_CLIP = "clip could not be made"
CAPTION_LENGTH = "no caption within the token limits"
NO_CAPTION = "no caption from the language model"
KEPT = "an existing file is in the way"

# What fails so often in succession fails for a reason that the next clip shares.
_IN_A_ROW = 3
_MOST_PROMPTS = 64 * MEGABYTE  # of the file with the prompts
_REMAKE = "move it away to make the clip again"
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
        found = lines_of(read_text(path, most=_MOST_PROMPTS))
    except FileNotFoundError:
        raise UniViGUError(f"{path}: cannot be read: no such file; pass a text file with one prompt per line") from None
    if not found:
        raise UniViGUError(f"{path}: the file contains no prompt; expected one per line (# begins a comment)")
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

    make           writes the clip of a job, whole or not at all; what it returns is for the record of the clip
    settings       everything that clips depend on, plain values for the record
    count          tokens of a prompt, end-of-text included
    prompt_tokens  fewest and most that a prompt may have
    """

    make: Callable[[ClipJob, Path], Mapping[str, Any] | None]
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
        counts = [f"{len(self.made)} made", f"{len(self.complete)} already complete"]
        if self.uncaptioned:
            counts.append(f"{len(self.uncaptioned)} without a caption (no --endpoint)")
        if self.problems:
            reasons = Counter(problem.reason for problem in self.problems)
            named = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
            counts.append(f"{len(self.problems)} left out ({named})")
        untouched = self.total - len(self.made + self.complete + self.uncaptioned) - len(self.problems)
        if untouched:
            counts.append(f"{untouched} not started")
        lines = [f"{counted(self.total, 'clip')}: {', '.join(counts)}"]
        lines += [
            f"  {p.reason}: {p.job.name} (“{shorten(p.job.prompt, 60, placeholder='…')}”): {p.message}"
            for p in self.problems
        ]
        return "\n".join(lines)


def survey(jobs: Sequence[ClipJob], out: Path) -> str:
    """What there is of each job in the folder ``out``, in words; nothing is changed."""
    clips = [out / f"{job.name}.mp4" for job in jobs]
    made = [clip for clip in clips if clip.is_file()]
    captioned = [clip for clip in made if _text(clip.with_suffix(".detail.txt"))]
    lines = [
        f"{counted(len(jobs), 'clip')}: {len(captioned)} complete, {len(made) - len(captioned)} without a caption, "
        f"{len(jobs) - len(made)} to make"
    ]
    known = set(made)
    lines += [f"  {job.name}: {job.prompt}" for job, clip in zip(jobs, clips, strict=True) if clip not in known]
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
    other settings than before, a damaged record, a folder that cannot be made, and while another process is at work
    in it.
    """
    make_folder(out, "choose another with --out")
    with owned(out, "synthesise"):
        record = Record(out)
        if not anyway:
            record.require_same(generator.settings, None if captioner is None else captioner.settings)
        if record.carried:
            note(f"{out / EARLIER}: copied to {RECORD}, which is the record from now on")
        return _all(jobs, _DataSet(out, generator, captioner, record, note))


def _all(jobs: Sequence[ClipJob], data_set: _DataSet) -> SynthesisReport:
    report = SynthesisReport(len(jobs))
    recent: list[str] = []  # reasons of failures since a job was done
    for index, job in enumerate(jobs):
        data_set.note(f"[{index + 1}/{len(jobs)}] {job.name}: {job.prompt}")
        try:
            done = data_set.complete(job, report)
        except _LeftOut as left:
            message = str(left.error)
            report.problems.append(Problem(job, left.reason, message))
            data_set.note(f"     left out, {left.reason}: {message}")
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
            raise _LeftOut(PROMPT_LENGTH, f"{counted(tokens, 'token')}; expected {fewest} to {most}. Rewrite it")
        clip = self.out / f"{job.name}.mp4"
        prompt, detail = clip.with_suffix(".txt"), clip.with_suffix(".detail.txt")
        with _leaving_out(KEPT):
            _text(prompt), _text(detail)  # before hours of work
            fresh = self._is_missing(job, clip)
        with _leaving_out(NO_CLIP):
            if fresh:
                self._make(job, clip, detail)
            _put(prompt, job.prompt + "\n")
        if _text(detail):
            return report.made if fresh else report.complete
        if self.captioner is None:
            return report.uncaptioned
        with _leaving_out(NO_CAPTION):
            self._caption(self.captioner, job, clip, detail)
        return report.made

    def _is_missing(self, job: ClipJob, clip: Path) -> bool:
        """Whether a clip is to be made. Raises UniViGUError for one that is not this program's to overwrite."""
        known = self.record.clips.get(job.name)
        if not os.path.lexists(clip) or (known and known.frames is None):
            return True
        if known is None:
            raise UniViGUError(
                f"{clip}: already exists and is not listed in {RECORD}; it was not changed. Move it away to have "
                "the clip made"
            )
        if clip.is_file() and not clip.stat().st_size:  # a power cut, before files were synced
            return True
        try:
            frames = probe(clip).frames
        except UniViGUError as error:
            raise UniViGUError(
                f"{error}. The file was changed after it was made, and is left alone; {_REMAKE}"
            ) from None
        if frames == known.frames:
            return False
        raise UniViGUError(
            f"{clip}: found {frames} frames, expected {known.frames}. The file was changed after it was made, and is "
            f"left alone; {_REMAKE}"
        )

    def _make(self, job: ClipJob, clip: Path, detail: Path) -> None:
        """The clip and its record; a caption stays only where the same settings give the same clip again."""
        record, settings = self.record, self.generator.settings
        known = record.clips.get(job.name)
        same = known and known.generator is not None and record.generators[known.generator] == settings
        if not (known and same and known.seed == job.seed):
            self._clear(detail, known)
            known = ClipRecord(job.prompt, job.seed)
        # Before the clip: whenever this ends, what lies there then is known to be this program's.
        record.keep(job.name, replace(known, frames=None))
        facts = self.generator.make(job, clip) or {}
        place, frames = record.place("generator", settings), probe(clip).frames
        if not detail.exists():
            known = ClipRecord(job.prompt, job.seed)
        record.keep(job.name, replace(known, frames=frames, generator=place, **facts))

    def _clear(self, detail: Path, known: ClipRecord | None) -> None:
        """Remove the caption of another clip, where it is the one that was written here."""
        if not _text(detail):
            return
        if known is None or known.caption_sha256 != _sha256(read_bytes(detail, MEGABYTE)):
            raise _LeftOut(
                KEPT,
                f"{detail}: not written by this command, or changed since; it would no longer match the new clip, so "
                "nothing was done. Move it away to have the clip made",
            )
        self.note(f"     {detail}: removed, because the clip is made again")
        detail.unlink()

    def _caption(self, captioner: Captioner, job: ClipJob, clip: Path, detail: Path) -> None:
        caption, known = captioner.caption(job.prompt, clip), self.record.clips[job.name]
        text = caption.text + "\n"
        facts: dict[str, Any] = {
            "captioner": self.record.place("captioner", captioner.settings),
            "answers": caption.answers,
        }
        facts |= {"caption_tokens": caption.tokens, "caption_sha256": _sha256(text.encode())}
        # Before the file, which is somebody else's where its hash differs.
        self.record.keep(job.name, replace(known, **facts))
        if _put(detail, text):
            self.note(f"     {caption.tokens} tokens: {caption.text}")
        else:
            self.record.keep(job.name, known)
            self.note(f"     {detail}: another program wrote this file meanwhile; it was left alone")


@contextmanager
def _leaving_out(reason: str) -> Iterator[None]:
    """Leave a job out, whatever goes wrong in a block: one bad clip must not cost the others."""
    try:
        yield
    except (_LeftOut, torch.OutOfMemoryError, MemoryError):
        raise  # the next clip is of the same size
    except UniViGUError as error:
        raise _LeftOut(CAPTION_LENGTH if isinstance(error, LengthError) else reason, error) from error
    except Exception as error:
        raise _LeftOut(reason, reason_of(error)) from error


def _text(path: Path) -> str:
    """The words in a text file, in any encoding; none where there is no file. Raises UniViGUError for what is no
    text."""
    try:
        return read_text(path).strip()
    except FileNotFoundError:
        return ""


def _put(path: Path, text: str) -> bool:
    """Write a text where there is no file or one without words; False, and nothing is changed, elsewhere."""
    if write_new(path, text):
        return True
    if _text(path):
        return False
    write_text(path, text)
    return True


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
