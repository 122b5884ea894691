"""How much of the truth a model gets right, on little worlds whose combinations it has never seen.

Four questions: what its captions say of a clip (video to text), what its clips show (text to video, read back by
``detector.py``), whether both agree when it makes them at once (joint), and whether it prefers the true caption to nine
that are almost true (ranking). Everything is drawn from fixed seeds.

Answers are ``Accuracy``: right or wrong by attribute, and of the whole; ``answers.py`` makes numbers of them.
Legend: N clips, T frames, S side in pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from uvg_core.data.sources import digest
from uvg_core.media.vae import SPATIAL, LatentCodec
from uvg_core.model import UniViGU
from uvg_core.pipeline.cycle import CYCLE_DRAWS, clip_gain, confidence, distances, words_kept
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import (
    GuidedDenoiser,
    Ranking,
    Sampling,
    Worded,
    edit,
    fill_template,
    joint,
    text_to_video,
    video_to_text,
)
from uvg_core.sampling.loop import Callback
from uvg_core.sampling.rank import caption_likelihood, clip_likelihood, padded
from uvg_core.sampling.settings import SAMPLING

from .detector import count_blots, read_world, score
from .drawing import render
from .edits import Score, background_psnr, wish_of
from .fills import ends_free, objects_free, psnr, with_blank
from .grammar import ATTRIBUTES, World, hard_negatives, parse, random_world, read_caption
from .source import WorldSource

TEST_SEED = 1_000_003  # far from every training seed, which count from 0
BATCH, VAE_BATCH = 64, 32
FOUR_DRAWS = Ranking(samples=4)

LONGER = "one draw, as many steps as all together"
_LETTERS = {True: "1", False: "0", None: "-"}


@dataclass(frozen=True)
class Accuracy:
    """Answers by attribute, a letter for every object of every clip: ``1`` right, ``0`` wrong, ``-`` not scored.
    ``whole`` says whether everything of a clip is right, ``exact`` whether a caption is the true sentence, ``alone``
    whether a clip shows nothing more than it should."""

    answers: dict[str, str]

    @classmethod
    def of(cls, clips: Iterable[Sequence[Score]], **counted: Iterable[bool]) -> Accuracy:
        """From a score for every object of every clip; ``counted``: further questions, answered clip by clip."""
        answers = dict.fromkeys((*ATTRIBUTES, "whole"), "")
        for scores in clips:
            for name in ATTRIBUTES:
                answers[name] += "".join(_LETTERS[one[name]] for one in scores if name in one)
            answers["whole"] += _LETTERS[all(right for one in scores for right in one.values() if right is not None)]
        return cls(answers | {name: "".join(_LETTERS[right] for right in all) for name, all in counted.items()})

    @property
    def hits(self) -> dict[str, int]:
        return {name: letters.count("1") for name, letters in self.answers.items()}

    @property
    def trials(self) -> dict[str, int]:
        return {name: len(letters) - letters.count("-") for name, letters in self.answers.items()}

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


def held_out_worlds(
    count: int, *, objects: int, side: int, frames: int, seed: int = 0, kind: str = ""
) -> list[tuple[World, Tensor]]:
    """Worlds of combinations and handwriting that training never saw, with their clips. ``kind``: of one object, all of
    this kind, everything else as likely as usual."""
    if not kind:
        settings: dict[str, Any] = {"side": side, "frames": frames, "pairs": float(objects - 1)}
        source = WorldSource(count, seed=TEST_SEED + seed, held_out=True, split="test", **settings)
        items = [source.item(i) for i in range(count)]
        return [(world, item.pixels) for item in items if (world := parse(item.detail or "")) is not None]
    found = []
    for index in range(count):
        generator = torch.Generator().manual_seed(int(digest(["kind", kind, TEST_SEED + seed, index])[:8], 16))
        world = random_world(generator, held_out=True)
        while world.shapes[0].kind != kind:
            world = random_world(generator, held_out=True)
        found.append((world, render(world, generator, side=side, frames=frames, split="test")))
    return found


class Evaluator:
    """One model's components, and test worlds: combinations and handwriting that training never saw.

    Args:
        pipe: the model with its VAE, text encoder and tokenizer. clips: N per question. objects: 1 or 2 in each world.
        seed: other seeds draw other worlds and other noise. kind: of one object, all of this kind.
        sampling: steps, guidance and so on, in place of the checkpoint's. quick: run the network in bfloat16, as
            training does; else as the checkpoint's pipeline does.

    Attributes:
        worlds, pixels, latents: the test worlds, their clips uint8 ``[N,T,S,S,3]`` and latents ``[N,16,F,h,w]``.
        captions, clips: what the model made for the last question, texts and uint8 ``[N,T,S,S,3]``.
        passes, seconds: of the network so far, rows of its batches and time.
    """

    def __init__(
        self,
        pipe: Pipeline,
        clips: int = 512,
        objects: int = 1,
        *,
        seed: int = 0,
        kind: str = "",
        sampling: Sampling = SAMPLING,
        quick: bool = False,
    ) -> None:
        self.pipe, self.run, self.objects, self.quick = pipe, pipe.config.run, objects, quick
        self.seed, self.sampling, self.passes, self.seconds = seed, sampling, 0, 0.0
        size: dict[str, Any] = {"side": self.run.height, "frames": self.run.frames}
        found = held_out_worlds(clips, objects=objects, seed=seed, kind=kind, **size)
        self.worlds, self.pixels = [world for world, _ in found], torch.stack([pixels for _, pixels in found])
        self.latents = self.encode(self.pixels)

    def _sampling(self, start: int, **options: Any) -> Sampling:
        """The settings of the batch whose first clip is ``start``; row b draws its words with the seed + b."""
        given = {name: value for name, value in options.items() if value is not None}
        return replace(self.sampling, **{"seed": (self.seed * 2**20 + start) % 2**62, **given})

    @contextmanager
    def _network(self) -> Iterator[UniViGU]:
        def count(_: Any, given: tuple[Any, ...]) -> None:
            self.passes += len(given[0])

        device = self.pipe.device.type
        with self.pipe.network() as model, torch.autocast(device, dtype=torch.bfloat16, enabled=self.quick):
            hook, started = model.register_forward_pre_hook(count), time.perf_counter()
            try:
                yield model
            finally:
                hook.remove()
                self.seconds += time.perf_counter() - started

    def _through_vae(self, work: Callable[[LatentCodec, Tensor], Tensor], clips: Tensor) -> Tensor:
        with self.pipe.components.using("vae") as vae:
            codec = LatentCodec(vae, self.pipe.config.model.latent_space)
            return torch.cat([work(codec, batch) for batch in clips.split(VAE_BATCH)])

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 ``[N,T,S,S,3]`` -> latents ``[N,16,F,h,w]``."""
        return self._through_vae(LatentCodec.encode, pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[N,16,F,h,w]`` -> uint8 ``[N,T,S,S,3]``."""
        return self._through_vae(LatentCodec.decode, latents)

    def score(
        self, seen: Sequence[World | None], expected: Sequence[World | None], **counted: Iterable[bool]
    ) -> Accuracy:
        """Every object of every expected world against what is seen. What is not named is not right, and where there
        are more objects than there should be, none of them is."""
        return Accuracy.of(map(self.scores, expected, seen), **counted)

    def scores(self, expected: World | None, seen: World | None) -> list[Score]:
        """Of every object of an expected world, whether each attribute is seen."""
        missing: Score = dict.fromkeys(ATTRIBUTES, False)
        asked, shown = (len(world.shapes) if world else 0 for world in (expected, seen))
        scores = [score(expected, seen, i) if expected and i < asked else missing for i in range(self.objects)]
        if max(asked, shown) > self.objects:
            return [{name: right and name == "background" for name, right in one.items()} for one in scores]
        return scores

    def score_clips(self, pixels: Tensor, expected: Sequence[World | None]) -> Accuracy:
        """Clips ``[N,T,S,S,3]``, uint8, against what they should show, ``alone`` counted too."""
        alone = [count_blots(clip) <= self.objects for clip in pixels]
        return self.score(self.read(pixels), expected, alone=alone)

    def read(self, pixels: Tensor) -> list[World | None]:
        return [read_world(clip, self.objects) for clip in pixels]

    def score_captions(self, texts: Sequence[str]) -> Accuracy:
        """Captions of the first clips against the truth, ``exact`` counted too."""
        truth = self.worlds[: len(texts)]
        exact = [text.strip() == world.caption for text, world in zip(texts, truth, strict=True)]
        return self.score([read_caption(text) for text in texts], truth, exact=exact)

    # The questions

    def video_to_text(self, steps: int | None = None, **options: Any) -> Accuracy:
        """Captions without any prompt against the truth; ``options`` are entries of ``Sampling``."""
        self.captions = self._captioned(self.latents, steps=steps, **options)
        return self.score_captions(self.captions)

    def _captioned(
        self, latents: Tensor, *, batch: int = BATCH, callback: Callback | None = None, **options: Any
    ) -> list[str]:
        found: list[str] = []
        with self._network() as model:
            for part in _batches(len(latents), batch):
                sampling = self._sampling(part.start, **options).resolved(self.run, captions=True)
                ids = video_to_text(GuidedDenoiser(model), latents[part], sampling, callback=callback)
                found += [self.pipe.tokenizer.text(row) for row in ids]
        return found

    def one_by_one(self, **options: Any) -> tuple[Accuracy, float]:
        """As ``video_to_text``, each caption stopped by itself; also the mean number of steps."""
        steps: list[int] = []
        self.captions = self._captioned(self.latents, batch=1, callback=lambda step, _: steps.append(step), **options)
        return self.score_captions(self.captions), len(steps) / len(self.captions)

    def _prompted(
        self, texts: Sequence[str], joint: bool = False, draw: int = 0, **options: Any
    ) -> Iterator[tuple[slice, Tensor, GuidedDenoiser, Sampling]]:
        """Batches of clips: which, their noise, the network under their prompts, and the settings. ``draw``: other
        numbers give other noise."""
        generator = torch.Generator().manual_seed(self.seed + draw * 1_000_003)  # seeds count by their lower 32 bits
        noise = torch.randn(self.latents.shape, generator=generator)
        contexts, null = self._contexts(texts), self.pipe.conditions([""])
        with self._network() as model:
            for batch, context in zip(_batches(len(texts)), contexts, strict=True):
                sampling = self._sampling(batch.start, **options).resolved(self.run, joint=joint)
                denoise = GuidedDenoiser.of(model, context, null.expand(len(context), -1, -1), sampling)
                yield batch, noise[batch].to(context.device), denoise, sampling

    def text_to_video(self, steps: int | None = None, plain: bool = False, **options: Any) -> Accuracy:
        """Clips made from detailed captions, read back from their pixels. ``plain``: with an empty text stream."""
        drawn = self.drawn([world.caption for world in self.worlds], plain, steps=steps, **options)
        self.clips = self.decode(drawn)
        return self.score_clips(self.clips, self.worlds)

    def drawn(
        self,
        texts: Sequence[str],
        plain: bool = False,
        free: Tensor | None = None,
        clean: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Latents ``[N,16,F,h,w]`` from detailed captions. ``free``: a mask ``[N or 1,...]``, 0 in what is held of the
        clips, or of the latents ``clean``."""
        made = []
        for batch, noise, denoise, sampling in self._prompted(texts, **options):
            stream: tuple[Tensor | None, Tensor | None] = (None, None)
            if not plain:
                stream = self.pipe.tokenizer.stream(texts[batch], self.run.text_length)
            kept = self._kept(free, batch, clean)
            made.append(text_to_video(denoise, noise, sampling, text=stream[0], text_mask=stream[1], kept=kept))
        return torch.cat(made)

    def _kept(self, free: Tensor | None, batch: slice, clean: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """What of a batch is held, as the jobs take it."""
        if free is None:
            return None
        return (self.latents if clean is None else clean)[batch], (free if len(free) == 1 else free[batch]).to(
            self.latents
        )

    def joint(self, steps: int | None = None, free: Tensor | None = None, **options: Any) -> tuple[Accuracy, Accuracy]:
        """From brief prompts: the caption's words against the clip's pixels, and the prompt's words against both
        (kind and colour of caption and clip, counted together). ``free``: as of ``_drawn``."""
        clips, self.captions = [], []
        briefs = [world.brief for world in self.worlds]
        for batch, noise, denoise, sampling in self._prompted(briefs, joint=True, steps=steps, **options):
            made = joint(denoise, noise, sampling, kept=self._kept(free, batch))
            clips.append(made.video)
            self.captions += [self.pipe.tokenizer.text(row) for row in made.text]
        self.clips = self.decode(torch.cat(clips))
        captioned, seen = [read_caption(text) for text in self.captions], self.read(self.clips)
        followed = [
            [{name: one[name] for name in ("kind", "colour")} for found in both for one in self.scores(world, found)]
            for world, *both in zip(self.worlds, captioned, seen, strict=True)
        ]
        return self.score(seen, captioned), Accuracy.of(followed)

    def ranking(self, settings: Ranking = FOUR_DRAWS) -> list[bool]:
        """Of every clip, whether its caption is the likeliest of ten; the nine others differ in one attribute."""
        found = []
        with self._network() as model, torch.no_grad():
            for index, world in enumerate(self.worlds):
                generator = torch.Generator().manual_seed((self.seed * 2**20 + index) % 2**62)
                texts = [
                    self.pipe.tokenizer.ids(text) for text in (world.caption, *hard_negatives(world, 9, generator))
                ]
                tokens = padded(texts, self.run.pad_token, self.run.text_length)
                clip, ranking = self.latents[index : index + 1], replace(settings, seed=self.seed, batch=len(texts))
                scores = caption_likelihood(GuidedDenoiser(model), clip, tokens, ranking)
                found.append(int(scores.argmax()) == 0)
        return found

    def cycle(self) -> tuple[str, Accuracy, dict[str, list[float]]]:
        """Captions drawn anew (see ``uvg_core.pipeline.cycle``): a letter for every clip, whether the detector says
        that its caption is right; what both clips show alike; and the clips' scores, high where both should agree."""
        self.captions = self._captioned(self.latents)
        shown, said = self.read(self.pixels), [read_caption(text) for text in self.captions]
        drawn = self.drawn(self.captions)
        self.clips = self.decode(drawn)
        again = self._captioned(drawn)
        likely, less = (self._likelihoods(latents, self.captions) for latents in (self.latents, drawn))
        gains = self._gains(self.captions)
        scores = {
            "confidence": [confidence(*both) for both in zip(likely, gains, strict=True)],
            "log_likelihood": likely,
            "clip_gain": gains,
            "redrawn_log_likelihood": less,
            "words_kept": [words_kept(*texts) for texts in zip(self.captions, again, strict=True)],
            "latent_distance": [-value for value in distances(self.latents, drawn)],
        }
        return self.score(said, shown).answers["whole"], self.score(self.read(self.clips), shown), scores

    def best_of(self, count: int = 4, steps: int = 8) -> tuple[dict[str, Accuracy], dict[str, float]]:
        """Of every prompt ``count`` clips: the first, a random one, the model's own choice, the one that the detector
        would choose, and beside them one clip of as many steps as all of them together. Also what judging costs, in
        percent of drawing: passes of the network, and its time."""
        texts = [world.caption for world in self.worlds]
        tokens = padded([self.pipe.tokenizer.ids(text) for text in texts], self.run.pad_token, self.run.text_length)
        marks: list[list[list[Score]]] = []
        judged: list[Tensor] = []
        passes, seconds = self.passes, self.seconds
        drawing, judging = [0.0, 0.0], [0.0, 0.0]

        def spend(on: list[float]) -> None:
            nonlocal passes, seconds
            on[0], on[1] = on[0] + self.passes - passes, on[1] + self.seconds - seconds
            passes, seconds = self.passes, self.seconds

        def seen(drawn: Tensor) -> list[list[Score]]:
            return [self.scores(*both) for both in zip(self.worlds, self.read(self.decode(drawn)), strict=True)]

        for draw in range(count):
            drawn = self.drawn(texts, steps=steps, draw=draw)
            spend(drawing)
            with self._network() as model:
                judged.append(clip_likelihood(GuidedDenoiser(model), drawn, tokens, batch=BATCH))
            spend(judging)
            marks.append(seen(drawn))
        random = torch.randint(count, (len(texts),), generator=torch.Generator().manual_seed(self.seed))
        quality = torch.tensor([[_share_right(one) for one in clips] for clips in marks])
        choices = {
            "one draw": torch.zeros(len(texts), dtype=torch.long),
            "a random one": random,
            "its own choice": torch.stack(judged).argmax(0),
            "an oracle": quality.argmax(0),
        }
        found = {
            name: Accuracy.of(marks[draw][clip] for clip, draw in enumerate(choice.tolist()))
            for name, choice in choices.items()
        }
        found[LONGER] = Accuracy.of(seen(self.drawn(texts, steps=count * steps)))
        shares = (100 * one / all for one, all in zip(judging, drawing, strict=True))
        return found, dict(zip(("passes", "time"), shares, strict=True))

    def edits(self, **options: Any) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
        """One attribute of one object (or the background) of each clip changed by its words, as a user would who reads
        the model's own caption; see ``edits.py``. Letters by part (``changed``, ``kept``, and both), and how well the
        background that no word names survives, beside the VAE's own, in dB."""
        self.captions = self._captioned(self.latents)
        wishes = [wish_of(world, index, self.seed) for index, world in enumerate(self.worlds)]
        words = [wish.reworded(caption) for wish, caption in zip(wishes, self.captions, strict=True)]
        edited = self.decode(self._edited(self.captions, words, **options))
        self.clips = edited
        read, letters = self.read(edited), dict.fromkeys(ATTRIBUTES, "")
        rest, came_true = [], ""
        for wish, seen in zip(wishes, read, strict=True):
            changed, others = wish.judged(self.scores(wish.wanted, seen))
            rest.append(others)
            came_true += _LETTERS[changed]
            for name in letters:
                letters[name] += _LETTERS[changed if name == wish.attribute else None]
        kept = Accuracy.of(rest).answers
        both_right = "".join(map(min, came_true, kept["whole"]))
        found = {"changed": {**letters, "whole": came_true}, "kept": kept, "": {"whole": both_right}}
        own = self.decode(self.latents)
        quiet = [index for index, wish in enumerate(wishes) if wish.attribute != "background"]
        both = {"edited": edited, "the VAE's own": own}
        return found, {name: background_psnr(self.pixels, clips, edited, quiet) for name, clips in both.items()}

    def fills(self) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
        """Parts of each clip held and the rest formed (see ``fills.py``). Letters by part: from detailed captions, the
        first frame, the first and the last, or all but the objects held; from brief ones, clip and caption at once
        with the first frame held; and sentences with one blank beside the whole clip. Also how well what is held came
        out beside the VAE's own, in dB."""
        captions = [world.caption for world in self.worlds]
        first, box = ends_free(self.latents, last=False), objects_free(self.pixels)
        masks = {"first frame": first, "first and last": ends_free(self.latents, last=True), "region": box}
        clips = {name: self.decode(self.drawn(captions, free=free)) for name, free in masks.items()}
        found = {name: self.score_clips(made, self.worlds).answers for name, made in clips.items()}
        found["joint"] = self.joint(free=first)[0].answers
        found["blank"] = self._blanks()
        outside = ~box[:, 0].bool().repeat_interleave(SPATIAL, 2).repeat_interleave(SPATIAL, 3)
        held = {"first frame": slice(0, 1), "last frame": slice(-1, None)}
        both = {"held": clips["first and last"], "the VAE's own": self.decode(self.latents)}
        decibels = {
            f"{name}, {which}": psnr(made[:, part], self.pixels[:, part])
            for name, part in held.items()
            for which, made in both.items()
        }
        both["held"] = clips["region"]
        where = outside.expand(self.pixels.shape[:-1])
        decibels |= {f"outside the region, {which}": psnr(made, self.pixels, where) for which, made in both.items()}
        return found, decibels

    def _blanks(self) -> dict[str, str]:
        """Whether a sentence with one blank became the true one, by attribute and in all."""
        letters = dict.fromkeys((*ATTRIBUTES, "whole"), "")
        with self._network() as model:
            for index, world in enumerate(self.worlds):
                template, asked = with_blank(world, index)
                sampling, clip = (
                    self._sampling(index).resolved(self.run, captions=True),
                    self.latents[index : index + 1],
                )
                ids = fill_template(GuidedDenoiser(model), self.pipe.tokenizer, template, clip, sampling)
                right = self.pipe.tokenizer.text(ids[0]).strip() == world.caption
                for name in letters:
                    letters[name] += _LETTERS[right if name in (asked, "whole") else None]
        return letters

    def _edited(self, old: Sequence[str], new: Sequence[str], **options: Any) -> Tensor:
        made = []
        contexts = self._contexts(old)
        for (batch, _, denoise, sampling), context in zip(self._prompted(new, **options), contexts, strict=True):
            texts = [self.pipe.tokenizer.stream(side[batch], self.run.text_length) for side in (old, new)]
            before = Worded(GuidedDenoiser(denoise.network, context), *texts[0])
            made.append(edit(self.latents[batch], before, Worded(denoise, *texts[1]), sampling))
        return torch.cat(made)

    def _contexts(self, texts: Sequence[str]) -> list[Tensor]:
        return [self.pipe.conditions(texts[batch]) for batch in _batches(len(texts))]

    def _likelihoods(self, latents: Tensor, texts: Sequence[str]) -> list[float]:
        ranking, found = Ranking(samples=CYCLE_DRAWS, seed=self.seed), []
        with self._network() as model:
            for clip, text in zip(latents.split(1), texts, strict=True):
                tokens = padded([self.pipe.tokenizer.ids(text)], self.run.pad_token, self.run.text_length)
                found.append(float(caption_likelihood(GuidedDenoiser(model), clip, tokens, ranking)))
        return found

    def _gains(self, texts: Sequence[str]) -> list[float]:
        found: list[float] = []
        contexts, null = self._contexts(texts), self.pipe.conditions([""])
        with self._network() as model:
            for batch, context in zip(_batches(len(texts)), contexts, strict=True):
                tokens, _ = self.pipe.tokenizer.stream(texts[batch], self.run.text_length)
                found += clip_gain(model, self.latents[batch], (context, null), tokens, self.seed)
        return found


def _share_right(scores: Sequence[Score]) -> float:
    """The share of the attributes of a clip that are right: 1 only where all are."""
    letters = [right for one in scores for right in one.values() if right is not None]
    return sum(letters) / len(letters)


def _batches(count: int, size: int = BATCH) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
