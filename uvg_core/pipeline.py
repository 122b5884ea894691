"""From a prompt or a file to a clip, a caption or both. ``parts.py`` knows where the parts are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .checkpoint import LoraChoice
from .codec.latents import TEMPORAL, LatentCodec, latent_shape
from .codec.text import TextEncoder
from .codec.video_file import read_clip
from .errors import UniViGUError
from .parts import Parts
from .progress import Report, counted_calls
from .sampling import State, caption_likelihood, fill_template, joint, text_to_video, video_to_text
from .sampling.loop import spread

log = logging.getLogger(__name__)

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "models" / "uvg_tiny.safetensors"
Callback = Callable[[int, State], object]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Sampling:
    """Settings of a run; None takes the checkpoint's own recipe (whose ``text_temperature`` is that of captions; joint
    runs take 1)."""

    steps: int | None = None
    shift: float | None = None
    guidance_scale: float | None = None
    guidance_end: float = 1.0
    solver: str = "euler"
    seed: int = 0
    temperature: float | None = None
    top_p: float = 1.0
    text_update: str = "bridge"
    text_length: int | None = None
    video_cache: str = "auto"
    stop_when_stable: int = 0


@dataclass(frozen=True)
class Size:
    """Size of a clip in pixels and frames; None takes the checkpoint's own."""

    height: int | None = None
    width: int | None = None
    frames: int | None = None


@dataclass(frozen=True)
class JointStep:
    """One recorded step of a joint run: the clip it points at, uint8 ``[T,H,W,3]``, and the text as it reads."""

    step: int
    steps: int
    sigma: float
    pixels: Tensor
    text: str


