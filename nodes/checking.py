"""Check Uni-ViGU: does it work here, and how is it meant to be run."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..uvg_core.errors import UniViGUError
from ..uvg_core.flow.schedule import video_sigmas
from ..uvg_core.media.null_embedding import read_null_embedding
from ..uvg_core.pipeline import check
from ..uvg_core.pipeline.components import LARGE_BYTES
from ..uvg_core.pipeline.evidence import Sample
from ..uvg_core.sampling import Ranking, Size, caption_likelihood
from ..uvg_core.sampling.rank import padded
from . import comfy as bridge
from .samplers import AT_ONCE, Captioning, describe
from .types import CATEGORY

log = logging.getLogger(__name__)


class UniViGUCheck(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniViGUCheck",
            display_name="Check Uni-ViGU",
            category=CATEGORY,
            description="Decides by the model's own losses on a few real clips which latent space and text states it "
            "was trained with, runs each job once, and gives the text for a bug report.",
            search_aliases=["uni-vigu check", "latent space", "bug report"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", tooltip="Loaded with text_states umT5; the other kind is computed from it."),
                io.Vae.Input("vae"),
                io.Combo.Input(
                    "null_embedding",
                    options=[bridge.NO_FILE, *bridge.null_embedding_names()],
                    default=bridge.NO_FILE,
                    optional=True,
                    tooltip="The release's empty_context_t5_emb.pt, as further evidence: it was computed with one of "
                    "the two kinds of text states.",
                ),
            ],
            outputs=[io.Model.Output(), io.String.Output(display_name="report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, null_embedding: str = bridge.NO_FILE) -> io.NodeOutput:
        config, run, tokenizer = bridge.config_of(model), bridge.run_facts(model), bridge.tokenizer_of(clip)
        bridge.require_video_vae(vae)
        progress = bridge.Progress(cls.hidden.unique_id, steps=100)
        device = model.load_device
        null = None
        if null_embedding != bridge.NO_FILE:
            null = read_null_embedding(bridge.null_embedding_path(null_embedding), config.text_dim)
        lines = [*check.environment(device), f"ComfyUI       {bridge.COMFYUI}"]
        dtypes = f"{model.model.get_dtype()}, computing in {model.model.get_dtype_inference()}".replace("torch.", "")
        lines.append(f"model         {bridge.size_of(model) / 1e9:.2f} GB, {dtypes}")
        states = run.text_states or "umT5 (assumed)"
        lines.append(f"stated        {config.latent_space} latents, {states} states; checked: {run.checked or 'never'}")

        def say(*more: str) -> None:
            lines.extend(more)
            progress.text("\n".join(lines))

        large = bridge.size_of(model) > LARGE_BYTES
        frames, height, width = check.looked_at(run, Size(), large, device)
        clips = check.shown_clips(tokenizer, run)
        by_states = bridge.conditions_by_states(clip, [*[one.caption for one in clips], ""])
        samples = [
            Sample(
                one.path.stem,
                bridge.encode_pixels(vae, one.pixels(frames, height, width)).cpu().float(),
                tokenizer.ids(one.caption),
                {kind: rows[k : k + 1] for kind, rows in by_states.items()},
                {kind: rows[-1:] for kind, rows in by_states.items()},
            )
            for k, one in enumerate(clips)
        ]

        def report(what: str, done: int, total: int) -> None:
            progress.step(done, total)

        verdict, line = check.measured(
            f"losses at {width}x{height}x{frames}",
            device,
            lambda: bridge.weigh_model(model, samples, null, report, **check.thoroughness(large)),
        )
        say(line, *check.lines_of(verdict, len(clips)))
        judged = bridge.with_verdict(model, verdict, f"check of {check.pack_version()}")
        if verdict.states.best == "release":
            say("set text_states of Load Uni-ViGU to release, or save the model and load it again")
        say(*_jobs(judged, clip, vae, samples, [one.caption for one in clips]))
        text = "\n".join(lines)
        progress.text(text, last=True)
        log.info("Uni-ViGU check:\n%s", text)
        return io.NodeOutput(judged, text, ui=ui.PreviewText(text))


def _jobs(model: Any, clip: Any, vae: Any, samples: list[Sample], captions: list[str]) -> list[str]:
    """One of each job at the size of the samples, with times."""
    run, tokenizer = bridge.run_facts(model), bridge.tokenizer_of(clip)
    device, steps = model.load_device, check.FEW_STEPS
    prompt = next((known for known in check.KNOWN_PROMPTS if len(tokenizer.ids(known)) <= run.context_length), "a")
    positive = bridge.encode_prompt(clip, prompt, None)
    negative = bridge.with_tokens_of(positive, bridge.encode_prompt(clip, "", ""))
    latent, line = check.measured(
        f"text to video, {steps} steps",
        device,
        lambda: bridge.sample_with_core(
            bridge.with_shift(model, run.shift),
            {"samples": torch.zeros_like(samples[0].raw)},
            positive=positive,
            negative=negative,
            seed=0,
            steps=steps,
            cfg=run.guidance_scale,
            sampler="euler",
            scheduler="simple",
            denoise=1.0,
            sigmas=torch.as_tensor(video_sigmas(steps, run.shift)),
        ),
    )
    pixels = bridge.decode_latent(vae, latent)
    spread = pixels.float().std().item()
    if spread < 1:
        raise UniViGUError(
            f"the known prompt gave a flat picture (standard deviation {spread:.2f} of 255); try another latent_space, "
            "or weight_dtype bf16 or fp32, in Load Uni-ViGU"
        )
    found = [f"{line}; latent {check.not_finite(latent)}"]
    found.append(f"ok  “{prompt}” gave {list(pixels.shape)} with a standard deviation of {spread:.1f} of 255")
    settings = Captioning(
        length=0, steps=steps, seed=0, temperature=-1.0, top_p=1.0, stop_when_stable=0, text_update="bridge"
    )
    about, line = check.measured(
        f"video to text, {steps} steps", device, lambda: describe(model, clip, samples[0].raw, settings)
    )
    found.append(f"{line}; “{about.text[:200]}”")
    texts = list(dict.fromkeys(captions))
    scores: list[torch.Tensor] = []

    ids = padded([tokenizer.ids(text) for text in texts], run.pad_token, run.text_length)

    def job(denoise: bridge.HostDenoiser, noise: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        scores.append(caption_likelihood(denoise, video, ids, Ranking(samples=1, batch=AT_ONCE)))
        return video

    _, line = check.measured(
        f"likelihood of {len(texts)} captions",
        device,
        lambda: bridge.run_on_clip(model, job, samples[0].raw, seed=0, text_length=ids.shape[1]),
    )
    place = int((scores[0] > scores[0][0]).sum()) + 1
    return [*found, f"{line}; the clip's own comes {place}. of {len(texts)}, {check.not_finite(scores[0])}"]
