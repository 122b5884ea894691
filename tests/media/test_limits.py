"""Files that would take memory, time or other files: refused before they do."""

from __future__ import annotations

import struct
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from uvg_core.errors import UniViGUError
from uvg_core.media.video import ClipSpec, limits, probe, read_clip, source
from uvg_core.media.video.mp4 import require_short_tables
from uvg_core.media.video.pictures import fit
from uvg_core.media.video.timeline import is_cut
from uvg_core.versions import require

resource = pytest.importorskip("resource")  # Windows has none
SPEC = ClipSpec(frames=5, height=32, width=32)


def clip(path: Path, *, frames: int = 6, size: int = 32, tags: dict[str, str] | None = None) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame(size, size, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        stream.metadata.update(tags or {})
    return path


def refused(path: Path, says: str) -> None:
    """Refused with such words, soon and for little memory."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for look in (probe, lambda path: read_clip(path, SPEC)):
        with pytest.raises(UniViGUError, match=says) as caught:
            look(path)
        assert path.name in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB
    assert time.monotonic() - began < 5


def gif(path: Path, side: int) -> Path:
    """35 bytes."""
    screen = b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    path.write_bytes(screen + b"," + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0" + b"\x02\x02\x44\x01\0;")
    return path


def png(path: Path, side: int) -> Path:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, inside in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        data += struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("make", [gif, png])
def test_small_files_of_large_pictures_take_no_memory(make, tmp_path: Path) -> None:
    refused(make(tmp_path / f"bomb.{make.__name__}", 16_000), "16000x16000 pixels|frames of more than 33554432 pixels")


def test_a_clip_of_large_frames_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "large.mp4", size=256)
    monkeypatch.setattr(limits, "MOST_PIXELS", 255 * 255)
    refused(path, "found frames of 256x256 pixels; at most 65025")


def test_frames_that_grow_on_the_way(tmp_path: Path) -> None:
    path = clip(tmp_path / "grows.h264")
    path.write_bytes(path.read_bytes() + clip(tmp_path / "large.h264", size=256).read_bytes())
    assert read_clip(path, SPEC).info.frames == 12
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(limits, "MOST_PIXELS", 255 * 255)
        with pytest.raises(UniViGUError, match="found frames of 256x256"):
            read_clip(path, SPEC)


SCRIPTS = {
    "ffconcat.mp4": "ffconcat version 1.0\nfile whole.mp4\n",
    "self.mp4": "ffconcat version 1.0\nfile self.mp4\n",
    "many.mp4": "ffconcat version 1.0\n" + "file whole.mp4\n" * 20_000,
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n",
    "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
    "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n",
    "text.txt": "Nothing but words.\n" * 100,
    "svg.mp4": '<svg xmlns="http://www.w3.org/2000/svg"><image href="whole.mp4"/></svg>',
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_lists_of_other_files_and_texts_are_refused(name: str, tmp_path: Path) -> None:
    clip(tmp_path / "whole.mp4")
    (tmp_path / name).write_text(SCRIPTS[name])
    refused(tmp_path / name, "cannot be opened as a video.*playlists and other lists of files are not followed")


def test_numbered_pictures_are_not_looked_for(tmp_path: Path) -> None:
    for number in range(3):
        png(tmp_path / f"picture{number}.png", 16)
    png(tmp_path / "picture%d.png", 8)
    info = probe(tmp_path / "picture%d.png")
    assert (info.width, info.frames) == (8, 1)
    assert read_clip(tmp_path / "picture%d.png", SPEC).info == info
    (tmp_path / "picture%d.png").rename(tmp_path / "picture%d.mp4")
    assert probe(tmp_path / "picture%d.mp4").width == 8


@pytest.mark.parametrize("stated", ["inf:0:0", "0:0:inf", "0:0:nan", "0:0:1e400", "9" * 5000 + ":0:0", "99999999:0:0"])
def test_lengths_that_no_clip_has_are_not_believed(stated: str, tmp_path: Path) -> None:
    path = clip(tmp_path / "tagged.mkv")
    data = path.read_bytes()
    at = data.index(b"00:00:00.2")
    if len(stated) <= 18:
        path.write_bytes(data[:at] + stated.encode().ljust(18, b"\0") + data[at + 18 :])
    assert probe(path).frames == read_clip(path, SPEC).info.frames == 6


def test_a_table_that_claims_a_million_times_what_is_there(tmp_path: Path) -> None:
    path = clip(tmp_path / "table.mp4")
    data = bytearray(path.read_bytes())
    at = data.index(b"stsz")
    data[at + 8 : at + 16] = struct.pack(">II", 1, 30_000_000)  # one byte each: no list follows
    at = data.index(b"stsc")
    data[at + 8 : at + 24] = struct.pack(">IIII", 1, 1, 30_000_000, 1)
    path.write_bytes(data)
    refused(path, "its tables claim 30000000 frames and audio samples")


def box(name: bytes, *inside: bytes) -> bytes:
    return struct.pack(">I", 8 + sum(map(len, inside))) + name + b"".join(inside)


def table(*numbers: int) -> bytes:
    return bytes(4) + struct.pack(f">{len(numbers)}I", *numbers)


HDLR = box(b"hdlr", bytes(8), b"pict")


@pytest.mark.parametrize(
    ("handler", "boxes", "problem"),
    [
        (b"vide", [box(b"stsz", table(1, 5_000_000))], "claim 5000000"),
        (b"vide", [box(b"stsz", table(1, 5000)), box(b"elst", table(1000))], "claim 5000000"),
        (b"vide", [box(b"traf", box(b"trun", table(5_000_000)))], "claim 5000000"),
        (b"vide", [box(b"stz2", table(8, 5_000_000))], "claim 5000000"),
        (b"soun", [box(b"stsz", table(4, 400_000_000)), box(b"stts", table(1, 400_000_000, 1))], None),
        (b"soun", [box(b"stsz", table(4, 400_000_000)), box(b"stts", table(1, 400_000_000, 2))], "claim 400000000"),
        (b"vide", [box(b"stsz", table(0, 900_000))], None),
        (b"vide", [box(b"cmov")], "header is compressed"),
        (
            b"pict",
            [box(b"meta", bytes(4), HDLR, box(b"iloc", b"\2\0\0\0D@", struct.pack(">I", 5_000_000)))],
            "claim 5000000",
        ),
        (b"pict", [box(b"meta", HDLR, box(b"iinf", b"\2\0\0\0", struct.pack(">I", 5_000_000)))], "claim 5000000"),
    ],
)
def test_tables_of_mp4(handler: bytes, boxes: list[bytes], problem: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tables.mp4"
    track = box(b"trak", box(b"mdia", box(b"hdlr", bytes(8), handler), *boxes))
    path.write_bytes(box(b"ftyp", b"isom") + box(b"mdat", bytes(99)) + box(b"moov", track))
    if problem is None:
        require_short_tables(path)
        return
    with pytest.raises(UniViGUError, match=problem):
        require_short_tables(path)


def test_a_list_of_pictures_that_claims_millions(tmp_path: Path) -> None:
    items = box(b"iloc", b"\2\0\0\0D@", struct.pack(">I", 200_000_000), bytes(64))
    path = tmp_path / "items.heic"
    path.write_bytes(box(b"ftyp", b"heic", bytes(4), b"mif1heic") + box(b"meta", bytes(4), HDLR, items))
    refused(path, "its tables claim 200000000")


def test_a_file_of_empty_boxes_is_looked_at_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "boxes.mp4"
    path.write_bytes(box(b"free") * 1_000_000)
    began = time.monotonic()
    assert not is_cut(path, "mov,mp4")
    with pytest.raises(UniViGUError, match="more than 262144 boxes"):
        require_short_tables(path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("data", [b"1", b"1234567", bytes(8), b"\0\0\0\1mdat"])
def test_files_of_a_few_bytes(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "stump.mp4").write_bytes(data)
    refused(tmp_path / "stump.mp4", "cannot be opened as a video|no frame can be decoded")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "locked.mp4")

    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)  # the tests may run as root
    refused(path, "cannot be opened as a video.*Permission denied")


def test_too_many_frames_and_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "long.mp4", frames=30)
    with monkeypatch.context() as patch:
        patch.setattr(source, "MOST_PACKETS", 20)
        with pytest.raises(UniViGUError, match=r"long\.mp4: found more than 20 frames"):
            read_clip(path, SPEC)
    monkeypatch.setattr(source, "MOST_DECODED", 20 * 32 * 32)
    with pytest.raises(UniViGUError, match=r"long\.mp4: more than 20480 pixels would have to be decoded"):
        read_clip(path, SPEC)


@pytest.mark.parametrize("shape", [(1, 40_000), (40_000, 1), (3, 30_000)])
def test_a_strip_is_cropped_before_it_is_scaled(shape: tuple[int, int]) -> None:
    picture = torch.zeros(*shape, 3, dtype=torch.uint8)
    middle = [slice(side // 2 - 8, side // 2 + 8) if side > 99 else slice(None) for side in shape]
    picture[middle[0], middle[1]] = 200
    spec = ClipSpec(frames=1, height=480, width=832)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitted, (rows, columns) = fit(picture, shape, spec)
    assert fitted.shape == (480, 832, 3)
    assert fitted[240, 416].tolist() == [200, 200, 200]
    assert rows * columns > 1e9 or columns == 832  # what it would have been
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000


def test_an_old_pyav_is_refused_where_a_clip_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "clip.mp4")
    require.cache_clear()
    monkeypatch.setattr("uvg_core.versions.version", lambda package: "16.1.0")
    with pytest.raises(UniViGUError, match=r"av 16\.1\.0 is installed, 17\.1\.0 or newer is needed.*CVE-2026-40962"):
        read_clip(path, SPEC)
    require.cache_clear()


def test_magicyuv_needs_a_pyav_without_its_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(av.library_versions, "libavcodec", (62, 28, 102))
    limits.require_sound_decoders("magicyuv")
    monkeypatch.setitem(av.library_versions, "libavcodec", (62, 28, 101))
    limits.require_sound_decoders("h264")
    with pytest.raises(UniViGUError, match="CVE-2026-8461"):
        limits.require_sound_decoders("magicyuv")
