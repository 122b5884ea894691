"""Checkpoints in and out: Load Uni-ViGU, Load Uni-ViGU LoRA, Save Uni-ViGU."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

from comfy_api.latest import io

from ..uvg_core.config import LATENT_SPACES, TEXT_STATES
from ..uvg_core.errors import UniViGUError
from ..uvg_core.pipeline.component_files import DOWNLOADS, ENCODER, VAE
from ..uvg_core.settings import Number, setting, settings
from . import widgets
from .comfy.folders import file_names, file_path, fingerprint
from .comfy.latents import belong_to, fit_preview
from .comfy.loading import WEIGHT_DTYPES, components_in, load_encoder, load_network, load_vae, notes_on
from .comfy.lora import apply_lora
from .comfy.names import FROM_CHECKPOINT
from .comfy.network import network_of, run_facts
from .comfy.paths import shown
from .comfy.saving import output_file, save_checkpoint
from .comfy.showing import Progress, said
from .types import Node, output, schema

log = logging.getLogger(__name__)


class UniViGULoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def choice(name: str, options: Iterable[str], tooltip: str, **more: Any) -> Any:
            own = FROM_CHECKPOINT
            return io.Combo.Input(name, options=[own, *options], default=own, tooltip=tooltip, **more)

        return schema(
            cls,
            "Load Uni-ViGU",
            "Loads a Uni-ViGU checkpoint: native, converted, fp8, all-in-one, or the release's own .pth.",
            says=True,
            search_aliases=["uni-vigu loader", "wan text video understanding"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=file_names("checkpoint"),
                    tooltip="From models/uni_vigu, models/diffusion_models or models/checkpoints. uvg_tiny is the "
                    "small model that comes with the pack.",
                ),
                choice(
                    "text_encoder",
                    file_names("text_encoder"),
                    "The umT5 that Wan uses; only all-in-one checkpoints carry their own.",
                ),
                choice("vae", file_names("vae"), "The Wan 2.1 VAE; only all-in-one checkpoints carry their own."),
                choice(
                    "latent_space",
                    LATENT_SPACES,
                    "normalised: Wan's mean and std per channel. raw: none, as the release's script does. If pictures "
                    "look washed out or noisy, try the other one.",
                    advanced=True,
                ),
                choice(
                    "text_states",
                    TEXT_STATES,
                    "umT5: as everywhere in the field, and what is taken where the checkpoint says nothing. release: "
                    "one position bias for all layers and padding kept, as in the release's script.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="default: as in the file, computed in bf16; a card without bf16 takes float16 and, where "
                    "that is too small, float32. A card under 9 GB keeps the released model in fp8. fp32 always "
                    "computes in float32. The fp8 choices have no scales: a file of convert --dtype fp8 is more exact.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The network, with its file's recipe."),
                io.Clip.Output(tooltip="The text encoder and its tokenizer."),
                io.Vae.Output(tooltip="The video VAE."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str, text_encoder: str, vae: str) -> bool:
        """Files that are not there are for ``execute`` to refuse: it says where to get them, the server only that they
        are not in its list."""
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """The files that are there: another file of the same name is loaded anew."""
        return fingerprint(**inputs)

    @classmethod
    def execute(
        cls, checkpoint: str, text_encoder: str, vae: str, latent_space: str, text_states: str, weight_dtype: str
    ) -> io.NodeOutput:
        path, own = file_path("checkpoint", checkpoint), FROM_CHECKPOINT
        carried = components_in(path) if own in (text_encoder, vae) else set()
        for component, chosen in ((ENCODER, text_encoder), (VAE, vae)):
            if chosen == own and component not in carried:
                raise UniViGUError(
                    f"{checkpoint} does not carry a {component}; choose the one that Wan 2.1 uses in the widget "
                    f"{component.replace(' ', '_').lower()}. To get it: {DOWNLOADS[component]}"
                )
        model = load_network(path, weight_dtype, None if latent_space == own else latent_space)
        run = run_facts(model)
        clip = load_encoder(
            path if text_encoder == own else file_path("text_encoder", text_encoder),
            (run.text_states if text_states == own else text_states) == "release",
            network_of(model).config.text_dim,
            run,
        )
        decoder = load_vae(path if vae == own else file_path("vae", vae))
        fit_preview(model, decoder)
        belong_to(decoder, run)
        return io.NodeOutput(model, clip, decoder, ui=said(*notes_on(model, checkpoint)))


@settings
class Strengths:
    """How much of a LoRA goes to either half of the network."""

    strength_video: Number = setting(
        "For the weights that plain Wan has: attention and the video expert.", default=1.0, ge=-10, le=10
    )
    strength_text: Number = setting(
        "For the text half: the text expert, its clock, embedding and head.", default=1.0, ge=-10, le=10
    )


class UniViGULoraLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Load Uni-ViGU LoRA",
            "Applies a Wan2.1 1.3B or Uni-ViGU LoRA, with a strength for each half, and says what matched.",
            inputs=[
                widgets.model(),
                io.Combo.Input(
                    "lora",
                    options=file_names("lora"),
                    tooltip="From models/loras: a LoRA for Wan2.1 1.3B or for Uni-ViGU.",
                ),
                *widgets.each(Strengths, step=0.05),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA on it."),
                output(io.String, "report", "How many layers matched, and which did not."),
            ],
            says=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """The files that are there: another file of the same name is loaded anew."""
        return fingerprint(**inputs)

    @classmethod
    def execute(cls, model: object, lora: str, strength_video: float, strength_text: float) -> io.NodeOutput:
        patched, found = apply_lora(model, file_path("lora", lora), strength_video, strength_text)
        line = shown(f"{lora}: {found}")
        log.info("%s", line)
        return io.NodeOutput(patched, line, ui=said(line))


class UniViGUSave(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Save Uni-ViGU",
            "Writes the model, with the LoRAs that are on it, as one native file that every loader reads.",
            is_output_node=True,
            inputs=[
                widgets.model("What is saved; LoRAs on it are merged in."),
                io.String.Input(
                    "filename_prefix",
                    default="uni_vigu",
                    tooltip="Goes to output/diffusion_models, or to output/checkpoints with CLIP or VAE in it; "
                    "ComfyUI's loaders look there too.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["as loaded", "bf16", "fp16", "fp32", "fp8"],
                    default="as loaded",
                    tooltip="fp8: the blocks' matrices in e4m3 with a scale each, the rest in bf16.",
                ),
                widgets.clip("Puts the text encoder into the file (all-in-one).", optional=True),
                widgets.vae("Puts the VAE into the file (all-in-one).", optional=True),
            ],
            outputs=[output(io.String, "file", "The path of the file.")],
            says=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: object, filename_prefix: str, dtype: str, clip: object | None = None, vae: object | None = None
    ) -> io.NodeOutput:
        kind = "diffusion_models" if clip is None and vae is None else "checkpoints"
        path = output_file(filename_prefix, kind)
        progress = Progress(cls.hidden.unique_id, steps=100)
        save_checkpoint(path, model, clip, vae, None if dtype == "as loaded" else dtype, partial(progress, "saving"))
        file = shown(str(path))
        return io.NodeOutput(file, ui=said(f"saved {file}"))
