"""Captions in the files of clips, and the streams beside them as they were."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from uvg_core.errors import UniViGUError
from uvg_core.media.video import as_srt, caption_tags, container_suffix, read_clip, write_captioned
from uvg_core.media.video.captioned import cues_of
from uvg_core.media.video.clip import ClipSpec

CAPTION = "A red <b>circle</b> moves right & grows --> quickly, écarlate 赤い, on a navy background."
# Name, ffmpeg's format, codecs of picture and sound, and whether frames are stored out of order.
KINDS = {
    "clip.mp4": ("mp4", "libx264", "aac"),
    "clip.mov": ("mov", "libx264", "pcm_s16le"),
    "clip.mkv": ("matroska", "libx264", "libmp3lame"),
    "clip.webm": ("webm", "libvpx-vp9", "libopus"),
}


def make(path: Path, kind: str, picture: str, sound: str | None, frames: int = 20) -> Path:
    rate = Fraction(30000, 1001)
    with av.open(str(path), "w", format=kind) as file:
        file.metadata["artist"] = "somebody"
        video: Any = file.add_stream(picture, rate=rate)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio: Any = file.add_stream(sound, rate=48000, layout="stereo") if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 9, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if audio:
            noise = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 48000)).astype(np.float32)
            piece = av.AudioFrame.from_ndarray(noise, format="fltp", layout="stereo")
            piece.sample_rate, piece.pts = 48000, 0
            file.mux([*audio.encode(piece), *audio.encode()])
    return path


def packets(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"video": [], "audio": []}
    with av.open(str(path)) as file:
        for packet in file.demux(*file.streams.video, *file.streams.audio):
            if packet.size:
                facts = (packet.pts, packet.dts, packet.duration, packet.time_base, packet.is_keyframe)
                found[packet.stream.type].append((bytes(packet), *facts))
    return found


def subtitles(path: Path) -> list[tuple[float, float, str]]:
    """Start and end in seconds, and the text, of each cue that ffmpeg decodes."""
    found = []
    with av.open(str(path)) as file:
        assert len(file.streams.subtitles) == 1
        for packet in file.demux(file.streams.subtitles[0]):
            for one in packet.decode() if packet.size > 2 else []:
                unit = packet.time_base
                text = one.ass.decode().split(",", 8)[-1].replace("\\N", " ")
                found.append((float(packet.pts * unit), float((packet.pts + packet.duration) * unit), text))
    return found


@pytest.mark.parametrize("name", KINDS)
def test_streams_are_copied_and_the_caption_can_be_read(tmp_path: Path, name: str) -> None:
    clip = make(tmp_path / name, *KINDS[name])
    assert container_suffix(clip) == clip.suffix
    written = tmp_path / f"written{clip.suffix}"
    tags = {**caption_tags(CAPTION), "prompt": '{"1": {}}'}
    write_captioned(written, clip, CAPTION, tags=tags)
    assert packets(written) == packets(clip)
    assert len(packets(clip)["video"]) == 20
    assert len(packets(clip)["audio"]) > 10
    [(start, end, text)] = subtitles(written)
    assert start == 0
    assert end == pytest.approx(20 * 1.001 / 30, abs=2e-3)
    plain = CAPTION.replace("-->", "→") if clip.suffix == ".mkv" else CAPTION
    marked = plain.replace("<b>", "{\\b1}").replace("</b>", "{\\b0}") if clip.suffix == ".mkv" else plain
    assert text == marked
    with av.open(str(written)) as file:
        found = {key.lower(): value for key, value in file.metadata.items()}
        assert file.streams.subtitles[0].disposition & Disposition.default  # shown unasked
    assert {key: found[key] for key in (*tags, "artist")} == {**tags, "artist": "somebody"}
    assert read_clip(written, ClipSpec(20, 48, 64)).info.frames == 20

    again = tmp_path / f"again{clip.suffix}"
    write_captioned(again, written, "other words", tags=caption_tags("other words"))
    assert [text for _, _, text in subtitles(again)] == ["other words"]
    assert packets(again) == packets(clip)


def test_long_captions_come_in_turns_and_cover_the_clip() -> None:
    words = " ".join(f"word{n}" for n in range(150))
    cues = cues_of(words, 10.0)
    assert (cues[0].start, cues[-1].end) == (0, 10_000)
    assert all(one.end == following.start for one, following in pairwise(cues))
    assert max(cue.text.count("\n") for cue in cues) == 1
    lengths = [cue.end - cue.start for cue in cues]
    assert max(lengths) - min(lengths) <= 1
    assert " ".join(cue.text.replace("\n", " ") for cue in cues) == words
    assert [cue.text for cue in cues_of(words, 0.0)] == [cue.text for cue in cues]
    assert all(cue.start < cue.end for cue in cues_of(words, 0.0))
    assert [cue.text.count("\n") for cue in cues_of("word " * 30, 60.0)] == [1, 1]
    assert cues_of(" \n", 3.0) == []
    assert len(cues_of("字" * 5000, 1e6)) < 60
    assert as_srt(cues_of("a --> b", 3661.5)) == "1\n00:00:00,000 --> 01:01:01,500\na → b\n"
    assert caption_tags("  ") == {}
    assert len(caption_tags(words)["title"]) <= 80


def test_line_breaks_of_a_caption_are_spaces(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", "mp4", "libx264", None)
    text = "A red circle\r\nmoves right.\r\n\r\nIt stops.\t\r\n"
    plain = "A red circle moves right. It stops."
    assert [cue.text for cue in cues_of(text, 3.0)] == [plain]
    assert caption_tags(text) == {"title": plain, "comment": plain}
    write_captioned(tmp_path / "written.mp4", clip, text)
    assert [words for _, _, words in subtitles(tmp_path / "written.mp4")] == [plain]


def test_a_cover_picture_does_not_become_a_film(tmp_path: Path) -> None:
    clip, covered = make(tmp_path / "clip.mp4", "mp4", "libx264", "aac"), tmp_path / "covered.mp4"
    with av.open(str(clip)) as source, av.open(str(covered), "w") as file:
        streams: list[Any] = [file.add_stream_from_template(stream, opaque=True) for stream in source.streams]
        cover: Any = file.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, np.uint8), format="rgb24")
        file.mux([*cover.encode(picture), *cover.encode()])
        for packet in source.demux(*source.streams):
            if packet.size:
                packet.stream = streams[packet.stream.index]
                file.mux(packet)
    with av.open(str(covered)) as file:
        assert [stream.type for stream in file.streams] == ["video", "audio", "video"]
    assert read_clip(covered, ClipSpec(20, 48, 64)).info.frames == 20
    written = tmp_path / "written.mp4"
    write_captioned(written, covered, "words")
    with av.open(str(written)) as file:
        assert [stream.type for stream in file.streams] == ["video", "audio", "subtitle"]
    assert packets(written) == packets(clip)


def test_a_caption_without_a_track_or_an_empty_one_leaves_the_clip_as_it_is(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", "mp4", "libx264", None)
    for number, (text, track) in enumerate((("words", False), ("", True))):
        written = tmp_path / f"{number}.mp4"
        cues = write_captioned(written, clip, text, subtitles=track)
        assert bool(cues) == bool(text)
        assert packets(written) == packets(clip)
        with av.open(str(written)) as file:
            assert len(file.streams) == 1


def test_what_cannot_be_written_is_worded(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", "mp4", "libx264", None)
    with pytest.raises(UniViGUError, match=r"so the name must end in \.mp4"):
        write_captioned(tmp_path / "clip.mkv", clip, "words")
    with pytest.raises(UniViGUError, match="onto a file that is being read"):
        write_captioned(clip, clip, "words")
    with pytest.raises(UniViGUError, match="does not exist"):
        write_captioned(tmp_path / "none" / "clip.mp4", clip, "words")
    flv = make(tmp_path / "clip.flv", "flv", "libx264", None)
    assert container_suffix(flv) is None
    with pytest.raises(UniViGUError, match="which hold captions"):
        write_captioned(tmp_path / "new.mp4", flv, "words")
    named = make(tmp_path / "named.webm", "matroska", "libx264", None)
    with pytest.raises(UniViGUError, match="its streams cannot be copied"):
        write_captioned(tmp_path / "new.webm", named, "words")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.flv", "clip.mp4", "named.webm"]
