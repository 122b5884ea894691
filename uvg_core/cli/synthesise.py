"""``synthesise``: prompts give a data set."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..checkpoint.locate import locate
from ..data.folder import TextLimits
from ..errors import UniViGUError
from ..io import make_folder
from ..media.video import write_video
from ..pipeline.pipeline import Pipeline, given
from ..progress import Bars
from ..sampling import Sampling, Size
from ..settings import Flag, Number, Text, Whole, setting, settings
from ..synthesis import engine
from ..synthesis.captioner import INSTRUCTIONS, Captioner
from ..synthesis.chat import ChatClient
from .common import VIDEO, Facts, Model, Video, steps_on
from .flags import Only
from .output import enlarged, say

ANSWERS = ".answers"  # the cache's folder, hidden from whatever looks for clips
KEY_NAME = "OPENAI_API_KEY"
Count = Annotated[Whole, Field(ge=1, le=100_000)]


@settings
class Synthesise:
    """What the data set is made of."""

    prompts: Path = setting("Text file, a prompt a line, # for comments.", positional=True, metavar="PROMPTS")
    out: Path = setting("Folder of the data set.", default=Path("data"), short="-o", metavar="DIR")
    clips_per_prompt: Count = setting("Clips of every prompt, each from its own noise.", default=1)
    prompt_max_tokens: Whole | None = setting(
        "Longest prompt, in tokens.", default=None, auto="128, or the text stream's length", ge=1, le=100_000
    )
    anyway: Flag = setting("Go on in a folder that was made with other settings; what is done stays.", default=False)


@settings
class Chat:
    """The language model that writes detailed captions, how it is asked, and how long captions are."""

    endpoint: Text | None = setting(
        "OpenAI-compatible, e.g. http://127.0.0.1:8000/v1. Without it only clips and prompts are written.",
        default=None,
        metavar="URL",
    )
    llm: Text | None = setting("A model there that reads pictures.", default=None, metavar="MODEL")
    api_key_env: Text | None = setting(
        "Environment variable with the key.", default=None, auto=f"{KEY_NAME}, if it is set", metavar="NAME"
    )
    instructions: Path | None = setting("Text file with a system prompt of your own.", default=None)
    frames_shown: Whole = setting("Frames shown of each clip.", default=8, ge=1, le=256)
    frame_side: Whole = setting("Their longer side in pixels, at most.", default=512, ge=16, le=4096)
    min_tokens: Whole | None = setting(
        "Shortest caption, in the checkpoint's tokens.", default=None, auto="128, or 0 for short text streams", ge=0
    )
    max_tokens: Whole | None = setting(
        "Longest caption.", default=None, auto="256, or what the checkpoint reads", ge=1, le=100_000
    )
    attempts: Count = setting("Answers asked for while they are too short or too long.", default=4)
    llm_options: Text | None = setting(
        """More of the request, e.g. '{"temperature": 0.7}'.""", default=None, metavar="JSON"
    )
    llm_timeout: Number = setting("How long an answer may take.", default=120.0, metavar="SECONDS", ge=0.1, le=86_400)
    retries: Whole = setting("Tries after failures that may pass.", default=5, ge=0, le=100)
    cache: Path | None = setting("Folder of answers.", default=None, auto=f"{ANSWERS} in --out", metavar="DIR")


def synthesise(
    own: Synthesise,
    captions: Chat,
    model: Model,
    checkpoint: Facts,
    sampling: Annotated[Sampling, Only(*VIDEO)],
    video: Video,
    size: Size,
    shown: Bars,
) -> int:
    """prompts give a data set: clips, prompts, and detailed captions by a language model"""
    pipe = model.pipeline(checkpoint, shown, video.null_embedding)
    fps, watch = given(video.fps, pipe.config.run.fps), steps_on(shown, "generating")

    def note(text: str) -> None:
        shown.close()
        say(text)

    def count(text: str) -> int:
        return len(pipe.tokenizer.ids(text))

    def make(job: engine.ClipJob, path: Path) -> None:
        seeded = replace(sampling, seed=job.seed)
        pixels = pipe.generate(job.prompt, negative=video.negative, size=size, sampling=seeded, callback=watch)
        write_video(path, enlarged(pixels, video.scale), fps)

    prompts, doubles = engine.read_prompts(own.prompts)
    limits = _limits(own, captions, pipe)
    pipe.noise(size)  # sizes that do not fit are known now
    make_folder(own.out, "choose another with --out")
    captioner = _captioner(captions, own.out, limits, count, note)
    if doubles:
        say(f"{own.prompts}: {doubles} of the prompts stand there more than once; each is used once")
    jobs = engine.plan(prompts, own.clips_per_prompt, sampling.seed)
    try:
        report = engine.synthesise(
            jobs,
            own.out,
            make,
            captioner,
            generator=_generator(pipe, model, video, size, sampling),
            count=count,
            prompt_tokens=limits.prompt,
            anyway=own.anyway,
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


def _limits(own: Synthesise, captions: Chat, pipe: Pipeline) -> TextLimits:
    """The token limits asked for. Raises UniViGUError for those that nothing can meet."""
    config = pipe.config.run
    usual = TextLimits.of(config)
    most = given(captions.max_tokens, usual.detail[1])
    fewest = given(captions.min_tokens, min(usual.detail[0], most))
    prompt_most = given(own.prompt_max_tokens, usual.prompt[1])
    if prompt_most > config.context_length:
        raise UniViGUError(
            f"--prompt-max-tokens is {prompt_most}; {pipe.components.path} reads prompts of at most "
            f"{config.context_length}"
        )
    return TextLimits(prompt=(usual.prompt[0], prompt_most), detail=(fewest, most))


def _captioner(
    chat: Chat, out: Path, limits: TextLimits, count: Callable[[str], int], note: Callable[[str], object]
) -> Captioner | None:
    """None without an endpoint. Raises UniViGUError for settings that do not fit each other."""
    url = chat.endpoint
    if url is None:
        for name in ("llm", "api_key_env", "instructions", "llm_options", "cache"):
            if getattr(chat, name) is not None:
                raise UniViGUError(f"--{name.replace('_', '-')} is for captions; name their --endpoint too")
        say("no --endpoint: clips and prompts are written, detailed captions are not")
        return None
    if not chat.llm:
        raise UniViGUError(f"--endpoint {url} needs --llm MODEL: which of its models shall see the clips?")
    name = chat.api_key_env or KEY_NAME
    key = os.environ.get(name)
    if chat.api_key_env and not key:
        raise UniViGUError(f"the environment variable {name} is not set; put the endpoint's key there")
    client = ChatClient(
        url,
        chat.llm,
        key=key,
        key_name=name,
        options=_options(chat.llm_options),
        cache=chat.cache or out / ANSWERS,
        timeout=chat.llm_timeout,
        retries=chat.retries,
        note=lambda text: note(f"     {text}"),
    )
    return Captioner(
        client,
        count,
        limits.detail,
        attempts=chat.attempts,
        frames=chat.frames_shown,
        side=chat.frame_side,
        instructions=_instructions(chat.instructions),
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


def _generator(pipe: Pipeline, model: Model, video: Video, size: Size, sampling: Sampling) -> dict[str, Any]:
    """Everything that clips depend on, for the record. Raises UniViGUError for weights that cannot be read."""
    run = pipe.config.run
    return {
        "model": pipe.components.path.name,
        "sha256": _hash(pipe.components.path),
        "wan": _files_beside(model.wan, pipe),
        "dtype": model.dtype,
        "latent_space": pipe.config.model.latent_space,
        "text_states": pipe.components.text_states,
        "text_flow": pipe.config.model.text_flow,
        "source": pipe.config.model.source,
        "num_heads": pipe.config.model.num_heads,
        "negative": video.negative,
        **({} if video.null_embedding is None else {"null_embedding": video.null_embedding.name}),
        "seed": sampling.seed,
        "steps": given(sampling.steps, run.steps),
        "shift": given(sampling.shift, run.shift),
        "guidance": given(sampling.guidance_scale, run.guidance_scale),
        "solver": sampling.solver,
        "height": given(size.height, run.height),
        "width": given(size.width, run.width),
        "frames": given(size.frames, run.frames),
        "fps": given(video.fps, run.fps),
        "scale": video.scale,
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
