"""How noisy text moves on in a step: the exact jump process, the release's redraw, the embedding flow.

Every row of a batch has a random generator of its own, so that a batch of two is two batches of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    finite: list[Tensor] = field(default_factory=list)  # of the draws that nobody has checked yet
    final_pass = False
    settled = False

    def jumped(self, content: Tensor, logits: Tensor, probability: float) -> tuple[Tensor, Tensor]:
        """Each position takes its drawn word with ``probability``, row by row with the row's own numbers; and the
        words that were drawn."""
        rows, words = [], []
        for tokens, row, generator in zip(content, logits, self.generators, strict=True):
            clean = draw_clean_tokens(
                row,
                generator=generator,
                temperature=self.temperature,
                top_p=self.top_p,
                forbidden=self.forbidden,
                checks=self.finite,
            )
            rows.append(jump_step(tokens, clean, probability, generator))
            words.append(clean)
        return torch.stack(rows), torch.stack(words)

    def checks(self) -> list[Tensor]:
        found = list(self.finite)
        self.finite.clear()
        return found

    def words(self, content: Tensor) -> Tensor:
        return content

    def finish(self, content: Tensor, logits: Tensor) -> Tensor:
        return content


@dataclass(frozen=True, kw_only=True)
class JumpProcess(TokenDraws):
    """The discrete mixture path; ``rule`` is ``bridge`` (exact) or ``euler`` (the release's in video-to-text).

    With ``stop_when_stable`` n > 0 the text is settled as soon as n steps in a row draw the same words at every
    position that is not ``pinned`` ``[B,L]``: they are taken as they are, without waiting for the last jumps. (Only a
    posterior that is sure draws the same words.)
    """

    path: MixturePath
    rule: str = "bridge"
    stop_when_stable: int = 0
    pinned: Tensor | None = None
    drawn: list[Tensor] = field(default_factory=list)  # by the last steps of this run

    @property
    def settled(self) -> bool:  # type: ignore[override]
        same = all(torch.equal(words, self.drawn[0]) for words in self.drawn)
        return self.stop_when_stable > 0 and len(self.drawn) == self.stop_when_stable and same

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        probability = self.path.jump(self.rule, times[step], times[step + 1])
        moved, words = self.jumped(content, logits, probability)
        if self.stop_when_stable:
            self.drawn.append(words if self.pinned is None else words.masked_fill(self.pinned, 0))
            del self.drawn[: -self.stop_when_stable]
        return words if self.settled else moved


@dataclass(frozen=True, kw_only=True)
class ReleaseRedraw(TokenDraws):
    """The release's joint rule: every token is redrawn from the softmax and the draw is taken with probability
    i / (N - 1); after the last step one pass at time 0 for both streams, and its most likely tokens."""

    final_pass = True

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        steps = len(times) - 1
        return self.jumped(content, logits, step / (steps - 1) if steps > 1 else 1.0)[0]

    def finish(self, content: Tensor, logits: Tensor) -> Tensor:
        if self.forbidden is not None:
            logits = logits.index_fill(-1, torch.full((1,), self.forbidden, device=logits.device), -torch.inf)
        return logits.argmax(-1)


@dataclass(frozen=True)
class EmbeddingEuler:
    """The embedding flow: an Euler step along the predicted velocity, words by the nearest of E's ``count`` rows."""

    embed: Callable[[Tensor], Tensor]
    count: int
    final_pass = False
    settled = False

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        here, there = sigma_from_tau(times[step]), sigma_from_tau(times[step + 1])
        return euler_step(content, logits.to(content.dtype), here, there)

    def checks(self) -> list[Tensor]:
        return []

    def words(self, content: Tensor) -> Tensor:
        return nearest_tokens(self.embed, self.count, content)

    def finish(self, content: Tensor, logits: Tensor) -> Tensor:
        return content
