"""What a video file may hold. Files come from strangers: none of them decides what is opened, or how much memory and
time it takes."""

from __future__ import annotations

from pathlib import Path

import av

from ...errors import UniViGUError
from ...versions import require

MOST_PIXELS = 2**25  # of a frame; 7680x4320, which is 8K, has a few less
MOST_PACKETS = 2**20  # 9 hours at 30 frames a second; each is remembered with its time
MOST_DECODED = 2**38  # pixels in all, 74 minutes of 1080p; most formats are decoded near the wanted frames only
MOST_ELEMENTS = 2**18  # outermost boxes of a file
PATIENCE = 20.0  # seconds for a file to open, and for its next frame to come: slow disks, and endless files
LONGEST = 1e6  # seconds, 12 days: a header that states more is wrong
FASTEST = 10_000.0  # frames a second, likewise
MOST_SAMPLES = 2**22  # in the tables of an mp4, pieces of sound included; ffmpeg takes 70 bytes for each at once
_MOST_SOUND = 2**22  # of one piece of sound, which ffmpeg may decode while it opens a file

# ffmpeg's names of the containers, bare streams and still pictures that are opened. Not among them: playlists and
# scripts that name other files (concat, hls, dash, sdp, imf), numbered pictures (image2), text (tty), devices, lavfi.
_CONTAINERS = "mov,matroska,avi,flv,live_flv,mpeg,mpegts,asf,gif,ogg,mxf,gxf,nut,ivf,rm,dv,wtv,nsv,swf"
_MOVING = "apng,webp,jpegxl_anim"
_STREAMS = "h261,h263,h264,hevc,vvc,m4v,mpegvideo,mjpeg,obu,av1,vc1,dirac,dnxhd,cavsvideo,yuv4mpegpipe,mpjpeg"
_SOUND = "wav,mp3,flac,aac"  # to be told from damaged files
_STILLS = (
    "bmp dds dpx exr hdr j2k jpeg jpegls jpegxl pam pbm pcx pfm pgm png ppm psd qoi sgi sunrast tiff webp xbm xpm xwd"
)
FORMATS = ",".join([_CONTAINERS, _MOVING, _STREAMS, _SOUND, *(f"{name}_pipe" for name in _STILLS.split())])
# Only files, so that nothing inside one reaches the network. ffmpeg itself refuses larger pictures, before it takes
# memory for them.
OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": FORMATS,
    "max_pixels": str(MOST_PIXELS * 17 // 16),  # it counts rows with their padding
    "max_samples": str(_MOST_SOUND),
}
EXPECTED = (
    "a whole video file such as mp4, mov, mkv, webm, avi or gif (playlists and other lists of files are not followed)"
)

# 17.1.0 is the first that comes with FFmpeg 8.1: CVE-2026-40962 (critical) and CVE-2025-12343 are open before.
_OLDEST = (17, 1, 0)
# The libavcodec of FFmpeg 8.1.2, of PyAV 18: before it, MagicYUV writes out of bounds (CVE-2026-8461).
_SOUND_MAGICYUV = (62, 28, 102)


def require_sound_decoders(codec: str | None = None) -> None:
    """Raise UniViGUError where the installed PyAV has holes that a file could use, or has one in ``codec``."""
    require("av", _OLDEST, "run code of a planted video (CVE-2026-40962)")
    if codec == "magicyuv" and av.library_versions["libavcodec"] < _SOUND_MAGICYUV:
        raise UniViGUError(
            "MagicYUV is not decoded by this PyAV, which has a security hole there (CVE-2026-8461): "
            'pip install "av>=18"'
        )


def require_size(path: Path, width: int, height: int) -> None:
    """Raise UniViGUError for frames of more than ``MOST_PIXELS``."""
    if width * height > MOST_PIXELS:
        raise UniViGUError(
            f"{path}: found frames of {width}x{height} pixels; at most {MOST_PIXELS} (8K) are read. Scale it down"
        )
