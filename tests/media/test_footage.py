"""Footage as cameras, phones and editors make it: its colours, its streams, its lengths."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from numbered_clips import make, numbered, numbers

from uvg_core.media.video import ClipSpec, fit_pixels, probe, read_clip, source
from uvg_core.media.video.source import Source

# ------------------------------------------------------------------------------------------------------------ colours

PQ, HLG = 16, 18
GRAYS = [(v, v, v) for v in (0.0, 0.1, 1.0, 5.0, 20.0, 60.0, 100.0, 203.0, 400.0, 700.0, 1000.0)]
COLOURS = [(203, 20, 10), (20, 203, 40), (15, 30, 203), (203, 150, 20), (90, 60, 45), (600, 500, 300), (3, 2, 8)]


def pq_signal(nits: float) -> float:
    """SMPTE ST 2084, from its five constants."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (nits / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg_signal(rgb: tuple[float, float, float]) -> list[float]:
    """BT.2100: a display's light in nits, for one of 1000 nits, back through the OOTF and the OETF."""
    luminance = (0.2627 * rgb[0] + 0.6780 * rgb[1] + 0.0593 * rgb[2]) / 1000
    scene = [v / 1000 * luminance ** (1 / 1.2 - 1) if luminance else 0.0 for v in rgb]
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return [math.sqrt(3 * v) if v <= 1 / 12 else a * math.log(12 * v - b) + c for v in scene]


def by_bt2446(rgb: tuple[float, float, float], peak: float) -> list[float]:
    """ITU-R BT.2446-1, method A, for one colour in nits, step by step as the report has it; and to BT.709."""
    r, g, b = (min(v / peak, 1) ** (1 / 2.4) for v in rgb)
    y = 0.2627 * r + 0.6780 * g + 0.0593 * b
    rho = 1 + 32 * (peak / 10000) ** (1 / 2.4)
    p = math.log(1 + (rho - 1) * y) / math.log(rho)
    if p <= 0.7399:
        c = 1.0770 * p
    elif p < 0.9909:
        c = -1.1510 * p**2 + 2.7811 * p - 0.6302
    else:
        c = 0.5 * p + 0.5
    rho = 1 + 32 * (100 / 10000) ** (1 / 2.4)
    sdr = (rho**c - 1) / (rho - 1)
    f = sdr / (1.1 * y) if y else 0.0
    cb, cr = f * (b - y) / 1.8814, f * (r - y) / 1.4746
    luma = sdr - max(0.1 * cr, 0)
    r, b = luma + 1.4746 * cr, luma + 1.8814 * cb
    g = (luma - 0.2627 * r - 0.0593 * b) / 0.6780
    r, g, b = (max(0, min(v, 1)) ** 2.4 for v in (r, g, b))
    narrow = [  # BT.2087
        1.6605 * r - 0.5876 * g - 0.0728 * b,
        -0.1246 * r + 1.1329 * g - 0.0083 * b,
        -0.0182 * r - 0.1006 * g + 1.1187 * b,
    ]
    return [255 * max(0, min(v, 1)) ** (1 / 2.4) for v in narrow]


