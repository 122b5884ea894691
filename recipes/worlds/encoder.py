"""The text encoder of the embedded model: umT5's architecture at a fraction of its size, taught the grammar of the
little worlds, then frozen, as umT5 is for Wan.

A random encoder would already tell words apart, but not which words belong together: "a red circle and a blue star"
and "a blue circle and a red star" would look alike to attention without positions. So it is trained to know, at every
word, which words its sentence uses for the same object: at each token of an object, all of that object's words are
asked of its state, at every other token the background. Training takes a minute on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvg_core.media.text_encoder import build_encoder
from uvg_core.media.tokenizer import Tokenizer

from . import world as worlds
from .world import World

SIZES = {
    "d_model": 128,
    "num_heads": 4,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "relative_attention_num_buckets": 32,
}
# What is asked at a word: every attribute of its object; index 0 is "not said" or "nothing moves".
_ANSWERS: dict[str, tuple[str | None, ...]] = {
    "kind": (None, *worlds.KINDS),
    "colour": (None, *worlds.COLOURS),
    "size": (None, *worlds.SIZES),
    "motion": (None, *worlds.MOTIONS),
    "speed": (None, *worlds.SPEEDS),
    "background": (None, *worlds.BACKGROUNDS),
}


def train_encoder(
    tokenizer: Tokenizer, *, steps: int = 600, batch: int = 64, seed: int = 0, say: Callable[[str], object] = print
) -> nn.Module:
    """A trained encoder in eval mode. Brief prompts, whole captions and sentences with parts left out are met alike."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    encoder = build_encoder({**SIZES, "vocab_size": tokenizer.size}).train().requires_grad_(True)
    heads = nn.ModuleDict({name: nn.Linear(SIZES["d_model"], len(said)) for name, said in _ANSWERS.items()})
    learns = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(learns, lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps)
        texts, answers = zip(*(_question(tokenizer, generator) for _ in range(batch)), strict=True)
        ids, mask = tokenizer.context(list(texts))
        wanted = torch.stack([F.pad(answer, (0, 0, 0, ids.shape[1] - len(answer)), value=-1) for answer in answers])
        states = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        losses = [
            F.cross_entropy(head(states).flatten(0, 1), wanted[..., index].flatten(), ignore_index=-1)
            for index, head in enumerate(heads.values())
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            say(f"text encoder {step + 1}/{steps}  loss {loss.item():.4f}")
    return encoder.eval().requires_grad_(False)


def _question(tokenizer: Tokenizer, generator: torch.Generator) -> tuple[str, Tensor]:
    """A text, and per token the index of every attribute's answer ``[tokens, attributes]`` (-1: not asked)."""
    objects = 1 + int(torch.randint(2, (), generator=generator))
    world = worlds.random_world(generator, objects=objects)
    kept = torch.rand(4, generator=generator) < 0.75
    whole = float(torch.rand((), generator=generator))
    if whole < 0.5:
        kept[:] = True
    elif whole < 0.7:
        kept[:] = False
    says_size, says_motion, says_speed, says_ground = kept.tolist()
    ids: list[int] = []
    answers: list[list[int]] = []

    def add(words: str, index: int | None) -> None:
        pieces = tokenizer.ids(words, end=False)
        said = _said(world, index, says_size, says_motion, says_motion and says_speed, says_ground)
        ids.extend(pieces)
        answers.extend([said] * len(pieces))

    phrases = []
    for index, thing in enumerate(world.things):
        words = ["a", *([thing.size] if says_size else []), thing.colour, thing.kind]
        words += [thing.motion] if says_motion else []
        words += [thing.speed] if says_motion and says_speed and thing.speed else []
        if index:
            add("and", None)
            phrases.append("and")
        add(" ".join(words), index)
        phrases.append(" ".join(words))
    if says_ground:
        add(f"on a {world.background} background", None)
        phrases.append(f"on a {world.background} background")
    text = " ".join(phrases)
    wanted = torch.full((len(tokenizer.ids(text)), len(_ANSWERS)), -1)
    rows = torch.tensor(answers)
    wanted[: min(len(rows), len(wanted))] = rows[: len(wanted)]
    return text, wanted


def _said(world: World, index: int | None, size: bool, motion: bool, speed: bool, ground: bool) -> list[int]:
    """Indices into ``_ANSWERS`` for a word of object ``index``, or of none of them."""
    said: dict[str, str | None] = {"background": world.background if ground else None}
    if index is not None:
        thing = world.things[index]
        said |= {"kind": thing.kind, "colour": thing.colour, "size": thing.size if size else None}
        said |= {"motion": thing.motion if motion else None, "speed": thing.speed if speed else None}
    return [answers.index(said.get(name)) for name, answers in _ANSWERS.items()]
