"""Check Uni-ViGU: does it work here, and how is it meant to be run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.null_embedding import read_null_embedding
from ..uvg_core.pipeline import check
from ..uvg_core.pipeline.components import LARGE_BYTES
from ..uvg_core.pipeline.evidence import Sample
from ..uvg_core.sampling import Ranking, Sampling, Size
from . import widgets
from .comfy.captions import AT_ONCE, describe, rank
from .comfy.checking import COMFYUI, conditions_by_states, weigh_model, with_verdict
from .comfy.conditioning import encode_prompt, tokenizer_of, with_tokens_of
from .comfy.folders import NO_FILE, file_names, file_path, fingerprint
from .comfy.latents import decode_latent, encode_pixels, require_video_vae
from .comfy.network import config_of, run_facts
from .comfy.sampling import Conditions, Core, sample_with_core
from .comfy.showing import Progress
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
                widgets.model("From Load Uni-ViGU, with whatever LoRA is on it."),
                widgets.clip("Loaded with text_states umT5; the other kind is computed from it."),
                widgets.vae("From Load Uni-ViGU."),
                io.Combo.Input(
                    "null_embedding",
                    options=[NO_FILE, *file_names("null_embedding")],
                    default=NO_FILE,
                    optional=True,
                    tooltip="The release's empty_context_t5_emb.pt, as further evidence: it was computed with one of "
                    "the two kinds of text states.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, run as was found; Save Uni-ViGU writes that into the file."),
                io.String.Output(display_name="report", tooltip="What was found, with versions, times and memory."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """The files that are there: another file of the same name is loaded anew."""
        return fingerprint(**inputs)

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, null_embedding: str = NO_FILE) -> io.NodeOutput:
        config, run, tokenizer = config_of(model), run_facts(model), tokenizer_of(clip)
        require_video_vae(vae)
        progress = Progress(cls.hidden.unique_id, steps=100)
        null = None
        if null_embedding != NO_FILE:
            null = read_null_embedding(file_path("null_embedding", null_embedding), config.text_dim)
        device, size = model.load_device, int(model.model_size())
        dtypes = f"{model.model.get_dtype()}, computing in {model.model.get_dtype_inference()}".replace("torch.", "")
        states = run.text_states or "umT5 (assumed)"
        lines = [
            *check.environment(device),
            f"ComfyUI       {COMFYUI}",
            f"model         {size / 1e9:.2f} GB, {dtypes}",
            f"stated        {config.latent_space} latents, {states} states; checked: {run.checked or 'never'}",
        ]

        def report(line: str) -> None:
            lines.append(line)
            progress.text("\n".join(lines))

        large = size > LARGE_BYTES
        frames, height, width = check.looked_at(run, Size(), large, device)
        clips = check.shown_clips(tokenizer, run)
        by_states = conditions_by_states(clip, [*[one.caption for one in clips], ""])
        samples = [
            Sample(
                one.path.stem,
                encode_pixels(vae, one.pixels(frames, height, width)).cpu().float(),
                tokenizer.ids(one.caption),
                {kind: rows[k : k + 1] for kind, rows in by_states.items()},
                {kind: rows[-1:] for kind, rows in by_states.items()},
            )
            for k, one in enumerate(clips)
        ]
        verdict, line = check.measured(
            f"losses at {width}x{height}x{frames}",
            device,
            lambda: weigh_model(model, samples, null, progress.report, **check.thoroughness(large)),
        )
        for text in (line, *check.lines_of(verdict, len(clips))):
            report(text)
        judged = with_verdict(model, verdict, f"check of {check.pack_version()}")
        if verdict.states.best == "release":
            report("set text_states of Load Uni-ViGU to release, or save the model and load it again")
        for text in _jobs(judged, clip, vae, samples[0].raw, [one.caption for one in clips]):
            report(text)
        whole = "\n".join(lines)
        progress.text(whole, last=True)
        log.info("Uni-ViGU check:\n%s", whole)
        return io.NodeOutput(judged, whole, ui=ui.PreviewText(whole))


def _jobs(model: Any, clip: Any, vae: Any, latent: torch.Tensor, captions: list[str]) -> Iterator[str]:
    """Lines about one of each job at the size of ``latent``, the clip of the first caption, with times."""
    run, tokenizer = run_facts(model), tokenizer_of(clip)
    device, sampling = model.load_device, Sampling(steps=check.FEW_STEPS)
    prompt = next((known for known in check.KNOWN_PROMPTS if len(tokenizer.ids(known)) <= run.context_length), "a")
    positive = encode_prompt(clip, prompt, None)
    conditions = Conditions(positive, with_tokens_of(positive, encode_prompt(clip, "", "")), run.guidance_scale)
    empty = {"samples": torch.zeros_like(latent)}
    made, line = check.measured(
        f"text to video, {sampling.steps} steps",
        device,
        lambda: sample_with_core(model, empty, conditions, sampling.resolved(run), Core(), seed=0),
    )
    pixels = decode_latent(vae, made)
    spread = pixels.float().std().item()
    if spread < 1:
        raise UniViGUError(
            f"the known prompt gave a flat picture (standard deviation {spread:.2f} of 255); try another latent_space, "
            "or weight_dtype bf16 or fp32, in Load Uni-ViGU"
        )
    yield f"{line}; latent {check.not_finite(made)}"
    yield f"ok  “{prompt}” gave {list(pixels.shape)} with a standard deviation of {spread:.1f} of 255"
    about, line = check.measured(
        f"video to text, {sampling.steps} steps", device, lambda: describe(model, clip, latent, sampling)
    )
    yield f"{line}; “{about.text[:200]}”"
    texts = list(dict.fromkeys(captions))
    scores, line = check.measured(
        f"likelihood of {len(texts)} captions",
        device,
        lambda: rank(model, clip, latent, texts, Ranking(samples=1, batch=AT_ONCE)),
    )
    place = int((scores > scores[0]).sum()) + 1
    yield f"{line}; the clip's own comes {place}. of {len(texts)}, {check.not_finite(scores)}"
