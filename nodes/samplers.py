"""The three jobs: Uni-Flow Sampler, Video-to-Text Denoise, Joint Sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..uvg_core.config import RunConfig
from ..uvg_core.errors import UniViGUError
from ..uvg_core.flow.schedule import video_sigmas
from ..uvg_core.flow.time import sigma_from_tau
from ..uvg_core.sampling import Ranking, Sampling, State, fill_template, joint, video_to_text
from ..uvg_core.sampling.loop import spread
from ..uvg_core.sampling.settings import TEXT_UPDATES
from . import comfy as bridge
from .types import CATEGORY, GeneratedText, RecordedStep, UvgText

UNIFORM = "uniform"  # the release's schedule, exactly
RECORDED = 8
AT_ONCE = 2  # texts ranked in one call: what ComfyUI reserves memory for


def seed_input() -> Any:
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True)


def record_input() -> Any:
    return io.Int.Input(
        "record",
        default=RECORDED,
        min=0,
        max=100,
        optional=True,
        advanced=True,
        tooltip="Steps to keep for Uni-Flow Trajectory.",
    )


def guidance_end_input() -> Any:
    return io.Float.Input(
        "guidance_end",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.05,
        optional=True,
        advanced=True,
        tooltip="The share of the steps that are guided; the others take half the time.",
    )


def sampling_inputs() -> list[Any]:
    """The widgets of a run that forms video. What stands for the checkpoint's own was out of range before there was
    such a thing, so that every saved number means what it meant."""
    return [
        io.Int.Input(
            "steps",
            display_name="steps (0 = auto)",
            default=0,
            min=0,
            max=1000,
            tooltip="0: what the checkpoint recommends.",
        ),
        io.Float.Input(
            "guidance",
            display_name="guidance (-1 = auto)",
            default=-1.0,
            min=-1.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="How strongly the clip follows the prompt; 1 is none. Below 0: what the checkpoint recommends.",
        ),
        io.Float.Input(
            "shift",
            display_name="shift (0 = auto)",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Above 1: more of the steps at high noise. 0: what the checkpoint recommends.",
        ),
    ]


def sampling_of(run: RunConfig, steps: int, guidance: float, shift: float) -> tuple[int, float, float]:
    """What those widgets stand for with a checkpoint."""
    return steps or run.steps, run.guidance_scale if guidance < 0 else guidance, shift or run.shift


class UniFlowSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniFlowSampler",
            display_name="Uni-Flow Sampler",
            category=CATEGORY,
            description="Text to video. ComfyUI's own samplers; both passes of guidance see the positive prompt's text "
            "stream, as in the release.",
            search_aliases=["ksampler", "text to video"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent"),
                seed_input(),
                *sampling_inputs(),
                io.Combo.Input("sampler", options=bridge.core_samplers(), default="euler"),
                io.Combo.Input(
                    "scheduler",
                    options=[UNIFORM, *bridge.core_schedulers()],
                    default=UNIFORM,
                    tooltip="uniform is the release's own schedule; the others are ComfyUI's.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 the given latent is changed, not replaced.",
                ),
                guidance_end_input(),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        negative: list[Any],
        latent: dict[str, Any],
        seed: int,
        steps: int,
        guidance: float,
        shift: float,
        sampler: str,
        scheduler: str,
        denoise: float,
        guidance_end: float = 1.0,
    ) -> io.NodeOutput:
        config = bridge.network_of(model).config
        steps, guidance, shift = sampling_of(bridge.run_facts(model), steps, guidance, shift)
        if config.text_flow != "embedding":
            bridge.require_video_latent(latent["samples"], config)
        if denoise <= 0:
            return io.NodeOutput(latent)
        sigmas = None
        if scheduler == UNIFORM:
            sigmas = video_sigmas(int(steps / denoise), shift)[-(steps + 1) :]
        samples = bridge.sample_with_core(
            bridge.with_shift(model, shift),
            latent,
            positive=positive,
            negative=bridge.with_tokens_of(positive, negative),
            seed=seed,
            steps=steps,
            cfg=guidance,
            sampler=sampler,
            scheduler="simple" if scheduler == UNIFORM else scheduler,
            denoise=denoise,
            sigmas=sigmas,
            guidance_end=guidance_end,
        )
        result = {**latent, "samples": samples}
        for stream in bridge.streams_of(result):
            if not bool(stream.isfinite().all()):
                raise UniViGUError(
                    "the sampled latent holds values that are not numbers (black frames): set weight_dtype of Load "
                    "Uni-ViGU to bf16 or fp32, or lower the guidance"
                )
        return io.NodeOutput(result)


@dataclass(frozen=True)
class Captioning:
    """The widgets of video-to-text, shared by the nodes that describe clips. 0 stands for the checkpoint's own, of
    ``temperature`` a number below 0."""

    length: int
    steps: int
    seed: int
    temperature: float
    top_p: float
    stop_when_stable: int
    text_update: str
    video_cache: str = "auto"

    @staticmethod
    def inputs() -> list[Any]:
        return [
            io.Int.Input(
                "length",
                display_name="length (0 = auto)",
                default=0,
                min=0,
                max=4096,
                tooltip="Tokens of the text. 0: what the checkpoint was trained with.",
            ),
            io.Int.Input(
                "steps",
                display_name="steps (0 = auto)",
                default=0,
                min=0,
                max=1000,
                tooltip="0: what the checkpoint recommends.",
            ),
            seed_input(),
            io.Float.Input(
                "temperature",
                display_name="temperature (-1 = auto)",
                default=-1.0,
                min=-1.0,
                max=10.0,
                step=0.05,
                tooltip="0 always takes the likeliest word; below 0: what the checkpoint recommends.",
            ),
            io.Float.Input("top_p", default=1.0, min=0.01, max=1.0, step=0.01),
            io.Int.Input(
                "stop_when_stable",
                default=0,
                min=0,
                max=100,
                advanced=True,
                tooltip="Stops as soon as this many steps in a row draw the same words and the model gives each of "
                "them a probability of at least 0.9; 0 takes every step.",
            ),
            io.Combo.Input(
                "text_update",
                options=[rule for rule in TEXT_UPDATES if rule != "release"],
                default="bridge",
                advanced=True,
                tooltip="bridge is exact at any number of steps; euler is the release's rule.",
            ),
        ]


def video_cache_input() -> Any:
    return io.Combo.Input(
        "video_cache",
        options=["auto", "off", "static", "refresh=2", "refresh=4", "refresh=8", "refresh=16"],
        default="auto",
        optional=True,
        advanced=True,
        tooltip="Keeps what the network made of the clip from one step to the next, which saves most of the time. "
        "static looks at it once, refresh=4 in every 4th step, off in each. auto: once if that changes nothing with "
        "this checkpoint, else off.",
    )


@dataclass(frozen=True)
class Description:
    """What came of a clip: ``generated`` for the sockets, ``text`` the first clip's words."""

    generated: GeneratedText
    text: str


