"""A data set from a list of prompts: ``clip.mp4``, ``clip.txt`` (the brief prompt), ``clip.detail.txt`` (the detailed
caption), as ``folder.py`` reads them (arXiv 2604.08121, the training data of both stages).

A checkpoint makes the clips, a language model that sees them writes the captions. Every file is written whole, and
``synthesis.json`` says what each clip came from; running the same command again does what is not done yet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from ..checkpoint.locate import locate
from ..cli.output import enlarged, say
from ..config import shown as shown_value
from ..data.folder import TextLimits
from ..errors import UniViGUError
from ..io import write_text
from ..media.video import probe, write_video
from ..pipeline.pipeline import Callback, Pipeline, Sampling, Size, given
from ..progress import Bars
from .captioner import INSTRUCTIONS, Captioner, ChatClient, EndpointError, LengthError

RECORD = "synthesis.json"
ANSWERS = ".answers"  # the cache's folder, hidden from whatever looks for clips
KEY_NAME = "OPENAI_API_KEY"

PROMPT_LENGTH = "prompt outside the token limits"
NO_CLIP = "clip could not be made"
CAPTION_LENGTH = "caption never within the token limits"
NO_CAPTION = "no caption from the language model"

_MADE, _COMPLETE, _UNCAPTIONED = "made", "complete", "uncaptioned"
# What fails so often in succession fails for a reason that the next clip shares.
_IN_A_ROW = 3
_VERSION = 1
_SLUG = 40  # letters of the prompt in a file's name
_FOR_PEOPLE = ("model",)  # of the settings; the file's hash decides


# ----------------------------------------------------------------------------------------------------------- the jobs


@dataclass(frozen=True)
class Job:
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


def plan(prompts: Sequence[str], clips_per_prompt: int, seed: int) -> list[Job]:
    """The jobs of a list of prompts. Name and seed follow from a prompt's words, not from its place: a list may grow,
    shrink and change its order between runs."""
    jobs = []
    for prompt in prompts:
        digest = hashlib.sha256(prompt.encode()).hexdigest()[:10]
        plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
        slug = "-".join(re.findall("[a-z0-9]+", plain))[:_SLUG].strip("-") or "clip"
        for number in range(1, clips_per_prompt + 1):
            drawn = hashlib.sha256(f"{seed} {number} {prompt}".encode()).digest()
            jobs.append(Job(f"{slug}-{digest}-{number}", prompt, int.from_bytes(drawn[:4], "big")))
    return jobs


# --------------------------------------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class ClipRecord:
    """What a clip came from. ``generator`` and ``captioner`` are places in the lists of settings of the same file;
    ``caption_tokens`` counts the end-of-text token, ``answers`` those that the caption took."""

    prompt: str
    seed: int
    frames: int
    generator: int
    captioner: int | None = None
    caption_tokens: int | None = None
    answers: int | None = None


@dataclass
class Record:
    """``synthesis.json``: the settings of the runs so far, and the clips by name."""

    path: Path
    generators: list[dict[str, Any]] = field(default_factory=list)
    captioners: list[dict[str, Any]] = field(default_factory=list)
    clips: dict[str, ClipRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Record:
        """What the file says, or an empty record where there is none. Raises UniViGUError for a file that is damaged
        or of another version."""
        if not path.exists():
            return cls(path)
        try:
            data = json.loads(path.read_text("utf-8"))
            if data["version"] != _VERSION:
                raise ValueError(f"version {shown_value(data['version'])}, expected {_VERSION}")
            clips = {name: ClipRecord(**entry) for name, entry in data["clips"].items()}
            record = cls(path, _settings_list(data["generators"]), _settings_list(data["captioners"]), clips)
            if not all(clip.generator in range(len(record.generators)) for clip in clips.values()):
                raise ValueError("a clip names settings that are not there")
            return record
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UniViGUError(
                f"{path}: cannot be read as the record of this folder ({error}); bring it back from a copy, or choose "
                "another folder (without it, all clips here are made anew)"
            ) from None

    def write(self) -> None:
        clips = {name: asdict(clip) for name, clip in self.clips.items()}
        data = {"version": _VERSION, "generators": self.generators, "captioners": self.captioners, "clips": clips}
        write_text(self.path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")

    def require_same(self, generator: Mapping[str, Any], captioner: Mapping[str, Any] | None) -> None:
        """Raise UniViGUError, naming what differs, when the last run here had other settings."""
        differences = [
            f"{name} was {shown_value(before.get(name))} and is {shown_value(now.get(name))}"
            for earlier, settings in ((self.generators, generator), (self.captioners, captioner))
            if earlier and settings is not None
            for before, now in [(earlier[-1], _plain(settings))]
            for name in {**before, **now}
            if name not in _FOR_PEOPLE and before.get(name) != now.get(name)
        ]
        if differences:
            raise UniViGUError(
                f"{self.path}: this folder was made with other settings: {'; '.join(differences)}. Take those again, "
                "choose another folder, or pass --anyway to keep what is done and go on with the new ones"
            )


def _settings_list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise TypeError("the settings are not a list of objects")
    return value


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(settings))


def _place(earlier: list[dict[str, Any]], settings: Mapping[str, Any]) -> int:
    """The place of the settings in use, at the end of the list."""
    now = _plain(settings)
    if not earlier or earlier[-1] != now:
        earlier.append(now)
    return len(earlier) - 1


# ------------------------------------------------------------------------------------------------------------ the run


@dataclass(frozen=True)
class Problem:
    """A job that was left out: its reason, one of the above, and the message."""

    job: Job
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

    made: tuple[Job, ...]
    complete: tuple[Job, ...]
    uncaptioned: tuple[Job, ...]
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
    jobs: Sequence[Job],
    out: Path,
    make: Callable[[Job, Path], object],
    captioner: Captioner | None,
    *,
    generator: Mapping[str, Any],
    count: Callable[[str], int],
    prompt_tokens: tuple[int, int],
    anyway: bool = False,
    on_job: Callable[[int, Job], object] = lambda index, job: None,
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
    _make_folder(out)
    record = Record.read(out / RECORD)
    if not anyway:
        record.require_same(generator, None if captioner is None else captioner.settings)
    ended: dict[str, list[Job]] = {_MADE: [], _COMPLETE: [], _UNCAPTIONED: []}
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
    job: Job,
    out: Path,
    make: Callable[[Job, Path], object],
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
    place = _place(record.captioners, captioner.settings)
    record.clips[job.name] = replace(
        record.clips[job.name], captioner=place, caption_tokens=caption.tokens, answers=caption.answers
    )
    record.write()
    note(f"     {caption.tokens} tokens: {caption.text}")
    return _MADE


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniViGUError(f"{out}: the folder cannot be made ({error.strerror}); choose another with --out") from None


def _clip(
    job: Job,
    clip: Path,
    detail: Path,
    make: Callable[[Job, Path], object],
    record: Record,
    generator: Mapping[str, Any],
    note: Callable[[str], object],
) -> bool:
    """Let clip and prompt of a job be there; returns whether the clip had to be made."""
    known = record.clips.get(job.name)
    fresh = known is None or not _stands(clip, known, note)
    if fresh:
        if known is not None and (known.seed != job.seed or record.generators[known.generator] != _plain(generator)):
            # Before the clip: a run that ends between the two must not leave a clip with another's record.
            del record.clips[job.name]
            record.write()
            known = None
        if known is None and detail.exists():
            # It describes another clip. The same settings give the same clip again, and its caption stays true.
            note(f"     {detail}: removed, since the clip is made anew")
            detail.unlink()
        make(job, clip)
        place, frames = _place(record.generators, generator), probe(clip).frames
        kept = known if known is not None and detail.exists() else ClipRecord(job.prompt, job.seed, frames, place)
        record.clips[job.name] = replace(kept, frames=frames, generator=place)
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


# -------------------------------------------------------------------------------------------------------- the command


def add_arguments(
    parser: argparse.ArgumentParser,
    *,
    path: Callable[[str], Path],
    number: Callable[..., Callable[[str], Any]],
) -> None:
    """The command's own arguments; ``path`` and ``number`` are the command line's argument types."""
    count = number(int, 1, 100_000)
    parser.add_argument("prompts", type=path, metavar="PROMPTS", help="text file, a prompt a line, # for comments")
    parser.add_argument("-o", "--out", type=path, default=Path("data"), metavar="FOLDER", help="default: data")
    parser.add_argument("--clips-per-prompt", type=count, default=1, metavar="N")
    parser.add_argument(
        "--prompt-max-tokens", type=count, metavar="N", help="default: 128, or the text stream's length"
    )
    parser.add_argument(
        "--anyway", action="store_true", help="go on in a folder that was made with other settings; what is done stays"
    )
    group = parser.add_argument_group("detailed captions (without --endpoint only clips and prompts are written)")
    group.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, e.g. http://127.0.0.1:8000/v1")
    group.add_argument("--llm", metavar="MODEL", help="a model there that reads pictures")
    group.add_argument(
        "--api-key-env", metavar="NAME", help=f"environment variable with the key (default: {KEY_NAME}, if it is set)"
    )
    group.add_argument("--instructions", type=path, metavar="FILE", help="a system prompt of your own")
    group.add_argument("--frames-shown", type=number(int, 1, 256), default=8, metavar="N", help="default: 8")
    group.add_argument(
        "--frame-side", type=number(int, 16, 4096), default=512, metavar="PIXELS", help="longer side, at most (512)"
    )
    group.add_argument(
        "--min-tokens", type=number(int, 0), metavar="N", help="of a caption, in the checkpoint's tokens"
    )
    group.add_argument(
        "--max-tokens", type=count, metavar="N", help="default: 128 to 256, or what the checkpoint reads"
    )
    group.add_argument(
        "--attempts", type=count, default=4, metavar="N", help="answers asked for, too short or long (4)"
    )
    group.add_argument("--llm-options", metavar="JSON", help="""more of the request, e.g. '{"temperature": 0.7}'""")
    group.add_argument("--llm-timeout", type=number(float, 0.1, 86_400), default=120.0, metavar="SECONDS")
    group.add_argument(
        "--retries", type=number(int, 0, 100), default=5, metavar="N", help="after failures that may pass"
    )
    group.add_argument("--cache", type=path, metavar="FOLDER", help=f"of answers (default: {ANSWERS} in --out)")


def run(
    args: argparse.Namespace, pipe: Pipeline, size: Size, sampling: Sampling, shown: Bars, callback: Callback
) -> int:
    """The command: returns the exit code, 1 if anything was left out."""

    def note(text: str) -> None:
        shown.close()
        say(text)

    def count(text: str) -> int:
        return len(pipe.tokenizer.ids(text))

    fps = given(args.fps, pipe.config.run.fps)

    def make(job: Job, path: Path) -> None:
        own = replace(sampling, seed=job.seed)
        pixels = pipe.generate(job.prompt, negative=args.negative, size=size, sampling=own, callback=callback)
        write_video(path, enlarged(pixels, args.scale), fps)

    prompts, doubles = read_prompts(args.prompts)
    limits = _limits(args, pipe)
    pipe.noise(size)  # sizes that do not fit are known now
    _make_folder(args.out)
    captioner = None if args.endpoint is None else _captioner(args, limits, count, note)
    if captioner is None:
        for name in ("llm", "api_key_env", "instructions", "llm_options", "cache"):
            if getattr(args, name) is not None:
                raise UniViGUError(f"--{name.replace('_', '-')} is for captions; name their --endpoint too")
        say("no --endpoint: clips and prompts are written, detailed captions are not")
    if doubles:
        say(f"{args.prompts}: {doubles} of the prompts stand there more than once; each is used once")
    jobs = plan(prompts, args.clips_per_prompt, sampling.seed)
    try:
        report = synthesise(
            jobs,
            args.out,
            make,
            captioner,
            generator=_generator(args, pipe, size, sampling, fps),
            count=count,
            prompt_tokens=limits.prompt,
            anyway=args.anyway,
            on_job=lambda index, job: note(f"[{index + 1}/{len(jobs)}] {job.name}: {job.prompt}"),
            note=note,
        )
    finally:
        if captioner is not None:
            captioner.chat.close()
    shown.close()
    print(report)
    if report.stopped:
        say(f"error: {report.stopped}\nWhat is done stays; the same command goes on from there")
    return int(report.failed)


def _limits(args: argparse.Namespace, pipe: Pipeline) -> TextLimits:
    """The token limits asked for. Raises UniViGUError for those that nothing can meet."""
    config = pipe.config.run
    usual = TextLimits.of(config)
    most = given(args.max_tokens, usual.detail[1])
    fewest = given(args.min_tokens, min(usual.detail[0], most))
    prompt_most = given(args.prompt_max_tokens, usual.prompt[1])
    if prompt_most > config.context_length:
        raise UniViGUError(
            f"--prompt-max-tokens is {prompt_most}; {pipe.components.path} reads prompts of at most "
            f"{config.context_length}"
        )
    return TextLimits(prompt=(usual.prompt[0], prompt_most), detail=(fewest, most))


def _captioner(
    args: argparse.Namespace, limits: TextLimits, count: Callable[[str], int], note: Callable[[str], object]
) -> Captioner:
    if not args.llm:
        raise UniViGUError(f"--endpoint {args.endpoint} needs --llm MODEL: which of its models shall see the clips?")
    name = args.api_key_env or KEY_NAME
    key = os.environ.get(name)
    if args.api_key_env and not key:
        raise UniViGUError(f"the environment variable {name} is not set; put the endpoint's key there")
    chat = ChatClient(
        args.endpoint,
        args.llm,
        key=key,
        key_name=name,
        options=_options(args.llm_options),
        cache=args.cache or args.out / ANSWERS,
        timeout=args.llm_timeout,
        retries=args.retries,
        note=lambda text: note(f"     {text}"),
    )
    return Captioner(
        chat,
        count,
        limits.detail,
        attempts=args.attempts,
        frames=args.frames_shown,
        side=args.frame_side,
        instructions=_instructions(args.instructions),
    )


def _options(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        options = json.loads(text)
        json.dumps(options, allow_nan=False)  # Python's own reader knows numbers that JSON does not
        if not isinstance(options, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise UniViGUError(
            f"--llm-options {text!r} is not a JSON object ({error}); expected e.g. " """'{"temperature": 0.7}'"""
        ) from None
    return options


def _instructions(path: Path | None) -> str:
    if path is None:
        return INSTRUCTIONS
    try:
        text = path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UniViGUError(
            f"{path}: cannot be read ({error}); pass a text file in UTF-8 with the system prompt"
        ) from None
    if not text:
        raise UniViGUError(f"{path}: it is empty; write what the language model shall do, or leave --instructions out")
    return text


def _generator(args: argparse.Namespace, pipe: Pipeline, size: Size, sampling: Sampling, fps: float) -> dict[str, Any]:
    """Everything that clips depend on, for the record."""
    run = pipe.config.run
    return {
        "model": pipe.components.path.name,
        "sha256": _hash(pipe.components.path),
        "wan": _files_beside(args, pipe),
        "dtype": args.dtype,
        "latent_space": pipe.config.model.latent_space,
        "text_states": pipe.components.text_states,
        "text_flow": pipe.config.model.text_flow,
        "source": pipe.config.model.source,
        "num_heads": pipe.config.model.num_heads,
        "negative": args.negative,
        **({} if args.null_embedding is None else {"null_embedding": args.null_embedding.name}),
        "seed": sampling.seed,
        "steps": given(sampling.steps, run.steps),
        "shift": given(sampling.shift, run.shift),
        "guidance": given(sampling.guidance_scale, run.guidance_scale),
        "solver": sampling.solver,
        "height": given(size.height, run.height),
        "width": given(size.width, run.width),
        "frames": given(size.frames, run.frames),
        "fps": fps,
        "scale": args.scale,
    }


def _files_beside(args: argparse.Namespace, pipe: Pipeline) -> str | None:
    """What VAE and text encoder come from, where it is not the checkpoint: the Wan folder's name, or the files'."""
    parts = pipe.components.files.vae.path, pipe.components.files.encoder.path
    if args.wan is not None and all(args.wan in path.parents for path in parts):
        return str(args.wan.name)
    return ", ".join(path.name for path in parts if path != pipe.components.path) or None


def _hash(model: Path) -> str:
    """SHA-256 of a checkpoint's weights, hexadecimal."""
    digest = hashlib.sha256()
    for path in locate(model).files:
        try:
            with path.open("rb") as file:
                while part := file.read(1 << 22):
                    digest.update(part)
        except OSError as error:
            raise UniViGUError(
                f"{path}: cannot be read ({error.strerror}); expected the checkpoint's weights"
            ) from None
    return digest.hexdigest()
