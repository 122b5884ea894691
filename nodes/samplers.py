"""The three jobs: Uni-Flow Sampler, Video-to-Text Denoise, Joint Sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..uvg_core.errors import UniViGUError
from ..uvg_core.flow.schedule import video_sigmas
from ..uvg_core.sampling import BestOf, Sampling, State, joint
from ..uvg_core.settings import Whole, setting, settings
from . import widgets
from .comfy.captions import Recorder, describe
from .comfy.conditioning import tokenizer_of, tokens_of, with_tokens_of
from .comfy.judging import Draw, best_of
from .comfy.latents import masks_of, nearest_words, require_video_latent, streams_of, video_mask
from .comfy.network import network_of, run_facts
from .comfy.sampling import (
    Conditions,
    Core,
    HostDenoiser,
    guided_until,
    prepare_noise,
    run_job,
    sample_with_core,
    samplers,
    schedulers,
    with_shift,
)
from .comfy.showing import Progress, blocked, said
from .types import Node, UvgText, output, schema
from .widgets import read, widget


@settings
class Recording:
    """How much of a run is kept to look at."""

    record: Whole = setting("Steps to keep for Uni-Flow Trajectory.", default=8, ge=0, le=100)


def record() -> Any:
    return widget(Recording, "record", optional=True, advanced=True)


def guidance_end() -> Any:
    return widget(Sampling, "guidance_end", step=0.05, optional=True, advanced=True)


def several_draws() -> Any:
    return widget(BestOf, "best_of", optional=True, advanced=True)


def seeds_from(seed: int, count: int) -> list[int]:
    """The seeds of several draws."""
    return [(seed + place) % widgets.ALL_SEEDS for place in range(count)]


def video_widgets() -> list[Any]:
    """The widgets of a run that forms video. What stands for the checkpoint's own was out of range before there was
    such a thing, so that every saved number means what it meant."""
    return [
        widget(Sampling, "steps", max=1000),
        widget(Sampling, "guidance", max=100, step=0.1, round=0.01),
        widget(Sampling, "shift", max=100, step=0.1, round=0.01),
    ]


NO_WORDS = "Joint Sampler gives captions where its input clip is connected: connect CLIP of Load Uni-ViGU to it"


def captions(tooltip: str) -> Any:
    return output(io.String, "captions", tooltip, is_output_list=True)


def generated_text() -> Any:
    tooltip = "The tokens, for Text Decoder, with the steps that were recorded."
    return output(UvgText, "text", tooltip)


class UniFlowSampler(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Uni-Flow Sampler",
            "Text to video. ComfyUI's own samplers; both passes of guidance see the positive prompt's text "
            "stream, as in the release.",
            search_aliases=["ksampler", "text to video", "t2v", "txt2vid", "generate video"],
            inputs=[
                widgets.model(),
                *widgets.prompts("The prompt, from Uni-ViGU Prompt."),
                io.Latent.Input("latent", tooltip="From Empty Uni-ViGU Latent, or an encoded clip to change."),
                widgets.seed(),
                *video_widgets(),
                widget(Core, "sampler", options=samplers()),
                widget(Core, "scheduler", options=schedulers()),
                widget(Core, "denoise", step=0.01),
                guidance_end(),
                several_draws(),
            ],
            outputs=[io.Latent.Output(tooltip="The clip, for VAE Decode.")],
            says=True,
        )

    @classmethod
    def execute(
        cls, model: Any, positive: list[Any], negative: list[Any], latent: dict[str, Any], seed: int, **inputs: Any
    ) -> io.NodeOutput:
        config = network_of(model).config
        sampling, core = read(Sampling, inputs).resolved(run_facts(model)), read(Core, inputs)
        if config.text_flow != "embedding":
            require_video_latent(latent["samples"], config)
        if core.denoise <= 0:
            return io.NodeOutput(latent)
        conditions = Conditions(positive, with_tokens_of(positive, negative), sampling.guidance_scale)

        def draw(seed: int) -> dict[str, Any]:
            result = {**latent, "samples": sample_with_core(model, latent, conditions, sampling, core, seed)}
            if not all(bool(stream.isfinite().all()) for stream in streams_of(result)):
                raise UniViGUError(
                    "the sampled latent holds values that are not numbers (black frames): set weight_dtype of Load "
                    "Uni-ViGU to bf16 or fp32, or lower the guidance"
                )
            return result

        count = read(BestOf, inputs).best_of
        if count == 1:
            return io.NodeOutput(draw(seed))
        require_video_latent(latent["samples"], config)
        tokens = tokens_of(positive)
        if tokens is None:
            raise UniViGUError(
                f"best_of is {count}, and the positive prompt has no text stream to hold the clips against; take the "
                "prompt from Uni-ViGU Prompt, or set best_of to 1"
            )
        chosen = best_of(model, seeds_from(seed, count), lambda one: Draw(one, draw(one)["samples"], tokens))
        return io.NodeOutput({**latent, "samples": chosen.rows(lambda one: one.video)}, ui=said(chosen.said))


class VideoToTextDenoise(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Video-to-Text Denoise",
            "Describes a clip: the video is held clean, the text forms from noise. The text shows in the "
            "node while it forms.",
            search_aliases=[
                *("caption", "describe", "interrogate", "img2txt", "vid2txt", "v2t", "image to text", "video to text"),
                *("caption video", "describe video", "vqa"),
            ],
            inputs=[
                widgets.model(),
                widgets.clip(),
                widgets.clean_latent(),
                io.Conditioning.Input("hint", optional=True, tooltip="A prompt to give the model along with the clip."),
                io.String.Input(
                    "template",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Text with blanks (___) to fill in, e.g. a ___ red ___ moves ___. Empty: a free caption.",
                ),
                *widgets.captioning(),
                record(),
                widgets.video_cache(),
            ],
            outputs=[generated_text(), captions("The caption, one for each clip of the batch.")],
            hidden=[io.Hidden.unique_id],
            says=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        latent: dict[str, Any],
        hint: list[Any] | None = None,
        template: str = "",
        **inputs: Any,
    ) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)

        def report(step: int, steps: int, words: str) -> None:
            progress("captioning", step, steps)
            progress.text(words)

        sampling, record = read(Sampling, inputs), read(Recording, inputs).record
        text, first = describe(
            model, clip, latent["samples"], sampling, hint=hint, template=template, record=record, report=report
        )
        progress.text(first, last=True)
        words = text.words(tokenizer_of(clip))
        return io.NodeOutput(text, words, ui=said(*words))


class JointSampler(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        hidden = {"optional": True, "advanced": True}
        return schema(
            cls,
            "Joint Sampler",
            "From a brief prompt, a clip and its caption at once, on one clock. The preview shows the "
            "clip, the node the text.",
            search_aliases=["text and video", "t2vt", "text to video with caption"],
            inputs=[
                widgets.model(),
                *widgets.prompts("The brief prompt, from Uni-ViGU Prompt."),
                io.Latent.Input(
                    "latent",
                    tooltip="From Empty Uni-ViGU Latent: it says the size. An encoded clip says no more either, unless "
                    "it has a mask (Set Latent Noise Mask): what is black there is kept.",
                ),
                widget(Sampling, "text_length"),
                widgets.seed(),
                *video_widgets(),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Below 1 more predictable words; 0 always takes the likeliest.",
                    **hidden,
                ),
                widget(Sampling, "top_p", min=0.01, step=0.01, **hidden),
                widget(
                    Sampling,
                    "text_update",
                    tooltip="bridge: the exact jump process. release: the release's redraw rule.",
                    **hidden,
                ),
                record(),
                widgets.clip(
                    "Turns tokens into words: they show in the node, and come out as captions.", optional=True
                ),
                guidance_end(),
                several_draws(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The clip, for VAE Decode."),
                generated_text(),
                captions("The caption, one for each clip of the batch. Needs the input clip."),
            ],
            hidden=[io.Hidden.unique_id],
            says=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        negative: list[Any],
        latent: dict[str, Any],
        seed: int,
        clip: Any | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        video, free = _video_of(model, latent)
        fixed = _words_of(model, latent)
        if fixed is not None:
            inputs["text_length"] = _same_length(inputs["text_length"], fixed.shape[-1])
        sampling = read(Sampling, {"seed": seed, **inputs}).resolved(run_facts(model), joint=True)
        assert sampling.steps is not None
        assert sampling.shift is not None
        sigmas, shifted = video_sigmas(sampling.steps, sampling.shift), with_shift(model, sampling.shift)
        tokenizer = None if clip is None else tokenizer_of(clip)
        progress = Progress(cls.hidden.unique_id, shifted, sampling.steps)

        def once(seed: int) -> Draw:
            recorder = Recorder(sampling.steps, read(Recording, inputs).record)

            def watch(step: int, state: State) -> None:
                progress.video(step, state.steps, state.estimate, state.latent)
                if tokenizer is not None:
                    progress.text(tokenizer.text(state.tokens[0]))
                if recorder.wants(state):
                    estimate = shifted.model.process_latent_out(state.estimate[:1].float()).cpu()
                    recorder.add(state, state.sigma, estimate.half())

            def job(denoise: HostDenoiser, noise: Any, clean: Any) -> tuple[Any, Any]:
                seeds = [(seed + row) % widgets.SEEDS for row in latent.get("batch_index") or range(len(video))]
                kept = None if free is None else (clean, free.to(noise))
                return joint(denoise, noise, sampling, fixed=fixed, seeds=seeds, kept=kept, callback=watch)

            samples, tokens = run_job(
                guided_until(shifted, sampling.guidance_end, sigmas),
                job,
                Conditions(positive, negative, sampling.guidance_scale),
                replace(sampling, seed=seed % widgets.SEEDS),
                noise=prepare_noise({**latent, "samples": video}, seed),
                latent=video,
                sigmas=sigmas,
            )
            return Draw(seed, samples, tokens.cpu(), recorder)

        count = read(BestOf, inputs).best_of
        if count == 1:
            only = once(seed)
            samples, text, scores = only.video, only.rest.text(only.tokens), []
        else:
            chosen = best_of(model, seeds_from(seed, count), once)
            samples, scores = chosen.rows(lambda one: one.video), [chosen.said]
            text = chosen.draws[chosen.which[0]].rest.text(chosen.rows(lambda one: one.tokens))
        words = [] if tokenizer is None else text.words(tokenizer)
        if words:
            progress.text(words[0], last=True)
        if free is not None:  # to the network's space and back is not quite where it was
            samples = torch.where(free > 0, samples, video.to(samples))
        rest = {key: value for key, value in latent.items() if not getattr(value, "is_nested", False)}
        return io.NodeOutput({**rest, "samples": samples}, text, words or blocked(NO_WORDS), ui=said(*words, *scores))


def _video_of(model: Any, latent: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The video of a LATENT, and the mask of what forms anew in it, None for all."""
    config, (video, *_), (mask, _) = network_of(model).config, streams_of(latent), masks_of(latent)
    require_video_latent(video if config.text_flow == "embedding" else latent["samples"], config)
    free = None if mask is None else video_mask(mask, video)
    if free is None or bool((free >= 1).all()):
        return video, None
    if not bool(video.any()):
        raise UniViGUError(
            "the mask keeps parts of a latent that is empty; connect the clip they belong to, with Encode Video "
            "for Uni-ViGU, or remove the mask"
        )
    if not bool(free.any()):
        raise UniViGUError(
            "the mask keeps the whole clip, so that there is nothing to form; for its caption use Video-to-Text "
            "Denoise, else make white in the mask what is to change"
        )
    return video, free


def _words_of(model: Any, latent: dict[str, Any]) -> Tensor | None:
    """The words of a text stream that its mask keeps: ids ``[B,L]``, -1 where the model may choose; None for none."""
    streams, (_, mask) = streams_of(latent), masks_of(latent)
    if mask is None or len(streams) < 2 or bool((mask > 0).all()):
        return None
    text = streams[1]
    if not bool(text.any()):
        raise UniViGUError("the mask keeps words of a text stream that is empty; remove the mask of the text")
    words = nearest_words(model, text.transpose(1, 2))
    return words.where(mask.cpu().reshape(-1, mask.shape[-1]).expand_as(words) <= 0, -1)


def _same_length(given: int, kept: int) -> int:
    """The length of a text stream of which words are kept, whatever the widget leaves to it."""
    if given not in (0, kept):
        raise UniViGUError(
            f"text_length is {given}, and the text stream whose words the mask keeps has {kept} tokens; set "
            "text_length to 0"
        )
    return kept
