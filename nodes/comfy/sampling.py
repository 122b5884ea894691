"""The sampling of both streams inside ComfyUI's guider, and core's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from ...uvg_core.flow.time import sigma_from_model_time
from ...uvg_core.model import Prediction, VideoCache
from ...uvg_core.sampling.denoiser import BOTH, Moment, Want
from ...uvg_core.sampling.guidance import guided_steps
from ...uvg_core.sampling.streams import TextStream, VideoStream
from .conditioning import at_all_times, no_prompt
from .names import TEXT_STREAM
from .network import HostedNetwork
from .showing import preview_of

log = logging.getLogger(__name__)


@dataclass
class TextRun:
    """The text stream of one call of the network, on its way through ComfyUI's guider, and the logits on their way
    back. ``content`` ``[B,L]`` ids or ``[B,L,D]`` vectors, ``time`` ``[B]`` on the network's clock.

    Both passes of guidance see the same text; the logits are the conditional pass's (the mean over several positive
    conditions, where prompts are combined).
    """

    content: Tensor
    time: Tensor
    mask: Tensor | None
    want_velocity: bool
    want_logits: bool
    cache: VideoCache | None = None
    seen: list[Tensor] = field(default_factory=list)
    video_clean: bool = False  # as in PassOptions
    closed: bool = False  # once the passes of this step are in: what patches ask of the network later is not heard

    def for_batch(self, x: Tensor, passes: Sequence[int]) -> dict[str, Any]:
        """The text for a batch that holds one chunk per entry of ``passes`` (0 conditional, 1 not)."""
        count = len(passes)
        rows = x.shape[0] // count
        heard = self.want_logits and not self.closed
        wanted = [n for n, index in enumerate(passes) if index == 0] if heard else []
        return {
            "content": torch.cat([self.content] * count).to(x.device),
            "time": torch.cat([self.time] * count).to(x.device),
            "mask": None if self.mask is None else torch.cat([self.mask] * count).to(x.device),
            "cache": self.cache,
            "video_clean": self.video_clean,
            "want_velocity": self.want_velocity,
            "logits_rows": slice(wanted[0] * rows, (wanted[-1] + 1) * rows) if wanted else False,
            "chunks": [n - wanted[0] for n in wanted],
            "rows": rows,
            "logits": None,
        }

    def take(self, stream: Mapping[str, Any]) -> None:
        if stream["logits"] is not None:
            chunks = stream["logits"].split(stream["rows"])
            self.seen += [chunks[n].to(self.content.device) for n in stream["chunks"]]

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
        ranges = [
            cond
            for conds in guider.conds.values()
            for cond in conds
            if {"timestep_start", "timestep_end"} & cond.keys()
        ]
        patched = (
            self._options.get("transformer_options", {}).get("wrappers") or "model_function_wrapper" in self._options
        )
        self._may_reuse = bool(ranges or patched)  # a step's logits in a later step
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

    def __call__(
        self, video: VideoStream, text: TextStream, at: Moment, want: Want = BOTH, cache: VideoCache | None = None
    ) -> Prediction:
        """The guided prediction. Raises UniViGUError where no prompt is active at the first step."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not self._may_reuse:
            self._last_logits = None  # a vocabulary for each token, which this pass needs no more
        latent = video.latent
        self._shape = list(latent.shape)
        times = [torch.full(latent.shape[:1], time, device=latent.device) for time in (at.time_video, at.time_text)]
        run = TextRun(text.content, times[1], text.mask, *want, cache, video_clean=video.held)

        def close(args: Mapping[str, Any]) -> Any:
            run.closed = True  # skip-layer guidance and its like run the network again, worse on purpose
            return args["conds_out"]

        options = {
            **self._options,
            "transformer_options": {**self._options.get("transformer_options", {}), TEXT_STREAM: run},
            "sampler_pre_cfg_function": [close, *self._options.get("sampler_pre_cfg_function", [])],
        }
        sigma = sigma_from_model_time(times[0])
        denoised = self._guider(latent, sigma, model_options=options, seed=self._seed)
        velocity = (latent - denoised) / sigma.view(-1, 1, 1, 1, 1) if want.velocity else None
        if want.logits and run.logits is not None:
            self._last_logits = run.logits
        if want.logits and self._last_logits is None:
            raise UniViGUError(
                "no prompt is active at the first step, so that the text has nothing to follow; remove the timestep "
                "range from the positive prompt"
            )
        # A patch that reuses an earlier step in place of the network (EasyCache) reuses that step's text as well.
        return Prediction(velocity, self._last_logits if want.logits else None)


