"""A data set from a list of prompts: ``clip.mp4``, ``clip.txt`` (the brief prompt), ``clip.detail.txt`` (the detailed
caption), as ``folder.py`` reads them (arXiv 2604.08121, the training data of both stages).

A checkpoint makes the clips, a language model that sees them writes the captions. Every file is written whole, and
``synthesis.json`` says what each clip came from; running the same command again does what is not done yet.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from ..errors import UniViGUError
from ..io import make_folder, write_text
from ..media.video import probe
from .captioner import Captioner
from .chat import EndpointError, LengthError
from .record import ClipRecord, Record, place, plain

RECORD = "synthesis.json"

PROMPT_LENGTH = "prompt outside the token limits"
NO_CLIP = "clip could not be made"
CAPTION_LENGTH = "caption never within the token limits"
NO_CAPTION = "no caption from the language model"

_MADE, _COMPLETE, _UNCAPTIONED = "made", "complete", "uncaptioned"
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
class SynthesisReport:
    """What became of each job.

    made         completed in this run
    complete     complete before
    uncaptioned  have a clip and a prompt; no endpoint was named
    problems     left out, with the reason; what is done of them stays
    stopped      why the run ended before its last job; None if it did not

    ``str()`` gives the counts by reason and, on a line each, the problems.
    """

    made: tuple[ClipJob, ...]
    complete: tuple[ClipJob, ...]
    uncaptioned: tuple[ClipJob, ...]
    problems: tuple[Problem, ...]
    total: int
    stopped: str | None

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
        untouched = self.total - sum(map(len, (self.made, self.complete, self.uncaptioned, self.problems)))
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
    make: Callable[[ClipJob, Path], object],
    captioner: Captioner | None,
    *,
    generator: Mapping[str, Any],
    count: Callable[[str], int],
    prompt_tokens: tuple[int, int],
    anyway: bool = False,
    on_job: Callable[[int, ClipJob], object] = lambda index, job: None,
    note: Callable[[str], object] = lambda _: None,
) -> SynthesisReport:
    """Make what is missing of each job in the folder ``out``: clip, prompt, and with a captioner its caption.

    ``make(job, path)`` writes a clip, whole or not at all; ``generator`` are the settings it works with, plain values
    for the record. ``count`` gives the tokens of a prompt, end-of-text included, ``prompt_tokens`` the fewest and most
    it may have. ``anyway`` goes on in a folder that was made with other settings. ``on_job(index, job)`` is called
    before each job, index from 0; ``note`` with a line for the user.

    A job that fails is left out and the work goes on, except where every job would fail: an endpoint that refuses or
    is not there, memory that does not suffice, or the same step failing three times in a row. Raises UniViGUError for
    other settings than before, a damaged record, and a folder that cannot be made.
    """
    make_folder(out, "choose another with --out")
    record = Record.read(out / RECORD)
    if not anyway:
        record.require_same(generator, None if captioner is None else captioner.settings)
    ended: dict[str, list[ClipJob]] = {_MADE: [], _COMPLETE: [], _UNCAPTIONED: []}
    problems: list[Problem] = []
    stopped, last, in_a_row = None, "", 0
    for index, job in enumerate(jobs):
        on_job(index, job)
        try:
            how = _job(job, out, make, captioner, record, generator, count, prompt_tokens, note)
        except _LeftOut as left:
            message = str(left.error)
            problems.append(Problem(job, left.reason, message))
            note(f"     left out, {left.reason}: {message}")
            if isinstance(left.error, EndpointError):
                stopped = message
                break
            if left.reason == PROMPT_LENGTH:
                continue
            in_a_row = in_a_row + 1 if left.reason == last else 1
            last = left.reason
            if in_a_row == _IN_A_ROW and last in (NO_CLIP, NO_CAPTION):
                stopped = f"{last}, {_IN_A_ROW} times in a row; the last time: {message}"
                break
        else:
            ended[how].append(job)
            if how != _COMPLETE:
                last = ""
    made, complete, uncaptioned = (tuple(group) for group in ended.values())
    return SynthesisReport(made, complete, uncaptioned, tuple(problems), len(jobs), stopped)


class _LeftOut(Exception):
    """A job ends here, for one of the reasons above."""

    def __init__(self, reason: str, error: Exception | str) -> None:
        super().__init__(reason)
        self.reason, self.error = reason, error


def _job(
    job: ClipJob,
    out: Path,
    make: Callable[[ClipJob, Path], object],
    captioner: Captioner | None,
    record: Record,
    generator: Mapping[str, Any],
    count: Callable[[str], int],
    prompt_tokens: tuple[int, int],
    note: Callable[[str], object],
) -> str:
    """Do what is missing of one job; returns how it ended. Raises _LeftOut."""
    tokens, (fewest, most) = count(job.prompt), prompt_tokens
    if not fewest <= tokens <= most:
        raise _LeftOut(PROMPT_LENGTH, f"{tokens} tokens; expected {fewest} to {most}. Rewrite it")
    clip, detail = out / f"{job.name}.mp4", out / f"{job.name}.detail.txt"
    try:
        fresh = _clip(job, clip, detail, make, record, generator, note)
    except (torch.OutOfMemoryError, MemoryError):
        raise  # the next clip is of the same size
    except UniViGUError as error:
        raise _LeftOut(NO_CLIP, error) from error
    except Exception as error:  # one bad clip must not cost the others; the report names it
        named = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise _LeftOut(NO_CLIP, named) from error
    if _has_text(detail):
        return _MADE if fresh else _COMPLETE
    if captioner is None:
        return _UNCAPTIONED
    try:
        caption = captioner.caption(job.prompt, clip)
        write_text(detail, caption.text + "\n")
    except UniViGUError as error:
        raise _LeftOut(CAPTION_LENGTH if isinstance(error, LengthError) else NO_CAPTION, error) from error
    index = place(record.captioners, captioner.settings)
    record.clips[job.name] = replace(
        record.clips[job.name], captioner=index, caption_tokens=caption.tokens, answers=caption.answers
    )
    record.write()
    note(f"     {caption.tokens} tokens: {caption.text}")
    return _MADE


def _clip(
    job: ClipJob,
    clip: Path,
    detail: Path,
    make: Callable[[ClipJob, Path], object],
    record: Record,
    generator: Mapping[str, Any],
    note: Callable[[str], object],
) -> bool:
    """Let clip and prompt of a job be there; returns whether the clip had to be made."""
    known = record.clips.get(job.name)
    fresh = known is None or not _stands(clip, known, note)
    if fresh:
        if known is not None and (known.seed != job.seed or record.generators[known.generator] != plain(generator)):
            # Before the clip: a run that ends between the two must not leave a clip with another's record.
            del record.clips[job.name]
            record.write()
            known = None
        if known is None and detail.exists():
            # It describes another clip. The same settings give the same clip again, and its caption stays true.
            note(f"     {detail}: removed, since the clip is made anew")
            detail.unlink()
        make(job, clip)
        index, frames = place(record.generators, generator), probe(clip).frames
        kept = known if known is not None and detail.exists() else ClipRecord(job.prompt, job.seed, frames, index)
        record.clips[job.name] = replace(kept, frames=frames, generator=index)
        record.write()
    prompt = clip.with_suffix(".txt")
    if not _has_text(prompt):
        write_text(prompt, job.prompt + "\n")
    return fresh


def _stands(clip: Path, known: ClipRecord, note: Callable[[str], object]) -> bool:
    """Whether a clip that was made before is there and whole."""
    if not clip.exists():
        return False
    try:
        frames = probe(clip).frames
        problem = "" if frames == known.frames else f"{clip}: found {frames} frames, expected {known.frames}"
    except UniViGUError as error:
        problem = str(error)
    if problem:
        note(f"     {problem}; made anew")
    return not problem


def _has_text(path: Path) -> bool:
    """Whether a text file is there and holds words; one that is not UTF-8 does not."""
    try:
        return bool(path.read_text("utf-8").strip())
    except (FileNotFoundError, UnicodeDecodeError):
        return False
