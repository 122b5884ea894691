"""Clips and pictures as ComfyUI has them and as ``uvg_core`` takes them, and the widgets that say how to read clips."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from comfy_api.latest import InputImpl, Types
from torch import Tensor

from ..uvg_core.config import RunConfig
from ..uvg_core.content import content_of
from ..uvg_core.data.listing import TEXT_KINDS
from ..uvg_core.data.sources import digest
from ..uvg_core.errors import UniViGUError, counted
from ..uvg_core.media.sheet import SheetRow, draw_sheet
from ..uvg_core.media.vae import latent_shape
from ..uvg_core.media.video import ClipInfo, ClipSpec, container_suffix, find_clips, fit_pixels, probe, read_clip
from ..uvg_core.media.video.footage import Footage
from ..uvg_core.pipeline.review import RECORD
from ..uvg_core.pipeline.texts import files_of, text_files
from ..uvg_core.pipeline.wording import Captions
from ..uvg_core.sampling import Size
from ..uvg_core.settings import Flag, Number, Text, setting, settings
from .comfy.paths import opened_folder
from .widgets import size, widget

REMEMBERED = 1000  # prompts about folders
ROWS = 24  # of the table of captions
LARGE_ENOUGH = 288  # pixels that a clip is enlarged to for looking at it, where it is less than half as large
ENLARGE = "How often to enlarge the clip for looking at it, for Upscale Image By: 1, and more for very small clips."


@settings
class Rate:
    """The frame rate that clips are read at."""

    fps: Number = setting(
        "Frames a second, from the start on. -1: what the checkpoint was trained with; 0 spreads the frames evenly "
        "over the whole clip instead.",
        default=-1.0,
        ge=-1,
        le=240,
    )


@settings
class Folder:
    """A folder of clips."""

    folder: Text = setting("A folder of clips; a relative path starts at ComfyUI's input folder.", default="")
    subfolders: Flag = setting("Look into the folders inside, too.", default=True)

    @contextmanager
    def opened(self, *, reads: bool = False) -> Iterator[Path]:
        """The folder, also in quotes, as Windows copies paths; see ``opened_folder``."""
        if not self.folder.strip():
            raise UniViGUError("the widget folder is empty; write the path of a folder with clips")
        with opened_folder(self.folder.strip().strip('"'), reads=reads) as path:
            yield path

    def state(self, how: Captions | None = None) -> dict[str, str]:
        """What each clip and text in the folder holds, by its path: neither times nor the folder's place count. With
        ``how``, also the files that captions are written to that way."""
        with suppress(UniViGUError), self.opened(reads=how is None) as path:
            clips = find_clips(path, recursive=self.subfolders)
            texts = [text.with_suffix(kind) for text in text_files(clips) for kind in TEXT_KINDS]
            texts += files_of(path, clips, how) if how is not None else []
            texts += [path / RECORD] if how is not None and how.review else []
            return {str(file): content_or_none(file) for file in dict.fromkeys((*clips, *texts))}
        return {}


Place = tuple[Folder, Captions | None]  # a folder, and how it is captioned


@dataclass
class _Asked:
    """What prompts ask for in their widgets, the mark that stands for it, and in which state each folder is that was
    opened for it."""

    widgets: dict[str, Any]
    mark: str
    states: dict[Place, str] = field(default_factory=dict)


class Visits:
    """What a node has done with folders, so that it does it again when there is something to do, and only then.

    ComfyUI runs a node again when its mark is another one (NaN is no such thing: it knows the object again). A mark
    stays while all that was opened under it is as the node has left it: what it writes itself is no reason to run
    again, whatever else changes is. Which folder that is need not be known from the start, it may come from another
    node."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}
        self._marks = (f"{uuid4().hex} {number}" for number in count())  # none that another process has given

    def mark(self, inputs: Mapping[str, Any]) -> str:
        """For the inputs of a prompt, None for what is connected."""
        widgets = {name: value for name, value in inputs.items() if isinstance(value, (str, int, float))}
        key = digest(widgets)
        asked = self._asked.pop(key, None)
        if asked is None or any(_state(place)[1] != state for place, state in asked.states.items()):
            asked = _Asked(widgets, next(self._marks))
        self._asked[key] = asked
        for oldest in list(self._asked)[:-REMEMBERED]:
            del self._asked[oldest]
        return asked.mark

    def begun(self, inputs: Mapping[str, Any], place: Place) -> dict[str, str]:
        """The state of a folder that is about to be opened. ``inputs``: all of them."""
        state, now = _state(place)
        for asked in self._of(inputs):
            asked.states.setdefault(place, now)
        return state

    def finished(
        self, inputs: Mapping[str, Any], place: Place, before: Mapping[str, str], wrote: Sequence[Path]
    ) -> None:
        """The folder was as ``before`` and has got the files ``wrote``: whoever asked for this has it."""
        after = digest({**before, **{str(file): content_or_none(file) for file in wrote}})
        for asked in self._of(inputs):
            if asked.states.get(place) == digest(before):
                asked.states[place] = after

    def _of(self, inputs: Mapping[str, Any]) -> list[_Asked]:
        return [asked for asked in self._asked.values() if asked.widgets.items() <= inputs.items()]


def _state(place: Place) -> tuple[dict[str, str], str]:
    state = place[0].state(place[1])
    return state, digest(state)


def size_widgets() -> list[Any]:
    """The widgets that fit a clip to the model."""
    tooltip = (
        "At most this many (4n+1); a shorter clip gives as many as it has. 0: what the checkpoint was trained with."
    )
    return [*size(tooltip=tooltip), widget(Rate, "fps", display_name="fps (-1 = auto)", step=0.5)]


