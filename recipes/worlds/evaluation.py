"""How much of the truth a model gets right, on little worlds whose combinations it has never seen.

Four questions: what its captions say of a clip (video to text), what its clips show (text to video, read back by
``detector.py``), whether both agree when it makes them at once (joint), and whether it prefers the true caption to nine
that are almost true (ranking). Everything is drawn from fixed seeds.

Answers are ``Accuracy``: hits and trials per attribute, and of the whole. Legend: N clips, T frames, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uvg_core.media.vae import LatentCodec
from uvg_core.model import UniViGU
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import GuidedDenoiser, Ranking, Sampling, joint, text_to_video, video_to_text
from uvg_core.sampling.rank import caption_likelihood, padded

from .detector import count_blots, read_world, score
from .grammar import ATTRIBUTES, World, hard_negatives, parse, read_caption
from .source import WorldSource

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
    """One model's components, and test worlds: combinations and handwriting that training never saw.

    Args:
        pipe: the model with its VAE, text encoder and tokenizer. clips: N per question. objects: 1 or 2 in each world.
        quick: run the network in bfloat16, as training does; else as the checkpoint's pipeline does.

    Attributes:
        worlds, pixels, latents: the test worlds, their clips uint8 ``[N,T,S,S,3]`` and latents ``[N,16,F,h,w]``.
        captions, clips: what the model made for the last question, texts and uint8 ``[N,T,S,S,3]``.
    """

    def __init__(self, pipe: Pipeline, clips: int = 512, objects: int = 1, *, quick: bool = False) -> None:
        self.pipe, self.run, self.objects, self.quick = pipe, pipe.config.run, objects, quick
        settings: dict[str, Any] = {"side": self.run.height, "frames": self.run.frames, "pairs": float(objects - 1)}
        source = WorldSource(clips, seed=TEST_SEED, held_out=True, split="test", **settings)
        items = [source.item(i) for i in range(clips)]
        self.pixels = torch.stack([item.pixels for item in items])
        self.worlds = [world for item in items if (world := parse(item.detail or "")) is not None]
        self.latents = self._through_vae(LatentCodec.encode, self.pixels)

    @contextmanager
    def _network(self) -> Iterator[UniViGU]:
        device = self.pipe.device.type
        with self.pipe.network() as model, torch.autocast(device, dtype=torch.bfloat16, enabled=self.quick):
            yield model

    def _through_vae(self, work: Callable[[LatentCodec, Tensor], Tensor], clips: Tensor) -> Tensor:
        with self.pipe.components.using("vae") as vae:
            codec = LatentCodec(vae, self.pipe.config.model.latent_space)
            return torch.cat([work(codec, batch) for batch in clips.split(VAE_BATCH)])

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[N,16,F,h,w]`` -> uint8 ``[N,T,S,S,3]``."""
        return self._through_vae(LatentCodec.decode, latents)

    def score(
        self, seen: Sequence[World | None], expected: Sequence[World | None], **counted: Iterable[bool]
    ) -> Accuracy:
        """Every object of every expected world against what is seen. What is not named is not right, and where there
        are more objects than there should be, none of them is."""
        return Accuracy.of(map(self._scores, expected, seen), **counted)

    def _scores(self, expected: World | None, seen: World | None) -> list[Score]:
        missing: Score = dict.fromkeys(ATTRIBUTES, False)
        asked, shown = (len(world.shapes) if world else 0 for world in (expected, seen))
        scores = [score(expected, seen, i) if expected and i < asked else missing for i in range(self.objects)]
        if max(asked, shown) > self.objects:
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
                settings = {"steps": steps, "seed": start, **options}
                sampling = Sampling(**settings).resolved(self.run, captions=True)
                ids = video_to_text(GuidedDenoiser(model), self.latents[start : start + BATCH], sampling)
                self.captions += [self.pipe.tokenizer.text(row) for row in ids]
        return self.score_captions(self.captions)

    def _prompted(self, texts: Sequence[str]) -> Iterator[tuple[slice, Tensor, GuidedDenoiser]]:
        """Batches of clips: which, their noise, and the network under their prompts."""
        noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(0))
        batches = [slice(start, start + BATCH) for start in range(0, len(texts), BATCH)]
        contexts, null = [self.pipe.conditions(texts[batch]) for batch in batches], self.pipe.conditions([""])
        with self._network() as model:
            for batch, context in zip(batches, contexts, strict=True):
                negative = null.expand(len(context), -1, -1)
                yield batch, noise[batch], GuidedDenoiser(model, context, negative, self.run.guidance_scale)

    def text_to_video(self, steps: int | None = None, plain: bool = False) -> Accuracy:
        """Clips made from detailed captions, read back from their pixels. ``plain``: with an empty text stream."""
        texts, made = [world.caption for world in self.worlds], []
        sampling = Sampling(steps=steps).resolved(self.run)
        for batch, noise, denoise in self._prompted(texts):
            stream: tuple[Tensor | None, Tensor | None] = (None, None)
            if not plain:
                stream = self.pipe.tokenizer.stream(texts[batch], self.run.text_length)
            made.append(text_to_video(denoise, noise, sampling, text=stream[0], text_mask=stream[1]))
        self.clips = self.decode(torch.cat(made))
        return self.score_clips(self.clips, self.worlds)

    def joint(self, steps: int | None = None) -> tuple[Accuracy, Accuracy]:
        """From brief prompts: the caption's words against the clip's pixels, and the prompt's words against both
        (kind and colour of clip and caption, counted together)."""
        clips, self.captions = [], []
        for batch, noise, denoise in self._prompted([world.brief for world in self.worlds]):
            made = joint(denoise, noise, Sampling(steps=steps, seed=batch.start).resolved(self.run))
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

    def ranking(self) -> tuple[int, int]:
        """(how often the true caption is the likeliest of ten, clips); the nine others differ in one attribute."""
        hits = 0
        with self._network() as model, torch.no_grad():
            for index, world in enumerate(self.worlds):
                negatives = hard_negatives(world, 9, torch.Generator().manual_seed(index))
                texts = [self.pipe.tokenizer.ids(text) for text in (world.caption, *negatives)]
                tokens = padded(texts, self.run.pad_token, self.run.text_length)
                clip, ranking = self.latents[index : index + 1], Ranking(samples=4, batch=len(texts))
                hits += int(caption_likelihood(GuidedDenoiser(model), clip, tokens, ranking).argmax()) == 0
        return hits, len(self.worlds)
