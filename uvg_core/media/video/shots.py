"""A long video, part by part: where its shots or windows lie, and the pictures of each. It is decoded once."""

from __future__ import annotations

import gc
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from av.video.reformatter import VideoReformatter
from torch import Tensor

from ...errors import UniViGUError
from ...settings import Flag, Number, setting, settings
from .animation import opened
from .clip import ClipSpec
from .pictures import memory_of, picture_of, shown_size, stacked
from .read import frames_from, part_of
from .source import Source
from .timeline import Timeline, scan

_RAW = 3 * 2**26  # bytes of the decoded frames that are kept of a shot
_UNFREED = 2**26  # bytes of frames that wait for the garbage collector
_FITTED = 2**26  # bytes of the pictures that are kept instead where frames are large, or as many as two clips have
_ENOUGH = 4  # frames that are kept for each that is chosen; as many decoded ones must have room
_MOST = 2048  # frames that are kept of a shot, however small
_LAG = 3  # frames until a cut is known: the detector compares each with two on either side
_SIDE = 96  # pixels: the longer side of what cuts are found in
_ALIKE = 10.0  # mean difference, of 255, below which a picture is the one from before a flash


@settings
class Cutting:
    """How a long video is divided into parts with a caption each."""

    shots: Flag = setting("Divide films into their shots, each with a caption and its times.", default=False)
    every: Number | None = setting(
        "Divide films into windows of so many seconds, each with a caption and its times.", default=None, gt=0, le=1e6
    )
    shortest: Number = setting(
        "Seconds that a shot lasts at least; shorter ones join a neighbour.", default=1.0, ge=0, le=3600
    )

    def __post_init__(self) -> None:
        if self.shots and self.every is not None:
            raise UniViGUError("shots and every were both given; choose one: shots as they are cut, or fixed windows")
        if self.shortest != 1.0 and not self.shots:
            raise UniViGUError("shortest is a length of shots, which are not asked for; add --shots or leave it out")

    @property
    def is_on(self) -> bool:
        return self.shots or self.every is not None


@dataclass(frozen=True)
class Shot:
    """A part of a film.

    start, end  seconds from the film's first frame
    pixels      what the model sees of it, uint8 ``[T,H,W,3]``
    damage      of the last one: what the film lacks, in words; empty for a whole one
    """

    start: float
    end: float
    pixels: Tensor
    damage: str = ""


@dataclass
class _Frames:
    """The frames of a shot that are kept, ``most`` at most: of a long one every second, fourth, eighth ..."""

    most: int
    is_raw: bool = False  # whether pictures are made when they are asked for
    pictures: dict[int, Any] = field(default_factory=dict)  # by time: pictures, or what makes them
    seen: int = 0
    step: int = 1

    def add(self, time: int, picture: Callable[[], Tensor] | Tensor) -> None:
        if self.seen % self.step == 0:
            self.pictures[time] = picture if self.is_raw or isinstance(picture, Tensor) else picture()
        self.seen += 1
        if len(self.pictures) > self.most:
            self.pictures = dict(list(self.pictures.items())[::2])
            self.step *= 2

    def join(self, later: _Frames) -> None:
        """Frames that belong to this shot after all."""
        for time, picture in later.pictures.items():
            self.add(time, picture)

    def at(self, times: Sequence[int]) -> list[Tensor]:
        """The pictures nearest to some times."""
        kept = list(self.pictures)
        nearest = [min(kept[max(bisect_left(kept, time) - 1, 0) :][:2], key=lambda k: abs(k - time)) for time in times]
        made = {time: self.pictures[time] for time in nearest}
        made = {time: one if isinstance(one, Tensor) else one() for time, one in made.items()}
        return [made[time] for time in nearest]


