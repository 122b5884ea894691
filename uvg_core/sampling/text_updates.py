"""How noisy text moves on in a step: the exact jump process, the release's redraw, the embedding flow.

Every row of a batch has a random generator of its own, so that a batch of two is two batches of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow.embedding import nearest_tokens
from ..flow.text import MixturePath, draw_clean_tokens, jump_step
from ..flow.time import sigma_from_tau
from ..flow.video import euler_step


@dataclass(frozen=True, kw_only=True)
class TokenDraws:
    """Tokens that jump to words drawn from the network's posterior; see ``draw_clean_tokens`` for the settings."""

    generators: Sequence[torch.Generator]
    temperature: float = 1.0
    top_p: float = 1.0
    forbidden: int | None = None
    final_pass = False

    def jumped(self, content: Tensor, logits: Tensor, probability: float) -> Tensor:
        """Each position takes its drawn word with ``probability``, row by row with the row's own numbers."""
        rows = []
        for tokens, row, generator in zip(content, logits, self.generators, strict=True):
            clean = draw_clean_tokens(
                row, generator=generator, temperature=self.temperature, top_p=self.top_p, forbidden=self.forbidden
            )
            rows.append(jump_step(tokens, clean, probability, generator))
        return torch.stack(rows)

    def words(self, content: Tensor) -> Tensor:
        return content

    def finish(self, content: Tensor, logits: Tensor) -> Tensor:
        return content


@dataclass(frozen=True, kw_only=True)
class JumpProcess(TokenDraws):
    """The discrete mixture path; ``rule`` is ``bridge`` (exact) or ``euler`` (the release's in video-to-text)."""

    path: MixturePath
    rule: str = "bridge"

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        return self.jumped(content, logits, self.path.jump(self.rule, times[step], times[step + 1]))


@dataclass(frozen=True, kw_only=True)
class ReleaseRedraw(TokenDraws):
    """The release's joint rule: every token is redrawn from the softmax and the draw is taken with probability
    i / (N - 1); after the last step one pass at time 0 for both streams, and its most likely tokens."""

    final_pass = True

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        steps = len(times) - 1
        return self.jumped(content, logits, step / (steps - 1) if steps > 1 else 1.0)

    def finish(self, content: Tensor, logits: Tensor) -> Tensor:
        if self.forbidden is not None:
            logits = logits.index_fill(-1, torch.tensor([self.forbidden], device=logits.device), -torch.inf)
        return logits.argmax(-1)


@dataclass(frozen=True)
class EmbeddingEuler:
    """The embedding flow: an Euler step along the predicted velocity, words by the nearest row of E ``[V,D]``."""

    matrix: Tensor
    final_pass = False

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        here, there = sigma_from_tau(times[step]), sigma_from_tau(times[step + 1])
        return euler_step(content, logits.to(content.dtype), here, there)

    def words(self, content: Tensor) -> Tensor:
        return nearest_tokens(self.matrix, content)

    def finish(self, content: Tensor, logits: Tensor) -> Tensor:
        return content
