"""Few steps where words depend on each other: captions with several right answers, drawn at temperature 1.

    python -m recipes.worlds.free [--model FILE] [--clips 256] [--updates 600] [--seed 0]

The sentences of the grammar leave nothing open. So a copy of the model is taught others, which is kept nowhere: the two
objects in either order, every article "a" or every one "the", "on" or "in" the background, 3 bits in all. Order and
articles are chosen once and bind many words; the preposition binds none. Then captions of held-out clips are drawn at
several numbers of steps, and joint runs from brief prompts with the model as it is, where speed depends on motion.
Prints a line of JSON for each.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uvg_core.flow.discrete import MixturePath, corrupt
from uvg_core.media.vae import LatentCodec
from uvg_core.model import PassOptions, UniViGU
from uvg_core.pipeline.pipeline import EMBEDDED_MODEL, Pipeline
from uvg_core.sampling import GuidedDenoiser, Sampling, video_to_text
from uvg_core.sampling.streams import TextStream, VideoStream

from .evaluation import Evaluator
from .grammar import COLOURS, World, parse
from .source import WorldSource
from .vae_training import descend

STEPS = (1, 2, 4, 8, 16, 64)
BATCH, RATE = 64, 3e-4
Choices = tuple[bool, bool, bool]  # the other order, "the", "in"


def worded(world: World, choices: Choices) -> str:
    """One of the eight captions of a world of two objects."""
    backwards, definite, inside = choices
    text = (replace(world, shapes=world.shapes[::-1]) if backwards else world).caption
    text = text.replace(" on a ", " in a ") if inside else text
    return re.sub(r"\ba\b", "the", text) if definite else text


def understood(text: str) -> tuple[World, Choices] | None:
    """What such a caption says and how; None where it is no sentence, mixes articles or repeats a colour."""
    words = text.split()
    definite, inside = "the" in words, "in" in words
    if definite and "a" in words:
        return None
    plain = " ".join({"the": "a", "in": "on"}.get(word, word) for word in words)
    world = parse(plain)
    if world is None or len(world.shapes) != 2 or world.shapes[0].colour == world.shapes[1].colour:
        return None
    order = [list(COLOURS).index(shape.colour) for shape in world.shapes]
    backwards = order[0] > order[1]
    return replace(world, shapes=world.shapes[::-1] if backwards else world.shapes), (backwards, definite, inside)


def entropy(found: Iterable[Hashable]) -> float:
    """In bits, of what was counted."""
    counts = Counter(found).values()
    return sum(n / sum(counts) * math.log2(sum(counts) / n) for n in counts)


def teach(pipe: Pipeline, model: UniViGU, *, clips: int, updates: int, seed: int) -> None:
    """Fine-tune a model to caption training worlds of two objects in all eight ways."""
    run, path = pipe.config.run, MixturePath(pipe.config.model.kappa_exponent)
    source = WorldSource(clips, side=run.height, frames=run.frames, seed=77_000 + seed, pairs=1.0)
    items = [source.item(index) for index in range(clips)]
    worlds = [world for item in items if (world := parse(item.detail or "")) is not None]
    with pipe.components.using("vae") as vae:
        codec = LatentCodec(vae, pipe.config.model.latent_space)
        latents = torch.cat([codec.encode(part) for part in torch.stack([i.pixels for i in items]).split(32)])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters(), lr=RATE, betas=(0.9, 0.99))
    for update in range(updates):
        chosen = torch.randint(clips, (BATCH,), generator=generator)
        choices: list[Choices] = [
            (one[0] > 0, one[1] > 0, one[2] > 0) for one in torch.randint(2, (BATCH, 3), generator=generator).tolist()
        ]
        texts = [worded(worlds[i], how) for i, how in zip(chosen.tolist(), choices, strict=True)]
        tokens, _ = pipe.tokenizer.stream(texts, run.text_length)
        loss = _loss(model, latents[chosen], tokens, path, generator)
        loss.backward()
        descend(optimizer, RATE * min(1.0, (update + 1) / 50) * max(0.02, 1 - update / updates))
        if (update + 1) % 50 == 0:
            print(f"taught {update + 1}/{updates}  {loss.item():.4f} nats a token", flush=True)
    model.requires_grad_(False)


def _loss(model: UniViGU, video: Tensor, tokens: Tensor, path: MixturePath, generator: torch.Generator) -> Tensor:
    """Cross-entropy of the words of a batch at one path time."""
    tau = float(torch.rand((), generator=generator))
    noise = torch.randint(model.config.vocab_size, tokens.shape, generator=generator)
    noisy = corrupt(tokens, torch.full((len(tokens),), tau), path, noise, generator)
    options = PassOptions(want_velocity=False, video_clean=True)
    found = GuidedDenoiser(model)(VideoStream(video), TextStream(noisy, (tau,)), 0, options).logits
    assert found is not None
    return F.cross_entropy(found.float().flatten(0, 1), tokens.flatten())


def captions(evaluator: Evaluator, model: UniViGU, steps: int) -> dict[str, Any]:
    """Shares of captions that are sentences, and that are right; of the sentences, bits of each choice and of all."""
    texts: list[str] = []
    for start in range(0, len(evaluator.latents), BATCH):
        settings = Sampling(steps=steps, temperature=1.0, seed=evaluator.seed * 2**20 + start)
        settings = settings.resolved(evaluator.run, captions=True)
        ids = video_to_text(GuidedDenoiser(model), evaluator.latents[start : start + BATCH], settings)
        texts += [evaluator.pipe.tokenizer.text(row) for row in ids]
    found = [understood(text) for text in texts]
    ways = [one[1] for one in found if one is not None]
    right = sum(one is not None and one[0] == world for one, world in zip(found, evaluator.worlds, strict=True))
    names = ("order", "article", "preposition")
    bits = {name: round(entropy(way[i] for way in ways), 3) for i, name in enumerate(names)}
    shares = {"sentences": len(ways) / len(texts), "right": right / len(texts)}
    return {**shares, **bits, "all three": round(entropy(ways), 3)}


def joint(evaluator: Evaluator, steps: int) -> dict[str, Any]:
    """Of joint runs: captions that are sentences, attributes on which caption and clip agree, and the bits of what the
    brief prompt leaves open."""
    agreement, _ = evaluator.joint(steps=steps)
    worlds = [world for text in evaluator.captions if (world := parse(text)) is not None]
    shapes = [shape for world in worlds for shape in world.shapes]
    open_words = {name: round(entropy(getattr(one, name) for one in shapes), 3) for name in ("size", "motion")}
    bits = {**open_words, "background": round(entropy(world.background for world in worlds), 3)}
    return {"sentences": len(worlds) / len(evaluator.captions), "agreement": round(agreement.mean, 4), **bits}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.worlds.free", description="Few steps, dependent words.")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL)
    parser.add_argument("--clips", type=int, default=256, help="held-out clips, and as many joint runs")
    parser.add_argument("--lessons", type=int, default=1024, help="training clips")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("captions", "joint"), nargs="+", default=["captions", "joint"])
    args = parser.parse_args()
    pipe = Pipeline(args.model, device="cpu")
    evaluator = Evaluator(pipe, clips=args.clips, objects=2, seed=args.seed)
    for steps in STEPS if "joint" in args.only else ():
        print(json.dumps({"joint": steps, **joint(evaluator, steps)}), flush=True)
    if "captions" in args.only:
        with pipe.network() as model:
            teach(pipe, model, clips=args.lessons, updates=args.updates, seed=args.seed)
            for steps in STEPS:
                print(json.dumps({"captions": steps, **captions(evaluator, model, steps)}), flush=True)


if __name__ == "__main__":
    main()
