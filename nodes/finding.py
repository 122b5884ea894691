"""Clips of a folder by what they show: Find Clips."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from comfy_api.latest import InputImpl, io

from ..uvg_core.errors import counted, printable
from ..uvg_core.media.video.footage import FOOTAGE, Footage
from ..uvg_core.media.video.shots import Cutting
from ..uvg_core.pipeline.find import Found, Index, Updated
from ..uvg_core.pipeline.wording import words_of
from ..uvg_core.sampling.settings import SIZE
from ..uvg_core.settings import Text, Whole, setting, settings
from . import widgets
from .comfy.finding import HostDescriber
from .comfy.judging import unit_of
from .comfy.latents import require_video_vae
from .comfy.network import run_facts
from .comfy.paths import shown
from .comfy.showing import Progress, said
from .media import Folder, Visits, fitting, table_of
from .types import Node, output, schema
from .widgets import read, widget

SHOTS = "Find shots of films, too: of videos that last longer than three clips of the model."
_SLACK = 1e-9  # seconds: ComfyUI rounds times down to ticks


@settings
class Wanted:
    """What is looked for."""

    query: Text = setting("What the clips show, such as: a red circle moves left.", default="")
    top: Whole = setting("How many clips to hand on at most.", default=5, ge=1, le=100)


visits = Visits()


class UniViGUFindClips(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Find Clips",
            "Finds the clips of a folder that fit a description, the best first. New clips are captioned first; their "
            "captions and latents are kept in one file in the folder.",
            search_aliases=["search videos", "video search", "retrieve clips"],
            not_idempotent=True,
            says=True,
            inputs=[
                widgets.model(),
                widgets.clip(),
                widgets.vae(),
                widget(Folder, "folder"),
                widget(Wanted, "query", multiline=True),
                widget(Wanted, "top"),
                widget(Cutting, "shots", optional=True, tooltip=SHOTS),
            ],
            outputs=[
                output(io.Video, "videos", "The clips or shots found, the best first.", is_output_list=True),
                output(io.String, "captions", "Their captions.", is_output_list=True),
                output(
                    io.Float,
                    "scores",
                    "How much likelier a clip makes what you look for than its own caption; 0 where that says it.",
                    is_output_list=True,
                ),
                output(io.String, "files", "Their names in the folder.", is_output_list=True),
                output(io.Image, "table", "The clips, each with a frame, its name and its caption."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """What the clips and texts hold: another state of the folder may give other clips."""
        return visits.mark(inputs)

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, **inputs: Any) -> io.NodeOutput:
        require_video_vae(vae)
        folder, wanted, cutting = read(Folder, inputs), read(Wanted, inputs), read(Cutting, inputs)
        words_of(wanted.query)  # before anything is captioned
        spec = fitting(run_facts(model), SIZE, -1.0, FOOTAGE)
        describer, progress = HostDescriber(model, clip, vae, spec, FOOTAGE), Progress(cls.hidden.unique_id)
        visits.begun(inputs, (folder, None))
        with folder.opened() as path, closing(Index(path)) as index:
            report = index.update(describer, cutting, on_clip=lambda words, one: progress.text(f"{words}\n{one.name}"))
            found = index.find(wanted.query, describer, wanted.top)
            names = [printable(one.clip.relative_to(path).as_posix()) for one in found]
            titles = [f"{name} {one.when}".strip() for one, name in zip(found, names, strict=True)]
            table = table_of([(one.clip, one.caption) for one in found], titles, [_part(one) for one in found], spec)
        lines = [
            f"{one.score:.2f} {unit_of(model)}  {title}: {one.caption}"
            for one, title in zip(found, titles, strict=True)
        ]
        words = shown("\n".join([*lines, *_left_out(report)]))
        videos = list(map(_video, found))
        captions, scores = [one.caption for one in found], [one.score for one in found]
        return io.NodeOutput(videos, captions, scores, names, table, ui=said(words))


def _part(one: Found) -> Footage:
    if one.start is None or one.end is None:
        return FOOTAGE
    return Footage(start=one.start, seconds=one.end - one.start)


def _video(one: Found) -> Any:
    """The file, or the part of it that shows a shot, to the frame."""
    if one.start is None or one.end is None:
        return InputImpl.VideoFromFile(str(one.clip))
    start, end = one.start + _SLACK, one.end + _SLACK
    return InputImpl.VideoFromFile(str(one.clip), start_time=start, duration=end - start)


def _left_out(report: Updated) -> list[str]:
    lines = ["another run is adding clips; only those that are there already were searched"] if report.busy else []
    lines += [f"{path.name}: {what}" for path, what in report.notes]
    if report.failed:
        lines.append(f"{counted(len(report.failed), 'clip')} left out:")
        lines += [f"  {why if str(path) in why else f'{path}: {why}'}" for path, why in report.failed]
    return lines