def describe(
    model: Any,
    clip: Any,
    latent: Tensor,
    settings: Captioning,
    *,
    hint: list[Any] | None = None,
    template: str = "",
    record: int = 0,
    progress: bridge.Progress | None = None,
    show: Callable[[str], None] | None = None,
) -> Description:
    """Video-to-text for clean latents ``[B,16,F,h,w]`` in the VAE's space."""
    config = bridge.network_of(model).config
    bridge.require_video_latent(latent, config)
    run, tokenizer = bridge.run_facts(model), bridge.tokenizer_of(clip)
    steps, length = settings.steps or run.text_steps, settings.length or run.text_length
    keep, kept = spread(steps, record), []
    found: list[Tensor] = []
    if template.strip() and len(latent) > 1:
        raise UniViGUError(f"found {len(latent)} clips; a template is filled in for one at a time")

    def watch(step: int, state: State) -> None:
        if progress is not None:
            progress.step(step, state.steps)
        if show is not None:
            show(tokenizer.text(state.tokens[0]))
        if step in keep or (record and state.text.settled):
            kept.append(RecordedStep(step, state.steps, sigma_from_tau(state.tau), state.tokens.cpu(), None))

    sampling = Sampling(
        steps=steps,
        text_length=length,
        seed=settings.seed % 2**63,
        temperature=run.text_temperature if settings.temperature < 0 else settings.temperature,
        top_p=settings.top_p,
        stop_when_stable=settings.stop_when_stable,
        text_update=settings.text_update,
        video_cache=settings.video_cache,
    )

    def job(denoise: bridge.HostDenoiser, noise: Tensor, video: Tensor) -> Tensor:
        if template.strip():
            ranking = Ranking(samples=8, batch=AT_ONCE)
            ids = fill_template(denoise, tokenizer, template, video, sampling, ranking=ranking, callback=watch)
        else:
            ids = video_to_text(denoise, video, sampling, callback=watch)
        found.append(ids)
        return video

    bridge.run_on_clip(model, job, latent, seed=settings.seed, hint=hint, steps=steps, text_length=length)
    text = tokenizer.text(found[0][0])
    if show is not None:
        show(text)
    return Description(GeneratedText(found[0].cpu(), tuple(kept[-len(keep) :] if keep else ())), text)


class VideoToTextDenoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VideoToTextDenoise",
            display_name="Video-to-Text Denoise",
            category=CATEGORY,
            description="Describes a clip: the video is held clean, the text forms from noise. The text shows in the "
            "node while it forms.",
            search_aliases=["caption video", "describe video", "vqa"],
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Latent.Input("latent", tooltip="A clean video latent, from Encode Video for Uni-ViGU."),
                io.Conditioning.Input("hint", optional=True, tooltip="A prompt to look at beside the clip."),
                io.String.Input(
                    "template",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Text with blanks (___) to fill in, e.g. a ___ red ___ moves ___. Empty: a free caption.",
                ),
                *Captioning.inputs(),
                record_input(),
                video_cache_input(),
            ],
            outputs=[UvgText.Output(display_name="text")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        latent: dict[str, Any],
        hint: list[Any] | None = None,
        template: str = "",
        record: int = RECORDED,
        **options: Any,
    ) -> io.NodeOutput:
        progress = bridge.Progress(cls.hidden.unique_id)
        done = describe(
            model,
            clip,
            latent["samples"],
            Captioning(**options),
            hint=hint,
            template=template,
            record=record,
            progress=progress,
            show=progress.text,
        )
        progress.text(done.text, last=True)
        return io.NodeOutput(done.generated)


class JointSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JointSampler",
            display_name="Joint Sampler",
            category=CATEGORY,
            description="From a brief prompt, a clip and its caption at once, on one clock. The preview shows the "
            "clip, the node the text.",
            search_aliases=["text and video", "t2vt"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent"),
                io.Int.Input(
                    "text_length",
                    display_name="text_length (0 = auto)",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Tokens of the text. 0: what the checkpoint was trained with.",
                ),
                seed_input(),
                *sampling_inputs(),
                io.Float.Input("temperature", default=1.0, min=0.0, max=10.0, step=0.05, optional=True, advanced=True),
                io.Float.Input("top_p", default=1.0, min=0.01, max=1.0, step=0.01, optional=True, advanced=True),
                io.Combo.Input(
                    "text_update",
                    options=list(TEXT_UPDATES),
                    default="bridge",
                    optional=True,
                    advanced=True,
                    tooltip="bridge: the exact jump process. release: the release's redraw rule.",
                ),
                record_input(),
                io.Clip.Input("clip", optional=True, tooltip="Shows the words in the node while they form."),
                guidance_end_input(),
            ],
            outputs=[io.Latent.Output(), UvgText.Output(display_name="text")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        negative: list[Any],
        latent: dict[str, Any],
        text_length: int,
        seed: int,
        steps: int,
        guidance: float,
        shift: float,
        temperature: float = 1.0,
        top_p: float = 1.0,
        text_update: str = "bridge",
        record: int = RECORDED,
        clip: Any | None = None,
        guidance_end: float = 1.0,
    ) -> io.NodeOutput:
        config, run = bridge.network_of(model).config, bridge.run_facts(model)
        steps, guidance, shift = sampling_of(run, steps, guidance, shift)
        video = bridge.streams_of(latent)[0]
        bridge.require_video_latent(video, config)
        shifted = bridge.with_shift(model, shift)
        tokenizer = None if clip is None else bridge.tokenizer_of(clip)
        progress = bridge.Progress(cls.hidden.unique_id, shifted, steps)
        keep, kept, texts = spread(steps, record), [], []

        def watch(step: int, state: State) -> None:
            progress.video(step, state.steps, state.estimate, state.latent)
            if tokenizer is not None:
                progress.text(tokenizer.text(state.tokens[0]))
            if step in keep:
                seen = shifted.model.process_latent_out(state.estimate[:1].float()).cpu()
                kept.append(RecordedStep(step, state.steps, state.sigma, state.tokens.cpu(), seen.half()))

        sampling = Sampling(
            steps=steps,
            shift=shift,
            text_length=text_length or run.text_length,
            temperature=temperature,
            top_p=top_p,
            text_update=text_update,
        )
        seeds = [(seed + row) % 2**63 for row in latent.get("batch_index") or range(len(video))]

        def job(denoise: bridge.HostDenoiser, noise: Tensor, _: Tensor) -> Tensor:
            result = joint(denoise, noise, sampling, seeds=seeds, callback=watch)
            texts.append(result.text.cpu())
            return result.video

        sigmas = video_sigmas(steps, shift)
        samples = bridge.run_job(
            bridge.guided_until(shifted, guidance_end, sigmas),
            job,
            positive=positive,
            negative=negative,
            cfg=guidance,
            noise=bridge.prepare_noise({**latent, "samples": video}, seed),
            latent=video,
            sigmas=sigmas,
            seed=seed,
            text_length=text_length,
        )
        if tokenizer is not None:
            progress.text(tokenizer.text(texts[0][0]), last=True)
        return io.NodeOutput({**latent, "samples": samples}, GeneratedText(texts[0], tuple(kept)))
