"""The command ``synthesise``: its arguments, and the settings that they give."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.locate import locate
from ..cli.output import enlarged, say
from ..data.folder import TextLimits
from ..errors import UniViGUError
from ..media.video import write_video
from ..pipeline.pipeline import Callback, Pipeline, Sampling, Size, given
from ..progress import Bars
from .captioner import INSTRUCTIONS, Captioner
from .chat import ChatClient
from .engine import ClipJob, make_folder, plan, read_prompts, synthesise

ANSWERS = ".answers"  # the cache's folder, hidden from whatever looks for clips
KEY_NAME = "OPENAI_API_KEY"


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

    def make(job: ClipJob, path: Path) -> None:
        own = replace(sampling, seed=job.seed)
        pixels = pipe.generate(job.prompt, negative=args.negative, size=size, sampling=own, callback=callback)
        write_video(path, enlarged(pixels, args.scale), fps)

    prompts, doubles = read_prompts(args.prompts)
    limits = _limits(args, pipe)
    pipe.noise(size)  # sizes that do not fit are known now
    make_folder(args.out)
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
            f"--prompt-max-tokens is {prompt_most}; {pipe.parts.path} reads prompts of at most {config.context_length}"
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
        "model": pipe.parts.path.name,
        "sha256": _hash(pipe.parts.path),
        "wan": _files_beside(args, pipe),
        "dtype": args.dtype,
        "latent_space": pipe.config.model.latent_space,
        "text_states": pipe.parts.text_states,
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
    parts = pipe.parts.components.vae.path, pipe.parts.components.encoder.path
    if args.wan is not None and all(args.wan in path.parents for path in parts):
        return str(args.wan.name)
    return ", ".join(path.name for path in parts if path != pipe.parts.path) or None


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
