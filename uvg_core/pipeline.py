"""From a prompt or a file to a clip, a caption or both: tokenizer, text encoder, network and VAE put together.

The parts come from one all-in-one file (the embedded model) or from a checkpoint and a Wan2.1 diffusers folder. They
are loaded when they are needed and are never on the device together: a part moves there, works, and leaves; large
parts leave memory altogether and are mapped from their files again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .checkpoint import load_model, read_config, read_part
from .codec.latents import TEMPORAL, LatentCodec, latent_shape, load_vae
from .codec.text import TextEncoder, Tokenizer, load_encoder
from .codec.video_file import read_clip
from .config import CheckpointConfig
from .errors import UniViGUError
from .model import UniViGU
from .progress import Report, counted_calls
from .sampling import State, caption_likelihood, fill_template, joint, text_to_video, video_to_text

log = logging.getLogger(__name__)

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "models" / "uvg_tiny.safetensors"
ENCODER_PREFIX = "text_encoders.umt5xxl.transformer."
TOKENIZER_KEY = "text_encoders.spiece_model"
VAE_PREFIX = "vae."
WAN_FOLDERS = ("vae", "text_encoder", "tokenizer")
# Above this a part is dropped after use and mapped from its file again, rather than kept in memory.
KEEP_BELOW_BYTES = 2**30

Callback = Callable[[int, State], object]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Sampling:
    """Settings of a run; None takes the checkpoint's own recipe."""

    steps: int | None = None
    shift: float | None = None
    guidance_scale: float | None = None
    solver: str = "euler"
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    text_update: str = "bridge"
    text_length: int | None = None


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