def shots(
    path: str | Path,
    how: Cutting,
    spec: ClipSpec,
    *,
    start: float = 0.0,
    seconds: float | None = None,
    done: float = 0.0,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Generator[Shot, None, None]:
    """The shots of a film, or its windows, in order, each with the frames that ``spec`` asks for: those that
    ``read_clip`` reads of that part. Of a shot whose frames take more than 192 MiB, they are the nearest of every
    second, fourth, ... frame.

    The timestamps are read first; each frame is then decoded once, and only those that are chosen become pictures.
    Memory holds the frames of a shot and of a second one that begins.
    A cut is where the picture changes at once (PySceneDetect's AdaptiveDetector) or comes back from black
    (ThresholdDetector), unless it is back at what it was within ``how.shortest``: a flash. Dissolves are no cuts.

    Args:
        start, seconds: the part of the film to read. done: leave out what ends before, in seconds of the film.
        is_stopped: asked at every frame; ends the work.

    Raises UniViGUError as ``read_clip`` does, and where PySceneDetect is not installed.
    """
    spec.require_valid(path)
    cuts = _Cuts(how.shortest) if how.every is None else None
    with opened(path) as source:
        timeline = scan(source)
        part = part_of(source, timeline, start, seconds)
        if timeline.damage:
            source.start_over(careful=True)
        film = _Film(source, timeline, part, spec)
        ends = None if how.every is None else _windows(timeline, part, start, how.every)
        if done > start and ends is not None:
            ends = [end for end in ends if timeline.second(end) > done + 1e-6]
        frames = film.frames(done)
        if cuts is not None:
            yield from film.cut(frames, cuts, is_stopped)
        elif ends is not None:
            yield from film.windows(frames, ends, is_stopped)


def require_detector(how: Cutting) -> None:
    """Raise UniViGUError where shots are to be found and PySceneDetect is not installed."""
    if how.is_on and how.every is None:
        _Cuts(how.shortest)


def _windows(timeline: Timeline, part: Timeline, start: float, every: float) -> list[int]:
    """Where the windows of a part end, the last one with the part."""
    first, last = part.times[0] + part.begun, part.times[-1]
    count = int((last - first) * timeline.unit / every + 1e-6) + 1
    return [first + round(every * number / timeline.unit) for number in range(1, count)] + [last + 1]


class _Film:
    """An open film and the part of it that is read."""

    def __init__(self, source: Source, timeline: Timeline, part: Timeline, spec: ClipSpec) -> None:
        self.source, self.timeline, self.part, self.spec = source, timeline, part, spec
        self.most, self.is_raw, self.last = 0, False, part.times[0]
        self.size = self.unfreed = 0  # bytes of a decoded frame; of those that only the garbage collector frees

    def frames(self, done: float) -> Iterator[tuple[int, Any]]:
        """Each frame of the part from ``done`` on, with its time."""
        timeline, first = self.timeline, self.part.times[0]
        if done > 0:
            place = bisect_left(timeline.times, timeline.times[0] + round(done / timeline.unit))
            if place == len(timeline.times) or timeline.times[place] > self.part.times[-1]:
                return
            first = max(first, timeline.times[place])
        keyframe = timeline.keyframes[max(bisect_right(timeline.keyframes, first) - 1, 0)]
        ahead: list[Any] = []
        decoded = self.source.frames()
        if timeline.timed and keyframe > timeline.times[0]:
            ahead, decoded = frames_from(self.source, [keyframe])
        before, self.last = None, first
        for number, frame in enumerate(_chained(ahead, decoded)):
            self.source.decoded = 0  # the limit is for clips; films come out as they are decoded, and can be stopped
            time = frame.pts if timeline.timed else number
            if time is None or frame.is_corrupt or (before is not None and time <= before):
                continue
            if time > self.part.times[-1]:
                return
            before = time
            if time >= first:
                if not self.most:
                    self._size(frame)
                self.last = time
                yield time, frame
        if before is None:
            raise self.source.broken(timeline.second(first))

    def _size(self, frame: Any) -> None:
        """Learn from the first frame how pictures are fitted, and how many frames are kept."""
        spec = self.spec = self.spec.suited(*shown_size(frame, self.source.stream))
        self.size = sum(plane.buffer_size for plane in frame.planes)
        raw = _RAW // self.size
        self.is_raw = raw >= _ENOUGH * spec.frames
        fitted = _FITTED // (3 * spec.height * spec.width)
        self.most = min(_MOST, raw) if self.is_raw else max(2 * spec.frames, min(_MOST, fitted))

    def fitted(self, frame: Any) -> Callable[[], Tensor]:
        """What makes a picture of a frame."""
        return lambda: picture_of(frame, self.source, self.spec)[0]

    def chosen(self, first: int, end: int) -> list[int]:
        """The times of the frames of a part that ``spec`` asks for."""
        times = self.timeline.times[bisect_left(self.timeline.times, first) : bisect_left(self.timeline.times, end)]
        return replace(self.timeline, times=times or [first]).spread(self.spec)

    def shot(self, kept: _Frames, first: int, end: int | None, damage: str = "") -> Shot:
        """``end``: the time at which the next one begins, None for the end of what is read."""
        # A frame of PyAV and its side data hold each other, and Python looks for such pairs rarely among old objects.
        if self.unfreed > _UNFREED:
            gc.collect()
            self.unfreed = 0
        pictures = kept.at(self.chosen(first, self.last + 1 if end is None else end))
        self.unfreed += self.size * len(pictures)
        until = self.timeline.second(end) if end is not None else self._end()
        return Shot(self.timeline.second(first), until, stacked(pictures, self.spec), damage)

    def _end(self) -> float:
        times = self.timeline.times
        place = bisect_right(times, self.last)
        whole = self.timeline.seconds if place == len(times) else self.timeline.second(times[place])
        stop = self.timeline.second(self.part.times[0]) + self.part.begun * self.part.unit + self.part.seconds
        return min(whole, max(stop, self.timeline.second(self.last)))

    def damage(self) -> str:
        """What the film lacks, once all of it was read."""
        if self.timeline.damage:
            return f"the film {self.timeline.damage}"
        if self.last < self.part.times[-1]:
            return f"the film breaks off at {self._end():.2f} s; what follows cannot be decoded"
        return "parts of the film cannot be decoded" if self.source.errors else ""

    def windows(
        self, frames: Iterator[tuple[int, Any]], ends: list[int], is_stopped: Callable[[], bool]
    ) -> Iterator[Shot]:
        """A shot for each window that shows a frame of its own."""
        kept, first, upcoming, chosen = None, 0, deque(ends), set[int]()
        for time, frame in frames:
            if is_stopped():
                return
            if kept is not None and time >= upcoming[0]:
                yield self.shot(kept, first, time)
                kept = None
            while len(upcoming) > 1 and time >= upcoming[0]:
                upcoming.popleft()
            if kept is None:
                kept, first = _Frames(self.spec.frames), time
                chosen = {time, *self.chosen(time, upcoming[0])}  # the first one even where none of these is whole
            if time in chosen:
                kept.add(time, self.fitted(frame))
        if kept is not None:
            yield self.shot(kept, first, None, self.damage())

    def cut(self, frames: Iterator[tuple[int, Any]], cuts: _Cuts, is_stopped: Callable[[], bool]) -> Iterator[Shot]:
        """A shot up to each cut."""
        split: _Split | None = None
        for time, frame in frames:
            if is_stopped():
                return
            split = split or _Split(self, time)
            split.recent.append((time, self.fitted(frame)))
            yield from split.told(*cuts.add(time, self.timeline.unit, frame))
            split.flow(_LAG)
        if split is not None:
            split.flow(0)
            if split.later is not None:
                is_long = self._end() - self.timeline.second(split.cut) >= cuts.shortest - 1e-6
                yield from split.told("cut" if is_long else "flash", split.cut)
            yield self.shot(split.kept, split.first, None, self.damage())


class _Split:
    """The frames of the shot that runs (``kept``, from ``first`` on), those behind a ``cut`` that is not sure yet
    (``later``), and the ``recent`` ones, before which a cut may still be found."""

    def __init__(self, film: _Film, first: int) -> None:
        self.film, self.first, self.cut = film, first, first
        self.kept = _Frames(film.most, film.is_raw)
        self.later: _Frames | None = None
        self.recent: deque[tuple[int, Callable[[], Tensor]]] = deque()

    def told(self, verdict: str, at: int) -> Iterator[Shot]:
        """Do what ``_Cuts`` says."""
        if verdict == "maybe":
            while self.recent and self.recent[0][0] < at:
                self.kept.add(*self.recent.popleft())
            self.later, self.cut = _Frames(self.film.most, self.film.is_raw), at
        elif verdict and self.later is not None:
            if verdict == "cut":
                yield self.film.shot(self.kept, self.first, self.cut)
                self.kept, self.first = self.later, self.cut
            else:
                self.kept.join(self.later)
            self.later = None

    def flow(self, most: int) -> None:
        """Keep no more than so many frames as recent ones."""
        while len(self.recent) > most:
            (self.kept if self.later is None else self.later).add(*self.recent.popleft())


def _chained(ahead: list[Any], frames: Iterator[Any]) -> Iterator[Any]:
    """Without keeping the first alive."""
    while ahead:
        yield ahead.pop(0)
    yield from frames


class _Cuts:
    """Finds the cuts of a stream of frames. A cut counts only once it has lasted for ``shortest`` seconds."""

    def __init__(self, shortest: float) -> None:
        try:
            from scenedetect import FrameTimecode
            from scenedetect.detectors import AdaptiveDetector, ThresholdDetector
        except ImportError as error:
            raise UniViGUError(
                f"shots are found with PySceneDetect, which is not there ({error}): pip install scenedetect-headless; "
                "where OpenCV is installed already, as in many ComfyUIs: pip install --no-deps scenedetect-headless "
                "click platformdirs. --every SECONDS needs neither"
            ) from None
        self._clock, self._scaler = FrameTimecode, VideoReformatter()
        self._sharp, self._fade = AdaptiveDetector(min_scene_len=0), ThresholdDetector(min_scene_len=0, fade_bias=1.0)
        self.shortest = shortest
        self._number = -1
        self._recent: deque[tuple[int, int, Tensor]] = deque(maxlen=_LAG + 2)  # number, time, picture
        self._begun, self._change = 0, 0.0
        self._pending: int | None = None
        self._before: Tensor | None = None
        self._settled = 0  # nothing up to this time is a cut any more

    def add(self, time: int, unit: float, frame: Any) -> tuple[str, int]:
        """What the next frame tells: ``maybe``, with the time of a cut; ``cut`` or ``flash``, of the one before it; or
        nothing."""
        self._number += 1
        if self._number == 0:
            self._begun = self._settled = time
        picture = self._small(frame)
        self._recent.append((self._number, time, picture))
        clock, pixels = self._clock(self._number, fps=25.0), picture.numpy()
        sharp, fades = self._sharp.process_frame(clock, pixels), self._fade.process_frame(clock, pixels)
        if self._pending is not None:
            if (time - self._pending) * unit >= self.shortest - 1e-6:
                self._settled, self._pending = self._pending, None
                self._begun = self._settled
                return "cut", self._settled
            if self._before is not None and self._is_back(picture):
                self._pending, self._settled = None, time
                return "flash", time
            return "", time
        return self._found([one.frame_num for one in sharp], [one.frame_num for one in fades], unit)

    def _found(self, sharp: list[int], fades: list[int], unit: float) -> tuple[str, int]:
        for number in (*sharp, *fades):
            place = next((n for n, one in enumerate(self._recent) if one[0] == number), 0)
            _, at, picture = self._recent[place]
            if place == 0 or at <= self._settled or (at - self._begun) * unit < self.shortest - 1e-6:
                continue
            before = self._recent[place - 1][2] if number in sharp else None
            if before is not None:
                self._before, self._change = before, _difference(before, picture)
                if any(self._is_back(one) for _, when, one in self._recent if when > at):
                    self._settled = self._recent[-1][1]
                    continue
            self._pending, self._before = at, before
            return "maybe", at
        return "", 0

    def _small(self, frame: Any) -> Tensor:
        """A frame as a small BGR picture, uint8 ``[H,W,3]``."""
        scale = min(1.0, _SIDE / max(frame.width, frame.height))
        width, height = (max(2, round(side * scale)) for side in (frame.width, frame.height))
        small = self._scaler.reformat(frame, width=width, height=height, format="bgr24", interpolation="AREA")
        return memory_of(small, 3).clone()

    def _is_back(self, picture: Tensor) -> bool:
        return _difference(self._before, picture) < min(_ALIKE, self._change / 2)


def _difference(one: Any, other: Tensor) -> float:
    if one.shape != other.shape:
        return 255.0
    return float((one.float() - other.float()).abs().mean())
