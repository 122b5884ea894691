"""Check Uni-ViGU: does it work here, and how is it meant to be run."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from . import widgets
from .comfy.checking import NodeCheck
from .comfy.folders import NO_FILE, fingerprint
from .comfy.paths import shown
from .comfy.showing import Progress, said
from .types import Node, output, schema

log = logging.getLogger(__name__)


class UniViGUCheck(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Check Uni-ViGU",
            "Decides by the model's own losses on a few real clips which latent space and text states it "
            "was trained with, runs each job once, and gives the text for a bug report.",
            says=True,
            search_aliases=["uni-vigu check", "latent space", "bug report"],
            is_output_node=True,
            inputs=[
                widgets.model("From Load Uni-ViGU, with whatever LoRA is on it."),
                widgets.clip("Loaded with text_states umT5; the other kind is computed from it."),
                widgets.vae("From Load Uni-ViGU."),
                widgets.null_embedding(
                    "The release's empty_context_t5_emb.pt, as further evidence: it was computed with one of the two "
                    "kinds of text states.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, run as was found; Save Uni-ViGU writes that into the file."),
                output(io.String, "report", "What was found, with versions, times and memory."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """The files that are there: another file of the same name is loaded anew."""
        return fingerprint(**inputs)

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, null_embedding: str = NO_FILE) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id, steps=100)
        check = NodeCheck(model, clip, vae, null_embedding, progress)
        for _ in check.lines():
            progress.text("\n".join(check.report))
        report = shown("\n".join(check.report))
        log.info("Uni-ViGU check:\n%s", report)
        return io.NodeOutput(check.model, report, ui=said(report))