def _safetensors_in(folder: Path, stem: str) -> dict[str, Tensor]:
    """All tensors of a model folder in diffusers' layout, single or sharded, mapped and not copied."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = [f"{stem}.safetensors"]
    weights: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise UniViGUError(
                f"{path}: no such file; expected a Wan2.1 folder in diffusers layout with vae/, "
                "text_encoder/ and tokenizer/ (--wan DIR)"
            )
        with safe_open(path, "pt") as file:
            weights.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return weights


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
    """

    def __init__(
        self,
        model: Path = EMBEDDED_MODEL,
        *,
        wan: Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        latent_space: str | None = None,
        text_states: str = "umT5",
        overrides: dict[str, Any] | None = None,
        progress: Report | None = None,
    ) -> None:
        self.progress = progress
        self.path, self.wan, self.text_states = Path(model), wan, text_states
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.overrides = {key: value for key, value in (overrides or {}).items() if value is not None}
        if latent_space is not None:
            self.overrides["latent_space"] = latent_space
        if wan is not None and (absent := [name for name in WAN_FOLDERS if not (wan / name).is_dir()]):
            raise UniViGUError(
                f"{wan}: not a Wan2.1 folder in diffusers layout: {', '.join(absent)} not found in it; expected the "
                "folders vae, text_encoder and tokenizer, as in Wan2.1-T2V-1.3B-Diffusers"
            )
        self.config: CheckpointConfig = read_config(self.path, **self.overrides)
        self.dtype = dtype
        self._kept: dict[str, nn.Module] = {}
        self._tokenizer: Tokenizer | None = None

    # The parts

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            if self.wan is not None:
                self._tokenizer = Tokenizer.from_file(self.wan / "tokenizer" / "spiece.model", self.config.run)
            else:
                piece = self._own(TOKENIZER_KEY, "tokenizer")[""]
                self._tokenizer = Tokenizer(piece.numpy().tobytes(), self.config.run)
        return self._tokenizer

    def _own(self, prefix: str, part: str) -> dict[str, Tensor]:
        """A part out of the checkpoint itself."""
        found = read_part(self.path, prefix) if self.path.suffix == ".safetensors" else {}
        if not found:
            raise UniViGUError(
                f"{self.path}: this checkpoint does not carry a {part}; pass --wan DIR, a Wan2.1 folder "
                "in diffusers layout (vae/, text_encoder/, tokenizer/)"
            )
        return found

    def _load(self, part: str) -> nn.Module:
        if part == "network":
            report = self.progress
            on_bytes = None if report is None else lambda done, total: report("loading the network", done, total)
            return load_model(self.path, dtype=self._network_dtype(), on_progress=on_bytes, **self.overrides)
        if part == "vae":
            weights = (
                _safetensors_in(self.wan / "vae", "diffusion_pytorch_model")
                if self.wan is not None
                else self._own(VAE_PREFIX, "VAE")
            )
            return self._comfortable(load_vae(weights))
        weights = (
            _safetensors_in(self.wan / "text_encoder", "model")
            if self.wan is not None
            else self._own(ENCODER_PREFIX, "text encoder")
        )
        return self._comfortable(load_encoder(weights, self.text_states))

    def _network_dtype(self) -> torch.dtype | None:
        small = self.path.stat().st_size < KEEP_BELOW_BYTES if self.path.is_file() else False
        return self.dtype or (torch.float32 if self.device.type == "cpu" and small else None)

    def _comfortable(self, part: nn.Module) -> nn.Module:
        """Half-precision storage becomes float32 on the CPU, which computes in it best; large parts stay."""
        return part.float() if self.device.type == "cpu" and _bytes_of(part) < KEEP_BELOW_BYTES else part

    @contextmanager
    def _using(self, part: str) -> Iterator[nn.Module]:
        """A part on the device for the length of a block; it leaves afterwards, whatever happens."""
        module = self._kept.pop(part, None) or self._load(part)
        module.to(self.device)
        try:
            yield module
        finally:
            if _bytes_of(module) < KEEP_BELOW_BYTES:
                self._kept[part] = module.to("cpu")
            del module
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @contextmanager
    def network(self) -> Iterator[UniViGU]:
        """The network, on the device for the length of a block."""
        with self._using("network") as module:
            assert isinstance(module, UniViGU)
            yield module

    # The steps that the jobs share

    @torch.inference_mode()
    def conditions(self, prompts: Sequence[str]) -> Tensor:
        """Prompt conditions ``[B,S,E]`` on the device."""
        with self._using("encoder") as encoder:
            blocks = list(encoder.get_submodule("encoder.block").children())
            with counted_calls(blocks, "reading the prompt", len(blocks), self.progress):
                states = TextEncoder(encoder, self.tokenizer, self.config.run, self.text_states)(prompts)
            return states.float()

    def encode_clip(self, pixels: Tensor) -> Tensor:
        """uint8 ``[T,H,W,3]`` -> clean latent ``[1,16,F,h,w]`` on the device."""
        parts = 1 + (len(pixels) - 1) // TEMPORAL
        with (
            self._using("vae") as vae,
            counted_calls([vae.get_submodule("encoder")], "encoding the clip", parts, self.progress),
        ):
            return LatentCodec(vae, self.config.model.latent_space).encode(pixels)

    def decode_clips(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents -> uint8 ``[T,H,W,3]`` each."""
        parts = sum(latent.shape[2] for latent in latents)
        with (
            self._using("vae") as vae,
            counted_calls([vae.get_submodule("decoder")], "decoding the clip", parts, self.progress),
        ):
            codec = LatentCodec(vae, self.config.model.latent_space)
            try:
                return [codec.decode(latent) for latent in latents]
            except torch.OutOfMemoryError:  # the sampling run before this may have taken an hour
                log.warning("not enough memory to decode in one piece: decoding in tiles")
                codec.vae.enable_tiling()
                return [codec.decode(latent) for latent in latents]

    def _noise(self, size: Size, seed: int) -> Tensor:
        run = self.config.run
        shape = latent_shape(
            given(size.frames, run.frames),
            given(size.height, run.height),
            given(size.width, run.width),
            self.config.model.in_dim,
        )
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

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
        noise = self._noise(size, sampling.seed)
        stream = prompt if text is None else text
        context, null = self.conditions([prompt, negative]).split(1)
        tokens, mask = (None, None)
        if stream.strip():
            # As long as the text: masked padding changes nothing.
            length = min(len(self.tokenizer.ids(stream)), max(run.text_length, run.context_length))
            tokens, mask = self.tokenizer.stream([stream], length)
        with self.network() as model:
            latent = text_to_video(
                model,
                noise=noise,
                text=tokens,
                text_mask=mask,
                context=context,
                null_context=null,
                steps=given(sampling.steps, run.steps),
                shift=given(sampling.shift, run.shift),
                guidance_scale=given(sampling.guidance_scale, run.guidance_scale),
                solver=sampling.solver,
                callback=callback,
            )
        return self.decode_clips([latent])[0]

    def latent_of(self, path: Path, size: Size = Size()) -> tuple[Tensor, str]:
        """A clip's latent, and the line that says how the clip was fitted to the model."""
        run = self.config.run
        frames, height, width = (
            given(size.frames, run.frames),
            given(size.height, run.height),
            given(size.width, run.width),
        )
        latent_shape(frames, height, width)
        clip = read_clip(path, frames=frames, height=height, width=width)
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
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text_update": sampling.text_update,
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
        noise = self._noise(size, sampling.seed)
        context, null = self.conditions([prompt, negative]).split(1)
        states: list[State] = []

        def watch(step: int, state: State) -> object:
            if record:
                states.append(state)
            return callback(step, state) if callback is not None else None

        with self.network() as model:
            result = joint(
                model,
                noise=noise,
                context=context,
                null_context=null,
                length=given(sampling.text_length, run.text_length),
                steps=given(sampling.steps, run.steps),
                shift=given(sampling.shift, run.shift),
                guidance_scale=given(sampling.guidance_scale, run.guidance_scale),
                solver=sampling.solver,
                seed=sampling.seed,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                text_update=sampling.text_update,
                callback=watch,
            )
        chosen = [states[i] for i in _spread(len(states), record)]
        pixels, *steps = self.decode_clips([result.video, *[state.estimate for state in chosen]])
        trace = [
            JointStep(state.step, state.steps, state.sigma, clip, self.tokenizer.text(state.tokens[0]))
            for state, clip in zip(chosen, steps, strict=True)
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
        length = max(run.text_length if run.text_length <= 32 else 0, *(len(row) for row in ids))
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


def _bytes_of(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _spread(count: int, wanted: int) -> list[int]:
    """``wanted`` indices spread over ``count`` steps, both ends included."""
    if wanted >= count or wanted < 2:
        return list(range(count)) if wanted >= count else [count - 1][:wanted]
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})
