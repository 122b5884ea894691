"""A film as a list of its shots: Caption Shots."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from comfy_api.latest import InputImpl, Types, io, ui
from torch import Tensor

from ..uvg_core.errors import counted
from ..uvg_core.media.sheet import SheetRow, draw_sheet
from ..uvg_core.media.video.footage import Footage
from ..uvg_core.media.video.shots import Cutting, Shot
from ..uvg_core.pipeline.film import FORMS, Line, caption_film, clock, plain, read_ahead, write_lines
from ..uvg_core.sampling import Sampling, Size
from ..uvg_core.settings import Number, OneOf, Text, setting, settings
from . import widgets
from .comfy.captions import clips_at_once, describe_together
from .comfy.latents import encode_pixels, require_video_vae
from .comfy.network import run_facts
from .comfy.paths import shown
from .comfy.saving import output_file, place_in_output
from .comfy.showing import Progress, said
from .media import as_image, file_of, fitting, footage_widgets, info_of, is_edited
from .types import Node, output, schema
from .widgets import read, widget

ROWS, PAGES = 8, 25  # shots on a page of the list, and pages that the node shows
SIDE = 160  # pixels: the longer side of a thumbnail at most
TICKS = 1000  # of the bar


@settings
class Film:
    """How a film is divided, and where its captions go."""

    every: Number = setting(
        "Seconds of a part, for parts of equal length. 0: the shots as they are cut.", default=0.0, ge=0, le=1e6
    )
    filename_prefix: Text = setting("In the output folder; a number is added.", default="captions/film")
    format: Annotated[str, OneOf(*(form[1:] for form in FORMS))] = setting(
        "srt and vtt are subtitles; json and csv hold start, end and caption of each shot.", default="srt"
    )

    def cutting(self, shortest: float) -> Cutting:
        return Cutting(every=self.every) if self.every else Cutting(shots=True, shortest=shortest)


class UniViGUCaptionShots(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls,
            "Caption Shots",
            "Finds the shots of a film, captions each one, and saves the captions with their times as subtitles or as "
            "a table. The film is read piece by piece, however long it is.",
            search_aliases=["scene detection", "shot list", "subtitles", "srt", "long video", "film"],
            is_output_node=True,
            says=True,
            inputs=[
                widgets.model(),
                widgets.clip(),
                widgets.vae(),
                io.Video.Input("video", tooltip="The film, from Load Video or Trim Video."),
                widget(Film, "every", step=0.5),
                widget(Cutting, "shortest", step=0.1),
                widget(Film, "filename_prefix"),
                widget(Film, "format"),
                *widgets.size(tooltip="At most this many a shot (4n+1). 0: what the checkpoint was trained with."),
                *widgets.captioning(),
                widgets.video_cache(),
                *footage_widgets("fit"),
            ],
            outputs=[
                output(io.String, "captions", "A list with the caption of each shot.", is_output_list=True),
                output(io.String, "text", "A line for each shot: when it begins and ends, and its caption."),
                output(io.Image, "thumbnails", "A picture from the middle of each shot, as the model sees it."),
                output(io.String, "file", "The path of the saved file."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, video: Any, **inputs: Any) -> io.NodeOutput:
        require_video_vae(vae)
        own, sampling, footage = read(Film, inputs), read(Sampling, inputs), read(Footage, inputs)
        spec = fitting(run_facts(model), read(Size, inputs), 0.0, footage)
        out, together = output_file(own.filename_prefix, "", f".{own.format}"), clips_at_once(model, spec)
        length, progress = info_of(video).duration or 1.0, Progress(cls.hidden.unique_id, steps=TICKS)
        lines, pictures, notes, where = list[Line](), list[Tensor](), list[str](), [""]
        seen: dict[float, Tensor] = {}  # pictures of shots whose captions come next, by the start

        def show(step: int, steps: int, words: str) -> None:
            progress.text(f"{where[0]}\n{words}")

        def describe(parts: Sequence[Shot]) -> list[str]:
            done = lines[-1].end if lines else 0.0
            where[0] = f"{counted(len(lines), 'shot')} captioned, {clock(done)} of {clock(length)}"
            # One by one: of a batch of clips ComfyUI's VAE cuts off the last frames.
            latents = torch.cat([encode_pixels(vae, part.pixels) for part in parts])
            texts = describe_together(model, clip, latents, sampling, [sampling.seed] * len(parts), report=show)
            seen.update({part.start: thumbnail(part.pixels) for part in parts})
            return texts

        with film_of(video) as (path, start, seconds):
            part = Footage(start=start, seconds=seconds, fit=footage.fit)
            cutting = own.cutting(inputs["shortest"])

            def keep(line: Line) -> None:
                pictures.append(seen.pop(line.start))
                line = Line(max(line.start - start, 0.0), line.end - start, line.caption)  # of the video, not its file
                lines.append(line)
                progress("captioning", round(TICKS * min(line.end / length, 1)), TICKS)

            try:
                caption_film(
                    path,
                    lambda done: read_ahead(path, cutting, spec, part, done=done, ahead=together),
                    describe,
                    together=together,
                    on_line=keep,
                    note=notes.append,
                )
            except BaseException:
                if lines:  # of hours of work, perhaps
                    write_lines(out, lines, path)
                    progress.leave(f"stopped: {counted(len(lines), 'caption')} up to {clock(lines[-1].end)} in {out}")
                raise
            write_lines(out, lines, path)
        text = shown("\n".join(map(str, lines)))
        words = "\n".join([f"{counted(len(lines), 'caption')} in {out}", *notes])
        found = {**listed(lines, pictures).as_dict(), **said(words)}
        name, folder = place_in_output(out)
        found["subtitles"] = [ui.SavedResult(name, folder, io.FolderType.output)]
        thumbnails = torch.stack(pictures).float() / 255
        return io.NodeOutput([line.caption for line in lines], text, thumbnails, shown(str(out)), ui=found)


@contextmanager
def film_of(video: Any) -> Iterator[tuple[Path, float, float | None]]:
    """A file that shows what a VIDEO shows, and the part of it that does: its own file or, for frames and crops, an mp4
    that ComfyUI encodes."""
    if isinstance(video, InputImpl.VideoFromComponents) or is_edited(video):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            video.save_to(str(path), format=Types.VideoContainer.MP4)
            yield path, 0.0, None
        return
    start, seconds = video.get_active_trim_window()
    with file_of(video) as path:
        yield path, start, seconds or None


def thumbnail(pixels: Tensor) -> Tensor:
    """The middle frame of uint8 ``[T,H,W,3]``, made smaller where it is large."""
    picture = pixels[len(pixels) // 2]
    scale = SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture.clone()
    size = [max(1, round(side * scale)) for side in picture.shape[:2]]
    small = F.interpolate(picture.permute(2, 0, 1)[None].float(), size, mode="area")
    return small[0].permute(1, 2, 0).round().to(torch.uint8)


def listed(lines: Sequence[Line], pictures: Sequence[Tensor]) -> Any:
    """The shots as pages that the node shows: thumbnail, times and caption of each."""
    rows = [
        SheetRow(f"{n} · {clock(line.start)[:-2]} · {clock(line.end)[:-2]}", picture[None], plain(line.caption))
        for n, (line, picture) in enumerate(zip(lines, pictures, strict=True), 1)
    ]
    pages = [rows[n : n + ROWS] for n in range(0, len(rows), ROWS)][:PAGES]
    title = counted(len(lines), "shot")
    drawn = [ui.PreviewImage(as_image(draw_sheet(page, title=title, columns=1))) for page in pages]
    for page in drawn[1:]:
        drawn[0].values.extend(page.values)
    return drawn[0]
