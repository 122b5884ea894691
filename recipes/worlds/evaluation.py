"""How much of the truth a model gets right, on little worlds whose combinations it has never seen.

Four questions: what its captions say of a clip (video to text), what its clips show (text to video, read back by
``detector.py``), whether both agree when it makes them at once (joint), and whether it prefers the true caption to nine
that are almost true (ranking). Everything is drawn from fixed seeds.

Answers are ``Accuracy``: hits and trials per attribute, and of the whole. Legend: N clips, T frames, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from uvg_core.media.vae import from_latent_space, pixels_to_video, to_latent_space, video_to_pixels
from uvg_core.model import UniViGU
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import GuidedDenoiser, Ranking, Sampling, joint, text_to_video, video_to_text
from uvg_core.sampling.rank import caption_likelihood, padded

from .captions import hard_negatives, read_caption
from .detector import count_blots, read_world, score
from .grammar import ATTRIBUTES, World, parse
from .source import WorldSource
from .vae import decode_latent, encode_moments

TEST_SEED = 1_000_003  # far from every training seed, which count from 0
BATCH, VAE_BATCH = 64, 32

Score = dict[str, bool | None]  # by attribute; None for what is not scored


@dataclass(frozen=True)
class Accuracy:
    """Hits and trials by attribute, object by object. ``whole`` counts clips with everything right, ``exact`` captions
    that are the true sentence, ``alone`` clips that show nothing more than they should."""

    hits: dict[str, int]
    trials: dict[str, int]

    @classmethod
    def of(cls, clips: Iterable[Sequence[Score]], **counted: Iterable[bool]) -> Accuracy:
        """From a score for every object of every clip; ``counted``: further questions, answered clip by clip."""
        answers: dict[str, list[bool]] = {name: [] for name in (*ATTRIBUTES, "whole")}
        for scores in clips:
            known = [(name, right) for one in scores for name, right in one.items() if right is not None]
            for name, right in (*known, ("whole", all(right for _, right in known))):
                answers[name].append(right)
        answers |= {name: list(right) for name, right in counted.items()}
        return cls({name: sum(one) for name, one in answers.items()}, {name: len(one) for name, one in answers.items()})

    def rate(self, name: str) -> float:
        """Hits over trials of one attribute, 0 to 1; NaN without trials."""
        return self.hits[name] / self.trials[name] if self.trials[name] else float("nan")

    @property
    def mean(self) -> float:
        """The mean over attributes."""
        rates = [self.rate(name) for name in ATTRIBUTES if self.trials[name]]
        return sum(rates) / len(rates)

    def to_json(self) -> dict[str, Any]:
        return {"mean": round(self.mean, 4), "hits": self.hits, "trials": self.trials}


class Evaluator:
    """One model's components, and the test worlds.

    Args:
        pipe: the model with its VAE, text encoder and tokenizer. clips: N per question. objects: 1 or 2 in each world.
        held_out: combinations that training never saw, and handwriting kept for testing; else training's.
        quick: run the network in bfloat16, as training does; else as the checkpoint's pipeline does.

    Attributes:
        worlds, pixels, latents: the test worlds, their clips uint8 ``[N,T,S,S,3]`` and latents ``[N,16,F,h,w]``.
        captions, clips: what the model made for the last question, texts and uint8 ``[N,T,S,S,3]``.
    """

    def __init__(
        self,
        pipe: Pipeline,
        clips: int = 512,
        objects: int = 1,
        *,
        held_out: bool = True,
        seed: int = 0,
        quick: bool = False,
    ) -> None:
        self.pipe, self.run, self.objects, self.seed, self.quick = pipe, pipe.config.run, objects, seed, quick
        source = WorldSource(
            clips,
            side=self.run.height,
            frames=self.run.frames,
            seed=TEST_SEED + seed,
            pairs=float(objects - 1),
            held_out=held_out,
            split="test" if held_out else "train",
        )
        items = [source.item(i) for i in range(clips)]
        self.pixels = torch.stack([item.pixels for item in items])
        self.worlds = [world for item in items if (world := parse(item.detail or "")) is not None]
        self.latents = self._encode(self.pixels)

    @contextmanager
    def _network(self) -> Iterator[UniViGU]:
        device = self.pipe.device.type
        with self.pipe.network() as model, torch.autocast(device, dtype=torch.bfloat16, enabled=self.quick):
            yield model

    def _encode(self, pixels: Tensor) -> Tensor:
        parts = []
        with self.pipe.components.using("vae") as vae, torch.no_grad():
            for chunk in pixels.split(VAE_BATCH):
                raw = encode_moments(vae, pixels_to_video(chunk))[:, :16]
                parts.append(to_latent_space(raw, self.pipe.config.model.latent_space))
        return torch.cat(parts)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[N,16,F,h,w]`` -> uint8 ``[N,T,S,S,3]``."""
        parts = []
        with self.pipe.components.using("vae") as vae, torch.no_grad():
            for chunk in latents.split(VAE_BATCH):
                video = decode_latent(vae, from_latent_space(chunk, self.pipe.config.model.latent_space))
                parts.append(video_to_pixels(video))
        return torch.cat(parts)

    def score(
        self, seen: Sequence[World | None], expected: Sequence[World | None], **counted: Iterable[bool]
    ) -> Accuracy:
        """Every object of every expected world against what is seen. What is not named is not right, and where there
        are more objects than there should be, none of them is."""
        return Accuracy.of(map(self._scores, expected, seen), **counted)

    def _scores(self, expected: World | None, seen: World | None) -> list[Score]:
        missing: Score = dict.fromkeys(ATTRIBUTES, False)
        if expected is None:
            return [missing] * self.objects
        count = len(expected.shapes)
        scores = [score(expected, seen, i) if i < count else missing for i in range(self.objects)]
        if max(count, len(seen.shapes) if seen else 0) > self.objects:
            return [{name: right and name == "background" for name, right in one.items()} for one in scores]
        return scores

    def score_clips(self, pixels: Tensor, expected: Sequence[World | None]) -> Accuracy:
        """Clips ``[N,T,S,S,3]``, uint8, against what they should show, ``alone`` counted too."""
        alone = [count_blots(clip) <= self.objects for clip in pixels]
        return self.score(self._read(pixels), expected, alone=alone)

    def _read(self, pixels: Tensor) -> list[World | None]:
        return [read_world(clip, self.objects) for clip in pixels]

    def score_captions(self, texts: Sequence[str]) -> Accuracy:
        """Captions of the first clips against the truth, ``exact`` counted too."""
        truth = self.worlds[: len(texts)]
        exact = [text.strip() == world.caption for text, world in zip(texts, truth, strict=True)]
        return self.score([read_caption(text) for text in texts], truth, exact=exact)

    # The questions

    def video_to_text(self, steps: int | None = None, **options: Any) -> Accuracy:
        """Captions without any prompt against the truth; ``options`` are entries of ``Sampling``."""
        self.captions: list[str] = []
        with self._network() as model:
            for start in range(0, len(self.latents), BATCH):
                sampling = Sampling(**{"steps": steps, "seed": self.seed + start, **options})
                clips, sampling = self.latents[start : start + BATCH], sampling.resolved(self.run, captions=True)
                ids = video_to_text(GuidedDenoiser(model), clips, sampling)
                self.captions += [self.pipe.tokenizer.text(row) for row in ids]
        return self.score_captions(self.captions)

    def _prompted(self, texts: Sequence[str]) -> Iterator[tuple[slice, Tensor, Callable[[UniViGU], GuidedDenoiser]]]:
        """Batches of clips: which, their noise, and the network under their prompts."""
        noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(self.seed))
        null = self.pipe.conditions([""])
        for start in range(0, len(texts), BATCH):
            batch = slice(start, start + BATCH)
            context = self.pipe.conditions(texts[batch])
            scale = self.run.guidance_scale
            negative = null.expand(len(context), -1, -1)
            guided = partial(GuidedDenoiser, context=context, null_context=negative, guidance_scale=scale)
            yield batch, noise[batch], guided

    def text_to_video(self, steps: int | None = None, scale: float | None = None, plain: bool = False) -> Accuracy:
        """Clips made from detailed captions, read back from their pixels. ``scale``: of guidance. ``plain``: with an
        empty text stream."""
        texts, made = [world.caption for world in self.worlds], []
        sampling = Sampling(steps=steps).resolved(self.run)
        for batch, noise, prompted in self._prompted(texts):
            stream: tuple[Tensor | None, Tensor | None] = (None, None)
            if not plain:
                stream = self.pipe.tokenizer.stream(texts[batch], self.run.text_length)
            with self._network() as model:
                denoise = prompted(model) if scale is None else replace(prompted(model), guidance_scale=scale)
                made.append(text_to_video(denoise, noise, sampling, text=stream[0], text_mask=stream[1]))
        self.clips = self.decode(torch.cat(made))
        return self.score_clips(self.clips, self.worlds)

    def joint(self, steps: int | None = None) -> tuple[Accuracy, Accuracy]:
        """From brief prompts: the caption's words against the clip's pixels, and the prompt's words against both
        (kind and colour of clip and caption, counted together)."""
        clips, self.captions = [], []
        for batch, noise, prompted in self._prompted([world.brief for world in self.worlds]):
            with self._network() as model:
                sampling = Sampling(steps=steps, seed=self.seed + batch.start).resolved(self.run)
                made = joint(prompted(model), noise, sampling)
            clips.append(made.video)
            self.captions += [self.pipe.tokenizer.text(row) for row in made.text]
        self.clips = self.decode(torch.cat(clips))
        captioned, seen = [read_caption(text) for text in self.captions], self._read(self.clips)
        followed = [
            [{name: one[name] for name in ("kind", "colour")} for one in self._scores(world, found)]
            for worlds in (captioned, seen)
            for world, found in zip(self.worlds, worlds, strict=True)
        ]
        return self.score(seen, captioned), Accuracy.of(followed)

    def ranking(self, samples: int = 4, clips: int | None = None) -> tuple[int, int]:
        """(how often the true caption is the likeliest of ten, clips); the nine others differ in one attribute."""
        hits, chosen = 0, self.worlds[: clips or len(self.worlds)]
        with self._network() as model, torch.no_grad():
            for index, world in enumerate(chosen):
                negatives = hard_negatives(world, 9, torch.Generator().manual_seed(self.seed + index))
                texts = [self.pipe.tokenizer.ids(text) for text in (world.caption, *negatives)]
                tokens = padded(texts, self.run.pad_token, self.run.text_length)
                ranking = Ranking(samples=samples, seed=self.seed, batch=len(texts))
                clip = self.latents[index : index + 1]
                likelihoods = caption_likelihood(GuidedDenoiser(model), clip, tokens, ranking)
                hits += int(likelihoods.argmax()) == 0
        return hits, len(chosen)
