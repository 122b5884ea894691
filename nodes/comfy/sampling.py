"""uvg_core's jobs inside ComfyUI's guider, and core's own samplers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...uvg_core.config import ModelConfig
from ...uvg_core.errors import UniViGUError
from ...uvg_core.flow.schedule import video_sigmas
from ...uvg_core.flow.time import sigma_from_model_time
from ...uvg_core.model import PassOptions, Prediction, VideoCache
from ...uvg_core.sampling import Sampling
from ...uvg_core.sampling.guidance import guided_steps
from ...uvg_core.sampling.streams import TextStream, VideoStream
from ...uvg_core.settings import Number, Text, setting, settings
from .conditioning import hint_conditioning
from .network import HostedNetwork, TextInput
from .showing import preview_of

log = logging.getLogger(__name__)

UNIFORM = "uniform"  # the release's schedule, exactly


class TextCondition(comfy.conds.CONDRegular):  # type: ignore[misc]
    """The text of one step among the conditions of a prompt, which ComfyUI joins into batches for the network.

    Both passes of guidance see the same text; the logits are the conditional pass's, whose conditions want them."""

    def __init__(self, cond: TextInput, wants_logits: bool) -> None:
        self.cond, self.wants_logits = cond, wants_logits

    def process_cond(self, batch_size: int, **_: Any) -> TextCondition:
        return self

    def can_concat(self, other: Any) -> bool:
        return True

    def concat(self, others: Sequence[TextCondition]) -> TextInput:
        return self.cond.for_chunks([one.wants_logits for one in (self, *others)])

    def size(self) -> list[int]:
        return list(self.cond.content.shape)

    def beside(self, conditions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conditions of a prompt, with this text."""
        return [{**one, "model_conds": {**one["model_conds"], "sampler_text": self}} for one in conditions]


class HostDenoiser:
    """uvg_core's ``Denoiser``, answered through ComfyUI's guider: conditioning, guidance, hooks, patches and wrappers
    are ComfyUI's own. Core's Wan, which has no text stream, answers too."""

    def __init__(self, guider: Any, extra_args: Mapping[str, Any]) -> None:
        self._guider = guider
        self._options = extra_args["model_options"]
        self._seed = extra_args.get("seed")
        self._prompt, self._guidance = "positive", guider.cfg
        self.network: HostedNetwork = guider.inner_model.diffusion_model  # without guidance, conditions and hooks
        self.config: ModelConfig = getattr(self.network, "config", ModelConfig())
        self._shape: list[int] = []  # of the latent in the pass under way
        self._last_logits: Tensor | None = None
        options = self._options.get("transformer_options", {})
        in_ranges = any(
            {"timestep_start", "timestep_end"} & one.keys() for conds in guider.conds.values() for one in conds
        )
        # Whether a step's logits may serve a later step.
        self._may_reuse = bool(in_ranges or options.get("wrappers") or "model_function_wrapper" in self._options)

    def embed(self, tokens: Tensor) -> Tensor:
        """Rows of E for token ids."""
        return self.network.embed(tokens)

    def under(self, prompt: str, guidance: float) -> HostDenoiser:
        """The same under another of the prompts of the run (``Conditions.more``), with guidance of its own."""
        other = copy(self)
        other._prompt, other._guidance = prompt, guidance
        return other

    def video_cache(self, **settings: Any) -> VideoCache | None:
        """A cache within the memory that ComfyUI has left. None where one does not hold: several prompts, and context
        windows, each make something else of the clip, and patches of blocks expect to see all of it."""
        options = self._options.get("transformer_options", {})
        patched = any(options.get("patches", {}).values()) or options.get("patches_replace", {}).get("dit")
        divided = any(self._options.get(name) for name in ("context_handler", "multigpu_clones"))
        if patched or divided or len(self._guider.conds["positive"]) != 1:
            log.info(
                "Uni-ViGU: every step looks at the clip, because of patches on the model, context windows or several "
                "prompts"
            )
            return None
        return VideoCache(free_bytes=self._free_memory, spare_bytes=self._spare_memory, **settings)

    def _free_memory(self, device: torch.device) -> float:
        """What ComfyUI could still give, weights that it may put aside included, without what the pass itself takes."""
        model = self._guider.inner_model
        free = model.current_patcher.get_free_memory(device) - comfy.model_management.extra_reserved_memory()
        return float(free - model.memory_required(self._shape))

    def _spare_memory(self, device: torch.device) -> float:
        """That, with the weights of this model where they are: what is put aside is fetched again at every step."""
        patcher = self._guider.inner_model.current_patcher
        return self._free_memory(device) - (patcher.model_size() if patcher.is_dynamic() else 0)

    def __call__(self, video: VideoStream, text: TextStream, step: int, options: PassOptions) -> Prediction:
        """The guided prediction. Raises UniViGUError where no prompt is active at the first step."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not self._may_reuse:
            self._last_logits = None  # a vocabulary for each token, which this pass needs no more
        latent = video.latent
        self._shape = list(latent.shape)
        times = [torch.full(latent.shape[:1], s.model_time(step), device=latent.device) for s in (video, text)]
        stream, wants_logits = TextInput(text.content, times[1], text.mask, options), options.want_logits is not False
        prompted, unprompted = TextCondition(stream, wants_logits), TextCondition(stream, False)
        sigma = sigma_from_model_time(times[0])
        denoised = self._guided(latent, sigma, prompted, unprompted)
        velocity = (latent - denoised) / sigma.view(-1, 1, 1, 1, 1) if options.want_velocity else None
        if not wants_logits:
            return Prediction(velocity, None)
        if stream.logits:  # several where prompts are combined
            logits = [one.to(latent.device) for one in stream.logits]
            self._last_logits = logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)
        if self._last_logits is None:
            raise UniViGUError(
                "no prompt is active at the first step, so that the text has nothing to follow; remove the timestep "
                "range from the positive prompt"
            )
        # A patch that reuses an earlier step in place of the network (EasyCache) reuses that step's text as well.
        return Prediction(velocity, self._last_logits)

    def _guided(self, latent: Tensor, sigma: Tensor, prompted: TextCondition, unprompted: TextCondition) -> Tensor:
        """The guider's estimate of the clean latent, with the text beside both prompts."""

        def close(args: Mapping[str, Any]) -> Any:
            prompted.wants_logits = False  # skip-layer guidance and its like run the network again, worse on purpose
            return args["conds_out"]

        guider, conds, scale = self._guider, self._guider.conds, self._guider.cfg
        functions = [close, *self._options.get("sampler_pre_cfg_function", [])]
        guider.conds = {"positive": prompted.beside(conds[self._prompt])}
        if "negative" in conds:
            guider.conds["negative"] = unprompted.beside(conds["negative"])
        guider.cfg = self._guidance
        try:
            options = {**self._options, "sampler_pre_cfg_function": functions}
            denoised: Tensor = guider(latent, sigma, model_options=options, seed=self._seed)
        finally:
            guider.conds, guider.cfg = conds, scale
        return denoised


