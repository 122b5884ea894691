"""Stories: films of several shots in one look, each of any length.

A shot goes on from the last frames of the one before, which the next run holds as the beginning of its clip; a shot
that is longer than the model forms at once goes on from itself. All runs begin with the same noise, unless a shot has a
seed of its own: the same noise makes the same objects in the same places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.read import open_weights
from ..errors import UniViGUError, counted
from ..io import make_folder, read_text
from ..media.vae import TEMPORAL, read_latent, with_ends, write_latent
from ..sampling import Sampling, Size
from ..sampling.settings import SAMPLING, SIZE
from ..settings import Flag, Number, Text, Whole, from_dict, setting, settings
from ..yaml_file import Entries, parse_yaml, read_yaml
from .pipeline import SEEDS, Callback, Parts, Pipeline, Sampled

MOST_SHOTS = 1000
_STORED = ".latent.safetensors"
_IS_YAML = re.compile(r"^shots\s*:", re.MULTILINE)


@settings
class Shot:
    """One shot of a story."""

    prompt: Text = setting("What it shows.")
    seconds: Number | None = setting(
        "How long it is.", default=None, auto="what the model forms at once", gt=0, le=3600
    )
    seed: Whole | None = setting("Seed of its noise.", default=None, auto="the story's", ge=0, lt=SEEDS)
    cut: Flag = setting("Begin with a new picture; else it goes on from the shot before.", default=False)

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UniViGUError("the prompt of a shot is empty; write what the shot should show")


@settings
class Story:
    """The shots of a film, and what they share."""

    shots: tuple[Shot, ...] = setting("The shots, in order: prompts, or entries with a prompt.")
    keep: Text = setting("Words at the end of every prompt: what stays.", default="")
    overlap: Whole = setting(
        "Frames that a shot goes on from, 4n+1: one tells where things are, five also where they move.",
        default=5,
        ge=1,
        le=1001,
    )

    def __post_init__(self) -> None:
        if not 0 < len(self.shots) <= MOST_SHOTS:
            raise UniViGUError(f"found {counted(len(self.shots), 'shot')}; expected 1 to {MOST_SHOTS:,}")
        if (self.overlap - 1) % TEMPORAL:
            raise UniViGUError(f"overlap is {self.overlap}; expected 4n+1 frames, such as 1, 5 or 9")

    @classmethod
    def read(cls, path: str | Path) -> Story:
        """A story in a file: see ``parse``. Raises UniViGUError, naming the file and the line."""
        if Path(path).suffix.lower() in (".yaml", ".yml"):
            return cls._of(read_yaml(path, "a story"))
        try:
            text = read_text(path, exact=True)
        except FileNotFoundError:
            raise UniViGUError(f"{path}: not found; expected a story, one prompt a line, or YAML with shots") from None
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, path: str | Path = "the story") -> Story:
        """A story from a text: one prompt a line, without empty lines and those that begin with #; or YAML, where a
        line begins with ``shots:``. Errors call it ``path``."""
        if _IS_YAML.search(text):
            return cls._of(parse_yaml(text, path))
        lines = [line.strip() for line in text.splitlines()]
        prompts = [line for line in lines if line and not line.startswith("#")]
        if not prompts:
            raise UniViGUError(f"{path}: holds no prompt; write one a line, each for a shot")
        try:
            return cls(shots=tuple(Shot(prompt=prompt) for prompt in prompts))
        except UniViGUError as error:
            raise UniViGUError(f"{path}: {error}") from None

    @classmethod
    def _of(cls, entries: Entries) -> Story:
        shots = entries.get("shots")
        values = dict(entries)
        if isinstance(shots, list):
            values["shots"] = tuple({"prompt": one} if isinstance(one, str) else one for one in shots)
        try:
            return from_dict(cls, values)
        except UniViGUError as error:
            raise entries.located(error) from None

    def prompt_of(self, shot: Shot) -> str:
        """What the model reads: the shot's words and those that stay."""
        keep = self.keep.strip()
        return shot.prompt.strip() + (" " if keep[:1].isalnum() else "") + keep


@dataclass(frozen=True)
class Window:
    """What one run makes: a clip, uint8 ``[T,H,W,3]``, and its text."""

    pixels: Tensor
    text: str


@dataclass(frozen=True)
class Told:
    """A shot that is made: its prompt, its frames, uint8 ``[T,H,W,3]``, and the texts of its runs."""

    prompt: str
    pixels: Tensor
    texts: tuple[str, ...]


# From a prompt, the frames to begin with, uint8 [1+4n,H,W,3] or None, and a seed.
Draw = Callable[[str, Tensor | None, int], Window]


