"""Small clips that tell by their gray levels which frame is which, in whatever form is asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import torch


def numbered(count: int, *, height: int = 32, width: int = 32) -> torch.Tensor:
    """Clip whose left half tells the frame number modulo 12 and whose right half the dozens, in steps of 20."""
    clip = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    for number in range(count):
        clip[number, :, : width // 2] = 10 + 20 * (number % 12)
        clip[number, :, width // 2 :] = 10 + 8 * (number // 12)
    return clip


def numbers(pixels: torch.Tensor) -> list[int]:
    """Read the numbers back."""
    left = pixels[:, :, 2 : pixels.shape[2] // 2 - 2].float().mean((1, 2, 3))
    right = pixels[:, :, pixels.shape[2] // 2 + 2 : -2].float().mean((1, 2, 3))
    return (((left - 10) / 20).round() + 12 * ((right - 10) / 8).round()).int().tolist()


def make(
    path: Path,
    pixels: torch.Tensor,
    *,
    codec: str = "libx264",
    layout: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    times: list[int] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write a clip of 25 frames per second, or with ``times`` in milliseconds, in whatever form is asked for."""
    _, height, width, _ = pixels.shape
    with av.open(str(path), "w", format=container, options=muxer or {}) as file:
        stream = file.add_stream(codec, rate=25, options=options or {"g": "12", "crf": "10"} if "264" in codec else {})
        stream.width, stream.height, stream.pix_fmt = width, height, layout
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, picture in enumerate(pixels):
            frame = av.VideoFrame(width, height, "rgb24")
            plane = frame.planes[0]
            memory = torch.frombuffer(plane, dtype=torch.uint8).view(height, plane.line_size)
            memory[:, : 3 * width] = picture.reshape(height, -1)
            frame = frame.reformat(format=layout)
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path
