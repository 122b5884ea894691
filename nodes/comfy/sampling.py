"""The sampling of both streams inside ComfyUI's guider, and core's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

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
from .conditioning import at_all_times, no_prompt
from .names import TEXT_RUN
from .network import HostedNetwork, TextInput
from .showing import preview_of

log = logging.getLogger(__name__)

UNIFORM = "uniform"  # the release's schedule, exactly
SCHEDULERS = [UNIFORM, *comfy.samplers.SCHEDULER_NAMES]


@dataclass
class TextRun:
    """The text stream of one step of a run, on its way through ComfyUI's guider, and the logits on their way back.
    ``content`` ``[B,L]`` ids or ``[B,L,D]`` vectors, ``time`` ``[B]`` on the network's clock.

    Both passes of guidance see the same text; the logits are the conditional pass's (the mean over several positive
    conditions, where prompts are combined).
    """

    content: Tensor
    time: Tensor
    mask: Tensor | None
    options: PassOptions
    closed: bool = False  # once the passes of this step are in: what patches ask of the network later is not heard
    seen: list[Tensor] = field(default_factory=list)

    def _wanted(self, passes: Sequence[int]) -> list[int]:
        """Which chunks of a batch are a conditional pass whose logits are asked for."""
        return (
            [n for n, index in enumerate(passes) if index == 0] if self.options.want_logits and not self.closed else []
        )

    def for_batch(self, device: torch.device, passes: Sequence[int]) -> TextInput:
        """The text for a batch that holds one chunk per entry of ``passes`` (0 conditional, 1 not)."""
        wanted, rows = self._wanted(passes), len(self.content)
        logits = slice(wanted[0] * rows, (wanted[-1] + 1) * rows) if wanted else False

        def repeated(part: Tensor) -> Tensor:
            return torch.cat([part] * len(passes)).to(device)

        return TextInput(
            repeated(self.content),
            repeated(self.time),
            None if self.mask is None else repeated(self.mask),
            replace(self.options, want_logits=logits),
        )

    def take(self, text: TextInput, passes: Sequence[int]) -> None:
        """Keep the logits of the conditional passes among those that the network made of ``for_batch``."""
        wanted = self._wanted(passes)
        for logits in text.logits:
            chunks = logits.split(len(self.content))
            self.seen += [chunks[n - wanted[0]].to(self.content.device) for n in wanted]

    @property
    def logits(self) -> Tensor | None:
        if len(self.seen) < 2:
            return self.seen[0] if self.seen else None
        return torch.stack(self.seen).mean(0)


class HostDenoiser:
    """uvg_core's ``Denoiser``, answered through ComfyUI's guider: conditioning, guidance, hooks, patches and wrappers
    are ComfyUI's own."""

    def __init__(self, guider: Any, extra_args: Mapping[str, Any]) -> None:
        self._guider = guider
        self._options = extra_args["model_options"]
        self._seed = extra_args.get("seed")
        network = guider.inner_model.diffusion_model
        self.hosted: HostedNetwork = network  # without guidance, conditions and hooks
        self.config: ModelConfig = network.config
        self.embed = network.embed
        self._last_logits: Tensor | None = None
        conditions = [cond for conds in guider.conds.values() for cond in conds]
        in_ranges = any({"timestep_start", "timestep_end"} & cond.keys() for cond in conditions)
        wrapped = (
            self._options.get("transformer_options", {}).get("wrappers") or "model_function_wrapper" in self._options
        )
        self._may_reuse = bool(in_ranges or wrapped)  # a step's logits in a later step
        self._shape: list[int] = []  # of the latent in the pass under way

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
        run = TextRun(text.content, times[1], text.mask, options)

        def close(args: Mapping[str, Any]) -> Any:
            run.closed = True  # skip-layer guidance and its like run the network again, worse on purpose
            return args["conds_out"]

        model_options = {
            **self._options,
            "transformer_options": {**self._options.get("transformer_options", {}), TEXT_RUN: run},
            "sampler_pre_cfg_function": [close, *self._options.get("sampler_pre_cfg_function", [])],
        }
        sigma = sigma_from_model_time(times[0])
        denoised = self._guider(latent, sigma, model_options=model_options, seed=self._seed)
        velocity = (latent - denoised) / sigma.view(-1, 1, 1, 1, 1) if options.want_velocity else None
        if options.want_logits and run.logits is not None:
            self._last_logits = run.logits
        if options.want_logits and self._last_logits is None:
            raise UniViGUError(
                "no prompt is active at the first step, so that the text has nothing to follow; remove the timestep "
                "range from the positive prompt"
            )
        # A patch that reuses an earlier step in place of the network (EasyCache) reuses that step's text as well.
        return Prediction(velocity, self._last_logits if options.want_logits else None)


