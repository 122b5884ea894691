"""Write an mp4 that browsers play."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from torch import Tensor

from ...errors import UniViGUError
from ...io import written_whole
from .clip import require_frames
from .pictures import BT709, EXACT, LIMITED, memory_of
from .source import Source

log = logging.getLogger(__name__)

# Best first; every one of them makes H.264 that browsers play.
H264_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")


# What an mp4 holds that players know; of the rest, what is decoded to be encoded anew.
_COPIED = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")
_ENCODED = ("vorbis", "pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_s16be")


@dataclass(frozen=True)
class Sound:
    """The sound of a clip, from ``start`` on, ``seconds`` long; None: to its end."""

    clip: Path
    start: float = 0.0
    seconds: float | None = None


def write_video(path: str | Path, pixels: Tensor, fps: float, sound: Sound | None = None) -> None:
    """Write an H.264 mp4 that browsers play: yuv420p, BT.709 limited range, index in front.

    ``pixels`` is uint8 ``[T,H,W,3]``, RGB 0-255, on any device; ``fps`` in frames per second. Odd sizes grow by one
    row or column, a copy of the last, since 4:2:0 needs even ones. ``sound`` is copied packet by packet; of what no
    mp4 holds, Vorbis and PCM are encoded as AAC, and the rest is left out, with a warning. The file appears whole
    or not at all.
    Raises UniViGUError when there is nothing to write, the values have another form, the name does not end in .mp4, no
    H.264 encoder is present, or the system refuses.
    """
    path = Path(path)
    require_frames(pixels, str(path))
    if not 0.01 <= fps <= 1000:
        raise UniViGUError(f"{path}: the frame rate is {fps}; expected 0.01 to 1000 frames per second")
    if path.suffix.lower() != ".mp4":
        raise UniViGUError(f"{path}: only mp4 files can be written; use a name that ends in .mp4")
    encoder = next((name for name in H264_ENCODERS if name in av.codecs_available), None)
    if encoder is None:
        raise UniViGUError(
            f"{path}: this PyAV has no H.264 encoder (looked for {', '.join(H264_ENCODERS)}). Install the one from "
            "PyPI: pip install --force-reinstall av"
        )
    with written_whole(path) as temporary:
        try:
            _encode(temporary, pixels, Fraction(float(fps)).limit_denominator(1001), encoder, sound)
        except OSError:
            raise  # written_whole words these
        except (av.FFmpegError, ValueError) as error:
            raise UniViGUError(
                f"{path}: the encoder {encoder} failed ({error}); nothing was left under that name. Found "
                f"{pixels.shape[0]} frames of {pixels.shape[2]}x{pixels.shape[1]}; try a smaller size"
            ) from error


def _encode(path: Path, pixels_THWC: Tensor, rate: Fraction, encoder: str, sound: Sound | None) -> None:
    height, width = pixels_THWC.shape[1:3]
    rows, columns = height + height % 2, width + width % 2
    with av.open(os.path.abspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream(encoder, rate=rate)
        stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        if encoder == "libx264":
            # The same pixels give the same file, on every machine: by the number of threads x264 divides its work, and
            # what it looks ahead for (the tree of macroblocks) came out otherwise nearly every time with AVX-512.
            stream.options = {"crf": "13", "x264-params": "mbtree=0"}
            context.thread_type, context.thread_count = "FRAME", 4
        else:  # these know no constant quality: half a bit per pixel is plenty
            stream.bit_rate = max(1_000_000, round(0.5 * rows * columns * rate))
        add_sound = None if sound is None else _sound_into(container, sound)
        for number, picture in enumerate(pixels_THWC):
            packed = av.VideoFrame(columns, rows, "rgb24")
            memory = memory_of(packed, 3)
            memory[:height, :width] = picture.to(memory.device)
            memory[height:] = memory[height - 1 : height]
            memory[:, width:] = memory[:, width - 1 : width]
            frame = packed.reformat(
                format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED, interpolation=EXACT
            )
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if add_sound is not None:
            add_sound()


def _sound_into(container: Any, sound: Sound) -> Callable[[], None] | None:
    """A track for the first sound of a clip, and what fills it; None where there is no sound. Tracks must be there
    before the first packet."""
    with Source(sound.clip) as source:
        tracks = getattr(getattr(source.container, "streams", None), "audio", ())
        found = next((one for one in tracks if one.codec_context is not None), None)
        if found is None:
            return None
        codec = found.codec_context.codec.name
        if codec not in (*_COPIED, *_ENCODED):
            log.warning(f"{sound.clip}: its sound is {codec}, which no mp4 holds; it is left out")
            return None
        index, is_copied = found.index, codec in _COPIED
        if is_copied:
            track: Any = container.add_stream_from_template(found, opaque=True)
        else:
            track = container.add_stream("aac", rate=found.codec_context.sample_rate)

    def fill() -> None:
        with Source(sound.clip) as source:
            stream = source.container.streams[index]
            first = float((source.stream.start_time or 0) * source.stream.time_base)
            packets = _part(source.container.demux(stream), sound, first)
            if is_copied:
                for packet in packets:
                    packet.stream = track
                    container.mux(packet)
                return
            for packet in packets:
                for frame in packet.decode():
                    container.mux(track.encode(frame))
            container.mux(track.encode())

    return fill


def _part(packets: Iterator[Any], sound: Sound, first: float) -> Iterator[Any]:
    """The packets of the part, by a clock that begins with it. ``first``: the time of the clip's first picture."""
    begin = first + sound.start
    for packet in packets:
        if packet.pts is None or packet.dts is None:
            continue
        at = float(packet.pts * packet.time_base) - begin
        if (sound.start > 0 and at < 0) or (sound.seconds is not None and at >= sound.seconds):
            continue
        moved = round(begin / float(packet.time_base))
        packet.pts, packet.dts = packet.pts - moved, packet.dts - moved
        yield packet
