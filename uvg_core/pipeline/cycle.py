"""There and back: a clip is captioned, drawn anew from that caption, and both are compared. What the caption leaves out
or gets wrong shows as a difference; no reference is needed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..flow.continuous import interpolate, velocity_target
from ..media.sheet import SheetRow
from ..model import PassOptions, UniViGU
from ..sampling import GuidedDenoiser, Ranking, Sampling, Size
from ..sampling.start import clean_text
from ..sampling.streams import VideoStream
from .pipeline import Callback, Pipeline

CYCLE_DRAWS = 8  # of the likelihoods
_SIGMAS = (0.3, 0.6)  # noise shares at which the words are held against the clip: less or more tells less
_GAIN = 40.0  # how much clip_gain counts in confidence, chosen on little worlds
Watch = Callable[[str], Callback]


@dataclass(frozen=True)
class Cycle:
    """``pixels`` and ``redrawn`` are clips, uint8 ``[T,H,W,3]``; ``caption`` is of the first, ``again`` of the second.

    likelihood, redrawn_likelihood  of ``caption`` given the first and the second clip, in nats (see
                                    ``caption_likelihood``); far apart where the second clip shows something else
    gain                            how much better the first clip's velocity is predicted with the caption as prompt
                                    than without a prompt: how well the words explain the clip (see ``clip_gain``)
    distance                        root mean square of the difference of both latents, which vary by about 1
    """

    pixels: Tensor
    redrawn: Tensor
    caption: str
    again: str
    likelihood: float
    redrawn_likelihood: float
    gain: float
    distance: float

    def facts(self) -> dict[str, Any]:
        """All of it but the pictures, for reports."""
        return {
            "caption": self.caption,
            "redrawn_caption": self.again,
            "words_kept": round(words_kept(self.caption, self.again), 4),
            "log_likelihood": round(self.likelihood, 4),
            "redrawn_log_likelihood": round(self.redrawn_likelihood, 4),
            "clip_gain": round(self.gain, 5),
            "confidence": round(confidence(self.likelihood, self.gain), 4),
            "latent_distance": round(self.distance, 4),
        }

    def rows(self) -> list[SheetRow]:
        """For a contact sheet."""
        return [
            SheetRow(f"clip · {self.likelihood:.2f} nats", self.pixels, self.caption),
            SheetRow(f"redrawn · {self.redrawn_likelihood:.2f} nats", self.redrawn, self.again),
        ]


def cycle(pipe: Pipeline, pixels: Tensor, sampling: Sampling, watch: Watch) -> Cycle:
    """Caption a clip of the model's size, uint8 ``[T,H,W,3]``, and draw it from that caption. ``watch`` gives the
    callback of each part. Raises UniViGUError where the caption is empty."""
    latent = pipe.encode_clip(pixels)
    caption = pipe.caption(latent, sampling=sampling, callback=watch("writing the caption"))
    if not caption.strip():
        raise UniViGUError("the caption came out empty; try another seed or more steps")
    frames, height, width, _ = pixels.shape
    size = Size(height=height, width=width, frames=frames)
    redrawn = pipe.generate(caption, size=size, sampling=sampling, callback=watch("drawing the clip"))
    assert pipe.sampled is not None
    drawn = pipe.sampled.latent.to(latent)
    again = pipe.caption(drawn, sampling=sampling, callback=watch("writing the second caption"))
    ranking = Ranking(samples=CYCLE_DRAWS, seed=sampling.seed)
    likely, less = (float(pipe.rank(one, [caption], ranking)[0]) for one in (latent, drawn))
    conditions, (tokens, _) = pipe.guided(caption), pipe.tokenizer.stream([caption], pipe.config.run.text_length)

    def explained(network: UniViGU) -> float:
        return clip_gain(network, latent, conditions, tokens, sampling.seed)[0]

    gain = pipe.components.on_network(explained)
    return Cycle(pixels, redrawn, caption, again, likely, less, gain, *distances(latent, drawn))


@torch.no_grad()
def clip_gain(
    network: UniViGU, latents: Tensor, conditions: tuple[Tensor, Tensor], tokens: Tensor, seed: int
) -> list[float]:
    """By how much the mean squared error of the predicted velocity is smaller under each clip's prompt than under the
    empty one, the words in the text stream alike: the likelihood of the clip given the words, as far as that is
    known. ``conditions``: those of the prompts and of the empty one; all clips get the same noise."""
    generator, gain = torch.Generator().manual_seed(seed), torch.zeros(len(latents))
    context, null = (one.expand(len(latents), -1, -1) for one in conditions)
    for sigma in _SIGMAS:
        noise = torch.randn(latents[:1].shape, generator=generator).to(latents)
        video = VideoStream(interpolate(latents, noise, torch.tensor(sigma).to(latents)), (sigma, 0.0))
        for prompt, sign in ((null, 1), (context, -1)):
            denoise = GuidedDenoiser(network, prompt)
            held = clean_text(denoise, tokens, None, latents)
            velocity = denoise(video, held, 0, PassOptions(want_velocity=True, want_logits=False)).velocity
            assert velocity is not None
            error = velocity.float() - velocity_target(latents, noise)
            gain += sign * error.square().mean((1, 2, 3, 4)).cpu() / len(_SIGMAS)
    found: list[float] = gain.tolist()
    return found


def confidence(likelihood: float, gain: float) -> float:
    """One number from both likelihoods, of the words given the clip and of the clip given the words: the higher, the
    likelier is the caption right."""
    return _GAIN * gain - math.log(1e-4 - min(0.0, likelihood))


def words_kept(first: str, second: str) -> float:
    """How alike two captions are: the words in common, as a share of all (Dice's coefficient)."""
    words, others = Counter(first.split()), Counter(second.split())
    return 2 * (words & others).total() / max(1, (words + others).total())


def distances(first: Tensor, second: Tensor) -> list[float]:
    """Root mean square of the difference of latents ``[B,C,F,h,w]``, clip by clip."""
    found: list[float] = (first - second).float().square().mean((1, 2, 3, 4)).sqrt().tolist()
    return found


def mean_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The means of all numbers and yes-or-no answers that rows have in common."""
    if not rows:
        return {}
    names = [name for name in rows[0] if all(isinstance(row.get(name), (int, float)) for row in rows)]
    return {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in names if name != "seed"}
