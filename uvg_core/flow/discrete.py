"""The discrete flow: a jump process from noise tokens to words (arXiv 2407.15595, 2412.06264).

On the mixture path a token at path time tau is the data token with probability kappa(tau) = tau**n, else a token of
the source (uniform over the vocabulary, or the mask token). The network's softmax is the posterior of the clean token.
A step draws the clean token x1 from it, and every position whose current token differs from x1 jumps to x1 with a
probability that only depends on the times. That is all: memory is O(L) beside the logits, where the formulation with
rate matrices builds several [L, V] tensors.

Legend: B batch, L tokens, V rows of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UniViGUError

# Numbers that one chunk of logits may hold in float32: 2**22 are 16 MiB.
CHUNK_NUMBERS = 2**22
NOT_FINITE = (
    "the network's text logits hold values that are not numbers; expected finite numbers. Run in float32 "
    "or bfloat16 instead of float16, or check the checkpoint"
)


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU's on ``device``; a CUDA card goes on working meanwhile."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class MixturePath:
    """kappa(tau) = tau**exponent, from 0 (all source) to 1 (all data)."""

    exponent: float = 1.0

    def kappa(self, tau: float) -> float:
        """Probability that a token is already the data token, for tau in [0, 1]."""
        return math.pow(tau, self.exponent)

    def require_rule(self, rule: str) -> None:
        """Raise UniViGUError for a rule that does not exist, or not on this path."""
        if rule not in ("bridge", "euler"):
            raise UniViGUError(f"text rule is {rule!r}; expected bridge (exact) or euler (the release's)")
        if rule == "euler" and self.exponent < 1:
            raise UniViGUError(
                f"text rule is 'euler' and this checkpoint's kappa exponent {self.exponent:g}; expected an exponent of "
                "at least 1 for that rule: below it the rate of jumps is infinite at the start, and every token would "
                "jump in the first step. Use bridge"
            )

    def jump(self, rule: str, tau: float, tau_next: float) -> float:
        """Jump probability over a step; the last step (tau_next = 1) jumps for sure.

        ``bridge`` is exact: the share of what is left of kappa; its marginal follows kappa at any number of steps.
        ``euler`` is the release's: a constant rate over the step, 1 - exp(-h kappa' / (1 - kappa)). It is off kappa at
        few steps and kept for comparison; see ``require_rule`` for where it has no meaning."""
        self.require_rule(rule)
        left = 1 - self.kappa(tau)
        if tau_next >= 1 or left <= 0:
            return 1.0
        if rule == "bridge":
            return (self.kappa(tau_next) - self.kappa(tau)) / left
        slope = self.exponent * math.pow(tau, self.exponent - 1)
        return -math.expm1(-(tau_next - tau) * slope / left)


def source_tokens(
    shape: tuple[int, ...],
    *,
    vocab_size: int,
    mask_token: int | None,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Token ids of pure noise: uniform over ``vocab_size``, or all ``mask_token`` where one is given.

    Drawn on the generator's device and moved, so that a seed gives the same tokens everywhere."""
    if mask_token is not None:
        return torch.full(shape, mask_token, dtype=torch.long, device=device)
    return sent(torch.randint(vocab_size, shape, generator=generator, device=generator.device), device)