@dataclass(frozen=True)
class Conditions:
    """The prompts of a run as CONDITIONING, and the scale of guidance between them; no negative, no guidance."""

    positive: list[Any]
    negative: list[Any] | None = None
    guidance: float | None = 1.0


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
    *,
    noise: Tensor,
    latent: Tensor,
    sigmas: Tensor,
    seed: int,
    text_length: int | None = None,
) -> tuple[Tensor, Result]:
    """Run ``job`` with MODEL loaded and patched by ComfyUI; noise and latents inside are in the network's space.
    ``text_length``: tokens of the job's text, None for what the checkpoint was trained with. Returns the job's latent
    in the VAE's space, on the CPU, and its result."""
    guider = comfy.samplers.CFGGuider(model)
    if conditions.negative is None:
        guider.inner_set_conds({"positive": conditions.positive})
    else:
        guider.set_conds(conditions.positive, conditions.negative)
    guider.set_cfg(conditions.guidance)
    host = guider.model_patcher.model  # hooks may have put another one in its place
    usual, sampler = host.run_facts.text_length, _JobSampler(job)
    host.text_length, host.word_rows = text_length or usual, latent.shape[0]
    try:
        out = guider.sample(noise, latent, sampler, sigmas, seed=seed)
    finally:
        host.text_length, host.word_rows = usual, 0
    return out.to(comfy.model_management.intermediate_device()), sampler.result


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
        Conditions(at_all_times(hint) if hint else no_prompt(model)),
        noise=torch.zeros_like(latent),
        latent=latent,
        sigmas=torch.zeros((sampling.steps or 1) + 1),
        seed=sampling.seed,
        text_length=sampling.text_length,
    )[1]


def core_samplers() -> list[str]:
    return list(comfy.samplers.SAMPLER_NAMES)


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
    model, scheduler = with_shift(model, shift), "simple" if core.scheduler == UNIFORM else core.scheduler
    samples = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )
    if core.scheduler == UNIFORM:
        given = planned = video_sigmas(int(steps / core.denoise), shift)[-(steps + 1) :]
    else:
        given, planned = None, _core_sigmas(model, steps, core)
    return comfy.sample.sample(
        guided_until(model, sampling.guidance_end, planned),
        prepare_noise({**latent, "samples": samples}, seed),
        steps,
        conditions.guidance,
        core.sampler,
        scheduler,
        conditions.positive,
        conditions.negative,
        samples,
        denoise=core.denoise,
        noise_mask=latent.get("noise_mask"),
        sigmas=given,
        callback=preview_of(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def _core_sigmas(model: Any, steps: int, core: Core) -> Tensor:
    sigmas: Tensor = comfy.samplers.KSampler(
        model,
        steps=steps,
        device=model.load_device,
        sampler=core.sampler,
        scheduler=core.scheduler,
        denoise=core.denoise,
    ).sigmas
    if not bool(sigmas.isfinite().all()):
        raise UniViGUError(
            f"the scheduler {core.scheduler} cannot make {steps} step(s): take more steps or another scheduler"
        )
    return sigmas
