"""Ways of drawing a caption's words at equal numbers of steps: which of them earn their place?

    python benchmarks/text_samplers.py [MODEL.safetensors] [--objects 1] [--steps 2 4 8 16] [--only NAME ...]

All run the same jump process (``uvg_core/flow/text.py``) on held-out little worlds and differ in how x1 is drawn, or in
what becomes of tokens that were drawn before. Those that are no better than temperature 0 live here and nowhere else.
Numbers go into benchmarks/numbers/text_samplers.json.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from saved import read, save
from torch import Tensor

from recipes.worlds.evaluation import BATCH, Evaluator
from uvg_core.flow.discrete import MixturePath, source_tokens
from uvg_core.flow.schedule import text_times
from uvg_core.model import Prediction, UniViGU
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling.denoiser import Predictor
from uvg_core.sampling.jobs import generators, zero_context
from uvg_core.sampling.loop import run
from uvg_core.sampling.streams import TextStream, VideoStream
from uvg_core.sampling.text_updates import JumpProcess
from uvg_core.sampling.video_cache import CachePolicy

STEPS = (2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Drawing(JumpProcess):
    """The jump process with something done to the logits, or to the tokens after the step."""

    vocabulary: int
    end: int
    top_k: int = 0
    end_bias: float = 0.0
    greedy_from: float = math.inf
    renoise: float = 0.0
    resample: float = 0.0

    def __call__(self, content: Tensor, logits: Tensor, step: int, times: Sequence[float]) -> Tensor:
        logits = logits.float()
        if self.top_k:  # Fan et al., arXiv 1805.04833
            logits = logits.masked_fill(logits < logits.topk(self.top_k, -1).values[..., -1:], -math.inf)
        if self.end_bias:
            logits = logits.clone()
            logits[..., self.end] += self.end_bias
        greedy = times[step] >= self.greedy_from
        here = replace(self, temperature=0.0) if greedy else self
        last = step == len(times) - 2
        kappa = self.path.kappa(times[step + 1])
        ahead = kappa if last else kappa + self.renoise * (1 - kappa)
        left = 1 - self.path.kappa(times[step])
        moved, _ = here.jumped(content, logits, (ahead - self.path.kappa(times[step])) / left)
        if last:
            return moved
        if self.renoise:  # corrector: too far ahead, then back (Gat et al., arXiv 2407.15595, section 3; 2503.00307)
            moved = self._noised(moved, torch.full(moved.shape, 1 - kappa / ahead))
        if self.resample:  # the least likely are drawn again (MaskGIT, arXiv 2202.04200, on tokens in place of masks)
            sure = logits.softmax(-1).gather(-1, moved[..., None])[..., 0]
            count = round(self.resample * moved.shape[1])
            doubtful = sure <= sure.topk(count, largest=False).values[:, -1:]
            moved = self._noised(moved, doubtful.float())
        return moved

    def _noised(self, tokens: Tensor, chance: Tensor) -> Tensor:
        rows = []
        for row, odds, generator in zip(tokens, chance, self.generators, strict=True):
            drawn = source_tokens(row.shape, vocab_size=self.vocabulary, mask_token=None, generator=generator)
            rows.append(torch.where(torch.rand(row.shape, generator=generator) < odds, drawn, row))
        return torch.stack(rows)


@dataclass(frozen=True)
class Guided:
    """Logits led away from those of a pass that sees noise in the clip's place (arXiv 2207.12598)."""

    model: UniViGU
    noise: Tensor
    weight: float

    def __call__(self, latent: Tensor, text: Tensor, *times: Any, **options: Any) -> Prediction:
        cache = options.pop("cache", None)
        found = self.model(latent, text, *times, **options, cache=cache).logits
        clock = torch.full_like(times[0], 1000.0)
        blind = self.model(self.noise, text, clock, *times[1:], **options).logits
        assert found is not None
        assert blind is not None
        return Prediction(None, found + self.weight * (found - blind))


