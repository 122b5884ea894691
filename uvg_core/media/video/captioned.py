"""A caption in the file of its clip: as tags and as a track of subtitles. Sound and pictures are copied as they are."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from ...errors import UniViGUError, printable
from ...io import require_others, written_whole
from .source import ATTACHED, Source
from .timeline import Timeline, require_whole, scan

LINE = 48  # characters that players show in a line of a small picture
_LINES = 2  # of a cue
_TICK = Fraction(1, 1000)
_LONGEST = 65_000  # bytes: a sample of mov_text states its length in 16 bits
_TITLE = 80  # characters
_TRACK = "Caption of the clip"  # what the track is called
# What containers are called by ffmpeg, and their kind of subtitles. Each holds captions that its usual players show.
_WRITTEN = {
    ".mp4": ("mp4", "mov_text"),
    ".mov": ("mov", "mov_text"),
    ".mkv": ("matroska", "subrip"),
    ".webm": ("webm", "webvtt"),
}
_TECHNICAL = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # tags that muxers write themselves
_USUAL = {"title", "comment", "artist", "album", "date", "creation_time", "genre", "copyright", "description"}
# ffmpeg's writers of subtitles are made for ASS and want its header, whatever they write.
_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


@dataclass(frozen=True)
class Cue:
    """A piece of a caption, one or two lines, and when it is shown: milliseconds from the first frame."""

    start: int
    end: int
    text: str


def cues_of(caption: str, seconds: float) -> list[Cue]:
    """A caption as subtitles over the whole of a clip, all of two lines at most and shown for the same time, however
    short: a viewer can pause. None for an empty one."""
    lines = textwrap.wrap(printable(" ".join(caption.split())), LINE)
    if not lines:
        return []
    count = -(-len(lines) // _LINES)
    length = max(count, int(seconds * 1000))
    parts = [lines[len(lines) * n // count : len(lines) * (n + 1) // count] for n in range(count)]
    times = [length * n // count for n in range(count + 1)]
    return [Cue(*span, "\n".join(part)) for span, part in zip(pairwise(times), parts, strict=True)]


def as_srt(cues: Sequence[Cue]) -> str:
    """The text of an .srt file."""
    return "\n".join(
        f"{number}\n{_clock(cue.start)} --> {_clock(cue.end)}\n{cue.text.replace('-->', '→')}\n"
        for number, cue in enumerate(cues, 1)
    )


def _clock(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{rest:03}"


def caption_tags(caption: str) -> dict[str, str]:
    """The caption as title, which players show in a line, and as comment. None for an empty one."""
    text = printable(" ".join(caption.split()))
    return {"title": textwrap.shorten(text, _TITLE, placeholder=" …"), "comment": text} if text else {}


def container_suffix(clip: str | Path) -> str | None:
    """The suffix of the container that a clip is in, by its content; None for one that captions are not written into.

    Raises UniViGUError like ``read_clip``."""
    with Source(clip) as source:
        return _suffix(source)


def write_captioned(
    path: str | Path,
    clip: str | Path,
    caption: str,
    *,
    subtitles: bool = True,
    tags: Mapping[str, str] | None = None,
    chapters: Sequence[Cue] = (),
) -> list[Cue]:
    """Write ``clip`` to ``path``, its sound and pictures packet by packet as they are, with a track of subtitles that
    says ``caption``; gives what the track says, whether it is written or not.

    ``tags`` of the file join, and replace, those that the clip has; ``chapters`` become those of the file. ``path``
    ends as ``container_suffix`` says. The file appears whole or not at all. Raises UniViGUError for another name or
    container, a clip that ``read_clip`` would not read, streams that cannot be copied, and where the system refuses.
    """
    path = Path(path)
    require_others(path, [clip])
    with Source(clip) as source:
        suffix, timeline = _copyable(path, source)
        cues = cues_of(caption, timeline.seconds)
        begin = int(1000 * timeline.times[0] * timeline.unit) if timeline.timed else 0
        with written_whole(path) as temporary:
            try:
                parts = [_chapter(number, cue, begin) for number, cue in enumerate(chapters, 1)]
                shown = list(_packets(cues, begin, suffix)) if subtitles else []
                _copy(source, temporary, dict(tags or {}), shown, parts)
            except OSError as error:
                if not isinstance(error, av.FFmpegError) or error.filename == str(temporary):
                    raise  # written_whole words these
                raise _not_copied(clip, error) from error
            except (av.FFmpegError, ValueError) as error:
                raise _not_copied(clip, error) from error
    return cues


def require_copied(path: str | Path, clip: str | Path) -> None:
    """Raise UniViGUError where ``write_captioned`` would."""
    require_others(path, [clip])
    with Source(clip) as source:
        _copyable(Path(path), source)


def _copyable(path: Path, source: Source) -> tuple[str, Timeline]:
    """The suffix and the timeline of a clip that is copied to ``path``."""
    suffix = _suffix(source)
    if suffix is None:
        raise UniViGUError(
            f"{source.path}: found a {source.kind} file; expected {', '.join(_WRITTEN)}, which hold captions. "
            "Save it as an mp4 first"
        )
    if path.suffix.lower() != suffix:
        raise UniViGUError(f"{path}: the streams of {source.path.name} are copied, so the name must end in {suffix}")
    timeline = scan(source)
    require_whole(source, timeline)
    return suffix, timeline


def _not_copied(clip: str | Path, error: Exception) -> UniViGUError:
    return UniViGUError(
        f"{clip}: its streams cannot be copied ({getattr(error, 'strerror', None) or error}). Save the clip as an mp4 "
        "first, which encodes it again"
    )


def _suffix(source: Source) -> str | None:
    named = source.path.suffix.lower()
    if "mov,mp4" in source.kind:
        return ".mov" if source.container.metadata.get("major_brand", "").strip() == "qt" else ".mp4"
    if "matroska" in source.kind:
        return named if named in (".mkv", ".webm") else ".mkv"
    return None


def _packets(cues: Sequence[Cue], begin: int, suffix: str) -> Iterator[Any]:
    """The cues as the container's kind of subtitles wants them; ``begin``: milliseconds of the first frame."""
    for cue in cues:
        text = cue.text
        if suffix == ".webm":
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        elif suffix == ".mkv":
            text = text.replace("-->", "→")
        data = text.encode()[:_LONGEST].decode(errors="ignore").encode()
        packet = av.Packet(len(data).to_bytes(2, "big") + data if suffix in (".mp4", ".mov") else data)
        packet.pts = packet.dts = begin + cue.start
        packet.duration, packet.time_base, packet.is_keyframe = cue.end - cue.start, _TICK, True
        yield packet


