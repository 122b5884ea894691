"""Words for clips inside ComfyUI: describing, filling in templates, ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...uvg_core.errors import UniViGUError
from ...uvg_core.flow.time import sigma_from_tau
from ...uvg_core.media.video import ClipSpec
from ...uvg_core.pipeline.together import SMALL, clips_together
from ...uvg_core.sampling import Ranking, Sampling, State, caption_likelihood, fill_template, video_to_text
from ...uvg_core.sampling.loop import spread
from ...uvg_core.sampling.rank import padded
from .conditioning import tokenizer_of
from .latents import require_video_latent
from .network import network_of, run_facts
from .sampling import HostDenoiser, run_on_clip

AT_ONCE = 2  # texts ranked in one call: what ComfyUI reserves memory for


@dataclass(frozen=True)
class RecordedStep:
    """One step of a run: ``tokens`` ``[B,L]`` as they stood; ``latent`` ``[1,16,F,h,w]`` the clip that the first video
    of the batch pointed at, in the VAE's space, None where no video formed; ``sigma`` the noise that was left."""

    step: int
    steps: int
    sigma: float
    tokens: Tensor
    latent: Tensor | None


@dataclass(frozen=True)
class GeneratedText:
    """What travels as UVG_TEXT: token ids ``[B,L]`` on the CPU, and the steps that were recorded on the way."""

    tokens: Tensor
    record: tuple[RecordedStep, ...] = ()

    def words(self, tokenizer: Any) -> list[str]:
        """One text for each clip of the batch."""
        return [tokenizer.text(row) for row in self.tokens]


class Recorder:
    """Keeps ``record`` steps of a run, spread evenly; where a run ends early, as many of its last ones."""

    def __init__(self, steps: int | None, record: int) -> None:
        self._wanted = spread(steps or 0, record)
        self._steps: list[RecordedStep] = []

    def wants(self, state: State) -> bool:
        return state.step in self._wanted or bool(self._wanted and state.text.settled)

    def add(self, state: State, sigma: float, latent: Tensor | None = None) -> None:
        self._steps.append(RecordedStep(state.step, state.steps, sigma, state.tokens.cpu(), latent))

    def text(self, tokens: Tensor) -> GeneratedText:
        """What the run gave, with its recorded steps."""
        return GeneratedText(tokens.cpu(), tuple(self._steps[-len(self._wanted) :] if self._wanted else ()))


def describe(
    model: Any,
    clip: Any,
    latent: Tensor,
    sampling: Sampling,
    *,
    hint: list[Any] | None = None,
    template: str = "",
    record: int = 0,
    report: Callable[[int, int, str], object] | None = None,
) -> tuple[GeneratedText, str]:
    """Video-to-text for clean latents ``[B,16,F,h,w]`` in the VAE's space; the tokens, and the first clip's words.

    ``hint``: CONDITIONING to look at beside the clip. ``template``: text with blanks for one clip. ``record``: steps to
    keep. ``report``: ``(step, steps, words)`` of the first clip after every step.
    """
    require_video_latent(latent, network_of(model).config)
    tokenizer, sampling = tokenizer_of(clip), sampling.resolved(run_facts(model), captions=True)
    recorder = Recorder(sampling.steps, record)
    if template.strip() and len(latent) > 1:
        raise UniViGUError(f"found {len(latent)} clips; a template is filled in for one at a time")

    def watch(step: int, state: State) -> None:
        if report is not None:
            report(step, state.steps, tokenizer.text(state.tokens[0]))
        if recorder.wants(state):
            recorder.add(state, sigma_from_tau(state.tau))

    def job(denoise: HostDenoiser, video: Tensor) -> Tensor:
        if template.strip():
            ranking = Ranking(samples=8, batch=AT_ONCE)
            return fill_template(denoise, tokenizer, template, video, sampling, ranking=ranking, callback=watch)
        return video_to_text(denoise, video, sampling, callback=watch)

    text = recorder.text(run_on_clip(model, job, latent, sampling, hint))
    return text, tokenizer.text(text.tokens[0])


def clips_at_once(model: Any, spec: ClipSpec) -> int:
    """How many clips, read as ``spec`` says, are captioned in one pass. Of large ones ComfyUI would put weights aside
    to make room."""
    config, size = network_of(model).config, (spec.frames, spec.height, spec.width)
    return clips_together(config, run_facts(model), size, SMALL)


def describe_together(
    model: Any,
    clip: Any,
    latents: Tensor,
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    hint: list[Any] | None = None,
    report: Callable[[int, int, str], object] | None = None,
) -> list[str]:
    """Words for each of clean latents ``[B,16,F,h,w]``, as ``describe`` gives them alone with that of ``seeds``."""
    require_video_latent(latents, network_of(model).config)
    tokenizer, sampling = tokenizer_of(clip), sampling.resolved(run_facts(model), captions=True)

    def watch(step: int, state: State) -> None:
        if report is not None:
            report(step, state.steps, tokenizer.text(state.tokens[0]))

    def job(denoise: HostDenoiser, video: Tensor) -> Tensor:
        return video_to_text(denoise, video, sampling, seeds=seeds, callback=watch)

    return [tokenizer.text(row) for row in run_on_clip(model, job, latents, sampling, hint).cpu()]


def rank(
    model: Any,
    clip: Any,
    latent: Tensor,
    texts: Sequence[str],
    ranking: Ranking,
    report: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Scores ``[K]`` of texts for a clean latent ``[1,16,F,h,w]`` in the VAE's space, as of ``caption_likelihood``."""
    run, tokenizer = run_facts(model), tokenizer_of(clip)
    ids = padded([tokenizer.ids(text) for text in texts], run.pad_token, run.text_length)

    def job(denoise: HostDenoiser, video: Tensor) -> Tensor:
        return caption_likelihood(denoise, video, ids, ranking, callback=report)

    sampling = Sampling(steps=1, text_length=ids.shape[1], seed=ranking.seed)
    return run_on_clip(model, job, latent, sampling).cpu()
