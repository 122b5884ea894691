"""Editing a clip's file: its frames as the model wants them, window by window, and back to the file's size and rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UniViGUError
from ..media.vae import SPATIAL, TEMPORAL
from ..media.video import ClipInfo, ClipSpec, Sound, probe, read_clip
from ..media.video.footage import FOOTAGE, Footage
from ..model.memory import require_room
from ..sampling import Size
from ..sampling.settings import SIZE
from .pipeline import Pipeline

_TOLERANCE = 0.02  # of the shape of a mask, beside the clip's
_SMALL = 128  # pixels: clips of toy models are enlarged by repeating pixels, as they are written


@dataclass(frozen=True)
class Subject:
    """A clip to edit. ``pixels`` uint8 ``[T,H,W,3]`` are all its frames at the model's size; ``window``: how many of
    them the model takes at once; ``spec`` and ``info``: how they were fitted, and what the file holds."""

    pixels: Tensor
    window: int
    spec: ClipSpec
    info: ClipInfo
    footage: Footage
    note: str

    @classmethod
    def read(cls, pipe: Pipeline, path: str | Path, size: Size = SIZE, footage: Footage = FOOTAGE) -> Subject:
        """The frames of a clip, at the rate of ``footage``. Without one they are all frames, unless they are more than
        the model takes at once and faster than its clips: at an unknown speed, parts do not fit together, so the rate
        is then the model's. Raises UniViGUError as ``read_clip``."""
        spec = size.spec(pipe.config.run, footage)
        info = probe(path, start=footage.start, seconds=footage.seconds)
        usual = pipe.config.run.fps
        is_slowed = footage.fps is None and info.frames > spec.frames and info.fps > usual
        rate = usual if is_slowed else footage.fps or info.fps
        count = info.frames if rate == info.fps else max(1, int(info.duration * rate + 0.5))
        window, spec = spec.frames, replace(spec, fps=rate).suited(info.height, info.width)
        out = _kept_size(spec, info)
        what = f"{Path(path).name}: a clip of {count} frames of {out[1]}x{out[0]}"
        require_room(3 * count * (spec.height * spec.width + 2 * out[0] * out[1]), torch.device("cpu"), what)
        clip = footage.read(path, replace(spec, frames=count))
        return cls(clip.pixels, window, spec, replace(info, fps=rate), footage, clip.note)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the result: those of the file, less what was cropped off."""
        return _kept_size(self.spec, self.info)

    @property
    def sound(self) -> Sound:
        """The sound of these frames."""
        return Sound(self.info.path, self.footage.start, len(self.pixels) / self.info.fps)

    def windows(self) -> list[slice]:
        """What the model edits at once: all frames, or windows that overlap by a tenth and end with the clip."""
        count, overlap = len(self.pixels), max(1, self.window // 10)
        if count <= self.window:
            return [slice(0, count)]
        starts = range(0, count - self.window, self.window - overlap)
        return [slice(start, start + self.window) for start in (*starts, count - self.window)]

    def edited(self, pipe: Pipeline, edit: Callable[[Tensor, Tensor | None], Tensor], mask: Mask | None) -> Tensor:
        """The frames at the model's size, after ``edit`` has changed the latent of every window, given with its share
        of the mask. Overlapping frames are faded into each other."""
        windows = self.windows()
        latents = [self.latent(pipe, window) for window in windows]
        frees = [None if mask is None else mask.of_latent(window).to(pipe.device) for window in windows]
        made = pipe.decode_clips([edit(*both) for both in zip(latents, frees, strict=True)])
        frames = self.pixels.clone()
        end = 0
        for window, clip in zip(windows, made, strict=True):
            new = clip[: window.stop - window.start].cpu()
            shared = end - window.start
            if shared > 0:
                share = (torch.arange(shared) + 1)[:, None, None, None] / (shared + 1)
                new = torch.cat([mixed(frames[window.start : end], new[:shared], share), new[shared:]])
            frames[window], end = new, window.stop
        return frames

    def restored(self, frames: Tensor, mask: Mask | None) -> Tensor:
        """Frames at the model's size as the file has them, without bars; where there is a mask, with the file's own
        pixels outside."""
        if self.spec.fit == "pad":
            frames = frames[self._between_bars()]
        frames = torch.stack([_resized(frame, self.size) for frame in frames])
        if mask is None:
            return frames
        own = self.footage.read(self.info.path, replace(self._as_written(), frames=len(frames))).pixels
        return torch.stack([mixed(*one) for one in zip(own, frames, mask.large[..., None], strict=True)])

    def _between_bars(self) -> tuple[slice, slice, slice]:
        """Where the file's picture lies in padded frames."""
        rows, columns = self.spec.scaled(self.info.height, self.info.width)
        top, left = (self.spec.height - rows) // 2, (self.spec.width - columns) // 2
        return slice(None), slice(top, top + rows), slice(left, left + columns)

    def bars(self) -> Mask | None:
        """The bars of a padded clip as a mask, both at the model's size; None where there are none."""
        free = torch.ones(self.pixels.shape[:3])
        if self.spec.fit == "pad":
            free[self._between_bars()] = 0
        return Mask(free, free) if self.spec.fit == "pad" and bool(free.any()) else None

    def latent(self, pipe: Pipeline, window: slice = slice(None)) -> Tensor:
        """The clean latent of a window, ``[1,C,F,h,w]``."""
        return pipe.encode_clip(whole_groups(self.pixels[window]))

    def _as_written(self) -> ClipSpec:
        """How the file itself is read at the size of the result."""
        height, width = self.size
        return replace(self.spec, height=height, width=width, fit="stretch" if self.spec.fit == "stretch" else "crop")


