"""What commands share: the model and how it runs, the clip's file, progress, and what a failed run keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from ..checkpoint import LoraChoice, Overrides
from ..checkpoint.config import say_unchecked
from ..config import TEXT_STATES
from ..errors import UniViGUError, counted
from ..io import write_beside
from ..media.vae import write_latent
from ..media.video.footage import FOOTAGE, Footage
from ..pipeline.component_files import Places, find_fast_lora, find_network_file
from ..pipeline.fill import Held, hold_ends, hold_outside
from ..pipeline.pipeline import EMBEDDED_MODEL, Callback, Pipeline, Sampled
from ..progress import Bars
from ..sampling import BestOf, Size
from ..settings import Flag, Number, OneOf, Text, Whole, setting, settings
from .flags import Only
from .output import CANCELLED, complain, say

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VIDEO = ("steps", "seed", "shift", "guidance_scale", "guidance_end", "solver")
TEXT = ("temperature", "top_p", "text_length")


@settings
class Model:
    """A checkpoint, the files it needs beside it, and how it runs."""

    model: Path | None = setting(
        "Checkpoint.", default=None, auto="the embedded model; with --comfyui, the one found there"
    )
    device: Text | None = setting("cpu, cuda or cuda:1.", default=None, auto="cuda if available")
    dtype: Annotated[str, OneOf(*DTYPES)] | None = setting(
        "Data type of the network.",
        default=None,
        auto="fp32 for small models, bf16 for large ones on a GPU, otherwise as stored",
    )
    lora: tuple[LoraChoice, ...] = setting(
        "LoRA to apply, with optional strengths for the video half and the text half (default: 1; one number sets "
        "both). "
        "Repeat the flag to apply several.",
        default=(),
        metavar="FILE[:VIDEO[:TEXT]]",
    )
    places: Places = setting("The files beside it.", factory=Places)
    checkpoint: Annotated[
        Overrides, Only("latent_space", "text_flow", "source", "num_heads", text_states=TEXT_STATES)
    ] = setting("What its file may not say.", factory=Overrides)

    def pipeline(
        self, shown: Bars, null_embedding: Path | None = None, *, checking: bool = False, fast: bool = False
    ) -> Pipeline:
        """The pipeline of these files. ``checking``: without the warning that the model was never checked; ``fast``:
        with the few-step LoRA that belongs to it."""
        model = self.model or EMBEDDED_MODEL
        if self.places.comfyui is not None and (self.model is None or not self.model.exists()):
            model = find_network_file(self.places.comfyui, self.model)
            say(f"network: {model}")
        pipe = Pipeline(
            model,
            self.places,
            device=self.device,
            dtype=DTYPES.get(self.dtype or ""),
            null_embedding=null_embedding,
            overrides=self.checkpoint,
            progress=shown,
            loras=(*([find_fast_lora(model)] if fast else []), *self.lora),
        )
        for lora in pipe.loras:
            shown.close()
            say(str(lora))
        if not pipe.config.run.checked and not checking:
            say_unchecked(str(model), pipe.config.model.latent_space, pipe.components.text_states)
        return pipe


@settings
class Video:
    """What guidance leads away from, and how a clip's file is written."""

    negative: Text = setting("Negative prompt, which guidance steers away from.", default="", auto="the empty prompt")
    fps: Number | None = setting(
        "Frames per second of the output file.", default=None, auto="the checkpoint's own", ge=0.1, le=240
    )
    scale: Whole | None = setting(
        "Enlarge the output N times by repeating pixels.", default=None, auto="small clips only", ge=1, le=64
    )
    null_embedding: Path | None = setting(
        "Stored null condition to use for guidance instead of the encoded empty prompt, such as the release's "
        "empty_context_t5_emb.pt.",
        default=None,
    )
    fast: Flag = setting(
        "Draw in a few steps without guidance, with the LoRA NAME_fast.safetensors that lies beside the checkpoint or "
        "in loras.",
        default=False,
    )