def footage_widgets(*names: str) -> list[Any]:
    """The widgets that choose a part of a clip, and what becomes of its shape."""
    steps = {"start": {"step": 0.1}, "seconds": {"step": 0.1}}
    return [widget(Footage, name, optional=True, advanced=True, **steps.get(name, {})) for name in names]


def sized(run: RunConfig, size: Size) -> RunConfig:
    """``run`` with other sizes. Raises UniViGUError off the model's grid."""
    frames, height, width = size.resolved(run)
    latent_shape(frames, height, width)
    return replace(run, frames=frames, height=height, width=width)


def enlarging(height: int, width: int) -> float:
    """How often to enlarge a clip for looking at it."""
    return float(max(1, LARGE_ENOUGH // max(height, width)))


def fitting(run: RunConfig | None, size: Size, fps: float, footage: Footage) -> ClipSpec:
    """What those widgets say with a checkpoint that was trained as ``run`` says, as ``read_clip`` and ``fit_pixels``
    take it. Raises UniViGUError off the model's grid, and where a checkpoint is asked for and none is known."""
    if run is None and (None in (size.width, size.height, size.frames) or fps < 0):
        raise UniViGUError(
            "the size of the clip is left to the checkpoint, and this VAE does not say which one: connect MODEL to the "
            "input model, take the VAE of Load Uni-ViGU, or set width, height, frames and fps"
        )
    run = run or RunConfig()
    sized(run, size)
    return replace(size.spec(run, footage), fps=run.fps if fps < 0 else fps or None, at_most=True)


def read(video: Any, spec: ClipSpec) -> tuple[Tensor, str]:
    """The frames of a VIDEO as ``read_clip`` gives them, and the note on what was done."""
    if isinstance(video, InputImpl.VideoFromComponents) or is_edited(video):  # a file of it would only lose
        parts = video.get_components()
        return fit_pixels(as_pixels(parts.images), spec, rate=float(parts.frame_rate))
    start, seconds = video.get_active_trim_window()
    with file_of(video) as path:
        clip = read_clip(path, spec, start=start, seconds=seconds or None)
    return clip.pixels, clip.note


def is_edited(video: Any) -> bool:
    """Whether a VIDEO shows other pixels than its file: newer ComfyUI notes down crops and sizes, and carries them out
    as the frames are decoded."""
    pending = getattr(video, "has_pending_frame_edits", None)
    if pending is not None:
        return bool(pending())
    if not hasattr(video, "as_cropped"):
        return False
    return bool(InputImpl.VideoFromFile(video.get_stream_source()).get_dimensions() != video.get_dimensions())


def info_of(video: Any) -> ClipInfo:
    """What a VIDEO holds, without decoding it; raises UniViGUError like ``probe``."""
    if isinstance(video, InputImpl.VideoFromComponents):
        parts = video.get_components()
        (count, height, width), rate = parts.images.shape[:3], float(parts.frame_rate)
        return ClipInfo(Path("images"), width, height, rate, count, count / rate, 0)
    if is_edited(video):
        (width, height), seconds = video.get_dimensions(), video.get_duration()
        return ClipInfo(
            Path("video"), width, height, float(video.get_frame_rate()), video.get_frame_count(), seconds, 0
        )
    start, seconds = video.get_active_trim_window()
    with file_of(video) as path:
        return probe(path, start=start, seconds=seconds or None)


def as_pixels(images: Tensor) -> Tensor:
    """ComfyUI's IMAGE, float ``[T,H,W,C]`` from 0 to 1, as uint8 RGB."""
    return (images[..., :3] * 255).round().clamp(0, 255).to(torch.uint8)


def as_image(picture: Any) -> Tensor:
    """A Pillow picture as ComfyUI's IMAGE: float ``[1,H,W,3]``, 0 to 1."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, picture.height, picture.width, 3).float() / 255


@contextmanager
def file_of(video: Any) -> Iterator[Path]:
    """A file with the content of a VIDEO, for as long as the block runs: it is read from disk frame by frame."""
    source = video.get_stream_source()
    if isinstance(source, str):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        path.write_bytes(source.getbuffer())
        yield path


@contextmanager
def copied_from(video: Any) -> Iterator[Path]:
    """A file whose streams show what a VIDEO shows, in a container that captions are written into: its own file or, for
    frames, parts, crops and other containers, an mp4 that ComfyUI encodes."""
    if not (
        isinstance(video, InputImpl.VideoFromComponents) or is_edited(video) or any(video.get_active_trim_window())
    ):
        with file_of(video) as path:
            if container_suffix(path) is not None:
                yield path
                return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        video.save_to(str(path), format=Types.VideoContainer.MP4)
        yield path


def content_or_none(file: Path) -> str:
    try:
        return content_of(file)
    except FileNotFoundError:
        return "none"
    except UniViGUError:
        return "unreadable"


def table_of(
    captions: Sequence[tuple[Path, str]], names: list[str], parts: Sequence[Footage], spec: ClipSpec
) -> Tensor:
    """The first captions of some clips as a picture: a frame of each clip, its name, its caption."""
    rows = []
    for (file, text), name, footage in zip(captions[:ROWS], names, parts, strict=False):
        frame = None
        with suppress(UniViGUError):
            frame = footage.read(file, replace(spec, frames=1, fps=None, any_shape=False)).pixels
        rows.append(SheetRow(name, frame, text))
    count = counted(len(names), "caption") if len(names) <= ROWS else f"The first {ROWS} of {len(names)} captions"
    return as_image(draw_sheet(rows or [SheetRow("", None, "no captions")], title=count, columns=1))
