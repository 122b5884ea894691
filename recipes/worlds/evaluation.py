"""How much of the truth a model gets right, on little worlds whose combinations it has never seen.

Four questions: what it says of a clip (video to text), what its clips show (text to video, read back by
``detector.py``), whether both agree when it makes them at once (joint), and whether it tells the true caption from
nine that are almost true (ranking). Everything is drawn from fixed seeds.

Answers are ``Tally``: hits and trials per attribute, and of the whole. Legend: N clips, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from uvg_core.errors import UniViGUError
from uvg_core.media.vae import from_latent_space, to_latent_space
from uvg_core.model import UniViGU
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import joint, text_to_video, video_to_text
from uvg_core.sampling.rank import caption_likelihood

from . import world as worlds
from .detector import count_blots, read_world, score
from .source import WorldSource
from .vae import decode_latent, encode_moments
from .world import ATTRIBUTES, Thing, World

TEST_SEED = 1_000_003  # far from every training seed, which count from 0
BATCH = 64

Score = dict[str, bool | None]  # by attribute; None for what is not scored


@dataclass(frozen=True)
class Tally:
    """Hits and trials by attribute, object by object. ``whole`` counts clips with everything right, ``exact`` captions
    that are the true sentence, ``alone`` clips that show nothing more than they should."""

    hits: dict[str, int]
    trials: dict[str, int]

    @classmethod
    def of(cls, clips: Iterable[Sequence[Score]], **counted: Iterable[bool]) -> Tally:
        """From a score for every object of every clip; ``counted``: further questions, answered clip by clip."""
        hits, trials = dict.fromkeys((*ATTRIBUTES, "whole"), 0), dict.fromkeys((*ATTRIBUTES, "whole"), 0)
        for scores in clips:
            known = [(name, right) for one in scores for name, right in one.items() if right is not None]
            for name, right in (*known, ("whole", all(right for _, right in known))):
                hits[name] += bool(right)
                trials[name] += 1
        for name, answers in counted.items():
            answered = list(answers)
            hits[name], trials[name] = sum(answered), len(answered)
        return cls(hits, trials)

    def share(self, name: str) -> float:
        """Share of hits of one attribute, 0 to 1; NaN without trials."""
        return self.hits[name] / self.trials[name] if self.trials[name] else float("nan")

    @property
    def mean(self) -> float:
        """The mean over attributes."""
        shares = [self.share(name) for name in ATTRIBUTES if self.trials[name]]
        return sum(shares) / len(shares)

    def to_json(self) -> dict[str, Any]:
        return {"mean": round(self.mean, 4), "hits": self.hits, "trials": self.trials}


def read_caption(text: str) -> World | None:
    """The world a caption describes. Of a text that is no sentence of the grammar, the words that can be told: each
    attribute is the first word of its kind, per part between "and"; None where nothing can be told."""
    exact = worlds.parse(text)
    if exact is not None:
        return exact
    things = []
    for part in text.split(" and "):
        found = {name: _first(part, table) for name, table in _WORDS.items()}
        if any(found.values()):
            things.append(
                Thing(**{name: found[name] or "" for name in _WORDS if name != "speed"}, speed=found["speed"])
            )
    return World(tuple(things), _first(text, worlds.BACKGROUNDS) or "") if things else None


_WORDS: dict[str, Sequence[str]] = {
    "kind": worlds.KINDS,
    "colour": tuple(worlds.COLOURS),
    "size": tuple(worlds.SIZES),
    "motion": worlds.MOTIONS,
    "speed": worlds.SPEEDS,
}


def _first(text: str, table: Iterable[str]) -> str | None:
    places = {word: f" {text} ".find(f" {word} ") for word in table}
    found = {word: place for word, place in places.items() if place >= 0}
    return min(found, key=lambda word: found[word]) if found else None


class Exam:
    """One model's parts, and the test worlds.

    Args:
        pipe: the model with its VAE, text encoder and tokenizer. clips: N per question. objects: 1 or 2 in each world.
        held_out: combinations that training never saw, and handwriting kept for testing; else training's.
        quick: run the network in bfloat16, as training does; else as the checkpoint's pipeline does.
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
        run = pipe.config.run
        self.pipe, self.run, self.objects, self.seed, self.quick = pipe, run, objects, seed, quick
        self.source = WorldSource(
            clips,
            side=run.height,
            frames=run.frames,
            seed=TEST_SEED + seed,
            pairs=float(objects - 1),
            held_out=held_out,
            split="test" if held_out else "train",
        )
        items = [self.source.item(i) for i in range(clips)]
        self.pixels = torch.stack([item.pixels for item in items])
        self.worlds = [worlds.parse(item.detail or "") for item in items]
        self.latents = self._encode(self.pixels)

    @contextmanager
    def _network(self) -> Iterator[UniViGU]:
        device = self.pipe.device.type
        with self.pipe.network() as model, torch.autocast(device, dtype=torch.bfloat16, enabled=self.quick):
            yield model

    def _encode(self, pixels: Tensor) -> Tensor:
        parts = []
        with self.pipe.components.using("vae") as vae, torch.no_grad():
            for chunk in pixels.split(32):
                video = chunk.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
                parts.append(to_latent_space(encode_moments(vae, video)[:, :16], self.pipe.config.model.latent_space))
        return torch.cat(parts)

    def decode(self, latents: Tensor) -> Tensor:
        """uint8 ``[N,T,S,S,3]``."""
        parts = []
        with self.pipe.components.using("vae") as vae, torch.no_grad():
            for chunk in latents.split(32):
                video = decode_latent(vae, from_latent_space(chunk, self.pipe.config.model.latent_space))
                parts.append(((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1))
        return torch.cat(parts)

    def _texts(self, kind: str) -> list[str]:
        return [world.caption if kind == "detailed" else world.brief for world in self.worlds if world is not None]

    def _noise(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.latents.shape, generator=generator)

    def scored(self, seen: Sequence[World | None], said: Sequence[World | None], **counted: Iterable[bool]) -> Tally:
        """Every object of every world that was said against what is seen. What is not said is not right, and where
        there are more objects than there should be, none of them is."""
        return Tally.of([self._scores(world, found) for world, found in zip(said, seen, strict=True)], **counted)

    def _scores(self, said: World | None, seen: World | None) -> list[Score]:
        missing: Score = dict.fromkeys(ATTRIBUTES, False)
        if said is None:
            return [missing] * self.objects
        too_many = max(len(world.things) for world in (said, seen or said)) > self.objects
        scores = [score(said, seen, i) if i < len(said.things) else missing for i in range(self.objects)]
        if too_many:
            return [{name: right and name == "background" for name, right in one.items()} for one in scores]
        return scores

    def read(self, pixels: Tensor, said: Sequence[World | None]) -> Tally:
        """Clips ``[N,T,S,S,3]``, uint8, against what they should show, ``alone`` counted too."""
        seen = [read_world(clip, self.objects) for clip in pixels]
        return self.scored(seen, said, alone=[count_blots(clip) <= self.objects for clip in pixels])

    def told(self, texts: Sequence[str]) -> Tally:
        """Captions of the first clips against the truth, ``exact`` counted too."""
        truth = self.worlds[: len(texts)]
        exact = [world is not None and text.strip() == world.caption for text, world in zip(texts, truth, strict=True)]
        return self.scored([read_caption(text) for text in texts], truth, exact=exact)

    # The questions

    def video_to_text(self, steps: int | None = None, **options: Any) -> Tally:
        """Captions without any prompt against the truth; ``options`` go to ``sampling.video_to_text``."""
        texts: list[str] = []
        with self._network() as model:
            for start in range(0, len(self.latents), BATCH):
                clips = self.latents[start : start + BATCH]
                ids = video_to_text(
                    model,
                    video=clips,
                    length=self.run.text_length,
                    steps=steps or self.run.text_steps,
                    seed=self.seed + start,
                    **{"temperature": self.run.text_temperature, **options},
                )
                texts += [self.pipe.tokenizer.text(row) for row in ids]
        self.captions = texts
        return self.told(texts)

    def text_to_video(self, steps: int | None = None, scale: float | None = None, plain: bool = False) -> Tally:
        """Clips made from detailed captions, read back from their pixels. ``plain``: with an empty text stream."""
        texts, made = self._texts("detailed"), []
        noise, null = self._noise(), self.pipe.conditions([""])
        for start in range(0, len(texts), BATCH):
            part = slice(start, start + BATCH)
            context = self.pipe.conditions(texts[part])
            tokens, mask = self.pipe.tokenizer.stream(texts[part], self.run.text_length)
            with self._network() as model:
                made.append(
                    text_to_video(
                        model,
                        noise=noise[part],
                        text=None if plain else tokens,
                        text_mask=None if plain else mask,
                        context=context,
                        null_context=null.expand(len(context), -1, -1),
                        steps=steps or self.run.steps,
                        shift=self.run.shift,
                        guidance_scale=self.run.guidance_scale if scale is None else scale,
                    )
                )
        self.clips = self.decode(torch.cat(made))
        return self.read(self.clips, self.worlds)

    def joint(self, steps: int | None = None) -> tuple[Tally, Tally]:
        """From brief prompts: the caption's words against the clip's pixels, and the prompt's words against both
        (kind and colour of clip and caption, counted together)."""
        texts = self._texts("brief")
        noise, null = self._noise(), self.pipe.conditions([""])
        clips, words = [], []
        for start in range(0, len(texts), BATCH):
            part = slice(start, start + BATCH)
            context = self.pipe.conditions(texts[part])
            with self._network() as model:
                made = joint(
                    model,
                    noise=noise[part],
                    context=context,
                    null_context=null.expand(len(context), -1, -1),
                    length=self.run.text_length,
                    steps=steps or self.run.steps,
                    shift=self.run.shift,
                    guidance_scale=self.run.guidance_scale,
                    seed=self.seed + start,
                )
            clips.append(made.video)
            words += [self.pipe.tokenizer.text(row) for row in made.text]
        self.clips, self.captions = self.decode(torch.cat(clips)), words
        said = [read_caption(text) for text in words]
        seen = [read_world(clip, self.objects) for clip in self.clips]
        followed = [
            [{name: one[name] for name in ("kind", "colour")} for one in self._scores(world, see)]
            for found in (said, seen)
            for world, see in zip(self.worlds, found, strict=True)
        ]
        return self.scored(seen, said), Tally.of(followed)

    def ranking(self, samples: int = 4, clips: int | None = None) -> tuple[int, int]:
        """(how often the true caption is the likeliest of ten, clips); the nine others differ in one attribute."""
        hits, chosen = 0, self.worlds[: clips or len(self.worlds)]
        with self._network() as model, torch.no_grad():
            for index, world in enumerate(chosen):
                assert world is not None
                texts = [world.caption, *lies(world, 9, torch.Generator().manual_seed(self.seed + index))]
                values = caption_likelihood(
                    model,
                    video=self.latents[index : index + 1],
                    texts=[self.pipe.tokenizer.ids(text) for text in texts],
                    samples=samples,
                    seed=self.seed,
                    batch=len(texts),
                    pad_token=self.run.pad_token,
                    length=self.run.text_length,
                )
                hits += int(values.argmax()) == 0
        return hits, len(chosen)


def lies(world: World, count: int, generator: torch.Generator) -> list[str]:
    """Captions that differ from the truth in one attribute of one object; the attributes take turns.

    Raises UniViGUError where so many do not exist."""
    options: dict[str, list[World]] = {name: [] for name in ATTRIBUTES}
    options["background"] = [replace(world, background=b) for b in worlds.BACKGROUNDS if b != world.background]
    for index, thing in enumerate(world.things):
        others = {other.colour for i, other in enumerate(world.things) if i != index}
        for name, table in _WORDS.items():
            if name == "speed" and thing.speed is None:
                continue
            for word in table:
                if word == getattr(thing, name) or (name == "colour" and word in others):
                    continue
                changed = replace(thing, **{name: word})
                if name == "motion":  # whatever stays still has no speed, whatever moves has one
                    changed = replace(changed, speed=None if word == "stays still" else thing.speed or "slowly")
                things = (*world.things[:index], changed, *world.things[index + 1 :])
                places = [list(worlds.COLOURS).index(one.colour) for one in things]
                if places == sorted(places):  # another order than the grammar's would give the lie away
                    options[name].append(World(things, world.background))
    if count > sum(map(len, options.values())):
        raise UniViGUError(f"{count} captions that differ in one attribute were asked for; fewer exist for {world}")
    found: list[str] = []
    names = [name for name in ATTRIBUTES if options[name]]
    while len(found) < count:
        left = options[names[len(found) % len(names)]]
        if not left:
            names = [name for name in names if options[name]]
            continue
        pick = int(torch.randint(len(left), (), generator=generator))
        found.append(left.pop(pick).caption)
    return found


__all__ = ["Exam", "Tally", "lies", "read_caption"]