def _chapter(number: int, cue: Cue, begin: int) -> Any:
    times = {"start": begin + cue.start, "end": begin + cue.end, "time_base": _TICK}
    return {"id": number, **times, "metadata": {"title": cue.text}}


def _copy(
    source: Source, target: Path, tags: dict[str, str], subtitles: Sequence[Any], chapters: Sequence[Any]
) -> None:
    kind, codec = _WRITTEN[target.suffix.lower()]
    kept = {name: value for name, value in source.container.metadata.items() if name not in _TECHNICAL}
    tags = {**kept, **tags}
    options = {"avoid_negative_ts": "disabled"} if kind == "matroska" else {}  # it would move all
    if kind in ("mp4", "mov"):
        # What an mp4 can say of itself in any words, programs read less often than its usual tags.
        more = "" if tags.keys() <= _USUAL else "+use_metadata_tags"
        options["movflags"] = f"+faststart{more}"
    with av.open(os.path.abspath(target), "w", format=kind, options=options) as written:
        written.metadata.update(tags)
        if chapters:
            written.set_chapters(list(chapters))
        streams = {}
        for stream in source.container.streams:
            if _is_copied(stream):
                copied: Any = written.add_stream_from_template(stream, opaque=True)
                copied.time_base = stream.time_base
                copied.metadata.update(stream.metadata)
                copied.disposition = stream.disposition
                if stream.type == "video" and stream.average_rate:  # from which Matroska knows how long frames last
                    copied.codec_context.framerate = stream.average_rate
                streams[stream.index] = copied
        if subtitles:
            track: Any = written.add_stream(codec)
            track.metadata.update({"title": _TRACK, "handler_name": _TRACK})
            if not any(one.type == "subtitle" and one.disposition & Disposition.default for one in streams.values()):
                track.disposition = Disposition.default  # what players show unasked
            track.codec_context.subtitle_header = _HEADER
            track.codec_context.time_base = track.time_base = _TICK
            for packet in subtitles:
                packet.stream = track
                written.mux(packet)
        for packet in _timed(source.container.demux(*(source.container.streams[index] for index in streams))):
            packet.stream = streams[packet.stream.index]
            written.mux(packet)


def _is_copied(stream: Any) -> bool:
    """Not what ffmpeg knows too little about, no cover picture, which would become a second film, and no caption of an
    earlier time."""
    if stream.type not in ("video", "audio", "subtitle") or stream.codec_context is None:
        return False
    if stream.type == "video" and stream.disposition.value & ATTACHED:
        return False
    return stream.type != "subtitle" or _TRACK not in stream.metadata.values()


def _timed(packets: Iterator[Any]) -> Iterator[Any]:
    """Packets, each with a time to be decoded at: Matroska does not say it of the first, and muxers ask for it."""
    waiting: dict[int, list[Any]] = {}
    for packet in packets:
        if packet.size == 0:  # the closing packet
            continue
        early = waiting.setdefault(packet.stream.index, [])
        early.append(packet)
        if packet.dts is not None:
            for before, one in enumerate(reversed(early)):
                one.dts = packet.dts - before * max(packet.duration or 0, 1)
            yield from early
            early.clear()
    yield from (packet for early in waiting.values() for packet in early)
