"""An open video file: packets, frames, and what the header claims."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import av

from ...confined import is_open
from ...errors import UniViGUError
from ...io import read_bytes
from .find import STILL
from .limits import (
    EXPECTED,
    FASTEST,
    LONGEST,
    MOST_DECODED,
    MOST_PACKETS,
    MOST_PIXELS,
    OPTIONS,
    PATIENCE,
    require_size,
    require_sound_decoders,
)
from .mp4 import is_dolby_vision_5, is_steady, require_short_tables
from .profile import png_profile
from .sidedata import without
from .torn import pages

# Dispositions, as FFmpeg numbers them.
_DEFAULT = 0x1
ATTACHED = 0x400  # a picture that is no film: the cover of a song
_PART = 0x80000  # of a picture that is put together from several, such as a photo in HEIC
_NO_FILM = ATTACHED | 0x800 | _PART  # 0x800: thumbnails
_PNG = ("png", "apng")
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


_PICTURE_BYTES = 2**28
_SCANNED = 2**28  # bytes that are read to learn a length


class Source:
    """An open video file. Use as a context manager.

    errors   damaged packets since the last start or seek
    kind     PyAV's name of the container format
    torn     whether the file is known to end inside a frame; stalled: whether reading on took too long
    icc_profile  of a PNG; those of other pictures are with their frames
    careful  one packet is decoded at a time, and what damaged ones spoil is noted
    spoilt   the times of damaged packets and of those behind them, which build on them, until the next keyframe

    Raises UniViGUError naming the file where it is missing, empty, holds no video that PyAV can decode, or goes beyond
    what ``limits`` allows.
    """

    def __init__(self, path: str | Path) -> None:
        if not is_open(path):
            raise UniViGUError(
                f"{path}: this link leads outside the allowed folders; expected a video file inside them"
            )
        _require_file(path)
        require_sound_decoders()
        self.path = Path(path)
        self.size = os.stat(path).st_size  # a file that grows is read as far as it went
        self.torn = self.stalled = False
        self.careful, self.spoilt = False, set[int | None]()
        self.icc_profile = png_profile(self.path)
        self.decoded, self.refused = 0, False  # pixels; whether ffmpeg called a frame impossible: maybe too large
        self._open()

    def _open(self) -> None:
        self.errors = self.taken = 0
        try:
            require_short_tables(self.path)
            self.container = av.open(self._named(), options=OPTIONS, timeout=(PATIENCE, PATIENCE))
        except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
            raise UniViGUError(
                f"{self.path}: cannot be opened as a video ({getattr(error, 'strerror', None) or error}). Expected "
                f"{EXPECTED}; a file whose writing or download was cut short must be created again"
            ) from error
        self.kind = self.container.format.name
        videos = [stream for stream in self.container.streams.video if not stream.disposition.value & _NO_FILM]
        readable = [stream for stream in videos if stream.codec_context is not None]
        if not readable:
            kinds = sorted({stream.type for stream in self.container.streams})
            found = "a codec that this PyAV cannot decode" if videos else f"only {' and '.join(kinds) or 'nothing'}"
            if any(stream.disposition.value & _PART for stream in self.container.streams.video):
                found = "a photo in parts, as HEIC has it: save it as JPEG or AVIF"
            self.container.close()
            raise UniViGUError(f"{self.path}: contains no video that can be read; found {found}. Choose a video file")
        # Players show the one that the file calls the default, else the first.
        # An AVIF that moves calls its cover picture one, too.
        self.stream = min(readable, key=lambda one: (not one.disposition.value & _DEFAULT, one.frames == 1))
        self.stream.thread_type = "AUTO"
        try:
            require_sound_decoders(self.stream.codec_context.name)
            self.decoder = self._decoder()
            require_size(self.path, self.stream.codec_context.width, self.stream.codec_context.height)
        except UniViGUError:
            self.container.close()
            raise

    def _named(self) -> Any:
        """What ffmpeg opens: of pictures the bytes, since it takes a name that ends in .jpg for a list of them."""
        if self.path.suffix.lower() in STILL and self.size <= _PICTURE_BYTES:
            return BytesIO(read_bytes(self.path, _PICTURE_BYTES, "a picture"))
        return os.path.abspath(self.path)  # absolute, so that a name like "http:x.mp4" is a name

    def _decoder(self) -> Any:
        """What decodes the stream: FFmpeg's own decoders, but for the transparent parts of VP8 and VP9, which they
        leave out."""
        context: Any = self.stream.codec_context
        other = _WITH_ALPHA.get(context.name) if self.stream.metadata.get("alpha_mode") == "1" else None
        if other in av.codecs_available:
            context = av.CodecContext.create(other, "r")
        # More threads hold more source frames in memory. With one, it is known which packet is damaged.
        context.thread_count = 1 if self.careful else 4
        context.options = {"max_pixels": OPTIONS["max_pixels"]}
        return context

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def rate(self) -> float:
        """Frames per second as the header says; 25 where it is silent (raw streams) or wrong."""
        rate = float(self.stream.average_rate or getattr(self.stream, "guessed_rate", None) or 25)
        return rate if 0 < rate <= FASTEST else 25.0

    @property
    def stated_frames(self) -> int:
        """Number of frames as the header says, 0 where it has none worth believing."""
        return self.stream.frames if 0 < self.stream.frames <= MOST_PACKETS else 0

    def rewind(self) -> None:
        """Start over. Reopening works for every format; seeking does not."""
        self.container.close()
        self._open()

    def start_over(self, *, careful: bool) -> None:
        self.careful = careful
        self.rewind()

    def seek(self, time: int) -> bool:
        """Go to the keyframe at ``time``; False where the container cannot."""
        try:
            self.container.seek(time, stream=self.stream, backward=True)
        except (av.FFmpegError, OSError):
            return False
        self.decoder.flush_buffers()
        self.errors = 0
        return True

    def packets(self) -> Iterator[Any]:
        """From here to the end; a file that breaks off ends early. Raises UniViGUError for more than are read."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.pos is not None and packet.pos >= self.size:
                    return
                self.taken += 1
                if self.taken > MOST_PACKETS:
                    raise UniViGUError(f"{self.path}: found more than {MOST_PACKETS} frames; cut it into shorter clips")
                yield packet
        except av.ExitError:
            self.stalled = True
        except (av.FFmpegError, OSError):
            self.errors += 1

    def frames(self) -> Iterator[Any]:
        """Decode from here to the end; damaged packets are passed over and counted in ``errors``. Raises UniViGUError
        where frames are larger than those that are read, or more."""
        spoiling = False
        for packet in self.packets():
            try:
                decoded = self.decoder.decode(packet)
            except (av.FFmpegError, OSError) as error:
                self.errors += 1
                self.refused |= error.errno == errno.EINVAL
                spoiling = True
                self.spoilt.add(packet.pts)
                continue
            spoiling = spoiling and not packet.is_keyframe
            if spoiling:
                self.spoilt.add(packet.pts)
            yield from self._counted(decoded)
        if self.stalled:  # no closing packet has come, which makes decoders give what they hold back
            with suppress(av.FFmpegError, OSError):
                yield from self._counted(self.decoder.decode(None))

    def _counted(self, frames: list[Any]) -> Iterator[Any]:
        for frame in frames:
            self.count(frame.width, frame.height)
            if frame.is_corrupt:
                self.spoilt.add(frame.pts)
            # PyAV frees the name of a PNG's profile twice, and the process ends, once anything looks at its side data.
            yield without(frame, "ICC_PROFILE") if self.stream.codec_context.name in _PNG else frame

    def count(self, width: int, height: int) -> None:
        """One more frame, of a size that may change on the way. Raises UniViGUError for too large ones, or too many."""
        require_size(self.path, width, height)
        self.decoded += width * height
        if self.decoded > MOST_DECODED:
            raise UniViGUError(
                f"{self.path}: more than {MOST_DECODED} pixels would have to be decoded; cut the video into "
                "shorter clips, or write it as an mp4 with more keyframes"
            )

    def broken(self, second: float) -> UniViGUError:
        if self.kind == "tiff_pipe":
            return UniViGUError(
                f"{self.path}: the picture is damaged, or a TIFF of a kind that is not read: floating-point, 32-bit "
                "and LAB ones are not. Convert it to PNG, or copy it again"
            )
        large = f", has frames of more than {MOST_PIXELS} pixels," if self.refused else ""
        return UniViGUError(
            f"{self.path}: the video is damaged{large} or breaks off: no frame can be decoded at {second:.2f} s, where "
            "one is needed. Copy or download it again, or cut the damaged part away"
        )

    @property
    def has_lost_colours(self) -> bool:
        """Whether the colours are Dolby Vision's own, which are taken for what they are not."""
        return "mov,mp4" in self.kind and is_dolby_vision_5(self.path)

    @property
    def pages(self) -> int:
        """Pictures in the file, of which the first is read; 1 for all but TIFF."""
        return pages(self.path) if self.kind == "tiff_pipe" else 1

    def is_steady(self) -> bool:
        """Whether the header is sure of the frames and their length, so that not all timestamps need be read: where the
        rate varies it is often not, and where it only estimates. Of large files estimates are good enough."""
        if "mov,mp4" in self.kind:
            return is_steady(self.path)
        return self.kind == "avi" or self.size > _SCANNED

    def header_seconds(self, *, binding: bool = False) -> float:
        """The length of the video as the header has it, 0 where it has none worth believing. With ``binding`` only
        where the file must hold that much: elsewhere it is an estimate, or with sound the length of the sound."""
        seconds = self._stated_seconds(binding)
        return seconds if 0 <= seconds <= LONGEST else 0.0  # not a number is neither

    def _stated_seconds(self, binding: bool) -> float:
        stream = self.stream
        whole = (self.container.duration or 0) / 1_000_000
        own = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        if self.kind == "mpeg":  # estimated from the bit rate, and badly
            return 0.0
        if "mov,mp4" in self.kind:  # an edit list shortens the whole, long sound lengthens it
            return min(own or whole, whole or own)
        if "matroska" not in self.kind and self.kind != "flv":
            return 0.0 if binding else own or whole
        # These count from zero, not from the first frame.
        start = float((stream.start_time or 0) * (stream.time_base or 0))
        try:
            hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - start
        except ValueError:  # no such tag, or not ffmpeg's
            certain = len(self.container.streams) == 1 and self.kind != "flv"
            return max(whole - start, 0.0) if certain or not binding else 0.0


def _require_file(path: str | Path) -> None:
    """Raise UniViGUError unless ``path`` is a file with something in it."""
    try:
        status = os.stat(path)
        found = "" if status.st_size else "the file is empty (0 bytes)"
        if not stat.S_ISREG(status.st_mode):
            found = "this is a folder" if stat.S_ISDIR(status.st_mode) else "this is a pipe or a device"
    except (OSError, ValueError) as error:  # nothing there, a name that is too long, a folder that may not be entered
        found = (getattr(error, "strerror", None) or str(error)).lower() if str(path) else "this is an empty path"
    if found:
        raise UniViGUError(f"{path}: {found}; expected a video file. Check the path, or copy the file again")
