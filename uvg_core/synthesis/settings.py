"""What the command ``synthesise`` is told, and what follows from it for one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..checkpoint.locate import locate
from ..data.caches import ANSWERS
from ..data.folder import TextLimits
from ..data.shards import sha256_of
from ..errors import UniViGUError
from ..pipeline.pipeline import Pipeline, given
from ..sampling import Sampling, Size
from ..settings import Flag, Number, Text, Whole, setting, settings

KEY_NAME = "OPENAI_API_KEY"
Count = Annotated[Whole, Field(ge=1, le=100_000)]


@settings
class Synthesise:
    """What the data set is made of."""

    prompts: Path = setting(
        "Text file with one prompt per line (# begins a comment); - reads from standard input.",
        positional=True,
        metavar="PROMPTS",
        stdin="file",
    )
    out: Path = setting("Folder of the data set.", default=Path("data"), short="-o", metavar="DIR")
    clips_per_prompt: Count = setting("Clips per prompt, each from its own noise.", default=1)
    prompt_max_tokens: Whole | None = setting(
        "Longest prompt to accept, in tokens.", default=None, auto="128, or the text stream's length", ge=1, le=100_000
    )
    dry_run: Flag = setting("Show which clips exist and which would be made, without writing anything.", default=False)
    anyway: Flag = setting(
        "Continue in a folder that was made with other settings; finished clips are kept.", default=False
    )


@settings
class Chat:
    """The language model that writes detailed captions, how it is asked, and how long captions are."""

    endpoint: Text | None = setting(
        "OpenAI-compatible API, e.g. http://127.0.0.1:8000/v1; without it, synthesise writes no captions.",
        default=None,
        metavar="URL",
    )
    llm: Text | None = setting("Vision-language model to use there.", default=None, metavar="MODEL")
    api_key_env: Text | None = setting(
        "Environment variable with the API key.",
        default=None,
        auto=f"{KEY_NAME}, for api.openai.com only",
        metavar="NAME",
    )
    instructions: Path | None = setting("Text file with your own system prompt.", default=None)
    frames_shown: Whole = setting("Frames of each clip to show the model.", default=8, ge=1, le=256)
    frame_side: Whole = setting("Longer side of these frames in pixels, at most.", default=512, ge=16, le=4096)
    min_tokens: Whole | None = setting(
        "Shortest caption to accept, in the checkpoint's tokens.",
        default=None,
        auto="128, or 0 for short text streams",
        ge=0,
    )
    max_tokens: Whole | None = setting(
        "Longest caption to accept.", default=None, auto="256, or what the checkpoint reads", ge=1, le=100_000
    )
    attempts: Count = setting("How often to ask for a caption until its length is right.", default=4)
    llm_options: Text | None = setting(
        """Further options of the request, e.g. '{"temperature": 0.7}'.""", default=None, metavar="JSON"
    )
    llm_timeout: Number = setting("Time limit for one answer.", default=120.0, metavar="SECONDS", ge=0.1, le=86_400)
    retries: Whole = setting("Retries after temporary failures.", default=5, ge=0, le=100)
    cache: Path | None = setting(
        "Folder that keeps the answers.", default=None, auto=f"{ANSWERS} in --out", metavar="DIR"
    )


def text_limits(own: Synthesise, chat: Chat, pipe: Pipeline) -> TextLimits:
    """The token limits asked for. Raises UniViGUError for those that nothing can meet."""
    run = pipe.config.run
    usual = TextLimits.of(run)
    most, prompt_most = given(chat.max_tokens, usual.detail[1]), given(own.prompt_max_tokens, usual.prompt[1])
    if prompt_most > run.context_length:
        reads = f"{pipe.components.path} reads prompts of at most {run.context_length}"
        raise UniViGUError(f"--prompt-max-tokens is {prompt_most}; {reads}")
    return TextLimits((usual.prompt[0], prompt_most), (given(chat.min_tokens, min(usual.detail[0], most)), most))


def clip_settings(pipe: Pipeline, wan: Path | None, sampling: Sampling, size: Size, **flags: Any) -> dict[str, Any]:
    """Everything that clips depend on, for the record. ``wan``: the folder that the components were looked for in;
    ``flags``: what else was asked for, as plain values."""
    model, run = pipe.config.model, pipe.config.run
    parts = pipe.components.files.vae.path, pipe.components.files.encoder.path
    beside = ", ".join(path.name for path in parts if path != pipe.components.path) or None
    return {
        "model": pipe.components.path.name,
        "sha256": sha256_of(*locate(pipe.components.path).files),
        "wan": wan.name if wan is not None and all(wan in path.parents for path in parts) else beside,
        "latent_space": model.latent_space,
        "text_states": pipe.components.text_states,
        "text_flow": model.text_flow,
        "source": model.source,
        "num_heads": model.num_heads,
        "seed": sampling.seed,
        "steps": given(sampling.steps, run.steps),
        "shift": given(sampling.shift, run.shift),
        "guidance": given(sampling.guidance_scale, run.guidance_scale),
        "solver": sampling.solver,
        "height": given(size.height, run.height),
        "width": given(size.width, run.width),
        "frames": given(size.frames, run.frames),
        **flags,
    }
