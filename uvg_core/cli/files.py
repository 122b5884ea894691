"""``inspect``, ``convert`` and ``check``: what a checkpoint is, as a native file, and how it is to be run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .. import checkpoint as checkpoints
from ..checkpoint import LoraChoice, Overrides
from ..checkpoint.convert import OVERFLOW
from ..config import END_OF_TEXT, TEXT_STATES
from ..errors import UniViGUError
from ..io import require_writable
from ..progress import Bars
from ..sampling import Size
from ..settings import OneOf, setting, settings
from .common import Model, Video
from .flags import Only
from .output import CANCELLED, complain, say, show
from .streams import as_json, is_stream, write_json


@settings
class Inspect:
    """What is inspected."""

    files: tuple[Path, ...] = setting("Checkpoints.", positional=True, metavar="file")
    json: Path | None = as_json("the reports, as a list")


def inspect(own: Inspect, shown: Bars) -> int:
    """Show what a checkpoint contains."""
    reports, failed, is_stopped = [], 0, False
    for path in own.files:
        try:
            reports.append(checkpoints.inspect_checkpoint(path))
        except UniViGUError as error:
            complain(error)
            failed += 1
            continue
        except KeyboardInterrupt:
            say("stopped before all files were inspected")
            is_stopped = True
            break
        if not is_stream(own.json):
            show(str(reports[-1]))
    if own.json:
        write_json(own.json, [report.to_json() for report in reports])
    return CANCELLED if is_stopped else int(failed > 0)


@settings
class Convert:
    """What is converted, and what is written into the file."""

    input: Path = setting("Checkpoint to convert.", positional=True, metavar="input")
    out: Path = setting("Native file to write.", positional=True, metavar="out", suffixes=(".safetensors",))
    dtype: Annotated[str, OneOf("bf16", "fp16", "fp32", "fp8")] | None = setting(
        "Data type of the weights.", default=None, auto="as stored"
    )
    lora: tuple[LoraChoice, ...] = setting(
        "Merge a LoRA into the weights. Repeat the flag to merge several.", default=(), metavar="FILE[:VIDEO[:TEXT]]"
    )
    overflow: Annotated[str, OneOf(*OVERFLOW)] = setting(
        "What to do with weights that overflow fp16: refuse the file, or keep these weights in bf16.",
        default="refuse",
    )


def convert(
    own: Convert,
    checkpoint: Annotated[
        Overrides,
        Only(
            "latent_space",
            "time_rounding",
            "text_flow",
            "source",
            "num_heads",
            text_states=TEXT_STATES,
            end_of_text=END_OF_TEXT,
        ),
    ],
    shown: Bars,
) -> None:
    """Convert any readable Uni-ViGU checkpoint to native safetensors."""
    require_writable(own.out)
    merged = checkpoints.convert(
        own.input,
        own.out,
        dtype=own.dtype,
        on_progress=lambda done, total: shown("converting", done, total),
        overrides=checkpoint,
        loras=own.lora,
        overflow=own.overflow,
    )
    for lora in merged:
        say(str(lora))
    say(f"{own.out}: {own.out.stat().st_size / 1e9:.2f} GB")


@settings
class CheckFiles:
    """What ``check`` writes."""

    write: Path | None = setting(
        "Also write the checkpoint as a native file that records what was found, in --dtype or else as stored.",
        default=None,
        suffixes=(".safetensors",),
    )
    json: Path | None = as_json("the report")


def check(
    own: CheckFiles,
    model: Model,
    video: Annotated[Video, Only("null_embedding")],
    size: Size,
    shown: Bars,
) -> None:
    """Check that a checkpoint works, and find out from its losses on real clips how to run it."""
    from ..pipeline.check import PipelineCheck

    if own.write:
        require_writable(own.write)
    found = PipelineCheck(model.pipeline(shown, video.null_embedding, checking=True), size)
    for line in found.lines():
        shown.close()
        (say if is_stream(own.json) else show)(line)
    if own.write:
        found.write(own.write, model.dtype, lambda done, total: shown("writing", done, total))
        shown.close()
        say(f"{own.write}: {own.write.stat().st_size / 1e9:.2f} GB, with what was found")
    if own.json:
        write_json(own.json, found.to_json())
