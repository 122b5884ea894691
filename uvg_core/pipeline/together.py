"""Captions for the clips of a folder, several at a time: while some are captioned, the next ones are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..config import ModelConfig, RunConfig
from ..media.vae import latent_shape
from ..media.video import Clip
from ..model.memory import pass_bytes, video_tokens
from .folders import Captioner

MOST = 16  # clips of one pass: more are no faster, and are lost together where somebody stops the run
SMALL = 2**30  # bytes: passes that need less are faster together, on a CPU too
_READERS = 2
_PIXELS = 2**29  # bytes of the clips that are read, and as many again of those that come next


def clips_together(config: ModelConfig, run: RunConfig, size: Sequence[int], free: float) -> int:
    """How many clips of ``size`` (frames, height, width in pixels) are captioned in one pass where ``free`` bytes are
    left for it and for what is kept of each clip from step to step."""
    frames, height, width = size
    video = video_tokens(latent_shape(frames, height, width, config.in_dim)[2:], config)
    one = pass_bytes(config, rows=1, video=video, text=run.text_length, itemsize=4, logits=1, velocity=False)
    one += 4 * video * config.dim * config.num_layers  # keys and values, of two bytes as a rule
    return max(1, min(MOST, int(free / one), _PIXELS // (3 * frames * height * width)))


class Together(Captioner):
    """``together`` clips at a time, each with a result of its own: one that cannot be read, or that breaks the pass of
    all, costs no other its caption.

    Args:
        read: a file's pictures, called in threads. describe: the texts of clips of one size, given with their files.
    """

    def __init__(
        self,
        read: Callable[[Path], Clip],
        describe: Callable[[Sequence[Clip], Sequence[Path]], Sequence[str]],
        together: int,
    ) -> None:
        self.together, self._read, self._describe = together, read, describe
        self._pool = ThreadPoolExecutor(_READERS, "uvg reader")
        self._reading: dict[Path, Future[Clip]] = {}

    def __call__(self, clips: Sequence[Path], upcoming: Sequence[Path]) -> Sequence[str | Exception]:
        for clip in self._reading.keys() - {*clips, *upcoming}:
            self._reading.pop(clip).cancel()
        for clip in (*clips, *upcoming):
            if clip not in self._reading:
                self._reading[clip] = self._pool.submit(self._read, clip)
        found: dict[Path, str | Exception] = {}
        sizes: dict[Sequence[int], dict[Path, Clip]] = {}
        for clip in clips:
            try:
                read = self._reading.pop(clip).result()
                sizes.setdefault(tuple(read.pixels.shape), {})[clip] = read
            except Exception as error:
                found[clip] = error
        for group in sizes.values():
            found |= self._described(group)
        return [found[clip] for clip in clips]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _described(self, group: dict[Path, Clip]) -> dict[Path, str | Exception]:
        try:
            texts = self._describe(list(group.values()), list(group))
            return dict(zip(group, texts, strict=True))
        except Exception as error:
            if len(group) == 1:
                return {next(iter(group)): error}
        found: dict[Path, str | Exception] = {}
        for half in _halves(group):  # whichever it was, or too little memory: fewer at a time will tell
            found |= self._described(half)
        return found


def _halves(group: dict[Path, Clip]) -> Iterator[dict[Path, Clip]]:
    clips, middle = list(group.items()), len(group) // 2
    yield from (dict(clips[:middle]), dict(clips[middle:]))
