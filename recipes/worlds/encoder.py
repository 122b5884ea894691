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

from .grammar import WORDS, draw_index, random_world
from .vae_training import descend

SIZES = {
    "d_model": 128,
    "num_heads": 4,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "relative_attention_num_buckets": 32,
}
# What is asked at a word: every attribute of its object; index 0 is "not named" or "nothing moves".
_ANSWERS: dict[str, tuple[str | None, ...]] = {name: (None, *words) for name, words in WORDS.items()}


def train_encoder(
    tokenizer: Tokenizer, *, steps: int = 600, batch: int = 64, seed: int = 0, say: Callable[[str], object] = print
) -> nn.Module:
    """A trained encoder in eval mode. Brief prompts, whole captions and sentences with parts left out are met alike."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    encoder = build_encoder({**SIZES, "vocab_size": tokenizer.size}).train().requires_grad_(True)
    heads = nn.ModuleDict({name: nn.Linear(SIZES["d_model"], len(answers)) for name, answers in _ANSWERS.items()})
    learns = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(learns, lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        texts, answers = zip(*(_question(tokenizer, generator) for _ in range(batch)), strict=True)
        ids, mask = tokenizer.context(texts)
        wanted = torch.stack([F.pad(answer, (0, 0, 0, ids.shape[1] - len(answer)), value=-1) for answer in answers])
        states = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        losses = [
            F.cross_entropy(head(states).flatten(0, 1), wanted[..., index].flatten(), ignore_index=-1)
            for index, head in enumerate(heads.values())
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        descend(optimizer, 2e-3 * min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps))
        if (step + 1) % 100 == 0:
            say(f"text encoder {step + 1}/{steps}  loss {loss.item():.4f}")
    return encoder.eval().requires_grad_(False)


def _question(tokenizer: Tokenizer, generator: torch.Generator) -> tuple[str, Tensor]:
    """A text, and per token the index of every attribute's answer ``[tokens, attributes]`` (-1: not asked)."""
    world = random_world(generator, objects=1 + draw_index(2, generator))
    kept = torch.rand(4, generator=generator) < 0.75
    whole = float(torch.rand((), generator=generator))
    if whole < 0.7:  # half of the texts are whole captions, a fifth brief prompts
        kept[:] = whole < 0.5
    size, motion, speed, ground = kept.tolist()
    # In the order of the sentence.
    names = {"size": size, "colour": True, "kind": True, "motion": motion, "speed": motion and speed}
    background = {"background": world.background if ground else None}
    segments: list[tuple[str, dict[str, str | None]]] = []  # words, and the answers at each of them
    for shape in world.shapes:
        named = {name: getattr(shape, name) if kept else None for name, kept in names.items()}
        segments += [("and", background)] if segments else []
        segments.append((" ".join(["a", *filter(None, named.values())]), named | background))
    if ground:
        segments.append((f"on a {world.background} background", background))
    text = " ".join(words for words, _ in segments)
    rows = [
        [indices.index(named.get(name)) for name, indices in _ANSWERS.items()]
        for words, named in segments
        for _ in tokenizer.ids(words, end=False)
    ]
    wanted = torch.full((len(tokenizer.ids(text)), len(_ANSWERS)), -1)
    wanted[: len(rows)] = torch.tensor(rows)[: len(wanted)]
    return text, wanted