@dataclass(frozen=True)
class Mask:
    """Where a clip may change, 0 to 1: ``small`` ``[T,H,W]`` at the model's size, ``large`` at that of the result.

    Its border is as soft as the picture: one that faded inwards by itself would leave an edge of the old clip around
    what a close mask changes, one that faded outwards would change what is black."""

    small: Tensor
    large: Tensor

    @classmethod
    def read(cls, path: Path, subject: Subject) -> Mask:
        """A picture or a clip, white where the clip may change, scaled to it. Raises UniViGUError for another shape,
        and for one that is black everywhere."""
        info, clip = probe(path), subject.info
        if abs(info.width * clip.height / (info.height * clip.width) - 1) > _TOLERANCE:
            raise UniViGUError(
                f"{path}: the mask is {info.width}x{info.height}, of another shape than the clip, which is "
                f"{clip.width}x{clip.height}; expected a mask of the clip's shape, of any size"
            )
        is_still, part = info.frames == 1, subject.footage

        def values(spec: ClipSpec) -> Tensor:
            spec = replace(spec, frames=len(subject.pixels), background=(0, 0, 0), fps=None if is_still else spec.fps)
            found = read_clip(path, spec) if is_still else part.read(path, spec)
            return found.pixels.float().mean(-1) / 255

        mask = cls(values(subject.spec), values(subject._as_written()))
        if not bool((mask.large > 0).any()):
            raise UniViGUError(f"{path}: the mask is black everywhere, so nothing may change; paint white what may")
        return mask

    def of_latent(self, window: slice) -> Tensor:
        """The mask of a window ``[1,1,F,h,w]``: free where any pixel that a value stands for is."""
        small = whole_groups(self.small[window])
        small = torch.cat([small[:1].expand(TEMPORAL - 1, -1, -1), small])
        return F.max_pool3d(small[None, None], (TEMPORAL, SPATIAL, SPATIAL))


def _kept_size(spec: ClipSpec, info: ClipInfo) -> tuple[int, int]:
    """Rows and columns of the file that the model sees."""
    if spec.fit in ("pad", "stretch"):
        return info.height, info.width
    rows, columns = spec.scaled(info.height, info.width)
    return (
        min(info.height, round(spec.height * info.height / rows)),
        min(info.width, round(spec.width * info.width / columns)),
    )


def whole_groups(frames: Tensor) -> Tensor:
    """``[T,...]`` with the last frame repeated until they are 4n+1, as the VAE takes them."""
    lacking = -(len(frames) - 1) % TEMPORAL
    return torch.cat([frames, frames[-1:].expand(lacking, *frames.shape[1:])]) if lacking else frames


def mixed(below: Tensor, above: Tensor, share: Tensor) -> Tensor:
    """uint8 frames, ``above`` by its share."""
    return (below + (above.float() - below.float()) * share).round().clamp(0, 255).to(torch.uint8)


def _resized(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """A frame ``[H,W,3]`` of another size."""
    height, width, _ = frame.shape
    if (height, width) == size:
        return frame
    if min(height, width) < _SMALL and size[0] % height == 0 == size[1] % width:
        return frame.repeat_interleave(size[0] // height, 0).repeat_interleave(size[1] // width, 1)
    planes = frame.permute(2, 0, 1)[None].float()
    scaled = F.interpolate(planes, size, mode="bicubic", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0)
