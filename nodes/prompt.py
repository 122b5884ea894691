"""Words in: Uni-ViGU Prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..uvg_core.media.null_embedding import read_null_embedding
from . import widgets
from .comfy.conditioning import encode_prompt
from .comfy.folders import NO_FILE, file_path, fingerprint
from .types import Node, schema


class UniViGUTextEncode(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Uni-ViGU Prompt",
            "A prompt for both ways into the model: the text encoder's states, and the words themselves in "
            "the text stream.",
            search_aliases=["clip text encode", "prompt"],
            inputs=[
                widgets.clip(),
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="What the video should show."),
                io.String.Input(
                    "stream_text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="What the text stream reads, where it should differ from the prompt, e.g. a detailed "
                    "caption. Empty: the prompt. (For an empty text stream, use CLIP Text Encode.)",
                ),
                widgets.null_embedding(
                    "Where text is empty: a file with the prompt's states to take instead, for the negative prompt of "
                    "the released model its empty_context_t5_emb.pt. From models/embeddings, models/text_encoders or "
                    "models/uni_vigu.",
                    advanced=True,
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the samplers, or as a hint for Video-to-Text Denoise.")],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """The files that are there: another file of the same name is loaded anew."""
        return fingerprint(**inputs)

    @classmethod
    def execute(cls, clip: object, text: str, stream_text: str = "", null_embedding: str = NO_FILE) -> io.NodeOutput:
        states = None
        if null_embedding != NO_FILE and not text.strip():
            states = read_null_embedding(file_path("null_embedding", null_embedding))
        return io.NodeOutput(encode_prompt(clip, text, stream_text if stream_text.strip() else None, states))
