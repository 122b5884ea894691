"""Video files <-> pixels, all with PyAV; ffmpeg need not be installed.

Legend: T frames, H rows, W columns; the last axis is RGB. "Shown" sizes are those on screen, after non-square pixels
and rotation. Timestamps are integers in the stream's own unit, ``time_base`` seconds each.
"""

from .captioned import as_srt, caption_tags, container_suffix, write_captioned
from .clip import Clip, ClipInfo, ClipSpec
from .find import find_clips
from .read import fit_pixels, probe, read_clip
from .write import Sound, write_video

__all__ = [
    "Clip",
    "ClipInfo",
    "ClipSpec",
    "Sound",
    "as_srt",
    "caption_tags",
    "container_suffix",
    "find_clips",
    "fit_pixels",
    "probe",
    "read_clip",
    "write_captioned",
    "write_video",
]