@dataclass(frozen=True)
class Conditions:
    """The prompts of a run as CONDITIONING, and the scale of guidance between them; no negative, no guidance.
    ``more``: other prompts by name, see ``HostDenoiser.under``."""

    positive: list[Any]
    negative: list[Any] | None = None
    guidance: float | None = 1.0
    more: Mapping[str, list[Any]] = field(default_factory=dict)


Result = TypeVar("Result")
# From the denoiser, noise and latent: the latent that the run ends with, and what else it gives.
Job = Callable[[HostDenoiser, Tensor, Tensor], tuple[Tensor, Result]]


class _JobSampler(comfy.samplers.Sampler, Generic[Result]):
    """A run of uvg_core's samplers where ComfyUI expects a sampler; ``result`` is there afterwards."""

    result: Result

    def __init__(self, job: Job[Result]) -> None:
        self.job = job

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, latent_image: Any, *_: Any
    ) -> Tensor:
        latent, self.result = self.job(HostDenoiser(model_wrap, extra_args), noise, latent_image)
        return latent


def run_job(
    model: Any,
    job: Job[Result],
    conditions: Conditions,
    sampling: Sampling,
    *,
    noise: Tensor,
    latent: Tensor,
    sigmas: Tensor,
) -> tuple[Tensor, Result]:
    """Run ``job`` with MODEL loaded and patched by ComfyUI; noise and latents inside are in the network's space.
    ``sampling``: seed and text length. Returns the job's latent in the VAE's space, on the CPU, and its result."""
    guider, sampler = comfy.samplers.CFGGuider(model), _JobSampler(job)
    negative = {} if conditions.negative is None else {"negative": conditions.negative}
    guider.inner_set_conds({"positive": conditions.positive, **negative, **conditions.more})
    guider.set_cfg(conditions.guidance)
    with _sized(guider.model_patcher.model, sampling.text_length, latent.shape[0]):  # hooks may have put another there
        out = guider.sample(noise, latent, sampler, sigmas, seed=sampling.seed)
    return out.to(comfy.model_management.intermediate_device()), sampler.result


