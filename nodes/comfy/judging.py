"""Several draws inside ComfyUI, of which the one is kept whose clip fits its words best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...uvg_core.sampling import Judging, Sampling, clip_likelihood
from ...uvg_core.sampling.settings import JUDGING
from .network import config_of, run_facts
from .sampling import HostDenoiser, run_on_clip


def judge(
    model: Any,
    videos: Tensor,
    tokens: Tensor,
    judging: Judging = JUDGING,
    report: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Scores ``[B]`` of clean latents ``[B,16,F,h,w]`` in the VAE's space by a text ``[1,L]`` or one each ``[B,L]``, as
    of ``clip_likelihood``. A text that is shorter than in training is padded as there."""
    run = run_facts(model)
    lacking = max(0, run.text_length - tokens.shape[1])
    ids = torch.nn.functional.pad(tokens, (0, lacking), value=run.pad_token)

    def job(denoise: HostDenoiser, clips: Tensor) -> Tensor:
        return clip_likelihood(denoise, clips, ids, judging, callback=report)

    return run_on_clip(model, job, videos, Sampling(steps=1, text_length=ids.shape[1], seed=judging.seed))


def unit_of(model: Any) -> str:
    """What scores are counted in."""
    return "nats" if config_of(model).text_flow == "discrete" else "squared error"


@dataclass(frozen=True)
class Draw:
    """A batch that was drawn: its seed, latents ``[B,16,F,h,w]`` in the VAE's space, the tokens ``[1,L]`` or ``[B,L]``
    that the clips are held against, and what else the run gave."""

    seed: int
    video: Tensor
    tokens: Tensor
    rest: Any = None


@dataclass(frozen=True)
class Choice:
    """The best of several draws, clip by clip: ``draws`` and which of them ``[B]`` each clip is from; ``said``: the
    scores and seeds in words, a line for every clip."""

    draws: list[Draw]
    which: list[int]
    said: str

    def rows(self, part: Callable[[Draw], Tensor]) -> Tensor:
        """The rows of a part of the draws that belong to the clips."""
        return torch.stack([part(self.draws[draw])[row] for row, draw in enumerate(self.which)])


def best_of(model: Any, seeds: list[int], once: Callable[[int], Draw]) -> Choice:
    """Draw a batch with each of these seeds, and choose clip by clip. Cancelling ends the draws, and the best so far is
    kept, where there is one."""
    draws: list[Draw] = []
    scores: list[Tensor] = []
    for seed in seeds:
        try:
            draw = once(seed)
            scores.append(judge(model, draw.video, draw.tokens))
        except comfy.model_management.InterruptProcessingException:
            if not scores:
                raise
            break
        draws.append(draw)
    found = torch.stack(scores)
    which, unit = found.argmax(0).tolist(), unit_of(model)
    stopped = f" (stopped after {len(draws)} of {len(seeds)} draws)" if len(draws) < len(seeds) else ""
    lines = []
    for row, best in enumerate(which):
        clip = f"clip {row + 1}: " if len(which) > 1 else ""
        scored = ", ".join(
            f"{draw.seed}: {score:.3g}" for draw, score in zip(draws, found[:, row].tolist(), strict=True)
        )
        lines.append(f"{clip}seed {draws[best].seed} fits best{stopped}; {unit} by seed: {scored}")
    return Choice(draws, which, "\n".join(lines))
