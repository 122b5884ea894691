"""How noisy text moves on in a step: the jump process of the discrete flow, Euler steps of the embedding flow.

Every row of a batch has a random generator of its own, so that a batch of two is two batches of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..flow.continuous import euler_step
from ..flow.discrete import MixturePath, draw_clean_tokens, jump_step, token_log_likelihood, without
from ..flow.embedding import nearest_tokens
from ..flow.time import sigma_from_tau

# From this probability on a word counts as known, for ``stop_when_stable``.
SURE = 0.9


class TextUpdate:
    """A rule by which noisy text moves on."""

    @property
    def final_pass(self) -> bool:
        """Whether it asks for a pass at time 0 after the last step."""
        return False

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        """The text stream's content after ``step``, from the network's prediction."""
        raise NotImplementedError

    @property
    def settled(self) -> bool:
        """Whether no further step would change the words."""
        return False

    def checks(self) -> list[Tensor]:
        """Whether what was predicted since the last call is finite: boolean scalars."""
        return []

    def words(self, content: Tensor) -> Tensor:
        """Token ids ``[B,L]`` to show for a content."""
        return content

    def finish(self, content: Tensor, logits: Tensor) -> Tensor:
        """The content after the final pass."""
        return content


NO_UPDATE = TextUpdate()


@dataclass
class _Settled:
    """Which rows of a batch need no further step, and the words that they then have."""

    after: int  # steps in a row that drew the same words and were sure of them; 0: never
    sure: float  # the probability of the least sure word; 0: never
    words: Tensor | None = None  # of the last step; of a row that is done, of the step that was its last
    steps: Tensor | None = None  # so far, ``[B]`` on the CPU
    done: Tensor | None = None  # ``[B]``, likewise

    def count(self, words: Tensor, likelihood: Tensor) -> Tensor:
        """``words`` ``[B,L]`` of the next step and their probabilities, 1 where they are no choice. Returns which rows
        are done ``[B]`` on the CPU; waits for them."""
        before = words if self.words is None else self.words
        least, same = torch.stack([likelihood.amin(1), (words == before).all(1).float()]).cpu()
        if self.steps is None or self.done is None:
            self.steps, self.done = torch.zeros(len(words), dtype=torch.long), torch.zeros(len(words), dtype=torch.bool)
        self.steps = torch.where(least < SURE, 0, torch.where(same > 0, self.steps + 1, 1))
        self.words = words if not bool(self.done.any()) else torch.where(self._on(words), before, words)
        self.done = (
            self.done | ((self.steps >= self.after) & (self.after > 0)) | ((least >= self.sure) & (self.sure > 0))
        )
        return self.done

    def put_into(self, content: Tensor) -> Tensor:
        """A content ``[B,L]`` with the words of the rows that are done."""
        assert self.words is not None
        assert self.done is not None
        if not bool(self.done.any()):
            return content  # as nearly always: a mask need not go to the card
        return self.words if bool(self.done.all()) else torch.where(self._on(content), self.words, content)

    def _on(self, like: Tensor) -> Tensor:
        assert self.done is not None
        return self.done.to(like.device)[:, None]


@dataclass(frozen=True, kw_only=True)
class JumpProcess(TextUpdate):
    """The discrete mixture path: tokens jump to words drawn from the network's posterior (``draw_clean_tokens``), each
    row of the batch by its own of ``generators``.

    ``rule`` is ``bridge`` (exact), ``euler`` (the release's in video-to-text) or ``release`` (the release's in joint
    runs: every token is redrawn and the draw is taken with probability i / (N - 1); after the last step one pass at
    time 0 for both streams, and its most likely tokens).

    With ``stop_when_stable`` n > 0 a row is settled as soon as n steps in a row draw the same words and are sure of
    them: at every position that is not ``pinned`` ``[B,L]`` the word's probability (at temperature 1, whatever the
    draws are made at) is at least ``SURE``. With ``stop_when_sure`` p > 0 it is settled as soon as every word's is at
    least p. Its words are then taken as they are, without waiting for the last jumps. That costs one look at the device
    a step.

    Raises UniViGUError for a rule that the path does not have.
    """

    path: MixturePath
    generators: Sequence[torch.Generator]
    rule: str = "bridge"
    temperature: float = 1.0
    top_p: float = 1.0
    forbidden: int | None = None
    stop_when_stable: int = 0
    stop_when_sure: float = 0.0
    pinned: Tensor | None = None
    rows: _Settled = field(init=False)
    finite: list[Tensor] = field(default_factory=list)  # of the draws that nobody has checked yet

    def __post_init__(self) -> None:
        if not self.final_pass:
            self.path.require_rule(self.rule)
        object.__setattr__(self, "rows", _Settled(self.stop_when_stable, self.stop_when_sure))

    @property
    def final_pass(self) -> bool:
        return self.rule == "release"

    @property
    def settled(self) -> bool:
        return self.rows.done is not None and bool(self.rows.done.all())

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        if self.final_pass:
            probability = step / (len(times) - 2) if len(times) > 2 else 1.0
        else:
            probability = self.path.jump(self.rule, times[step], times[step + 1])
        moved, drawn = [], []
        for tokens, row, generator in zip(content, logits, self.generators, strict=True):
            clean = draw_clean_tokens(
                row,
                generator=generator,
                temperature=self.temperature,
                top_p=self.top_p,
                forbidden=self.forbidden,
                checks=self.finite,
            )
            moved.append(jump_step(tokens, clean, probability, generator))
            drawn.append(clean)
        words, after = torch.stack(drawn), torch.stack(moved)
        if not (self.stop_when_stable or self.stop_when_sure):
            return after
        likelihood = token_log_likelihood(logits, words, self.forbidden).exp()
        if self.pinned is not None:
            words, likelihood = torch.where(self.pinned, content, words), likelihood.masked_fill(self.pinned, 1.0)
        self.rows.count(words, likelihood)
        return self.rows.put_into(after)

    def checks(self) -> list[Tensor]:
        found = list(self.finite)
        self.finite.clear()
        return found

    def finish(self, content: Tensor, logits: Tensor) -> Tensor:
        return (logits if self.forbidden is None else without(logits, self.forbidden)).argmax(-1)


@dataclass(frozen=True)
class EmbeddingEuler(TextUpdate):
    """The embedding flow: an Euler step along the predicted velocity, words by the nearest of E's ``count`` rows."""

    embed: Callable[[Tensor], Tensor]
    count: int

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        here, there = sigma_from_tau(times[step]), sigma_from_tau(times[step + 1])
        return euler_step(content, logits.to(content.dtype), here, there)

    def words(self, content: Tensor) -> Tensor:
        return nearest_tokens(self.embed, self.count, content)