WAYS: dict[str, dict[str, Any]] = {
    "temperature 1": {},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 0.3": {"temperature": 0.3},
    "temperature 0": {"temperature": 0.0},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.7": {"top_p": 0.7},
    "top-k 10": {"top_k": 10},
    "top-k 3": {"top_k": 3},
    "greedy from 0.5": {"greedy_from": 0.5},
    "greedy from 0.25": {"greedy_from": 0.25},
    "end bias 1": {"end_bias": 1.0},
    "corrector 0.2": {"renoise": 0.2},
    "corrector 0.1, temperature 0": {"renoise": 0.1, "temperature": 0.0},
    "corrector 0.2, temperature 0": {"renoise": 0.2, "temperature": 0.0},
    "corrector 0.4, temperature 0": {"renoise": 0.4, "temperature": 0.0},
    "resample 0.1, temperature 0": {"resample": 0.1, "temperature": 0.0},
    "resample 0.3, temperature 0": {"resample": 0.3, "temperature": 0.0},
    "guidance 0.5, temperature 0": {"temperature": 0.0, "guidance": 0.5},
    "guidance 1, temperature 0": {"temperature": 0.0, "guidance": 1.0},
    "guidance 2, temperature 0": {"temperature": 0.0, "guidance": 2.0},
    "end bias 1, temperature 0": {"end_bias": 1.0, "temperature": 0.0},
    "end bias 3, temperature 0": {"end_bias": 3.0, "temperature": 0.0},
}


@torch.no_grad()
def captions(evaluator: Evaluator, model: UniViGU, steps: int, way: dict[str, Any]) -> list[str]:
    """The texts of all clips, drawn in one way."""
    config, options = model.config, dict(way)
    weight = options.pop("guidance", 0.0)
    policy, texts = CachePolicy.of("auto", config), []
    for start in range(0, len(evaluator.latents), BATCH):
        clips = evaluator.latents[start : start + BATCH]
        numbers = generators(evaluator.seed + start, len(clips))
        noise = [
            source_tokens((evaluator.run.text_length,), vocab_size=config.vocab_size, mask_token=None, generator=g)
            for g in numbers
        ]
        update = Drawing(
            path=MixturePath(config.kappa_exponent),
            generators=numbers,
            vocabulary=config.vocab_size,
            end=evaluator.run.eos_token,
            **options,
        )
        text = TextStream(torch.stack(noise), tuple(text_times(steps).tolist()), update=update, rounded=True)
        network: Callable[..., Prediction] = model
        if weight:
            generator = torch.Generator().manual_seed(start)
            network = Guided(model, torch.randn(clips.shape, generator=generator), weight)
        predict = Predictor(network, zero_context(model, clips), cache=policy.cache(model), policy=policy)
        texts += [evaluator.pipe.tokenizer.text(row) for row in run(VideoStream(clips), text, predict)[1].words()]
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    embedded = Path(__file__).resolve().parents[1] / "models" / "uvg_tiny.safetensors"
    parser.add_argument("model", type=Path, nargs="?", default=embedded)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--objects", type=int, default=1, choices=(1, 2))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    args = parser.parse_args()
    evaluator = Evaluator(Pipeline(args.model, device="cpu"), clips=args.clips, objects=args.objects, quick=True)
    found: dict[str, Any] = read("text_samplers")
    found |= {"model": args.model.name, "clips": args.clips}
    with evaluator.pipe.network() as model, torch.autocast("cpu", dtype=torch.bfloat16):
        for name in args.only:
            for steps in args.steps:
                started = time.perf_counter()
                tally = evaluator.score_captions(captions(evaluator, model, steps, WAYS[name])).to_json()
                tally["seconds"] = round(time.perf_counter() - started, 1)
                found.setdefault(f"objects_{args.objects}", {}).setdefault(name, {})[str(steps)] = tally
                share = tally["hits"]["exact"] / tally["trials"]["exact"]
                print(
                    f"{name:30s} {steps:3d} steps  {100 * tally['mean']:5.1f} %  exact {100 * share:5.1f} %  "
                    f"{tally['seconds']} s",
                    flush=True,
                )
                save("text_samplers", found)


if __name__ == "__main__":
    main()
