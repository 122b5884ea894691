"""How sure an answer is. Intervals hold 95 %: Wilson's where every clip gives one answer, else a bootstrap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from .grammar import ATTRIBUTES

_RESAMPLES = 2000
Interval = tuple[float, float, float]  # the number, and the lowest and highest that it may be


class Answers:
    """The letters of one part of a row (see ``Accuracy``), and what they say of the model."""

    def __init__(self, letters: Mapping[str, str]) -> None:
        self.letters = {name: text for name, text in letters.items() if text.strip("-")}
        self.clips = len(next(iter(letters[name] for name in ("whole", "first") if name in letters)))

    @cached_property
    def names(self) -> list[str]:
        """What can be asked for: ``mean`` over attributes, and every attribute."""
        return [*(["mean"] if any(name in self.letters for name in ATTRIBUTES) else []), *self.letters]

    def _counts(self, name: str) -> Tensor:
        """Hits and trials of every clip, ``[2,N]``."""
        letters = torch.tensor(list(self.letters[name].encode())).view(self.clips, -1)
        return torch.stack([(letters == ord("1")).sum(1), (letters != ord("-")).sum(1)]).double()

    def rates(self, name: str, weights: Tensor) -> Tensor:
        """The number of every resample, NaN where it has no trial; ``weights`` ``[R,N]``: how often it holds each
        clip."""
        if name == "mean":
            return torch.stack([self.rates(one, weights) for one in ATTRIBUTES if one in self.letters]).nanmean(0)
        hits, trials = (self._counts(name) @ weights.T).unbind()
        return hits / trials

    def interval(self, name: str) -> Interval:
        rate = float(self.rates(name, torch.ones(1, self.clips, dtype=torch.float64)))
        low, high = _middle(self.rates(name, resamples(self.clips)))
        if len(self.letters.get(name, "")) == self.clips or low == high:  # one answer a clip, or all of them alike
            trials = self.clips if name == "mean" else int((self._counts(name)[1] > 0).sum())
            low, high = wilson(rate, trials)
        return rate, low, high

    def numbers(self) -> dict[str, list[float]]:
        """Every number with its interval, for the report."""
        return {name: [round(value, 4) for value in self.interval(name)] for name in self.names}

    def ahead_of(self, other: Answers, name: str) -> Interval:
        """By how much a number is above another model's on the same clips."""
        weights = torch.cat([torch.ones(1, self.clips, dtype=torch.float64), resamples(self.clips)])
        lead = self.rates(name, weights) - other.rates(name, weights)
        return float(lead[0]), *_middle(lead[1:])


def gap_closed(one: Answers, own: Answers, oracle: Answers) -> Interval:
    """The share of the gap between one draw and an oracle that a choice closes; NaN where there is none."""
    weights = torch.cat([torch.ones(1, own.clips, dtype=torch.float64), resamples(own.clips)])
    low, mine, high = (answers.rates("whole", weights) for answers in (one, own, oracle))
    share = (mine - low) / (high - low)
    share = share.masked_fill(~share.isfinite(), math.nan)
    return (float(share[0]), *_middle(share[1:])) if not share.isnan().all() else (math.nan,) * 3


def area(scores: Sequence[float], right: str) -> Interval:
    """The area under the ROC curve of scores that should tell right clips from wrong ones (Mann-Whitney)."""
    values, is_right = torch.tensor(scores, dtype=torch.float64), torch.tensor([one == "1" for one in right])
    ahead = values[is_right][:, None] - values[~is_right]
    wins = (ahead > 0).double() + (ahead == 0).double() / 2
    weights = torch.cat([torch.ones(1, len(right), dtype=torch.float64), resamples(len(right))])
    good, bad = weights[:, is_right], weights[:, ~is_right]
    areas = ((good @ wins) * bad).sum(1) / (good.sum(1) * bad.sum(1))
    return (float(areas[0]), *_middle(areas)) if wins.numel() else (math.nan,) * 3


def wilson(rate: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.959964
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def resamples(clips: int) -> Tensor:
    """How often each of the bootstrap's resamples holds every clip, ``[R,N]``; the same for all numbers."""
    drawn = torch.randint(clips, (_RESAMPLES, clips), generator=torch.Generator().manual_seed(0))
    return torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(1).double().expand_as(drawn))


def _middle(values: Tensor) -> tuple[float, float]:
    """The middle 95 % of what resamples say."""
    low, high = values[~values.isnan()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
