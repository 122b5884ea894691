"""From a prompt or a file to a clip, a caption or both. ``components.py`` loads what the jobs run on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checkpoint import LoraChoice, Overrides
from ..checkpoint.lora import with_students
from ..config import TEXT_STATES, CheckpointConfig
from ..errors import UniViGUError
from ..io import PACK
from ..media.null_embedding import read_null_embedding
from ..media.text_encoder import TextEncoder, as_plain_t5
from ..media.tokenizer import without_blanks
from ..media.vae import SPATIAL, TEMPORAL, LatentCodec, latent_shape, vae_bytes
from ..media.video.footage import FOOTAGE, Footage
from ..model import UniViGU
from ..model.memory import free_memory, pass_bytes, require_room, video_tokens
from ..progress import Report, counted_calls
from ..sampling import (
    BestOf,
    Editing,
    GuidedDenoiser,
    JointResult,
    Judging,
    Ranking,
    Sampling,
    Size,
    State,
    Worded,
    caption_likelihood,
    clip_likelihood,
    edit,
    fill_template,
    joint,
    joint_template,
    text_to_video,
    video_to_text,
)
from ..sampling.loop import spread
from ..sampling.rank import LOGITS_AT_ONCE, padded
from ..sampling.settings import EDITING, JUDGING, RANKING, SAMPLING, SIZE
from .component_files import IN_CHECKPOINT, Places
from .components import Components, free_bytes
from .together import SMALL, clips_together

log = logging.getLogger(__name__)

EMBEDDED_MODEL = PACK / "models" / "uvg_tiny.safetensors"
Callback = Callable[[int, State], object]
Kept = tuple[Tensor, Tensor]
Number = TypeVar("Number", int, float)
Result = TypeVar("Result")


SEEDS = 2**63
MOST_RANKED = 4096  # tokens of a text whose likelihood is taken


@dataclass(frozen=True)
class JointStep:
    """One recorded step of a joint run: the clip it points at, uint8 ``[T,H,W,3]``, and the text as it reads."""

    step: int
    steps: int
    sigma: float
    pixels: Tensor
    text: str


@dataclass(frozen=True)
class Parts:
    """What is there before a run. ``kept``: of a clip of its size, the clean latent and a mask, as ``text_to_video``
    takes them; ``template``: of its caption, words with blanks to fill."""

    kept: Kept | None = None
    template: str = ""


NO_PARTS = Parts()


@dataclass(frozen=True)
class Sampled:
    """What a job has drawn and not decoded yet: the latent ``[1,C,F,h,w]`` on the CPU and, of a joint run, the text,
    its tokens ``[1,L]`` and the recorded steps. ``score``: how well the clip fits its words, where it was judged."""

    latent: Tensor
    text: str = ""
    tokens: Tensor | None = None
    record: tuple[State, ...] = ()
    seed: int = 0
    score: float | None = None


class Pipeline:
    """The three jobs on real files.

    ``sampled`` is what the last ``generate`` or ``joint`` has drawn, None before it has: should decoding fail, nothing
    else is lost (``decoded`` goes on from there). Of several draws it is the best so far, and ``draws`` holds them all.

    Args:
        model: checkpoint file.
        places: where to look for VAE, text encoder and tokenizer; those that are not named there are the checkpoint's
            own. See ``Places``.
        device: where the components work. dtype: of the network; None is float32 for small checkpoints; for large ones
            bfloat16 on a card (float16 where it has none), else what the file holds.
        null_embedding: a file with the condition that guidance leads away from where there is no negative prompt, such
            as the release's ``empty_context_t5_emb.pt``; None encodes the empty prompt.
        overrides: facts that the checkpoint does not state, or that take the place of what it states. Text states are
            umT5's where nobody states them (see ``TextEncoder``).
        progress: called with (what, done, total) while components load, encode and decode; sampling has callbacks.
        loras: LoRA files, each as ``FILE[:VIDEO[:TEXT]]`` or a ``LoraChoice``; ``str()`` of each of ``self.loras``
            says what it changes.
    """

    def __init__(
        self,
        model: str | Path = EMBEDDED_MODEL,
        places: Places = IN_CHECKPOINT,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        null_embedding: str | Path | None = None,
        overrides: Overrides | None = None,
        progress: Report | None = None,
        loras: Sequence[str | Path | LoraChoice] = (),
    ) -> None:
        self.components = Components(
            model, places, device=device, dtype=dtype, overrides=overrides, progress=progress, loras=loras
        )
        self.loras = self.components.loras
        config = self.components.config
        self.config = replace(config, run=with_students(config.run, self.loras))
        self.tokenizer = self.components.tokenizer
        self.network = self.components.network
        self.null_condition: Tensor | None = None
        if null_embedding is not None:
            self.null_condition = read_null_embedding(null_embedding, self.config.model.text_dim).to(self.device)
        self.sampled: Sampled | None = None
        self.draws: list[Sampled] = []
        self._last_conditions: tuple[tuple[str, ...], Tensor] | None = None

    # The steps that the jobs share

    @torch.no_grad()
    def conditions(self, prompts: Sequence[str]) -> Tensor:
        """Prompt conditions ``[B,S,E]`` on the device. The last ones are remembered: a folder's clips share a hint."""
        wanted = tuple(prompts)
        if self._last_conditions is None or self._last_conditions[0] != wanted:
            # Before the encoder is loaded: it may take a minute, and a prompt that does not fit is known now.
            self.tokenizer.context(prompts)
            states = self.components.text_states
            self._last_conditions = wanted, self._read(prompts, [states])[states]
        return self._last_conditions[1]

    @torch.no_grad()
    def conditions_by_states(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Prompt conditions ``[B,S,E]`` on the device under every kind of text states, the encoder loaded once."""
        self.components.run_encoder_as("umT5")  # which holds what the other one needs too
        return self._read(prompts, TEXT_STATES)

    def _read(self, prompts: Sequence[str], kinds: Sequence[str]) -> dict[str, Tensor]:
        def attempt() -> dict[str, Tensor]:
            with self.components.using("encoder") as encoder:
                blocks = list(encoder.get_submodule("encoder.block").children())
                found = {}
                with counted_calls(blocks, "reading the prompt", len(kinds) * len(blocks), self.components.progress):
                    for kind in kinds:
                        with nullcontext() if kind == self.components.text_states else as_plain_t5(encoder):
                            states = TextEncoder(encoder, self.tokenizer, kind)(prompts)
                        found[kind] = states.float().to(self.device)
                return found

        try:
            return attempt()
        except torch.OutOfMemoryError:
            if self.components.encoder_device.type == "cpu":
                raise
        log.warning(f"not enough memory on {self.device} to read the prompt: reading it on the CPU")
        self.components.encoder_device = torch.device("cpu")
        return attempt()

    def guided(self, prompt: str, negative: str = "") -> tuple[Tensor, Tensor]:
        """Conditions ``[1,S,E]`` of a prompt and of what guidance leads away from."""
        if self.null_condition is not None and not negative.strip():
            return self.conditions([prompt]), self.null_condition
        both = self.conditions([prompt, negative])
        return both[:1], both[1:]

    def encode_clip(self, pixels: Tensor) -> Tensor:
        """uint8 ``[T,H,W,3]`` -> clean latent ``[1,16,F,h,w]`` on the device; in tiles where memory does not suffice
        otherwise."""
        return self._encoded(pixels[None])

    def _encoded(self, pixels: Tensor) -> Tensor:
        parts = 1 + (pixels.shape[1] - 1) // TEMPORAL
        return self._through_vae("encoder", parts, pixels.shape[1:4], lambda codec: codec.encode(pixels))

    def encode_clips(self, clips: Sequence[Tensor]) -> Tensor:
        """Clips of one size, uint8 ``[T,H,W,3]`` -> clean latents ``[B,16,F,h,w]`` on the device: small ones together,
        which is several times faster."""
        frames, height, width, _ = clips[0].shape
        with self.components.using("vae") as vae:
            one = vae_bytes(vae, "encoder", frames, height, width)
        some = torch.stack(list(clips)).split(max(1, int(SMALL / one)))
        return torch.cat([self._encoded(pixels) for pixels in some])

    def raw_latents(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Clips of one size, uint8 ``[T,H,W,3]`` -> latents ``[1,16,F,h,w]`` on the device as the VAE gives them."""
        parts = sum(1 + (len(pixels) - 1) // TEMPORAL for pixels in clips)

        def encode(codec: LatentCodec) -> list[Tensor]:
            raw = LatentCodec(codec.vae, "raw")
            return [raw.encode(pixels[None]) for pixels in clips]

        return self._through_vae("encoder", parts, clips[0].shape[:3], encode)

    def decode_clips(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents -> uint8 ``[T,H,W,3]`` each; in tiles where the device's memory does not suffice otherwise."""
        parts = sum(latent.shape[2] for latent in latents)
        frames, height, width = latents[0].shape[2:]
        size = (TEMPORAL * (frames - 1) + 1, SPATIAL * height, SPATIAL * width)
        return self._through_vae("decoder", parts, size, lambda codec: [codec.decode(latent)[0] for latent in latents])

    def _through_vae(
        self, tower: str, parts: int, size: Sequence[int], work: Callable[[LatentCodec], Result]
    ) -> Result:
        """``work`` in one piece or, where that does not fit, in tiles. ``size``: frames, height and width in pixels."""
        what = {"encoder": "encoding the clip", "decoder": "decoding the clip"}[tower]

        def attempt(tiled: bool) -> Result:
            with (
                self.components.using("vae") as vae,
                counted_calls([vae.get_submodule(tower)], what, parts, self.components.progress),
            ):
                codec = LatentCodec(vae, self.config.model.latent_space)
                codec.vae.clear_cache()  # of an attempt that broke off
                needed, free = vae_bytes(vae, tower, *size), free_bytes(self.device)
                if not tiled and 0 < free < needed:
                    log.warning(f"{what} takes {needed / 1e9:.1f} GB in one piece, {free / 1e9:.1f} GB are free: tiles")
                    tiled = True
                codec.vae.use_tiling = tiled
                return work(codec)

        try:
            return attempt(tiled=False)
        except torch.OutOfMemoryError:
            pass  # not here: the exception holds on to the memory of the attempt
        log.warning(f"not enough memory for {what} in one piece: trying again in tiles")
        return attempt(tiled=True)

    def run_as(self, config: CheckpointConfig) -> None:
        """Run the same weights by other facts from now on: latent space, clocks, text states."""
        self.components.run_as(config)
        self.config, self._last_conditions = config, None

    @property
    def device(self) -> torch.device:
        return self.components.device

    def _drawing(self, sampling: Sampling, negative: str, *, joint: bool = False) -> Sampling:
        """Settings of a clip that is drawn. Raises UniViGUError for a negative prompt that a few-step model ignores."""
        run = self.config.run
        sampling = sampling.resolved(run, joint=joint)
        if run.guidance_scale == sampling.guidance_scale == 1 and negative.strip():
            raise UniViGUError(
                "the negative prompt has no effect with a few-step model or LoRA, which draws without guidance. Remove "
                "the negative prompt, or use the model without the LoRA"
            )
        return sampling

    def _shape(self, size: Size) -> tuple[int, int, int, int, int]:
        """Of the latent of a clip. Raises UniViGUError for sizes that are off the grid or do not fit into memory."""
        frames, height, width = size.resolved(self.config.run)
        config, what = self.config.model, f"a clip of {frames} frames of {width}x{height}"
        shape = latent_shape(frames, height, width, config.in_dim)
        require_room(3 * frames * height * width, torch.device("cpu"), what)  # its pixels
        video = video_tokens(shape[2:], config)
        require_room(pass_bytes(config, rows=1, video=video, text=0, itemsize=2, logits=0), self.device, what)
        return shape

    def noise(self, size: Size = SIZE, seed: int = 0) -> Tensor:
        """Pure noise ``[1,C,F,h,w]`` for a clip of that size; raises UniViGUError for sizes off the grid, and for those
        that no memory of this machine holds."""
        shape = self._shape(size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    # The jobs

    def generate(self, prompt: str, **options: Any) -> Tensor:
        """Prompt -> clip, uint8 ``[T,H,W,3]``; ``options`` are those of ``draw``."""
        return self.decoded(self.draw(prompt, **options))[0]

    def draw(
        self,
        prompt: str,
        *,
        text: str | None = None,
        negative: str = "",
        size: Size = SIZE,
        sampling: Sampling = SAMPLING,
        kept: Kept | None = None,
        best_of: int = 1,
        callback: Callback | None = None,
    ) -> Sampled:
        """Prompt -> latent. ``text`` goes into the text stream (default: the prompt; an empty string leaves the stream
        empty, which is plain Wan); ``negative`` replaces the empty prompt of guidance; ``kept``: see ``Parts``.
        ``best_of``: draw so many, with the seeds that follow each other, and take the one that fits the words best."""
        _require_words(prompt, "prompt")
        sampling = self._drawing(sampling, negative)
        stream = prompt if text is None else text
        self._shape(size)  # what does not fit is known before the prompt is read
        context, null = self.guided(prompt, negative)
        tokens = self._tokens(stream)

        def once(seeded: Sampling) -> Sampled:
            noise = self.noise(size, seeded.seed)

            def job(network: UniViGU) -> Tensor:
                denoise = GuidedDenoiser.of(network, context, null, seeded)
                return text_to_video(denoise, noise, seeded, text=tokens, kept=kept, callback=callback)

            return Sampled(self.components.on_network(job).cpu(), seed=seeded.seed)

        return self._best(best_of, sampling, once, stream if stream.strip() else prompt)

    def _best(self, count: int, sampling: Sampling, once: Callable[[Sampling], Sampled], words: str = "") -> Sampled:
        """The best of ``count`` draws, whose seeds follow each other, judged by ``words`` or else by their own. Raises
        UniViGUError for a count that is none."""
        self.draws, self.sampled = [], None
        given = self._padded([words]) if words and count > 1 else None
        for place in range(BestOf(best_of=count).best_of):
            one = once(replace(sampling, seed=(sampling.seed + place) % SEEDS))
            if count > 1:
                tokens = one.tokens if given is None else given
                assert tokens is not None
                one = replace(one, score=float(self.judge(one.latent, tokens)))
            if self.sampled is None or (one.score or 0.0) > (self.sampled.score or 0.0):
                self.sampled = one
            self.draws.append(replace(one, record=()))
        assert self.sampled is not None
        return self.sampled

    def judge(
        self, latents: Tensor, texts: Sequence[str] | Tensor, judging: Judging = JUDGING, *, batch: int = 1
    ) -> Tensor:
        """Scores ``[N]`` of clips ``[N,C,F,h,w]`` by one text, or each by its own, in words or token ids; the highest
        fits best (see ``clip_likelihood``). ``batch``: clips in a pass."""
        tokens = texts if isinstance(texts, Tensor) else self._padded(texts)
        return self.components.on_network(
            lambda network: clip_likelihood(
                GuidedDenoiser(network), latents.to(self.device), tokens, judging, batch=batch
            )
        )

    @property
    def score_unit(self) -> str:
        """What scores of texts and clips are counted in."""
        return "nats" if self.config.model.text_flow == "discrete" else "squared error"

    def decoded(self, drawn: Sampled) -> tuple[Tensor, list[JointStep]]:
        """The clip of a draw, uint8 ``[T,H,W,3]``, and its recorded steps."""
        pixels, *clips = self.decode_clips([drawn.latent.to(self.device), *[state.estimate for state in drawn.record]])
        steps = zip(drawn.record, clips, strict=True)
        return pixels, [
            JointStep(state.step, state.steps, state.sigma, clip, self.tokenizer.text(state.tokens[0]))
            for state, clip in steps
        ]

    def _tokens(self, text: str) -> Tensor | None:
        """Ids ``[1,L]`` for the text stream, None for an empty one. As long as the text: the release pads and masks,
        which changes nothing."""
        if not text.strip():
            return None
        run = self.config.run
        length = min(len(self.tokenizer.ids(text)), max(run.text_length, run.context_length))
        return self.tokenizer.stream([text], length)[0]

    def edit(
        self,
        latent: Tensor,
        captions: tuple[str, str],
        *,
        negative: str = "",
        plain: bool = False,
        sampling: Sampling = SAMPLING,
        editing: Editing = EDITING,
        free: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """A clip's clean latent -> that of the clip with other words; ``captions``: what describes it and what shall.
        ``plain`` leaves the text stream empty, as in plain Wan; ``free``: see ``edit``."""
        for text in captions:
            _require_words(text, "caption")
        sampling = self._drawing(sampling, negative)
        stored = self.null_condition if not negative.strip() else None
        context = self.conditions([*captions, *([negative] if stored is None else [])])
        null = context[2:] if stored is None else stored

        def once(seeded: Sampling) -> Sampled:
            def job(network: UniViGU) -> Tensor:
                scales = editing.source_guidance, sampling.guidance_scale
                old, new = (
                    Worded(
                        GuidedDenoiser(network, context[i : i + 1], null, scales[i], sampling.guidance_end),
                        None if plain else self._tokens(text),
                    )
                    for i, text in enumerate(captions)
                )
                return edit(latent, old, new, seeded, editing, free=free, callback=callback)

            return Sampled(self.components.on_network(job).cpu(), captions[1], seed=seeded.seed)

        return self._best(editing.best_of, sampling, once, captions[1]).latent.to(self.device)

    def latent_of(self, path: str | Path, size: Size = SIZE, footage: Footage = FOOTAGE) -> tuple[Tensor, str]:
        """A clip's latent, and the line that says how the clip was fitted to the model."""
        self._shape(size)  # refuses what cannot be before a file is opened
        clip = footage.read(path, size.spec(self.config.run, footage))
        return self.encode_clip(clip.pixels), clip.note

    def caption(
        self,
        latent: Tensor,
        *,
        hint: str = "",
        template: str = "",
        sampling: Sampling = SAMPLING,
        callback: Callback | None = None,
    ) -> str:
        """Clean latent -> words; ``hint`` is a prompt to look at beside the clip, ``template`` has blanks to fill."""
        seed = sampling.seed
        return self.captions(latent, [seed], hint=hint, template=template, sampling=sampling, callback=callback)[0]

    def captions(
        self,
        latents: Tensor,
        seeds: Sequence[int],
        *,
        hint: str = "",
        template: str = "",
        sampling: Sampling = SAMPLING,
        callback: Callback | None = None,
    ) -> list[str]:
        """Words for each of the clips ``[B,C,F,h,w]``, as ``caption`` gives them alone with that of ``seeds``."""
        sampling = sampling.resolved(self.config.run, captions=True)
        context = self.conditions([hint]) if hint.strip() else None

        def job(network: UniViGU) -> Tensor:
            denoise = GuidedDenoiser(network, context)
            if not template:
                return video_to_text(denoise, latents, sampling, seeds=seeds, callback=callback)
            filled = [
                fill_template(
                    denoise, self.tokenizer, template, latent, replace(sampling, seed=seed), callback=callback
                )
                for latent, seed in zip(latents.split(1), seeds, strict=True)
            ]
            return torch.cat(filled)

        return [self.tokenizer.text(row) for row in self.components.on_network(job)]

    def together(self, size: Size = SIZE) -> int:
        """How many clips of that size are captioned in one pass. Raises UniViGUError for sizes that cannot be."""
        self._shape(size)
        free = SMALL if self.device.type == "cpu" else free_memory(self.device)
        return clips_together(self.config.model, self.config.run, size.resolved(self.config.run), free)

    def joint(self, prompt: str, **options: Any) -> tuple[Tensor, str, list[JointStep]]:
        """Prompt -> clip, caption, and the recorded steps; ``options`` are those of ``draw_joint``."""
        drawn = self.draw_joint(prompt, **options)
        pixels, trace = self.decoded(drawn)
        return pixels, drawn.text, trace

    def draw_joint(
        self,
        prompt: str,
        *,
        negative: str = "",
        size: Size = SIZE,
        sampling: Sampling = SAMPLING,
        parts: Parts = NO_PARTS,
        best_of: int = 1,
        callback: Callback | None = None,
        record: int = 0,
    ) -> Sampled:
        """Prompt -> latent, caption, and ``record`` steps of how both took shape. ``parts``: those that are there; the
        words of a template are the prompt where that is empty. ``best_of``: as of ``draw``, where each clip is held
        against its own caption: a brief prompt is no text as the model writes them."""
        prompt = prompt if prompt.strip() else without_blanks(parts.template)
        _require_words(prompt, "prompt")
        sampling = self._drawing(sampling, negative, joint=True)
        self._shape(size)
        context, null = self.guided(prompt, negative)
        wanted = spread(sampling.steps or 0, record)

        def once(seeded: Sampling) -> Sampled:
            noise, runs = self.noise(size, seeded.seed), list[list[State]]()

            def on_step(step: int, state: State) -> object:
                if step == 1:
                    runs.append([])
                if step in wanted:
                    runs[-1].append(state)
                return callback(step, state) if callback is not None else None

            def job(network: UniViGU) -> tuple[JointResult, int]:
                denoise = GuidedDenoiser.of(network, context, null, seeded)
                kept, template = parts.kept, parts.template
                if template:
                    return joint_template(denoise, self.tokenizer, template, noise, seeded, kept=kept, callback=on_step)
                return joint(denoise, noise, seeded, kept=kept, callback=on_step), 0

            result, chosen = self.components.on_network(job)
            text = self.tokenizer.text(result.text[0])
            return Sampled(result.video.cpu(), text, result.text.cpu(), tuple(runs[chosen]), seeded.seed)

        return self._best(best_of, sampling, once)

    def rank(
        self,
        latent: Tensor,
        texts: Sequence[str],
        ranking: Ranking = RANKING,
        *,
        callback: Callable[[int, int], object] | None = None,
    ) -> Tensor:
        """Scores ``[K]`` of candidate texts for a clip, higher is better (see ``caption_likelihood``)."""
        config, tokens = self.config.model, self._padded(texts)
        length = tokens.shape[1]
        rows = ranking.batch or min(8, len(tokens), max(1, LOGITS_AT_ONCE // (length * config.text_out_dim)))

        def job(network: UniViGU) -> Tensor:
            nonlocal rows
            video, itemsize = video_tokens(latent.shape[2:], config), network.computes_in(latent).itemsize
            one = pass_bytes(config, rows=1, video=video, text=length, itemsize=itemsize, logits=1, velocity=False)
            rows = max(1, min(rows, int(min(free_memory(self.device) / one, 8))))
            while True:
                try:
                    settings = replace(ranking, batch=rows)
                    return caption_likelihood(GuidedDenoiser(network), latent, tokens, settings, callback=callback)
                except torch.OutOfMemoryError:
                    if rows == 1:
                        raise
                rows //= 2
                log.warning(f"not enough memory to rank so many texts at once: {rows} at a time")

        return self.components.on_network(job)

    def _padded(self, texts: Sequence[str]) -> Tensor:
        """Ids ``[K,L]`` of texts to score, as long as the text stream was in training: how a text ends is part of what
        is judged."""
        for text in texts:
            _require_words(text, "text to rank")
        ids = [self.tokenizer.ids(text) for text in texts]
        if (longest := max(map(len, ids), default=0)) > MOST_RANKED:
            raise UniViGUError(f"a text to rank has {longest} tokens; at most {MOST_RANKED} can be ranked. Shorten it")
        return padded(ids, self.config.run.pad_token, self.config.run.text_length)


def _require_words(text: str, what: str) -> None:
    if not text.strip():
        raise UniViGUError(f"the {what} is empty; write what the video should show")


def given(value: Number | None, default: Number) -> Number:
    """``value`` unless it is None; zero is a value."""
    return default if value is None else value