@contextmanager
def _sized(host: Any, text_length: int | None, rows: int) -> Iterator[None]:
    """A run's text, for the estimate of its memory; core's Wan has none."""
    if not hasattr(host, "run_facts"):
        yield
        return
    usual = host.run_facts.text_length
    host.text_length, host.word_rows = text_length or usual, rows
    try:
        yield
    finally:
        host.text_length, host.word_rows = usual, 0


def run_on_clip(
    model: Any,
    job: Callable[[HostDenoiser, Tensor], Result],
    latent: Tensor,
    sampling: Sampling,
    hint: list[Any] | None = None,
) -> Result:
    """The result of a job that looks at clips, clean latents in the VAE's space: no noise, no guidance, and no prompt
    but the hint. ``sampling``: the seed, and the numbers of steps and tokens."""
    return run_job(
        model,
        lambda denoise, _, clip: (clip, job(denoise, clip)),
        Conditions(hint_conditioning(model, hint)),
        sampling,
        noise=torch.zeros_like(latent),
        latent=latent,
        sigmas=torch.zeros((sampling.steps or 1) + 1),
    )[1]


def samplers() -> list[str]:
    """Core's, with those that other packs have added by now."""
    return list(comfy.samplers.SAMPLER_NAMES)


def schedulers() -> list[str]:
    """The release's and core's, with those that other packs have added by now."""
    return [UNIFORM, *comfy.samplers.SCHEDULER_NAMES]


def with_shift(model: Any, shift: float) -> Any:
    """A clone of MODEL whose sigmas are shifted by ``shift`` (what core's ModelSamplingSD3 node does)."""

    class Shifted(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = Shifted(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    shifted = model.clone()
    shifted.add_object_patch("model_sampling", sampling)
    return shifted


def guided_until(model: Any, end: float, sigmas: Tensor) -> Any:
    """A clone of MODEL that is guided for the share ``end`` of the steps at ``sigmas``, and then makes the pass with
    the prompt alone (arXiv 2404.07724: late guidance costs as much as early guidance and changes less)."""
    if end >= 1:
        return model
    last = float(sigmas[guided_steps(end, len(sigmas) - 1)]) * (1 + 1e-5)  # they come back through a clock, rounded

    def predict(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        kept = guider.cfg
        try:
            if float(timestep.max()) <= last:
                guider.cfg = 1.0
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = kept

    guided = model.clone()
    guided.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "uni_vigu_guidance", predict)
    return guided


def prepare_noise(latent: Mapping[str, Any], seed: int) -> Any:
    """The noise that core's samplers draw for a LATENT and a seed."""
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


@settings
class Core:
    """How core's samplers are run."""

    sampler: Text = setting("One of ComfyUI's samplers; the release uses euler.", default="euler")
    scheduler: Text = setting("uniform is the release's own schedule; the others are ComfyUI's.", default=UNIFORM)
    denoise: Number = setting("Below 1 the given latent is changed, not replaced.", default=1.0, ge=0, le=1)


def sample_with_core(
    model: Any, latent: Mapping[str, Any], conditions: Conditions, sampling: Sampling, core: Core, seed: int
) -> Any:
    """Core's own sampling of a LATENT, with its noise, previews and masks; ``sampling``: steps, shift and
    ``guidance_end``, resolved. Raises UniViGUError where a scheduler cannot make that many steps."""
    steps, shift = sampling.steps, sampling.shift
    assert steps is not None
    assert shift is not None
    model = with_shift(model, shift)
    samples = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )
    if core.scheduler == UNIFORM:
        sigmas = video_sigmas(int(steps / core.denoise), shift)[-(steps + 1) :]
    else:
        device, denoise = model.load_device, core.denoise
        sigmas = comfy.samplers.KSampler(model, steps, device, core.sampler, core.scheduler, denoise).sigmas
    if not bool(sigmas.isfinite().all()):
        raise UniViGUError(
            f"the scheduler {core.scheduler} cannot make {steps} step(s): take more steps or another scheduler"
        )
    return comfy.sample.sample(
        guided_until(model, sampling.guidance_end, sigmas),
        prepare_noise({**latent, "samples": samples}, seed),
        steps,
        conditions.guidance,
        core.sampler,
        "simple",  # sigmas take its place
        conditions.positive,
        conditions.negative,
        samples,
        noise_mask=latent.get("noise_mask"),
        sigmas=sigmas,
        callback=preview_of(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