def hdr_clip(path: Path, signals: list[list[float]], transfer: int, *, tagged: bool = True, more: str = "") -> Path:
    """Frames of one colour each, R'G'B' from 0 to 1, in HEVC of 10 bits. Without B-frames: of fewer frames than they
    need, x265 gives times for decoding that it never set, and now and then the file cannot be written."""
    with av.open(str(path), "w") as file:
        options = {"x265-params": f"log-level=none:bframes=0{more}", "crf": "2", "preset": "ultrafast"}
        stream = file.add_stream("libx265", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_range = transfer, 1
        context.color_primaries = context.colorspace = 9 if tagged else 2
        for number, (r, g, b) in enumerate(signals):
            luma = 0.2627 * r + 0.6780 * g + 0.0593 * b
            levels = 876 * luma + 64, 896 * (b - luma) / 1.8814 + 512, 896 * (r - luma) / 1.4746 + 512
            frame = av.VideoFrame(32, 32, "yuv420p10le")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for plane, level in zip(frame.planes, levels, strict=True):
                torch.frombuffer(plane, dtype=torch.int16).fill_(round(level))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def colours_of(path: Path, count: int) -> tuple[list[list[float]], str]:
    clip = read_clip(path, ClipSpec(count, 16, 16))
    return clip.pixels[:, 4:-4, 4:-4].float().mean((1, 2)).tolist(), clip.note


def assert_alike(found: list[list[float]], right: list[list[float]], patches: list, within: float = 4) -> None:
    for patch, one, other in zip(patches, found, right, strict=True):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= within, (patch, one, other)


DISPLAY = ":master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(40000000,50)"


@pytest.mark.parametrize(
    ("name", "more", "peak"),
    [
        ("plain.mkv", "", 1000),
        ("display.mkv", f":hdr10=1{DISPLAY}", 4000),
        ("light.mp4", f":hdr10=1{DISPLAY}:max-cll=2000,400", 2000),
        ("nothing_stated.mp4", f":hdr10=1{DISPLAY}:max-cll=0,0", 4000),
    ],
)
def test_pq_is_tone_mapped_as_bt2446_says(tmp_path: Path, name: str, more: str, peak: float) -> None:
    patches = [*GRAYS, *COLOURS]
    path = hdr_clip(tmp_path / name, [[pq_signal(v) for v in rgb] for rgb in patches], PQ, more=more)
    found, note = colours_of(path, len(patches))
    assert_alike(found, [by_bt2446(rgb, peak) for rgb in patches], patches)
    assert note.endswith(f"; HDR (PQ up to {peak} nits) tone-mapped to SDR")


@pytest.mark.parametrize("tagged", [True, False])
def test_hlg_is_tone_mapped_at_1000_nits(tmp_path: Path, tagged: bool) -> None:
    """A transfer of HDR without primaries and matrix means those of BT.2020."""
    patches = [*GRAYS, *COLOURS]
    path = hdr_clip(tmp_path / "phone.mov", [hlg_signal(rgb) for rgb in patches], HLG, tagged=tagged)
    found, note = colours_of(path, len(patches))
    assert_alike(found, [by_bt2446(rgb, 1000) for rgb in patches], patches)
    assert note.endswith("; HDR (HLG) tone-mapped to SDR")


def test_wide_colours_without_hdr_are_brought_to_bt709(tmp_path: Path) -> None:
    """The red of BT.709 as BT.2020 writes it (BT.2087), and gray, which stays."""
    red = [v ** (1 / 2.4) for v in (0.6274, 0.0691, 0.0164)]
    found, note = colours_of(hdr_clip(tmp_path / "wide.mkv", [red, [0.5] * 3], 1), 2)
    assert_alike(found, [[255, 0, 0], [127.5] * 3], ["red", "gray"], within=8)  # dark tones are steep
    assert note.endswith("; BT.2020 colours brought to BT.709")


@pytest.mark.parametrize(("profile", "base", "wrong"), [(5, 0, True), (8, 1, False), (8, 4, False), (7, 6, False)])
def test_dolby_vision_without_a_usual_picture_is_said(tmp_path: Path, profile: int, base: int, wrong: bool) -> None:
    """The box that says so is put behind the decoder's, at the end of the boxes around it."""
    path = hdr_clip(tmp_path / "dolby.mp4", [[0.5] * 3] * 2, HLG)
    before, data = read_clip(path, ClipSpec(2, 16, 16)), bytearray(path.read_bytes())
    box = (32).to_bytes(4, "big") + b"dvcC" + bytes([1, 0, profile << 1, 0b1101, base << 4]) + bytes(19)
    at = data.index(b"hvcC") - 4
    at += int.from_bytes(data[at : at + 4], "big")
    data[at:at] = box
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"hev1"):
        start = data.index(name) - 4
        data[start : start + 4] = (int.from_bytes(data[start : start + 4], "big") + len(box)).to_bytes(4, "big")
    assert data.index(b"mdat") < at  # so that no place of a frame has moved
    path.write_bytes(data)
    clip = read_clip(path, ClipSpec(2, 16, 16))
    assert (clip.pixels == before.pixels).all()
    assert ("its colours are wrong: Dolby Vision profile 5" in clip.note) == wrong
    assert wrong or clip.note == before.note