class Pipeline:
    """The three jobs on real files.

    Args:
        model: checkpoint file. wan: a Wan2.1 diffusers folder with VAE, text encoder and tokenizer; needed when the
            checkpoint does not carry its own.
        device: where the parts work. dtype: of the network; None is float32 on the CPU for small checkpoints, else
            what the file holds.
        latent_space: ``normalised`` or ``raw``; None is what the checkpoint says. text_states: see ``TextEncoder``.
        overrides: further arguments of ``load_model`` (text_flow, source, num_heads).
        progress: called with (what, done, total) while parts load, encode and decode; sampling has callbacks.
        loras: LoRA files, each as ``FILE[:VIDEO[:TEXT]]`` or a ``LoraChoice``; ``str()`` of each of ``self.loras``
            says what it changes.
    """

    def __init__(
        self,
        model: str | Path = EMBEDDED_MODEL,
        *,
        wan: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        latent_space: str | None = None,
        text_states: str = "umT5",
        overrides: Mapping[str, Any] | None = None,
        progress: Report | None = None,
        loras: Sequence[str | Path | LoraChoice] = (),
    ) -> None:
        stated = {**(overrides or {}), "latent_space": latent_space}
        self.parts = Parts(
            model,
            wan=wan,
            device=device,
            dtype=dtype,
            text_states=text_states,
            overrides={key: value for key, value in stated.items() if value is not None},
            progress=progress,
            loras=loras,
        )
        self.loras = self.parts.loras
        self.config = self.parts.config
        self.tokenizer = self.parts.tokenizer
        self.network = self.parts.network
        self._last_conditions: tuple[tuple[str, ...], Tensor] | None = None

    # The steps that the jobs share

    @torch.no_grad()
    def conditions(self, prompts: Sequence[str]) -> Tensor:
        """Prompt conditions ``[B,S,E]`` on the device. The last ones are remembered: a folder's clips share a hint."""
        wanted = tuple(prompts)
        if self._last_conditions is None or self._last_conditions[0] != wanted:
            # Before the encoder is loaded: it may take a minute, and a prompt that does not fit is known now.
            self.tokenizer.context(prompts)
            with self.parts.using("encoder") as encoder:
                blocks = list(encoder.get_submodule("encoder.block").children())
                with counted_calls(blocks, "reading the prompt", len(blocks), self.parts.progress):
                    states = TextEncoder(encoder, self.tokenizer, self.parts.text_states)(prompts)
            self._last_conditions = wanted, states.float()
        return self._last_conditions[1]

    def encode_clip(self, pixels: Tensor) -> Tensor:
        """uint8 ``[T,H,W,3]`` -> clean latent ``[1,16,F,h,w]`` on the device."""
        parts = 1 + (len(pixels) - 1) // TEMPORAL
        with (
            self.parts.using("vae") as vae,
            counted_calls([vae.get_submodule("encoder")], "encoding the clip", parts, self.parts.progress),
        ):
            return LatentCodec(vae, self.config.model.latent_space).encode(pixels)

    def decode_clips(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents -> uint8 ``[T,H,W,3]`` each; in tiles when the device's memory does not suffice otherwise."""
        try:
            return self._decode(latents, tiled=False)
        except torch.OutOfMemoryError:
            pass  # not here: the exception holds on to the memory of the attempt
        log.warning("not enough memory to decode in one piece: decoding in tiles")
        return self._decode(latents, tiled=True)

    def _decode(self, latents: Sequence[Tensor], tiled: bool) -> list[Tensor]:
        parts = sum(latent.shape[2] for latent in latents)
        with (
            self.parts.using("vae") as vae,
            counted_calls([vae.get_submodule("decoder")], "decoding the clip", parts, self.parts.progress),
        ):
            codec = LatentCodec(vae, self.config.model.latent_space)
            codec.vae.clear_cache()  # of an attempt that broke off
            codec.vae.use_tiling = tiled
            return [codec.decode(latent) for latent in latents]

    @property
    def device(self) -> torch.device:
        return self.parts.device

    def noise(self, size: Size = Size(), seed: int = 0) -> Tensor:
        """Pure noise ``[1,C,F,h,w]`` for a clip of that size; raises UniViGUError for sizes off the grid."""
        shape = latent_shape(*self._measures(size), self.config.model.in_dim)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def _measures(self, size: Size) -> tuple[int, int, int]:
        """Frames, height and width, with the checkpoint's own where the caller has none."""
        run = self.config.run
        return given(size.frames, run.frames), given(size.height, run.height), given(size.width, run.width)

    def _require_words(self, text: str, what: str) -> str:
        if not text.strip():
            raise UniViGUError(f"the {what} is empty; write what the video should show")
        return text

    # The jobs

    def generate(
        self,
        prompt: str,
        *,
        text: str | None = None,
        negative: str = "",
        size: Size = Size(),
        sampling: Sampling = Sampling(),
        callback: Callback | None = None,
    ) -> Tensor:
        """Prompt -> clip, uint8 ``[T,H,W,3]``. ``text`` goes into the text stream (default: the prompt; an empty
        string leaves the stream empty, which is plain Wan); ``negative`` replaces the empty prompt of guidance."""
        run = self.config.run
        self._require_words(prompt, "prompt")
        noise = self.noise(size, sampling.seed)
        stream = prompt if text is None else text
        context, null = self.conditions([prompt, negative]).split(1)
        tokens = None
        if stream.strip():
            # As long as the text: the release pads and masks, which changes nothing.
            length = min(len(self.tokenizer.ids(stream)), max(run.text_length, run.context_length))
            tokens, _ = self.tokenizer.stream([stream], length)
        with self.network() as model:
            latent = text_to_video(
                model,
                noise=noise,
                text=tokens,
                context=context,
                null_context=null,
                steps=given(sampling.steps, run.steps),
                shift=given(sampling.shift, run.shift),
                guidance_scale=given(sampling.guidance_scale, run.guidance_scale),
                guidance_end=sampling.guidance_end,
                solver=sampling.solver,
                callback=callback,
            )
        return self.decode_clips([latent])[0]

    def latent_of(self, path: str | Path, size: Size = Size()) -> tuple[Tensor, str]:
        """A clip's latent, and the line that says how the clip was fitted to the model."""
        frames, height, width = self._measures(size)
        latent_shape(frames, height, width)
        clip = read_clip(Path(path), frames=frames, height=height, width=width)
        return self.encode_clip(clip.pixels), clip.note

    def caption(
        self,
        latent: Tensor,
        *,
        hint: str = "",
        template: str = "",
        sampling: Sampling = Sampling(),
        callback: Callback | None = None,
    ) -> str:
        """Clean latent -> words; ``hint`` is a prompt to look at beside the clip, ``template`` has blanks to fill."""
        run = self.config.run
        context = self.conditions([hint]) if hint.strip() else None
        length = given(sampling.text_length, run.text_length)
        options: dict[str, Any] = {
            "video": latent,
            "context": context,
            "length": length,
            "steps": given(sampling.steps, run.text_steps),
            "seed": sampling.seed,
            "temperature": given(sampling.temperature, run.text_temperature),
            "top_p": sampling.top_p,
            "text_update": sampling.text_update,
            "video_cache": sampling.video_cache,
            "stop_when_stable": sampling.stop_when_stable,
            "callback": callback,
        }
        with self.network() as model:
            if template:
                ids = fill_template(model, self.tokenizer, template, **options)
            else:
                ids = video_to_text(model, **options)
        return self.tokenizer.text(ids[0])

    def joint(
        self,
        prompt: str,
        *,
        negative: str = "",
        size: Size = Size(),
        sampling: Sampling = Sampling(),
        callback: Callback | None = None,
        record: int = 0,
    ) -> tuple[Tensor, str, list[JointStep]]:
        """Prompt -> clip, caption, and ``record`` steps of how both took shape."""
        run = self.config.run
        self._require_words(prompt, "prompt")
        noise = self.noise(size, sampling.seed)
        context, null = self.conditions([prompt, negative]).split(1)
        steps = given(sampling.steps, run.steps)
        wanted = spread(steps, record)
        states: list[State] = []

        def watch(step: int, state: State) -> object:
            if step in wanted:
                states.append(state)
            return callback(step, state) if callback is not None else None

        with self.network() as model:
            result = joint(
                model,
                noise=noise,
                context=context,
                null_context=null,
                length=given(sampling.text_length, run.text_length),
                steps=steps,
                shift=given(sampling.shift, run.shift),
                guidance_scale=given(sampling.guidance_scale, run.guidance_scale),
                guidance_end=sampling.guidance_end,
                solver=sampling.solver,
                seed=sampling.seed,
                temperature=given(sampling.temperature, 1.0),
                top_p=sampling.top_p,
                text_update=sampling.text_update,
                callback=watch,
            )
        pixels, *clips = self.decode_clips([result.video, *[state.estimate for state in states]])
        trace = [
            JointStep(state.step, state.steps, state.sigma, clip, self.tokenizer.text(state.tokens[0]))
            for state, clip in zip(states, clips, strict=True)
        ]
        return pixels, self.tokenizer.text(result.text[0]), trace

    def rank(
        self,
        latent: Tensor,
        texts: Sequence[str],
        *,
        samples: int = 16,
        seed: int = 0,
        callback: Callable[[int, int], object] | None = None,
    ) -> Tensor:
        """Scores ``[K]`` of candidate texts for a clip, higher is better (see ``caption_likelihood``)."""
        run = self.config.run
        for text in texts:
            self._require_words(text, "text to rank")
        ids = [self.tokenizer.ids(text) for text in texts]
        # As long as the text stream was in training: how a text ends is part of what is judged.
        length = max([run.text_length, *(len(row) for row in ids)])
        with self.network() as model:
            return caption_likelihood(
                model,
                video=latent,
                texts=ids,
                samples=samples,
                seed=seed,
                pad_token=run.pad_token,
                length=length,
                callback=callback,
            )


def given(value: Number | None, default: Number) -> Number:
    """``value`` unless it is None; zero is a value."""
    return default if value is None else value
