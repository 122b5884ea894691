"""Words in: Uni-ViGU Prompt, Prompt List."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from comfy_api.latest import io

from ..uvg_core.errors import UniViGUError
from ..uvg_core.media.null_embedding import read_null_embedding
from ..uvg_core.prompts import expanded, file_name, lines_of, literal
from ..uvg_core.settings import OneOf, Text, Whole, setting, settings
from . import widgets
from .comfy.conditioning import encode_prompt
from .comfy.folders import NO_FILE, file_path, fingerprint
from .comfy.paths import opened_text
from .comfy.repeating import ENDS, ITEM, gives_a_list, once_ended, runs_behind
from .comfy.showing import said
from .types import Node, output, schema
from .widgets import read, widget


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


@settings
class Prompts:
    """Which prompts a list stands for, and what goes with each."""

    prompts: Text = setting(
        "One prompt per line; lines that begin with # are left out. A connected list, such as captions, is taken as it "
        "is: each of its texts is a prompt.",
        default="",
    )
    file: Text = setting("A text file with more of them, in ComfyUI's input folder, e.g. prompts.txt.", default="")
    wildcards: Annotated[str, OneOf("all combinations", "one drawn by seed")] = setting(
        "What becomes of choices in braces, divided by bars.", default="all combinations"
    )
    seed: Whole = setting("The seed of the first clip, and of what is drawn.", default=0, ge=0)
    seeds: Annotated[str, OneOf("one for each prompt", "the same for all")] = setting(
        "Each prompt gets the next seed, or all of them get this one.", default="one for each prompt"
    )
    limit: Whole = setting("Most prompts that are run; a longer list is refused.", default=50, ge=1, le=1000)
    prefix: Text = setting("Begins every name; a number and words of the prompt follow.", default="video/prompt")

    def items(self, texts: Sequence[str] | None = None) -> list[tuple[str, int, str]]:
        """Prompt, seed and name of every run. ``texts``: prompts as they are, in place of the lines of ``prompts``.
        Raises UniViGUError where there is none, and for too many."""
        lines = lines_of(self.prompts) if texts is None else [literal(text) for text in texts if text.strip()]
        if self.file.strip():
            lines += lines_of(opened_text(self.file.strip().strip('"')))
        try:
            prompts = expanded(lines, self.limit, self.seed if self.wildcards == "one drawn by seed" else None)
        except UniViGUError as error:
            raise UniViGUError(f"prompts: {error}") from None
        if not prompts:
            raise UniViGUError(
                "there is no prompt; write one per line, or name a text file of prompts in the widget file"
            )
        step = 1 if self.seeds == "one for each prompt" else 0
        seeds = [(self.seed + step * number) % widgets.ALL_SEEDS for number in range(len(prompts))]
        names = [f"{self.prefix}_{file_name(text, number)}" for number, text in enumerate(prompts, 1)]
        return list(zip(prompts, seeds, names, strict=True))


OUTPUTS = 3  # prompt, seed and name


class UniViGUPromptList(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Prompt List",
            "Several prompts in one run: all that is connected behind this node runs once for each, and is saved "
            "before the next one starts. Cancel keeps what is done.",
            search_aliases=["batch prompts", "prompts from file", "wildcards", "dynamic prompts", "for each", "loop"],
            is_input_list=True,
            enable_expand=True,
            says=True,
            accept_all_inputs=True,  # those of the later runs, see runs_behind
            inputs=[
                widget(Prompts, "prompts", multiline=True),
                widget(Prompts, "file"),
                widget(Prompts, "wildcards"),
                widgets.seed(Prompts),
                widget(Prompts, "seeds"),
                widget(Prompts, "limit", optional=True, advanced=True),
                widget(Prompts, "prefix", optional=True),
            ],
            outputs=[
                output(io.String, "prompt", "For Uni-ViGU Prompt."),
                output(io.Int, "seed", "For the seed of the sampler."),
                output(io.String, "name", "For the filename_prefix of the node that saves."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> float:
        """Always another one: what has changed behind this node has to run for every prompt."""
        return float("nan")  # a new one: ComfyUI knows one that it has seen

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Every input is a list. Nodes of this kind give the items, one each; alone it gives the only one itself."""
        if ENDS in inputs:
            return once_ended(inputs[ENDS][0], OUTPUTS)
        if ITEM in inputs:
            *item, shown = inputs[ITEM][0]
            return io.NodeOutput(*item, ui=said(shown))
        texts, graph, here = inputs["prompts"], cls.hidden.dynprompt, cls.hidden.unique_id
        own = read(Prompts, {name: values[0] for name, values in inputs.items() if values})
        items = own.items(texts if len(texts) > 1 or gives_a_list(graph, here, "prompts") else None)
        shown = [(*item, f"{number} of {len(items)}: {item[0]}") for number, item in enumerate(items, 1)]
        if len(items) > 1:
            return runs_behind(graph, here, shown, OUTPUTS)
        return io.NodeOutput(*items[0], ui=said(shown[0][-1]))