Job = Callable[[HostDenoiser, Tensor, Tensor], Tensor]


class _JobSampler(comfy.samplers.Sampler):
    """A run of uvg_core's samplers where ComfyUI expects a sampler."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: Mapping[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        return self.job(HostDenoiser(model_wrap, extra_args), noise, latent_image)


def run_job(
    model: Any,
    job: Job,
    *,
    positive: list[Any],
    negative: list[Any] | None = None,
    cfg: float = 1.0,
    noise: Tensor,
    latent: Tensor,
    sigmas: Tensor,
    seed: int,
    text_length: int = 0,
) -> Tensor:
    """Run ``job(network, noise, latent)`` with MODEL loaded and patched by ComfyUI; noise and latents inside are in the
    network's space. ``text_length``: tokens of the job's text, 0 for what the checkpoint was trained with. Returns the
    job's latent in the VAE's space, on the CPU."""
    guider = comfy.samplers.CFGGuider(model)
    if negative is None:
        guider.inner_set_conds({"positive": positive})
    else:
        guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    host = guider.model_patcher.model  # hooks may have put another one in its place
    usual = host.run_facts.text_length
    host.text_length, host.told = text_length or usual, latent.shape[0]
    try:
        out = guider.sample(noise, latent, _JobSampler(job), sigmas, seed=seed)
    finally:
        host.text_length, host.told = usual, 0
    return out.to(comfy.model_management.intermediate_device())


def run_on_clip(
    model: Any,
    job: Job,
    latent: Tensor,
    *,
    seed: int,
    hint: list[Any] | None = None,
    steps: int = 1,
    text_length: int = 0,
) -> None:
    """``run_job`` for jobs that look at clips, clean latents in the VAE's space: no noise, no guidance, and no prompt
    but the hint."""
    run_job(
        model,
        job,
        positive=at_all_times(hint) if hint else no_prompt(model),
        noise=torch.zeros_like(latent),
        latent=latent,
        sigmas=torch.zeros(steps + 1),
        seed=seed,
        text_length=text_length,
    )


def core_samplers() -> list[str]:
    return list(comfy.samplers.SAMPLER_NAMES)


def core_schedulers() -> list[str]:
    return list(comfy.samplers.SCHEDULER_NAMES)


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


def sample_with_core(
    model: Any,
    latent: Mapping[str, Any],
    *,
    positive: list[Any],
    negative: list[Any],
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    denoise: float,
    sigmas: Tensor | None,
    guidance_end: float = 1.0,
) -> Any:
    """Core's own sampling, with its noise, previews and masks; ``sigmas`` in place of the scheduler's where given;
    ``guidance_end`` as in ``guided_until``."""
    samples = comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    latent = {**latent, "samples": samples}
    planned = sigmas
    if planned is None:
        planned = comfy.samplers.KSampler(
            model, steps=steps, device=model.load_device, sampler=sampler, scheduler=scheduler, denoise=denoise
        ).sigmas
        if not bool(planned.isfinite().all()):
            raise UniViGUError(
                f"the scheduler {scheduler} cannot make {steps} step(s): take more steps or another scheduler"
            )
    return comfy.sample.sample(
        guided_until(model, guidance_end, planned),
        prepare_noise(latent, seed),
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        samples,
        denoise=denoise,
        noise_mask=latent.get("noise_mask"),
        sigmas=sigmas,
        callback=preview_of(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