@settings
class Holds:
    """Parts of a clip that stay as they are, while the rest forms around them."""

    first_frame: Path | None = setting("Picture to begin with; of a clip its first frame.", default=None)
    last_frame: Path | None = setting(
        "Picture to end with, still for the last four frames; of a clip its last four.", default=None
    )
    hold: Path | None = setting(
        "Clip of which only a part forms anew: the white of --mask, or the bars that --fit pad adds.", default=None
    )
    mask: Path | None = setting("Picture or clip of the shape of --hold: white where it forms anew.", default=None)

    footage: Annotated[Footage, Only("start", "seconds", "fit", "crop", "background")] = setting(
        "How they are read.", factory=Footage
    )

    def __post_init__(self) -> None:
        if self.hold is not None and (self.first_frame or self.last_frame) is not None:
            raise UniViGUError(
                "--hold takes the frames of its clip; leave out --first-frame and --last-frame, or hold these alone"
            )
        if self.mask is not None and self.hold is None:
            raise UniViGUError("--mask says what of a clip forms anew; name the clip with --hold")

    def read(self, pipe: Pipeline, size: Size, shown: Bars) -> Held:
        """What is held of a clip of that size, with a note on it."""
        if self.hold is not None:
            held = hold_outside(pipe, self.hold, self.mask, size, self.footage)
        elif self.first_frame is not None or self.last_frame is not None:
            held = hold_ends(pipe, self.first_frame, self.last_frame, size, self.footage)
        elif self.footage != FOOTAGE:
            raise UniViGUError(
                "--start, --seconds, --fit, --crop and --background say how a held clip is read; name one with --hold, "
                "--first-frame or --last-frame"
            )
        else:
            return Held(size)
        shown.close()
        say(held.note)
        return held


def steps_on(shown: Bars, what: str, words: Callable[[Tensor], str] | None = None) -> Callback:
    """A sampler's callback that shows its steps, and the text so far."""
    return lambda step, state: shown(what, step, state.steps, words(state.tokens[0]) if words else "")


def steps_of(pipe: Pipeline, best: BestOf, callback: Callable[[str], Callback], what: str) -> Callback:
    """``callback``, made for ``what`` is under way: which of several draws."""
    if best.best_of == 1:
        return callback(what)
    return lambda step, state: callback(f"{what} {len(pipe.draws) + 1} of {best.best_of}")(step, state)


def drawn(pipe: Pipeline, best: BestOf, shown: Bars, draw: Callable[[], object]) -> tuple[list[Sampled], int]:
    """What is to be written, the best first, and the exit code. Scores are said; Ctrl-C ends the draws, and the best so
    far is kept."""
    with suppress(KeyboardInterrupt) if best.best_of > 1 else nullcontext():
        draw()
    shown.close()
    kept = pipe.sampled
    if kept is None:
        raise KeyboardInterrupt
    if best.best_of == 1:
        return [kept], 0
    for one in pipe.draws:
        say(f"seed {one.seed}: {one.score:.3g} {pipe.score_unit}{', the best' if one.seed == kept.seed else ''}")
    stopped = len(pipe.draws) < best.best_of
    if stopped:
        say(f"stopped after {len(pipe.draws)} of {counted(best.best_of, 'draw')}; the best so far is kept")
    say(f"--seed {kept.seed} without --best-of makes this clip again")
    others = [one for one in pipe.draws if one.seed != kept.seed] if best.keep_all else []
    return [kept, *others], CANCELLED if stopped else 0


def beside(path: Path, draw: Sampled) -> Path:
    """The name of another draw than the best, which lies at ``path``."""
    return path.with_stem(f"{path.stem}.seed_{draw.seed}")


@contextmanager
def latent_saved(pipe: Pipeline, out: Path, shown: Bars) -> Iterator[None]:
    """Where a sampled clip cannot be decoded and written, save its latent beside ``out``, and its text."""
    try:
        yield
    except BaseException:
        if pipe.sampled is not None:
            shown.close()
            path, text = out.with_suffix(".latent.safetensors"), pipe.sampled.text
            latent = pipe.sampled.latent

            def keep_latent() -> str:
                write_latent(path, latent, model=pipe.components.path.name)
                return (
                    f'{path}: the sampled latent was saved. To decode it: generate --from-latent "{path}" -o "{out}", '
                    "with the "
                    "same --model, text encoder and VAE (add --device cpu if memory runs out)"
                )

            _save(keep_latent)
            if text:
                words, line = out.with_suffix(".txt"), text + "\n"
                _save(lambda: f"{write_beside(words, line)}: its caption")
        raise


def _save(write: Callable[[], str]) -> None:
    """Save one of several things from a run that failed, and say what; an error here does not keep the others from
    being saved."""
    try:
        say(write())
    except UniViGUError as error:
        complain(error)
