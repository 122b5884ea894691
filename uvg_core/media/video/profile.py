"""Colour profiles (ICC) that pictures carry -> sRGB."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UniViGUError, printable
from ...versions import require_pillow

_MOST_BYTES = 2**24  # those of printing presses have a few megabytes
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # Pillow's name, by the kind of colour in the profile
_SAME = 2  # of 255: profiles that differ less from sRGB are sRGB
_NAME = 60  # characters
_MOST_CHUNKS = 256  # of a PNG, before its picture


@dataclass(frozen=True)
class Profile:
    """What the numbers of a picture mean.

    remark     what is done about it, in a few words
    mode       Pillow's name of the colours that it is for: RGB, L or CMYK
    transform  to sRGB; None where it cannot be applied
    """

    remark: str
    mode: str = ""
    transform: Any = None
    is_hdr = False

    def __str__(self) -> str:
        return self.remark

    def to_srgb(self, picture: Tensor) -> Tensor:
        """uint8 RGB ``[H,W,3]``, whose channels are all alike where the profile is for gray."""
        if self.transform is None:
            return picture
        from PIL import Image

        rows, columns = picture.shape[:2]
        channels = picture[..., 0] if self.mode == "L" else picture
        before = Image.frombytes(self.mode, (columns, rows), channels.contiguous().numpy().tobytes())
        converted = bytearray(self.transform.apply(before).tobytes())
        return torch.frombuffer(converted, dtype=torch.uint8).view(rows, columns, 3)


@lru_cache(maxsize=4)
def profile_of(data: bytes, mode: str) -> Profile | None:
    """The profile that ``data`` hold, for a picture of Pillow's ``mode``: RGB, L or CMYK. None for sRGB itself."""
    try:
        require_pillow()
        from PIL import ImageCms
    except (ImportError, UniViGUError):
        return Profile("its colour profile is not applied, which needs Pillow 12.3 or newer")
    kind = _MODES.get(data[16:20])
    if kind is None or (kind != mode and (kind, mode) != ("RGB", "L")) or len(data) > _MOST_BYTES:
        return Profile("its colour profile is not for such a picture and is ignored")
    try:
        found = ImageCms.ImageCmsProfile(BytesIO(data))
        transform = ImageCms.buildTransform(
            found,
            ImageCms.createProfile("sRGB"),
            kind,
            "RGB",
            ImageCms.Intent(ImageCms.getDefaultIntent(found)),
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        name = " ".join(printable(ImageCms.getProfileDescription(found)).split())[:_NAME]
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return Profile("its colour profile is damaged and is ignored")
    profile = Profile(f"colours brought from {name or 'its profile'} to sRGB", kind, transform)
    return None if _is_srgb(profile) else profile


def _is_srgb(profile: Profile) -> bool:
    levels = torch.arange(0, 256, 15, dtype=torch.uint8)
    if profile.mode == "CMYK":
        return False
    colours = torch.cartesian_prod(levels, levels, levels) if profile.mode == "RGB" else levels[:, None].repeat(1, 3)
    return bool((profile.to_srgb(colours[None]).int() - colours[None].int()).abs().max() <= _SAME)


def png_profile(path: Path) -> bytes:
    """The profile of a PNG, empty where a file has none, is none or cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return b""
        for _ in range(_MOST_CHUNKS):
            head = file.read(8)
            length = int.from_bytes(head[:4], "big")
            if len(head) < 8 or head[4:] == b"IDAT" or length > _MOST_BYTES:
                break
            if head[4:] == b"iCCP":  # a name, a zero, the method, and the profile
                data = file.read(length).partition(b"\0")[2]
                with suppress(zlib.error):
                    return zlib.decompressobj().decompress(data[1:], _MOST_BYTES)
                break
            file.seek(length + 4, 1)
    return b""