def tell(
    story: Story, draw: Draw, *, fps: float, frames: int, seed: int = 0, first: Tensor | None = None
) -> Iterator[Told]:
    """The shots of a story, one after the other.

    Args:
        draw: makes a clip of ``frames`` frames. fps: frames a second of the film. seed: of shots without one.
        first: frames, uint8 ``[T,H,W,3]``, that the first shot begins with.

    Raises UniViGUError for clips that are too short to go on from ``overlap`` frames.
    """
    most = frames - TEMPORAL  # that leave something to form
    if most < 1 and (len(story.shots) > 1 or story.shots[0].seconds is not None):
        raise UniViGUError(
            f"the clips have {counted(frames, 'frame')}, and a story goes on from at least one and forms four more; "
            "ask for more frames"
        )
    past: Tensor | None = None  # the end of the film so far
    for number, shot in enumerate(story.shots):
        prompt, begin = story.prompt_of(shot), first if number == 0 else None  # which is not in the film yet
        wanted = None if shot.seconds is None else max(1, round(shot.seconds * fps))
        past = None if shot.cut else past
        made, texts, count = list[Tensor](), list[str](), 0
        while not made or (wanted is not None and count < wanted):
            held = _ending(past if begin is None else begin, max(1, min(story.overlap, most)))
            window = draw(prompt, held, seed if shot.seed is None else shot.seed)
            known = 0 if held is None or begin is not None else len(held)
            new = window.pixels[known : None if wanted is None else known + wanted - count]
            past = new if past is None else torch.cat([past[-story.overlap :], new])
            made.append(new)
            texts.append(window.text)
            count, begin = count + len(new), None
        yield Told(prompt, torch.cat(made), tuple(texts))


def _ending(frames: Tensor | None, most: int) -> Tensor | None:
    """The last frames, 4n+1 of them."""
    if frames is None:
        return None
    count = min(len(frames), most)
    return frames[-(count - (count - 1) % TEMPORAL) :]


@dataclass(frozen=True)
class Drawing:
    """How a pipeline draws the clips of a story. ``joint``: each with its caption, from a prompt as brief as one likes;
    ``plain``: with an empty text stream. ``stored``: where clips are kept until the film is written."""

    pipe: Pipeline
    size: Size = SIZE
    sampling: Sampling = SAMPLING
    negative: str = ""
    joint: bool = False
    plain: bool = False
    best_of: int = 1
    callback: Callback | None = None
    stored: Path | None = None

    def __call__(self, prompt: str, begin: Tensor | None, seed: int) -> Window:
        """See ``Draw``."""
        path = None if self.stored is None else self.stored / f"{self._name(prompt, begin, seed)}{_STORED}"
        drawn = None if path is None else _known(path, self._model)
        if drawn is None:
            drawn = self._drawn(prompt, begin, seed)
            if path is not None:
                make_folder(path.parent, "choose another name with -o")
                write_latent(path, drawn.latent, self._model, drawn.text)
        return Window(self.pipe.decoded(drawn)[0], drawn.text)

    def _drawn(self, prompt: str, begin: Tensor | None, seed: int) -> Sampled:
        pipe, kept = self.pipe, None
        if begin is not None:
            kept = with_ends(torch.zeros_like(pipe.noise(self.size)), pipe.encode_clip, begin)
        options: dict[str, Any] = {"negative": self.negative, "size": self.size, "best_of": self.best_of}
        options |= {"sampling": replace(self.sampling, seed=seed), "callback": self.callback}
        if self.joint:
            return pipe.draw_joint(prompt, parts=Parts(kept), **options)
        return pipe.draw(prompt, text="" if self.plain else None, kept=kept, **options)

    @property
    def _model(self) -> str:
        return self.pipe.components.path.name

    def _name(self, prompt: str, begin: Tensor | None, seed: int) -> str:
        """Another one for every clip that would be another."""
        pipe, file = self.pipe, self.pipe.components.path.stat()
        sampling = replace(self.sampling.resolved(pipe.config.run, joint=self.joint), seed=seed)
        facts = (self._model, file.st_size, file.st_mtime_ns, [str(lora) for lora in pipe.loras])
        asked = (self.size.resolved(pipe.config.run), sampling, self.negative, self.joint, self.plain, self.best_of)
        digest = blake2b(repr((facts, asked, prompt)).encode(errors="surrogateescape"), digest_size=16)
        if begin is not None:
            digest.update(repr(begin.shape).encode() + begin.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def forget(self) -> None:
        """When the film is written: remove what was kept, and its folder unless it holds something else."""
        if self.stored is None:
            return
        for path in self.stored.glob(f"*{_STORED}"):
            if re.fullmatch("[0-9a-f]{32}", path.name.removesuffix(_STORED)):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.stored.rmdir()


def _known(path: Path, model: str) -> Sampled | None:
    """A clip that was kept, None where there is none or it was damaged."""
    if path.exists():
        with suppress(UniViGUError):
            return Sampled(read_latent(path, model), open_weights(path).metadata.get("text", ""))
    return None
