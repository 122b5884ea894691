"""Parts of a clip that a run holds while it forms the rest: the pictures at its ends, or a file but for a region."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UniViGUError, counted
from ..media.vae import LOOKED_AT, TEMPORAL, with_ends
from ..media.video import Clip, ClipSpec, Sound, probe, read_clip
from ..media.video.footage import FOOTAGE, Footage
from ..sampling import Size
from ..sampling.settings import SIZE
from .edit import Mask, Subject, mixed
from .pipeline import Pipeline


@dataclass(frozen=True)
class Held:
    """``size``: of the clip that a run forms. ``kept``: what of it is held, a clean latent ``[1,C,F,h,w]`` where a mask
    ``[1,1,F,h,w]`` is 0; None for nothing. ``note``: what was read. ``first``: the picture that it begins with, uint8
    ``[1,H,W,3]``. ``subject``: the file that is held but for a region, ``mask``, or but for its bars where that is
    None."""

    size: Size = SIZE
    kept: tuple[Tensor, Tensor] | None = None
    note: str = ""
    subject: Subject | None = None
    mask: Mask | None = None
    first: Tensor | None = None

    @property
    def fps(self) -> float | None:
        """The rate of the file, None where there is none."""
        return None if self.subject is None else self.subject.info.fps

    @property
    def sound(self) -> Sound | None:
        """The sound of the file."""
        return None if self.subject is None else self.subject.sound

    def shown(self, frames: Tensor) -> Tensor:
        """Frames of a run, uint8 ``[T,H,W,3]``, as they are written: with the file's own pixels outside of the mask, at
        the file's size; those between its bars at the model's."""
        if self.subject is None:
            return frames
        frames, bars = frames[: len(self.subject.pixels)], self.subject.bars()
        if self.mask is not None or bars is None:
            return self.subject.restored(frames, self.mask)
        return torch.stack(
            [mixed(*one) for one in zip(self.subject.pixels, frames, bars.large[..., None], strict=True)]
        )


def hold_ends(
    pipe: Pipeline, first: Path | None, last: Path | None, size: Size = SIZE, footage: Footage = FOOTAGE
) -> Held:
    """Hold the first picture of a clip, its last four, or both. ``first`` and ``last`` are pictures, or clips, whose
    first and last frames are meant; a picture stands still for the last four. Raises UniViGUError as ``read_clip``, and
    where nothing is left to form."""
    run = pipe.config.run
    info = probe(first or last or Path(), start=footage.start, seconds=footage.seconds)
    spec = size.spec(run, footage).suited(info.height, info.width)
    size = Size(height=spec.height, width=spec.width, frames=spec.frames)
    empty = torch.zeros_like(pipe.noise(size))
    begin = None if first is None else footage.read(first, replace(spec, frames=1, fps=None))
    end = None if last is None else _ending(last, replace(spec, frames=LOOKED_AT, fps=run.fps), footage)
    first_pixels, last_pixels = (None if clip is None else clip.pixels for clip in (begin, end))
    kept = with_ends(empty, pipe.encode_clip, first_pixels, last_pixels)
    notes = "\n".join(clip.note for clip in (begin, end) if clip is not None)
    return Held(size, kept, notes, first=first_pixels)


def _ending(path: Path, spec: ClipSpec, footage: Footage) -> Clip:
    """The end of a clip at the rate of ``spec``, its very last frame included; fewer frames where it has no more."""
    info, rate = probe(path, start=footage.start, seconds=footage.seconds), spec.fps or 1.0
    since = 0.0 if info.frames == 1 else max(0.0, info.duration - 1 / info.fps)  # when the last frame appears
    count = min(spec.frames, 1 + int(since * rate + 1e-6))
    return read_clip(path, replace(spec, frames=count), start=footage.start + since - (count - 1) / rate)


def hold_outside(pipe: Pipeline, path: Path, mask: Path | None, size: Size = SIZE, footage: Footage = FOOTAGE) -> Held:
    """Hold a clip but for what is white in a mask, or, without one, but for the bars of a padded clip. Raises
    UniViGUError as ``Subject.read`` and ``Mask.read``, for a clip with more frames than the model forms at once, and
    where there are neither."""
    subject = Subject.read(pipe, path, size, footage)
    if len(subject.windows()) > 1:
        longest = subject.window / subject.info.fps
        raise UniViGUError(
            f"{path}: {counted(len(subject.pixels), 'frame')} at {subject.info.fps:g} fps, and the model forms at most "
            f"{subject.window} at once; choose a part with --start and --seconds {longest:.3g}"
        )
    region = subject.bars() if mask is None else Mask.read(mask, subject)
    if region is None:
        raise UniViGUError(
            f"{path}: nothing of the clip is to be formed anew; name a picture with --mask, white where it is, or add "
            "bars to fill with --fit pad and a size of another shape"
        )
    clean, spec = subject.latent(pipe), subject.spec
    frames = TEMPORAL * (clean.shape[2] - 1) + 1
    whole = Size(height=spec.height, width=spec.width, frames=frames)
    free = (region.of_latent(slice(None)) > 0.5).to(clean)  # held or not: networks are trained on nothing between
    return Held(whole, (clean, free), subject.note, subject, None if mask is None else region)