def test_the_size_of_hdr_clips_changes_no_colour(tmp_path: Path) -> None:
    path = hdr_clip(tmp_path / "gray.mkv", [[pq_signal(100.0)] * 3] * 2, PQ)
    for size in (8, 32, 64):
        pixels = read_clip(path, ClipSpec(2, size, size)).pixels
        assert pixels.shape == (2, size, size, 3)
        assert (pixels.int() - round(by_bt2446((100, 100, 100), 1000)[0])).abs().max() <= 2


# ------------------------------------------------------------------------------------------------------------ streams


def several(path: Path, *streams: tuple[str, torch.Tensor, int]) -> Path:
    """Streams side by side: codec, pixels, disposition (1: default, 0x400: attached picture)."""
    with av.open(str(path), "w") as file:
        made = []
        for codec, pixels, disposition in streams:
            stream = file.add_stream(codec, rate=25, options={"crf": "10"} if "264" in codec else {})
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            made.append(stream)
        for stream, (_, pixels, _) in zip(made, streams, strict=True):
            for number, picture in enumerate(pixels):
                frame = av.VideoFrame.from_ndarray(picture.numpy(), "rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_the_default_stream_is_read_not_the_largest(tmp_path: Path, suffix: str) -> None:
    large = torch.full((12, 64, 64, 3), 200, dtype=torch.uint8)
    streams = [("libx264", large, 0), ("libx264", numbered(12), 1), ("mjpeg", large[:1], 0x400)]
    path = several(tmp_path / f"several.{suffix}", *streams)
    assert numbers(read_clip(path, ClipSpec(12, 32, 32)).pixels) == list(range(12))
    assert (probe(path).width, probe(path).frames) == (32, 12)
    none = several(tmp_path / f"none.{suffix}", ("libx264", numbered(12), 0), ("libx264", large, 0))
    assert numbers(read_clip(none, ClipSpec(12, 32, 32)).pixels) == list(range(12))


# ------------------------------------------------------------------------------------------------------------ lengths

VARYING = {
    "one late frame": [*range(0, 110, 10), 3000],
    "pauses": [0, 40, 80, 120, 160, 200, 240, 1000, 1040, 2000, 2040, 3000],
}


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "ts", "flv"])
@pytest.mark.parametrize("times", VARYING.values(), ids=VARYING.keys())
def test_the_length_of_a_varying_rate_with_reordered_frames(tmp_path: Path, times: list[int], suffix: str) -> None:
    """With B-frames, the times at which frames are decoded end long before those at which they are shown."""
    codec = {"codec": "libvpx", "options": {"crf": "4", "b": "2M"}} if suffix == "webm" else {}
    path = make(tmp_path / f"clip.{suffix}", numbered(12), times=times, **codec)
    looked, clip = probe(path), read_clip(path, ClipSpec(12, 32, 32))
    assert looked == clip.info
    assert looked.frames == 12
    assert looked.duration == pytest.approx(3.0, abs=0.3)  # and as long as the last frame stays
    shown = numbers(clip.pixels)
    right = [max(n for n, time in enumerate(times) if time <= 3000 * k / 11 + 1) for k in range(12)]
    assert shown == right


