"""``edit``: a clip changes as its words change."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from ..errors import UniViGUError, counted
from ..io import free_name, require_others, require_writable
from ..media.sheet import SheetRow, contact_sheet
from ..media.video.footage import Footage
from ..pipeline.edit import Mask, Subject
from ..pipeline.pipeline import Pipeline
from ..pipeline.wording import changes_of, reworded
from ..progress import Bars
from ..sampling import BestOf, Editing, Sampling, Size
from ..settings import Flag, Text, setting, settings
from .common import Model, Video, drawn, latent_saved, steps_of, steps_on
from .flags import Only
from .output import say, show, show_clip
from .streams import as_json, is_stream, write_json

EDITED = Path("edited.mp4")  # or a free name like it, where nobody named one


@settings
class Edit:
    """What is edited, and how its words change."""

    clip: Path = setting(
        "Video to edit; - reads it from standard input.", positional=True, metavar="clip", stdin="file"
    )
    change: tuple[Text, ...] = setting(
        "Words of the caption to change, such as red=blue or 'moves left slowly=stays still'. Repeat the flag for "
        "several changes.",
        default=(),
        metavar="OLD=NEW",
    )
    old_caption: Text | None = setting(
        "Caption of the clip as it is.", default=None, auto="the model's own", flag="--from"
    )
    new_caption: Text | None = setting(
        "Caption of the clip as it should be, in place of --change.", default=None, flag="--to"
    )
    out: Path | None = setting(
        "Output file (.mp4), with the sound, size and length of the clip, and its frame rate if the model takes all "
        "its frames at once.",
        default=None,
        auto="edited.mp4, or edited.2.mp4 if that exists",
        short="-o",
        suffixes=(".mp4",),
    )
    mask: Path | None = setting("Picture or clip of the same shape: white where the clip may change.", default=None)
    sheet: Path | None = setting(
        "Also write a picture (.png) of both clips.", default=None, suffixes=(".png", ".jpg", ".webp")
    )
    no_text_stream: Flag = setting("Leave the text stream empty, as in plain Wan.", default=False)
    dry_run: Flag = setting("Show the caption and what becomes of it, without editing.", default=False)
    json: Path | None = as_json("both captions and all settings")

    def __post_init__(self) -> None:
        if bool(self.change) == (self.new_caption is not None):
            raise UniViGUError("edit: pass --change OLD=NEW or --to CAPTION, and not both")
        if self.dry_run and self.json is not None:
            raise UniViGUError("--dry-run edits nothing that --json could describe; leave out one of them")
        for flag, text in (("--from", self.old_caption), ("--to", self.new_caption)):
            if text is not None and not text.strip():
                raise UniViGUError(f"{flag} is empty; expected a caption")
        changes_of(self.change)

    def captions(self, source: str) -> tuple[str, str]:
        """The caption of the clip, and what becomes of it."""
        if self.new_caption is None:
            return source, reworded(source, changes_of(self.change))
        if self.new_caption.split() == source.split():
            raise UniViGUError(f"--to is the caption that the clip already has: {source}")
        return source, self.new_caption


def edit(
    own: Edit,
    model: Model,
    sampling: Annotated[Sampling, Only("steps", "seed", "shift", "guidance_scale", "guidance_end")],
    editing: Editing,
    video: Annotated[Video, Only("negative", "null_embedding", "fast")],
    size: Size,
    footage: Footage,
    shown: Bars,
) -> int:
    """Edit a clip by editing its caption."""
    out = own.out or free_name(EDITED)
    for path in () if own.dry_run else filter(None, (out, own.sheet)):
        require_writable(path)
        require_others(path, filter(None, (own.clip, own.mask)))
    captions = own.captions(own.old_caption) if own.old_caption else None  # what is wrong with them is said at once
    pipe = model.pipeline(shown, video.null_embedding, fast=video.fast)
    captions = captions or own.captions(_described(pipe, own.clip, size, footage, sampling, shown))
    shown.close()
    if not is_stream(own.json):
        show(f"from: {captions[0]}\nto:   {captions[1]}")
    if own.dry_run:
        return 0
    subject = Subject.read(pipe, own.clip, size, footage)
    mask = None if own.mask is None else Mask.read(own.mask, subject)
    shown.close()
    windows, code, best = len(subject.windows()), 0, BestOf(best_of=editing.best_of)
    say(subject.note if windows == 1 else f"{subject.note}; in {windows} parts that overlap: objects may jump there")
    if windows > 1 and best.best_of > 1:
        raise UniViGUError(
            f"{own.clip}: --best-of chooses among edits of a whole clip, and this one is edited in {windows} parts; "
            f"choose a part with --seconds {subject.window / subject.info.fps:.3g}, or leave out --best-of"
        )

    def change(latent: Tensor, free: Tensor | None) -> Tensor:
        nonlocal code
        draw = partial(
            pipe.edit,
            latent,
            captions,
            negative=video.negative,
            plain=own.no_text_stream,
            sampling=sampling,
            editing=editing,
            free=free,
            callback=steps_of(pipe, best, partial(steps_on, shown), "editing"),
        )
        (kept,), code = drawn(pipe, best, shown, draw)
        return kept.latent.to(pipe.device)

    with latent_saved(pipe, out, shown) if windows == 1 else nullcontext():
        frames = subject.edited(pipe, change, mask)
        pixels = subject.restored(frames, mask)
        out = show_clip(own.out or EDITED, pixels, subject.info.fps, 1, anew=own.out is None, sound=subject.sound)
    if own.sheet:
        rows = [SheetRow("clip", subject.pixels, captions[0]), SheetRow("edited", frames, captions[1])]
        contact_sheet(rows, own.sheet, title="Edited by its words")
        say(f"{own.sheet}: {counted(2, 'clip')}, before and after")
    if own.json:
        words = {"clip": str(own.clip), "out": str(out), "from": captions[0], "to": captions[1]}
        write_json(own.json, words | _how(pipe, own, sampling, video) | asdict(editing) | asdict(footage))
    return code


def _how(pipe: Pipeline, own: Edit, sampling: Sampling, video: Video) -> dict[str, Any]:
    """What the result was made with; ``seed``: its own, of several."""
    resolved, kept = sampling.resolved(pipe.config.run), pipe.sampled
    loras = [{"file": str(lora.path), "video": lora.choice.video, "text": lora.choice.text} for lora in pipe.loras]
    names = ("steps", "shift", "guidance_scale", "guidance_end")
    return {
        "model": str(pipe.components.path),
        "loras": loras,
        "mask": None if own.mask is None else str(own.mask),
        "no_text_stream": own.no_text_stream,
        "negative": video.negative,
        "seed": resolved.seed if kept is None else kept.seed,
        **{name: getattr(resolved, name) for name in names},
    }


def _described(pipe: Pipeline, clip: Path, size: Size, footage: Footage, sampling: Sampling, shown: Bars) -> str:
    """The model's own caption, as the command ``caption`` gives it."""
    latent, _ = pipe.latent_of(clip, size, footage)
    watch = steps_on(shown, "writing the caption", pipe.tokenizer.text)
    text = pipe.caption(latent, sampling=Sampling(seed=sampling.seed), callback=watch)
    if not text.strip():
        raise UniViGUError(f"{clip}: the model's caption came out empty; pass one with --from")
    return text
