"""Prompts that are lists of tags: the same ones in another order, and some of them left out."""

from __future__ import annotations

import random
from hashlib import sha256

from .settings import Data


def wordings(prompt: str, how: Data) -> list[str]:
    """As many prompts as ``how.wordings`` says, each a function of the prompt and its number: the first ``keep_tags``
    tags stay in front, the others are shuffled, and some left out. Those of a sentence without commas are itself."""
    inner = prompt[len(how.prefix) : len(prompt) - len(how.suffix)]
    tags = [tag.strip() for tag in inner.split(",") if tag.strip()]
    kept, others = tags[: how.keep_tags], tags[how.keep_tags :]
    made = []
    for number in range(how.wordings):
        draw = random.Random(sha256(f"{number} {prompt}".encode()).digest())  # seeded alike in every process
        some = [tag for tag in others if draw.random() >= how.drop_tags]
        if how.shuffle_tags:
            draw.shuffle(some)
        made.append(how.prefix + ", ".join([*kept, *some] or tags[:1]) + how.suffix)
    return made