def test_the_tables_of_a_steady_clip_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "steady.mp4", numbered(48))
    packets, taken = Source.packets, []

    def counting(self: Source):
        for packet in packets(self):
            taken.append(packet.size)
            yield packet

    monkeypatch.setattr(Source, "packets", counting)
    info = probe(path)
    assert (info.frames, info.fps) == (48, 25)
    assert len(taken) < 24  # those of the first frame


# ---------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("name", "codec"), [("tape.mpg", "mpeg2video"), ("camera.mp4", "libx264"), ("tv.ts", "libx264")]
)
def test_interlaced_frames_are_not_combed(tmp_path: Path, name: str, codec: str) -> None:
    """A bar that moves 8 pixels between the fields of a frame has straight edges, at the place of the upper field."""
    path = tmp_path / name
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options={"crf": "4", "x264opts": "tff=1"} if "264" in codec else {})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        if codec == "mpeg2video":
            stream.codec_context.flags |= 0x40000 | 0x20000000  # interlaced DCT and motion estimation
            stream.codec_context.bit_rate = 8_000_000
        for number in range(4 if codec == "mpeg2video" else 12):
            picture = torch.zeros(64, 64, 3, dtype=torch.uint8)
            left = 16 * (number % 4)
            picture[0::2, left : left + 8] = 220
            picture[1::2, left + 8 : left + 16] = 220
            frame = av.VideoFrame.from_ndarray(picture.numpy(), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    clip = read_clip(path, ClipSpec(4, 64, 64, fps=25))
    for number, picture in enumerate(clip.pixels.float().mean(-1)):
        assert picture[:, 16 * number + 1 : 16 * number + 7].min() > 180
        assert picture[:, 16 * number + 10 : 16 * number + 16].max() < 40
    assert "interlaced: one field of each frame is taken" in clip.note


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        ("vp9.webm", "libvpx-vp9", "yuva420p"),
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("animation.mov", "qtrle", "argb"),
        ("pictures.mov", "png", "rgba"),
    ],
)
def test_transparent_parts_show_the_background(tmp_path: Path, name: str, codec: str, layout: str) -> None:
    """Beneath them lies a gray that nobody is meant to see."""
    path = tmp_path / name
    picture = torch.full((32, 32, 4), 255, dtype=torch.uint8)
    picture[:, :16] = torch.tensor([90, 90, 90, 0], dtype=torch.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, layout
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(picture.numpy(), "rgba").reformat(format=layout)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    for background in ((0, 0, 0), (10, 200, 60)):
        pixels = read_clip(path, ClipSpec(2, 32, 32, background=background)).pixels
        assert (pixels[:, :, 2:13].int() - torch.tensor(background)).abs().max() <= 2
        assert pixels[:, :, 19:].min() >= 252


# ------------------------------------------------------------------------------------------------------------- shapes


def test_a_shape_is_cropped_padded_or_stretched() -> None:
    tall = torch.zeros(3, 64, 32, 3, dtype=torch.uint8)
    tall[:, :16], tall[:, 48:] = 100, 200
    means = {}
    for spec in (
        ClipSpec(3, 32, 32, crop="top"),
        ClipSpec(3, 32, 32, crop="bottom"),
        ClipSpec(3, 32, 32),
        ClipSpec(3, 32, 32, fit="stretch"),
        ClipSpec(3, 32, 32, fit="pad", background=(9, 9, 9)),
    ):
        pixels, note = fit_pixels(tall, spec)
        assert pixels.shape == (3, 32, 32, 3)
        means[spec.fit, spec.crop] = pixels[0, :, 16, 0].tolist(), note.rpartition("; ")[2]
    assert means["crop", "top"] == ([100] * 16 + [0] * 16, "32x64, cropped to 32x32 (top)")
    assert means["crop", "bottom"] == ([0] * 16 + [200] * 16, "32x64, cropped to 32x32 (bottom)")
    assert means["crop", "center"] == ([0] * 32, "32x64, cropped to 32x32")
    rows, note = means["stretch", "center"]
    assert (rows[3], rows[16], rows[28], note) == (100, 0, 200, "32x64 stretched to 32x32")
    padded, note = fit_pixels(tall, ClipSpec(1, 32, 32, fit="pad", background=(9, 9, 9)))
    assert (padded[0, :, :7] == 9).all()
    assert (padded[0, :, 25:] == 9).all()
    assert (padded[0, 3, 16, 0], padded[0, 28, 16, 0]) == (100, 200)
    assert note.endswith("32x64 resized to 16x32, padded to 32x32")


def test_a_smart_crop_follows_what_there_is_to_see() -> None:
    """The same part of all frames: that with the edges and the movement."""
    wide = torch.full((5, 32, 96, 3), 60, dtype=torch.uint8)
    for number in range(5):
        wide[number, 8 + number : 16 + number, 74:82] = 250
    pixels, note = fit_pixels(wide, ClipSpec(5, 32, 32, crop="smart"))
    assert (pixels == 250).sum() == 5 * 8 * 8 * 3
    assert note.endswith("cropped to 32x32 (smart)")
    even, _ = fit_pixels(torch.full((2, 32, 96, 3), 60, dtype=torch.uint8), ClipSpec(2, 32, 32, crop="smart"))
    assert even.shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("rows", "columns", "any_shape", "size", "fit"),
    [
        (1080, 1920, True, (480, 832), "crop"),
        (480, 640, True, (480, 832), "crop"),  # 23 % are lost
        (1920, 1080, True, (832, 480), "crop"),
        (1920, 1080, False, (480, 832), "crop"),
        (1000, 1000, True, (624, 640), "crop"),
        (500, 3000, True, (320, 1248), "pad"),
    ],
)
def test_auto_keeps_the_frame(rows: int, columns: int, any_shape: bool, size: tuple[int, int], fit: str) -> None:
    spec = ClipSpec(5, 480, 832, fit="auto", any_shape=any_shape).suited(rows, columns)
    assert ((spec.height, spec.width), spec.fit) == (size, fit)
    assert spec.height * spec.width <= 480 * 832
    assert spec.height % 16 == spec.width % 16 == 0