def _chances(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform numbers from the generator's device, so that a seed gives the same ones everywhere."""
    return sent(torch.rand(shape, generator=generator, device=generator.device), device)


def corrupt(tokens: Tensor, tau_B: Tensor, path: MixturePath, source: Tensor, generator: torch.Generator) -> Tensor:
    """A sample of the path at times ``tau_B``: each token is kept with probability kappa, else taken from source."""
    kappa = sent(tau_B.pow(path.exponent), tokens.device)
    return torch.where(_chances(tokens.shape, generator, tokens.device) < kappa[:, None], tokens, source)


def _chunks(rows: Tensor, forbidden: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Logits ``[N,V]`` in float32, a piece at a time, with ``forbidden`` at -inf."""
    step = max(1, CHUNK_NUMBERS // rows.shape[-1])
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step].float()
        if forbidden is not None:
            part = without(part, forbidden)
        yield slice(start, start + step), part


def without(logits: Tensor, token: int) -> Tensor:
    """The logits with a token at -inf."""
    return logits.index_fill(-1, torch.full((1,), token, device=logits.device), -math.inf)


def _keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits ``[N,V]`` with everything outside the smallest set of probability ``top_p`` at -inf (arXiv 1904.09751)."""
    ranked, order = logits.sort(dim=-1, descending=True)
    before = ranked.softmax(-1).cumsum(-1).roll(1, -1)
    before[..., 0] = 0  # the most likely token always stays
    return logits.scatter(-1, order, ranked.masked_fill(before >= top_p, -math.inf))


def draw_clean_tokens(
    logits: Tensor,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
    forbidden: int | None = None,
    checks: list[Tensor] | None = None,
) -> Tensor:
    """Draw x1 ~ softmax(logits / temperature) for every position.

    Args:
        logits: ``[B,L,V]``, any float dtype.
        temperature: 0, or what float32 cannot hold, takes the most likely token. top_p: nucleus in (0, 1].
        forbidden: an id that is never drawn (the mask token: it is noise, not a word).
        checks: takes whether the logits are finite, a boolean scalar, for the caller to look at when it likes; without
            it one look is taken here, which waits for a card.

    Returns ``[B,L]`` ids. Rows are reduced in chunks in float32 by inverting their cumulative sums, so that no second
    [L, V] tensor exists and a row costs one random number. Those come from the generator's device: a seed gives the
    same draws wherever the logits lie. Raises UniViGUError for settings out of range, and logits that are not finite.
    """
    if not 0 <= temperature < math.inf:
        raise UniViGUError(f"temperature is {temperature}; expected 0 (greedy) or more")
    greedy = temperature < torch.finfo(torch.float32).tiny  # the quotient would be 0/0
    if not 0 < top_p <= 1:
        raise UniViGUError(f"top_p is {top_p}; expected a number above 0 and at most 1")
    rows, peaks = logits.flatten(0, -2), []
    drawn = torch.empty(rows.shape[0], dtype=torch.long, device=logits.device)
    chance = _chances((rows.shape[0], 1), generator, logits.device)
    for chunk, part in _chunks(rows, forbidden):
        highest = part.amax(-1, keepdim=True)
        peaks.append(highest)
        if greedy:
            drawn[chunk] = part.argmax(-1)
            continue
        part = (part - highest).div_(temperature)  # the highest at 0: nothing overflows
        if top_p < 1:
            part = _keep_nucleus(part, top_p)
        reached = part.exp_().cumsum_(-1)  # not normalised: a draw is a share of the total
        total = reached[:, -1:]
        # Strictly below the total, or rounding could pick a token behind the last one with any probability.
        goal = torch.minimum(chance[chunk] * total, total.nextafter(torch.zeros_like(total)))
        drawn[chunk] = torch.searchsorted(reached, goal, right=True)[:, 0].clamp(max=part.shape[-1] - 1)
    finite = torch.cat(peaks).isfinite().all()
    if checks is not None:
        checks.append(finite)
    elif not bool(finite):
        raise UniViGUError(NOT_FINITE)
    return drawn.view(logits.shape[:-1])


def jump_step(tokens: Tensor, clean: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """One step of the process: each position takes its drawn clean token with ``probability``. Where both agree
    already nothing changes, which is what the law says."""
    if probability >= 1:
        return clean
    return torch.where(_chances(tokens.shape, generator, tokens.device) < probability, clean, tokens)


def token_log_likelihood(logits: Tensor, tokens: Tensor, forbidden: int | None = None) -> Tensor:
    """log p(token) ``[B,L]`` in float32 under logits ``[B,L,V]``, reduced in chunks.

    ``forbidden``: an id that is no word (the mask token), with no share in the probabilities, as in
    ``draw_clean_tokens``."""
    picks = tokens.flatten()
    chunks = _chunks(logits.flatten(0, -2), forbidden)
    losses = [F.cross_entropy(part, picks[chunk], reduction="none") for chunk, part in chunks]
    return -torch.cat(losses).view(tokens.shape)
