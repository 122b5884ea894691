"""The command ``synthesise``: its arguments, and the settings that they give."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ..checkpoint.locate import locate
from ..data.folder import TextLimits
from ..errors import UniViGUError
from ..io import make_folder
from ..media.video import write_video
from ..pipeline.pipeline import Callback, Pipeline, Sampling, Size, given
from ..progress import Bars
from ..synthesis.captioner import INSTRUCTIONS, Captioner
from ..synthesis.chat import ChatClient
from ..synthesis.engine import ClipJob, plan, read_prompts, synthesise
from .output import enlarged, say

ANSWERS = ".answers"  # the cache's folder, hidden from whatever looks for clips
KEY_NAME = "OPENAI_API_KEY"


@dataclass(frozen=True)
class SynthesisSettings:
    """What the data set is made of.

    prompts            text file, a prompt a line, # for comments
    out                folder of the data set
    clips_per_prompt   clips of every prompt, each from noise of its own
    prompt_max_tokens  longest prompt, in tokens; None: 128, or the text stream's length
    min_tokens         shortest caption, in the checkpoint's tokens; None: 128, or 0 for short text streams
    max_tokens         longest caption; None: 256, or what the checkpoint reads
    anyway             go on in a folder that was made with other settings; what is done stays
    """

    prompts: Path
    out: Path = Path("data")
    clips_per_prompt: int = 1
    prompt_max_tokens: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    anyway: bool = False


@dataclass(frozen=True)
class ChatSettings:
    """The language model that writes detailed captions; without ``endpoint`` only clips and prompts are written.

    endpoint      base URL of an OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1
    llm           a model there that reads pictures
    api_key_env   environment variable with the key; None: OPENAI_API_KEY, if it is set
    instructions  text file with a system prompt of your own
    frames_shown  frames shown of each clip
    frame_side    pixels of their longer side, at most
    attempts      answers asked for while they are too short or too long
    llm_options   JSON object with more of the request, e.g. {"temperature": 0.7}
    llm_timeout   seconds that an answer may take
    retries       tries after failures that may pass
    cache         folder of answers; None: .answers in the data set's folder
    """

    endpoint: str | None = None
    llm: str | None = None
    api_key_env: str | None = None
    instructions: Path | None = None
    frames_shown: int = 8
    frame_side: int = 512
    attempts: int = 4
    llm_options: str | None = None
    llm_timeout: float = 120.0
    retries: int = 5
    cache: Path | None = None


@dataclass(frozen=True)
class ClipSettings:
    """How clips are sampled and written.

    negative        what guidance leads away from
    fps             of the written files; None: the checkpoint's own
    scale           repeat every pixel this many times in the file; None: only small clips
    dtype           of the network, for the record
    wan             folder that VAE and text encoder come from, for the record
    null_embedding  file of the condition in place of the empty prompt's, for the record
    """

    size: Size
    sampling: Sampling
    negative: str = ""
    fps: float | None = None
    scale: int | None = None
    dtype: str | None = None
    wan: Path | None = None
    null_embedding: Path | None = None


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


Settings = TypeVar("Settings", SynthesisSettings, ChatSettings, ClipSettings)


def run(
    args: argparse.Namespace, pipe: Pipeline, size: Size, sampling: Sampling, shown: Bars, callback: Callback
) -> int:
    """The command with parsed arguments: returns the exit code."""
    given_here = {**vars(args), "size": size, "sampling": sampling}

    def settings(kind: type[Settings]) -> Settings:
        return kind(**{entry.name: given_here[entry.name] for entry in fields(kind)})

    chat, clips = settings(ChatSettings), settings(ClipSettings)
    return synthesise_command(settings(SynthesisSettings), chat, clips, pipe, shown, callback)


def synthesise_command(
    settings: SynthesisSettings,
    chat: ChatSettings,
    clips: ClipSettings,
    pipe: Pipeline,
    shown: Bars,
    callback: Callback,
) -> int:
    """The command: returns the exit code, 1 if anything was left out. Raises UniViGUError for settings that do not
    fit each other, the checkpoint or the folder."""

    def note(text: str) -> None:
        shown.close()
        say(text)

    def count(text: str) -> int:
        return len(pipe.tokenizer.ids(text))

    fps = given(clips.fps, pipe.config.run.fps)

    def make(job: ClipJob, path: Path) -> None:
        own = replace(clips.sampling, seed=job.seed)
        pixels = pipe.generate(job.prompt, negative=clips.negative, size=clips.size, sampling=own, callback=callback)
        write_video(path, enlarged(pixels, clips.scale), fps)

    prompts, doubles = read_prompts(settings.prompts)
    limits = _limits(settings, pipe)
    pipe.noise(clips.size)  # sizes that do not fit are known now
    make_folder(settings.out, "choose another with --out")
    captioner = None if chat.endpoint is None else _captioner(chat, settings.out, limits, count, note)
    if captioner is None:
        for name in ("llm", "api_key_env", "instructions", "llm_options", "cache"):
            if getattr(chat, name) is not None:
                raise UniViGUError(f"--{name.replace('_', '-')} is for captions; name their --endpoint too")
        say("no --endpoint: clips and prompts are written, detailed captions are not")
    if doubles:
        say(f"{settings.prompts}: {doubles} of the prompts stand there more than once; each is used once")
    jobs = plan(prompts, settings.clips_per_prompt, clips.sampling.seed)
    try:
        report = synthesise(
            jobs,
            settings.out,
            make,
            captioner,
            generator=_generator(clips, pipe, fps),
            count=count,
            prompt_tokens=limits.prompt,
            anyway=settings.anyway,
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


def _limits(settings: SynthesisSettings, pipe: Pipeline) -> TextLimits:
    """The token limits asked for. Raises UniViGUError for those that nothing can meet."""
    config = pipe.config.run
    usual = TextLimits.of(config)
    most = given(settings.max_tokens, usual.detail[1])
    fewest = given(settings.min_tokens, min(usual.detail[0], most))
    prompt_most = given(settings.prompt_max_tokens, usual.prompt[1])
    if prompt_most > config.context_length:
        raise UniViGUError(
            f"--prompt-max-tokens is {prompt_most}; {pipe.components.path} reads prompts of at most "
            f"{config.context_length}"
        )
    return TextLimits(prompt=(usual.prompt[0], prompt_most), detail=(fewest, most))


def _captioner(
    settings: ChatSettings, out: Path, limits: TextLimits, count: Callable[[str], int], note: Callable[[str], object]
) -> Captioner:
    url = settings.endpoint or ""
    if not settings.llm:
        raise UniViGUError(f"--endpoint {url} needs --llm MODEL: which of its models shall see the clips?")
    name = settings.api_key_env or KEY_NAME
    key = os.environ.get(name)
    if settings.api_key_env and not key:
        raise UniViGUError(f"the environment variable {name} is not set; put the endpoint's key there")
    chat = ChatClient(
        url,
        settings.llm,
        key=key,
        key_name=name,
        options=_options(settings.llm_options),
        cache=settings.cache or out / ANSWERS,
        timeout=settings.llm_timeout,
        retries=settings.retries,
        note=lambda text: note(f"     {text}"),
    )
    return Captioner(
        chat,
        count,
        limits.detail,
        attempts=settings.attempts,
        frames=settings.frames_shown,
        side=settings.frame_side,
        instructions=_instructions(settings.instructions),
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


def _generator(clips: ClipSettings, pipe: Pipeline, fps: float) -> dict[str, Any]:
    """Everything that clips depend on, for the record."""
    run, size, sampling = pipe.config.run, clips.size, clips.sampling
    return {
        "model": pipe.components.path.name,
        "sha256": _hash(pipe.components.path),
        "wan": _files_beside(clips.wan, pipe),
        "dtype": clips.dtype,
        "latent_space": pipe.config.model.latent_space,
        "text_states": pipe.components.text_states,
        "text_flow": pipe.config.model.text_flow,
        "source": pipe.config.model.source,
        "num_heads": pipe.config.model.num_heads,
        "negative": clips.negative,
        **({} if clips.null_embedding is None else {"null_embedding": clips.null_embedding.name}),
        "seed": sampling.seed,
        "steps": given(sampling.steps, run.steps),
        "shift": given(sampling.shift, run.shift),
        "guidance": given(sampling.guidance_scale, run.guidance_scale),
        "solver": sampling.solver,
        "height": given(size.height, run.height),
        "width": given(size.width, run.width),
        "frames": given(size.frames, run.frames),
        "fps": fps,
        "scale": clips.scale,
    }


def _files_beside(wan: Path | None, pipe: Pipeline) -> str | None:
    """What VAE and text encoder come from, where it is not the checkpoint: the Wan folder's name, or the files'."""
    parts = pipe.components.files.vae.path, pipe.components.files.encoder.path
    if wan is not None and all(wan in path.parents for path in parts):
        return str(wan.name)
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