# -------------------------------------------------------------------------------------------------- what goes on and on


def test_of_a_file_that_grows_only_what_was_there_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "live.ts", numbered(24))
    first, more = path.read_bytes(), make(tmp_path / "more.ts", numbered(48)).read_bytes()
    with Source(path) as open_one:
        with path.open("ab") as file:
            file.write(more)
        assert sum(packet.size > 0 for packet in open_one.packets()) == 24
    path.write_bytes(first)
    assert read_clip(path, ClipSpec(24, 32, 32)).info.frames == 24


def test_a_file_that_goes_on_without_frames_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a download that has taken its place on the disk: a hundred gigabytes of nothing behind twelve frames."""
    path = make(tmp_path / "endless.mkv", numbered(12))
    os.truncate(path, 100 * 2**30)
    monkeypatch.setattr(source, "PATIENCE", 0.3)
    clip = read_clip(path, ClipSpec(12, 32, 32))
    assert numbers(clip.pixels) == list(range(12))
    assert clip.damage.startswith("The file cannot be read beyond 0.48 s: nothing more came")


def test_frames_that_change_their_shape_on_the_way(tmp_path: Path) -> None:
    path = make(tmp_path / "first.h264", numbered(6), container="h264")
    tall = make(tmp_path / "tall.h264", numbered(6, height=64), container="h264")
    path.write_bytes(path.read_bytes() + tall.read_bytes())
    for spec in (ClipSpec(12, 32, 32, fit="pad"), ClipSpec(12, 32, 32, crop="smart"), ClipSpec(12, 32, 32)):
        clip = read_clip(path, spec)
        assert clip.pixels.shape == (12, 32, 32, 3)
        assert numbers(clip.pixels)[:6] == list(range(6))
