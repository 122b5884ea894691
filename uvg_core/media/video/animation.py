"""Pictures that FFmpeg reads in part: animated WebP, of which it reads nothing, AVIF without its transparency, and the
CMYK of JPEG without its profile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import av
import torch

from ...confined import is_open
from ...errors import UniViGUError
from ...io import read_bytes
from ...versions import require_pillow
from .limits import require_size
from .pictures import memory_of
from .profile import Profile, profile_of
from .source import Source
from .timeline import is_cut
from .torn import is_torn

_MOST_BYTES = 2**28  # Pillow reads a file at once
_HEAD = 4096  # bytes
_MOST_SEGMENTS = 4096  # of a JPEG
_ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"


def opened(path: str | Path) -> Source:
    """The open video or picture, by its content. Raises UniViGUError as ``Source`` does."""
    kind = _kind(path) if is_open(path) and os.path.isfile(path) else ""
    return Animation(path, kind) if kind else Source(path)


def _kind(path: str | Path) -> str:
    """Pillow's name of the format, for what it has to read."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
            if head[:3] == b"\xff\xd8\xff" and _is_profiled_cmyk(file):
                return "" if is_torn(Path(path), "jpeg_pipe") else "JPEG"
    except OSError:
        return ""
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 30 and head[20] & 2:
        return "WEBP"
    if head[4:12] not in (b"ftypavif", b"ftypavis") or _ALPHA not in head:
        return ""
    # Of one that breaks off Pillow reads nothing: FFmpeg does, without the transparency.
    return "" if is_cut(Path(path), "mov,mp4") else "AVIF"


def _is_profiled_cmyk(file: IO[bytes]) -> bool:
    """Whether a JPEG has four colours and a profile that says which."""
    at, profiled = 2, False
    for _ in range(_MOST_SEGMENTS):
        file.seek(at)
        start = file.read(16)
        if len(start) < 16 or start[0] != 0xFF or start[1] == 0xDA:
            break
        profiled |= start[1] == 0xE2 and start[4:15] == b"ICC_PROFILE"
        if 0xC0 <= start[1] <= 0xCF and start[1] not in (0xC4, 0xC8, 0xCC):
            return profiled and start[9] == 4
        at += 2 + max(2, int.from_bytes(start[2:4], "big"))
    return False


def _whole_chunks(data: bytes) -> tuple[bytes, bool]:
    """A WebP without the chunk that it breaks off in, and whether it does."""
    end, at = 0, 12
    while at <= len(data):
        end, at = at, at + 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
        if end + 8 > len(data):
            break
    torn = end < len(data) or 8 + int.from_bytes(data[4:8], "little") > len(data)
    return (data[:4] + (end - 8).to_bytes(4, "little") + data[8:end] if torn else data), torn


class Animation(Source):
    """A picture that Pillow reads, as a video of uncompressed frames."""

    def __init__(self, path: str | Path, kind: str) -> None:
        self.kind = kind
        super().__init__(path)

    def _open(self) -> None:
        self.errors = self.taken = 0
        self.image = self.container = self._opened()
        self.stream: Any = SimpleNamespace(
            sample_aspect_ratio=None,
            average_rate=None,
            guessed_rate=None,
            frames=getattr(self.image, "n_frames", 1),
            duration=None,
            time_base=Fraction(1, 1000),
        )
        self.colours = self._colours()

    def _opened(self) -> Any:
        try:
            from PIL import Image, ImageOps
        except ImportError:
            raise UniViGUError(f"{self.path}: this kind of picture is read with Pillow: pip install pillow") from None
        require_pillow()
        self.transposed = ImageOps.exif_transpose
        data = read_bytes(self.path, _MOST_BYTES, "a picture")
        if self.kind == "WEBP":  # Pillow takes memory for a whole frame at once
            require_size(self.path, *(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)))
            data, self.torn = _whole_chunks(data)
        try:
            image = Image.open(BytesIO(data), formats=(self.kind,))
        except Exception as error:  # whatever its readers stumble on
            raise UniViGUError(
                f"{self.path}: cannot be opened as {self.kind} ({error}). Copy or download it again"
            ) from None
        require_size(self.path, *image.size)
        return image

    def _colours(self) -> Profile | None:
        """The picture's profile. There are no frames of four colours: theirs is applied before, and only named here."""
        data, self.inks = self.image.info.get("icc_profile"), None
        if not data or self.image.mode != "CMYK":
            return profile_of(data, "RGB") if data else None
        profile = profile_of(data, "CMYK")
        self.inks = profile and profile.transform
        return profile and Profile(profile.remark)

    def is_steady(self) -> bool:
        return False

    def header_seconds(self, *, binding: bool = False) -> float:
        return 0.0

    def seek(self, time: int) -> bool:
        return False

    def packets(self) -> Iterator[Any]:
        """Each frame's time, which is known once it is decoded."""
        for number, (_, start, duration) in enumerate(self._decoded()):
            yield SimpleNamespace(
                size=1, pts=start, duration=duration, is_keyframe=number == 0, is_corrupt=False, is_discard=False
            )

    def frames(self) -> Iterator[Any]:
        for image, start, _ in self._decoded():
            upright = self.transposed(image)
            upright = (self.inks.apply(upright) if self.inks else upright).convert("RGBA")
            frame = av.VideoFrame(upright.width, upright.height, "rgba")
            pixels = torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8)
            memory_of(frame, 4)[...] = pixels.view(upright.height, upright.width, 4)
            frame.pts, frame.time_base = start, self.stream.time_base
            yield frame

    def _decoded(self) -> Iterator[tuple[Any, int, int]]:
        """From the first to the last: frame, start and duration in milliseconds."""
        for number in range(self.stream.frames):
            self.count(self.image.width, self.image.height)
            try:
                self.image.seek(number)
                self.image.load()
            except Exception:  # whatever its readers stumble on: damaged
                self.errors += 1
                return
            yield self.image, int(self.image.info.get("timestamp", 0)), int(self.image.info.get("duration", 0))
