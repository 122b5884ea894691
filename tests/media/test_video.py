"""Reading and writing video files. Every clip is made on the spot and tells by its gray levels which frame it is."""

from __future__ import annotations

import errno
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from numbered_clips import make, numbered, numbers
from tiny_worlds import one_world

from recipes.worlds.grammar import BACKGROUNDS, COLOURS
from uvg_core.errors import UniViGUError
from uvg_core.media.video import ClipSpec, find_clips, fit_pixels, probe, read_clip, write_video
from uvg_core.media.video import write as write_module
from uvg_core.media.video.source import Source


@pytest.fixture(scope="module")
def dozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("dozen") / "dozen.mp4", numbered(12))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Timestamps of all frames that get decoded."""
    seen: list[int] = []
    frames = Source.frames

    def counting(self: Source):
        for frame in frames(self):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(Source, "frames", counting)
    return seen


# ------------------------------------------------------------------------------------------- parts, rates, budgets


def test_so_many_frames_a_second(dozen: Path) -> None:
    clip = read_clip(dozen, ClipSpec(4, 32, 32, fps=12.5))
    assert numbers(clip.pixels) == [0, 2, 4, 6]
    assert "4 of 12 frames, retimed from 25 to 12.5 fps" in clip.note
    longer = read_clip(dozen, ClipSpec(8, 32, 32, fps=12.5))
    assert numbers(longer.pixels) == [0, 2, 4, 6, 8, 10, 11, 11]
    assert "8 of 12 frames" in longer.note
    assert "the last one repeated" in longer.note
    assert "16 frames out of 12, retimed" in read_clip(dozen, ClipSpec(16, 32, 32, fps=12.5)).note


def test_a_part_of_a_clip(dozen: Path) -> None:
    part = read_clip(dozen, ClipSpec(4, 32, 32), start=0.16, seconds=0.16)
    assert numbers(part.pixels) == [4, 5, 6, 7]
    assert "the part from 0.2 s of 0.5 s" in part.note
    assert numbers(read_clip(dozen, ClipSpec(2, 32, 32), start=0.2).pixels) == [5, 11]
    with pytest.raises(UniViGUError, match=r"dozen\.mp4: no frames in the part from 3 s; the clip is 0\.48 s long"):
        read_clip(dozen, ClipSpec(2, 32, 32), start=3)
    with pytest.raises(UniViGUError, match=r"from 3 s to 4 s; the clip is"):
        read_clip(dozen, ClipSpec(2, 32, 32), start=3, seconds=1)
    assert numbers(read_clip(dozen, ClipSpec(2, 32, 32), start=0.05, seconds=0.02).pixels) == [1, 1]
    last = read_clip(dozen, ClipSpec(2, 32, 32), start=0.44)
    assert "a single frame, repeated 2 times, of 0.0 s (25 fps), the part from 0.4 s of 0.5 s" in last.note


def test_a_budget_repeats_no_frame(dozen: Path) -> None:
    """Of 12 frames, 9 are the most that make 4n+1; a rate above the clip's own gives the clip's own."""
    assert len(read_clip(dozen, ClipSpec(81, 32, 32, at_most=True)).pixels) == 9
    assert len(read_clip(dozen, ClipSpec(5, 32, 32, at_most=True)).pixels) == 5
    slow = read_clip(dozen, ClipSpec(81, 32, 32, fps=12.5, at_most=True))
    assert numbers(slow.pixels) == [0, 2, 4, 6, 8]
    fast = read_clip(dozen, ClipSpec(81, 32, 32, fps=50, at_most=True))
    assert numbers(fast.pixels) == list(range(9))
    assert "9 of 12 frames at the clip's own 25 fps" in fast.note
    assert len(read_clip(dozen, ClipSpec(81, 32, 32, at_most=True), seconds=0.1).pixels) == 1


@pytest.mark.parametrize("fps", [0.0, -1.0, 2000.0])
def test_impossible_rates(dozen: Path, fps: float) -> None:
    with pytest.raises(UniViGUError, match="expected a number above 0"):
        read_clip(dozen, ClipSpec(4, 32, 32, fps=fps))


def test_frames_in_memory_are_fitted_alike() -> None:
    pixels, note = fit_pixels(numbered(12, height=64, width=96), ClipSpec(81, 32, 32, at_most=True))
    assert pixels.shape == (9, 32, 32, 3)
    assert note == "images: 9 of 12 frames, evenly over the batch; 96x64 resized to 48x32, cropped to 32x32"
    timed, note = fit_pixels(numbered(12), ClipSpec(4, 32, 32, fps=12.0), rate=24.0)
    assert numbers(timed) == [0, 2, 4, 6]
    assert "retimed from 24 to 12 fps" in note
    with pytest.raises(UniViGUError, match="no frame rate"):
        fit_pixels(numbered(12), ClipSpec(4, 32, 32, fps=12.0))
    with pytest.raises(UniViGUError, match=r"\[0, 32, 32, 3\]"):
        fit_pixels(numbered(0), ClipSpec(4, 32, 32))


# ------------------------------------------------------------------------------------------------- which frames


def test_all_frames_come_back_in_order(dozen: Path) -> None:
    clip = read_clip(dozen, ClipSpec(12, 32, 32))
    assert numbers(clip.pixels) == list(range(12))
    assert clip.pixels.dtype == torch.uint8
    assert clip.pixels.shape == (12, 32, 32, 3)
    assert clip.pixels.is_contiguous()
    assert (clip.info.frames, clip.info.width, clip.info.height) == (12, 32, 32)
    assert clip.info.fps == pytest.approx(25)
    assert clip.info.duration == pytest.approx(0.48)
    assert clip.note == "dozen.mp4: 12 of 12 frames, evenly over 0.5 s (25 fps); 32x32"


@pytest.mark.parametrize("frames", [2, 5, 9, 11])
def test_frames_are_evenly_spread_from_first_to_last(dozen: Path, frames: int) -> None:
    found = numbers(read_clip(dozen, ClipSpec(frames, 32, 32)).pixels)
    assert (found[0], found[-1]) == (0, 11)
    assert all(abs(number - 11 * k / (frames - 1)) < 1 for k, number in enumerate(found))


def test_one_frame_is_the_first(dozen: Path) -> None:
    assert numbers(read_clip(dozen, ClipSpec(1, 32, 32)).pixels) == [0]


def test_a_short_clip_repeats_frames_and_says_so(tmp_path: Path) -> None:
    clip = read_clip(make(tmp_path / "three.mp4", numbered(3)), ClipSpec(9, 32, 32))
    found = numbers(clip.pixels)
    assert found == sorted(found)
    assert set(found) == {0, 1, 2}
    assert "9 frames out of only 3, some repeated" in clip.note


def test_a_varying_rate_is_spread_over_time_not_over_frames(tmp_path: Path) -> None:
    # Ten quick frames, then one that stays for nine tenths of the clip, then the last.
    times = [10 * number for number in range(11)] + [1000]
    path = make(tmp_path / "varying.mkv", numbered(12), times=times)
    clip = read_clip(path, ClipSpec(11, 32, 32))
    assert numbers(clip.pixels) == [0, *[10] * 9, 11]
    assert clip.info.fps == pytest.approx(11)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_part_begins_with_the_frame_that_is_held_then(tmp_path: Path, suffix: str) -> None:
    """Three quick frames, of which the last is held for a second, and three more."""
    path = make(tmp_path / f"held.{suffix}", numbered(6), times=[0, 40, 80, 1080, 1120, 1160])
    assert numbers(read_clip(path, ClipSpec(1, 32, 32), start=0.5, seconds=0.2).pixels) == [2]
    assert numbers(read_clip(path, ClipSpec(5, 32, 32), start=0.76).pixels) == [2, 2, 2, 2, 5]
    assert numbers(read_clip(path, ClipSpec(3, 32, 32, fps=2.5), start=0.6).pixels) == [2, 2, 5]
    assert numbers(read_clip(path, ClipSpec(2, 32, 32), start=1.05).pixels) == [3, 5]
    held = probe(path, start=0.5, seconds=0.2)
    assert (held.frames, held.duration) == (1, pytest.approx(0.2))


FORMS = {
    "matroska.mkv": {},
    "live.mkv": {"muxer": {"live": "1"}},  # neither length nor index
    "stream.ts": {},  # starts at 0.08 s or later
    "raw.h264": {"container": "h264"},  # no timestamps at all
    "plain.avi": {"codec": "mpeg4", "options": {"qscale": "2"}},
    "h264.avi": {},  # B-frames whose order AVI cannot tell
    "fragments.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "flash.flv": {},
    "vp8.webm": {"codec": "libvpx", "options": {"crf": "4", "b": "2M"}},
    "programme.mpg": {"codec": "mpeg2video"},
    "ten_bits.mkv": {"layout": "yuv420p10le"},
    "rgba.mkv": {"codec": "ffv1", "layout": "bgra"},
    "gray.mkv": {"codec": "ffv1", "layout": "gray"},
    "full_range.avi": {"codec": "mjpeg", "layout": "yuvj420p"},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_right_frames(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, numbered(24), **FORMS[name])
    clip = read_clip(path, ClipSpec(24, 32, 32))
    assert numbers(clip.pixels) == list(range(24))
    assert clip.info.frames == 24
    assert clip.info.duration == pytest.approx(0.96, abs=0.05)
    looked = probe(path)
    assert (looked.width, looked.height, looked.rotation) == (32, 32, 0)
    assert looked.frames == pytest.approx(24, abs=1)
    assert looked.duration == pytest.approx(0.96, abs=0.05)


def test_a_late_start_time_changes_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "late.mkv", numbered(12), times=[5000 + 40 * number for number in range(12)])
    clip = read_clip(path, ClipSpec(12, 32, 32))
    assert numbers(clip.pixels) == list(range(12))
    assert (clip.info.duration, probe(path).duration) == pytest.approx((0.48, 0.48))


def test_gifs_move(tmp_path: Path) -> None:
    blinks = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)
    blinks[5] = 255  # GIF has few colours: black and white it keeps
    clip = read_clip(make(tmp_path / "blink.gif", blinks, codec="gif", layout="rgb8"), ClipSpec(8, 16, 16))
    assert (clip.pixels.int() - blinks.int()).abs().max() <= 3


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "LA", "RGBA", "1"])
@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_stills_are_single_frames(tmp_path: Path, mode: str, suffix: str) -> None:
    pillow = pytest.importorskip("PIL.Image")
    path = tmp_path / f"still.{suffix}"
    pillow.new("RGB", (20, 16), (255, 255, 255)).convert(mode).save(path)
    clip = read_clip(path, ClipSpec(5, 16, 16))
    assert clip.info.frames == probe(path).frames == 1
    assert clip.pixels.shape == (5, 16, 16, 3)
    assert clip.pixels.min() >= 254
    assert "a single frame, repeated 5 times" in clip.note
    later = read_clip(path, ClipSpec(1, 16, 16), start=2.5, seconds=1)
    assert torch.equal(later.pixels, clip.pixels[:1])
    assert probe(path, start=2.5).frames == 1


# ---------------------------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.ts"])
def test_long_clips_are_read_from_keyframes(tmp_path: Path, decoded: list[int], name: str) -> None:
    path = make(tmp_path / name, numbered(288), options={"g": "24", "crf": "20", "preset": "ultrafast"})
    clip = read_clip(path, ClipSpec(5, 32, 32))
    found = numbers(clip.pixels)
    assert all(abs(number - 287 * k / 4) < 1 for k, number in enumerate(found))
    assert len(decoded) <= 5 * (24 + 1)

    decoded.clear()  # needed frames close together: no seeks, nothing decoded twice
    assert numbers(read_clip(path, ClipSpec(288, 32, 32)).pixels) == list(range(288))
    assert len(decoded) == 288


def test_a_container_that_seeks_wrongly_still_gives_the_right_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "long.mp4", numbered(96))
    seek = Source.seek
    for wrong in (lambda self, time: seek(self, 1 << 30), lambda self, time: False):
        monkeypatch.setattr(Source, "seek", wrong)
        found = numbers(read_clip(path, ClipSpec(3, 32, 32)).pixels)
        assert [abs(number - right) < 1 for number, right in zip(found, (0, 47.5, 95), strict=True)] == [True] * 3


# ------------------------------------------------------------------------------------------------------ the picture


def test_the_target_is_covered_and_cropped_in_the_centre(tmp_path: Path) -> None:
    picture = torch.zeros(1, 32, 64, 3, dtype=torch.uint8)
    picture[:, :, 16:48] = 200  # the centre square
    path = make(tmp_path / "wide.mkv", picture, codec="ffv1", layout="bgr0")
    clip = read_clip(path, ClipSpec(1, 16, 16))
    assert clip.pixels[:, :, 1:-1].float().mean() == pytest.approx(200, abs=2)
    assert clip.note.endswith("64x32 resized to 32x16, cropped to 16x16")


def test_small_clips_are_enlarged_and_the_note_says_so(tmp_path: Path) -> None:
    clip = read_clip(make(tmp_path / "tiny.mp4", numbered(2, height=16, width=16)), ClipSpec(2, 40, 24))
    assert clip.pixels.shape == (2, 40, 24, 3)
    assert "16x16 enlarged to 40x40, cropped to 24x40" in clip.note


def test_fine_patterns_do_not_alias(tmp_path: Path) -> None:
    checks = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    checks[:, ::2, ::2] = 255
    checks[:, 1::2, 1::2] = 255
    path = make(tmp_path / "checks.mkv", checks, codec="ffv1", layout="bgr0")
    small = read_clip(path, ClipSpec(1, 13, 13)).pixels.float()
    assert small.mean() == pytest.approx(127.5, abs=3)
    assert small.std() < 12


def test_odd_sizes_and_extreme_shapes(tmp_path: Path) -> None:
    path = make(tmp_path / "odd.mkv", numbered(3, height=7, width=33), codec="ffv1", layout="bgr0")
    assert read_clip(path, ClipSpec(3, 19, 5)).pixels.shape == (3, 19, 5, 3)


def test_non_square_pixels_are_stretched(tmp_path: Path) -> None:
    path = make(tmp_path / "anamorphic.mp4", numbered(2, height=32, width=16), aspect=Fraction(2, 1))
    clip = read_clip(path, ClipSpec(2, 32, 32))
    assert (clip.info.width, clip.info.height) == (32, 32)
    assert numbers(clip.pixels) == [0, 1]


def turned(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Copy an mp4 with the display matrix (a, b, c, d) that a phone would write."""
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: the matrix lies 40 bytes into the payload
    a, b, c, d = (value * 65536 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("matrix", "rotation", "turns"),
    [((0, 1, -1, 0), 90, -1), ((-1, 0, 0, -1), 180, 2), ((0, -1, 1, 0), 270, 1)],
)
def test_rotation_is_undone(tmp_path: Path, matrix: tuple[int, int, int, int], rotation: int, turns: int) -> None:
    picture = torch.zeros(2, 32, 48, 3, dtype=torch.uint8)
    picture[:, :16, :24] = torch.tensor([220, 50, 47], dtype=torch.uint8)  # red, upper left
    picture[:, 16:, 24:] = 240  # white, lower right
    plain = make(tmp_path / "plain.mp4", picture)
    path = turned(plain, tmp_path / "phone.mp4", matrix)
    right = torch.rot90(read_clip(plain, ClipSpec(2, 32, 48)).pixels, turns, (1, 2))
    clip = read_clip(path, ClipSpec(2, right.shape[1], right.shape[2]))
    assert torch.equal(clip.pixels, right)
    assert (clip.info.rotation, clip.info.height, clip.info.width) == (rotation, *right.shape[1:3])
    assert f"(turned by {rotation}°)" in clip.note
    assert probe(path).rotation == rotation


def test_mirrored_clips_are_unmirrored(tmp_path: Path, dozen: Path) -> None:
    path = turned(dozen, tmp_path / "selfie.mp4", (-1, 0, 0, 1))
    plain = read_clip(dozen, ClipSpec(2, 32, 32)).pixels
    assert torch.equal(read_clip(path, ClipSpec(2, 32, 32)).pixels, plain.flip(2))


def test_transparent_parts_become_black(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clear.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgra"
        frame = av.VideoFrame(16, 16, "bgra")
        memory = torch.frombuffer(frame.planes[0], dtype=torch.uint8).view(16, -1)[:, :64].view(16, 16, 4)
        memory[...] = 255
        memory[:, :8, 3] = 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    pixels = read_clip(tmp_path / "clear.mkv", ClipSpec(1, 16, 16)).pixels
    assert pixels[:, :, :8].max() == 0
    assert pixels[:, :, 8:].min() == 255


# ---------------------------------------------------------------------------------------------------------- writing


def test_colours_survive_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "colours.mp4"
    colours = torch.tensor([*COLOURS.values(), *BACKGROUNDS.values()], dtype=torch.uint8)
    write_video(path, colours[:, None, None].expand(-1, 16, 16, -1), 24)
    back = read_clip(path, ClipSpec(len(colours), 16, 16))
    assert (back.pixels.int() - colours[:, None, None].int()).abs().max() <= 4
    with av.open(str(path)) as file:
        context = file.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert [int(tag) for tag in tags] == [1, 1, 1, 1]
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("tag", "red", "blue"), [(1, 0.2126, 0.0722), (6, 0.299, 0.114), (9, 0.2627, 0.0593)])
def test_tagged_colour_spaces_are_heeded(tmp_path: Path, tag: int, red: float, blue: float, full_range: bool) -> None:
    """Y'CbCr from the definition (ITU-R BT.709, BT.601, BT.2020), not from the library under test."""
    colours = torch.tensor([*COLOURS.values(), *BACKGROUNDS.values()], dtype=torch.uint8)
    r, g, b = (colours.float() / 255).unbind(1)
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = ((b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red))
    levels = [luma * 255 if full_range else luma * 219 + 16, *(c * (255 if full_range else 224) + 128 for c in chroma)]
    with av.open(str(tmp_path / "tagged.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, 1 + full_range
        for number in range(len(colours)):
            frame = av.VideoFrame(16, 16, "yuv444p")
            frame.colorspace, frame.color_range = tag, 1 + full_range
            for plane, level in zip(frame.planes, levels, strict=True):
                torch.frombuffer(plane, dtype=torch.uint8).fill_(int(level[number].round().clamp(0, 255)))
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    back = read_clip(tmp_path / "tagged.mkv", ClipSpec(len(colours), 16, 16)).pixels
    assert (back.int() - colours[:, None, None].int()).abs().max() <= 2


def test_a_world_survives_a_round_trip(tmp_path: Path) -> None:
    pixels = one_world(colour="orange", background="beige")
    write_video(tmp_path / "world.mp4", pixels, 16)
    back = read_clip(tmp_path / "world.mp4", ClipSpec(9, 48, 48))
    assert (back.pixels.float() - pixels.float()).abs().mean() < 3
    assert back.info.fps == pytest.approx(16)


def test_the_index_comes_first_and_odd_sizes_are_padded(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    write_video(path, numbered(3, height=31, width=33), 24000 / 1001)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    info = probe(path)
    assert (info.height, info.width, info.frames) == (32, 34, 3)
    assert info.fps == pytest.approx(24000 / 1001)
    assert read_clip(path, ClipSpec(1, 32, 34)).pixels[0, -1, -1].float().mean() == pytest.approx(10, abs=4)


def test_the_same_pixels_give_the_same_file(tmp_path: Path) -> None:
    """A moving pattern in which x264's tree of macroblocks was another nearly every time."""
    t, y, x = torch.arange(17)[:, None, None], torch.arange(240)[None, :, None], torch.arange(416)[None, None]
    waves = (x + 3 * t + 0 * y, y * 2 + t * 5 + 0 * x, x * y // 7 + t * 9)
    pixels = torch.stack([wave % 256 for wave in waves], -1).to(torch.uint8)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(tmp_path / name, pixels, 16)
    assert len({(tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4", "c.mp4")}) == 1


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 2, 2, 3), (1, 17, 64, 3)])
def test_the_smallest_clips_are_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_video(tmp_path / "small.mp4", torch.full(shape, 90, dtype=torch.uint8), 8)
    assert read_clip(tmp_path / "small.mp4", ClipSpec(1, 4, 4)).pixels.float().mean() == pytest.approx(90, abs=3)


def test_another_encoder_steps_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # mpeg4 stands in for whatever encoder there is: the one that exists is taken.
    monkeypatch.setattr(write_module, "H264_ENCODERS", ("no_such_encoder", "mpeg4"))
    write_video(tmp_path / "other.mp4", numbered(3), 24)
    assert probe(tmp_path / "other.mp4").frames == 3
    monkeypatch.setattr(write_module, "H264_ENCODERS", ("no_such_encoder",))
    with pytest.raises(UniViGUError, match=r"no H\.264 encoder"):
        write_video(tmp_path / "none.mp4", numbered(3), 24)


@pytest.mark.parametrize(
    ("pixels", "fps", "name", "says"),
    [
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), 24, "a.mp4", "at least one frame"),
        (torch.zeros(2, 8, 8, 3), 24, "a.mp4", "expected uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 24, "a.mp4", "expected uint8"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 0, "a.mp4", "frame rate is 0"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 24, "a.webm", "ends in .mp4"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 24, "no/such/a.mp4", "does not exist"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, pixels: torch.Tensor, fps: float, name: str, says: str) -> None:
    with pytest.raises(UniViGUError, match=says) as caught:
        write_video(tmp_path / name, pixels, fps)
    assert Path(name).name in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half a video")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write_module, "_encode", full)
    with pytest.raises(UniViGUError, match="No space left") as caught:
        write_video(tmp_path / "a.mp4", numbered(2), 24)
    assert str(tmp_path / "a.mp4") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """The system itself refuses, at many points of the file: either a whole file or an error, never half of one."""
    resource = pytest.importorskip("resource")
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "whole.mp4", pixels, 24)
    whole = (tmp_path / "whole.mp4").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for share in (0.0, 0.05, 0.3, 0.7, 0.9, 0.97, 0.999):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(whole)), before[1]))
        try:
            with pytest.raises(UniViGUError, match="could not be written"):
                write_video(tmp_path / "full.mp4", pixels, 24)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [path.name for path in tmp_path.iterdir()] == ["whole.mp4"]


# -------------------------------------------------------------------------------------------------------- bad input


def refused(path: Path, says: str, **asked: int) -> str:
    spec = ClipSpec(**{"frames": 3, "height": 8, "width": 8, **asked})
    for look in (lambda path: read_clip(path, spec), *([] if asked else [probe])):
        with pytest.raises(UniViGUError, match=says) as caught:
            look(path)
        assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_not_a_video_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.mp4", "no such file")
    refused(tmp_path, "a folder")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "empty")
    for name in ("text.mp4", "text.txt", "text.ts"):
        (tmp_path / name).write_text("a small red circle moves left\n" * 40)
        refused(tmp_path / name, "cannot be opened|found text")


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.wav"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    refused(tmp_path / "song.wav", "found only audio")


@pytest.mark.parametrize("asked", [{"frames": 0}, {"height": 0}, {"width": -1}])
def test_nothing_asked_is_refused(dozen: Path, asked: dict[str, int]) -> None:
    refused(dozen, "expected at least 1", **asked)


def detailed(count: int) -> torch.Tensor:
    """Noise that drifts: enough bytes per frame for damage to hit something."""
    noise = torch.randint(0, 256, (64, 64 + count), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return torch.stack([noise[:, shift : shift + 64, None].expand(-1, -1, 3) for shift in range(count)])


@pytest.fixture(scope="module", params=["mp4", "mkv", "ts"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / f"whole.{request.param}"
    muxer = {"movflags": "+faststart"} if request.param == "mp4" else None
    return make(path, detailed(50), muxer=muxer)


def test_of_a_file_that_breaks_off_what_is_there_is_read(tmp_path: Path, whole: Path) -> None:
    data = whole.read_bytes()
    path = tmp_path / f"cut{whole.suffix}"
    path.write_bytes(data[: int(len(data) * 0.55)])
    clip = read_clip(path, ClipSpec(5, 64, 64))
    assert re.search(r"The file breaks off at [01]\.\d\d s", clip.note)
    assert clip.damage in clip.note
    length = read_clip(whole, ClipSpec(50, 64, 64)).pixels
    last = (length.int() - clip.pixels[-1].int()).abs().float().mean((1, 2, 3)).argmin()
    assert abs(int(last) - 50 * clip.info.duration / 2) <= 2  # the last that is there, not the last that was promised
    assert 20 <= last <= 30


def noise(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


BREAKABLE = {
    "front.mp4": {"muxer": {"movflags": "+faststart"}},
    "fragments.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "3"}},
    "first_fragment_counted.mov": {"muxer": {"movflags": "frag_keyframe"}, "options": {"g": "3"}},
    "tagged.mkv": {},
    "flash.flv": {},
    "plain.avi": {"codec": "mpeg4", "options": {"qscale": "4"}},
}


@pytest.mark.parametrize("share", [0.45, 0.55, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("name", BREAKABLE)
def test_a_short_clip_that_breaks_off_says_so(tmp_path: Path, name: str, share: float) -> None:
    path = make(tmp_path / name, noise(9), **BREAKABLE[name])
    assert read_clip(path, ClipSpec(9, 16, 16)).info.frames == 9
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    clip = read_clip(path, ClipSpec(3, 16, 16))
    assert re.search(r"breaks off at 0\.[0-3]\d s", clip.damage)
    assert clip.info.frames < 9


def test_the_frames_that_are_left_are_counted(tmp_path: Path) -> None:
    write_video(tmp_path / "nine.mp4", noise(9), 8)
    data = (tmp_path / "nine.mp4").read_bytes()
    (tmp_path / "nine.mp4").write_bytes(data[:-1])
    clip = read_clip(tmp_path / "nine.mp4", ClipSpec(9, 64, 64))
    assert clip.damage == "The file breaks off at 1.00 s; its header says 9 frames, of which 8 are complete"
    assert clip.info.frames == 8
    assert probe(tmp_path / "nine.mp4").frames == 8


def trimmed(source: Path, target: Path, frames: int) -> Path:
    """Copy a clip so that an edit list hides its first frames, as players' trimming does."""
    with av.open(str(source)) as old, av.open(str(target), "w", options={"movflags": "+faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                shift = round(frames / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                new.mux(packet)
    return target


# 5: decoding starts at a hidden keyframe. 30: beyond the first groups of pictures, which then are never passed on.
@pytest.mark.parametrize("hidden", [5, 12, 30])
def test_edit_lists_are_no_break(tmp_path: Path, hidden: int) -> None:
    path = trimmed(make(tmp_path / "whole.mp4", numbered(48)), tmp_path / "trimmed.mp4", hidden)
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 48
    clip = read_clip(path, ClipSpec(48 - hidden, 32, 32))
    assert numbers(clip.pixels) == list(range(hidden, 48))
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "breaks off" in read_clip(path, ClipSpec(3, 32, 32)).damage


def test_empty_samples_and_appended_bytes_are_no_break(tmp_path: Path, dozen: Path) -> None:
    data = bytearray(dozen.read_bytes())
    last = data.index(b"stsz") + 16 + 4 * 11
    data[last : last + 4] = bytes(4)  # QuickTime writes samples without bytes for frames that change nothing
    (tmp_path / "empty.mp4").write_bytes(data)
    assert read_clip(tmp_path / "empty.mp4", ClipSpec(3, 32, 32)).info.frames == 11
    (tmp_path / "longer.mp4").write_bytes(dozen.read_bytes() + b"appended by a camera")
    assert read_clip(tmp_path / "longer.mp4", ClipSpec(3, 32, 32)).info.frames == 12


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("times", [[0, 10, 20, 1000], [0, 900, 910, 920], [0, 40, 80, 81]])
def test_a_varying_rate_is_no_break(tmp_path: Path, suffix: str, times: list[int]) -> None:
    path = make(tmp_path / f"varying.{suffix}", numbered(4), times=times)
    assert read_clip(path, ClipSpec(4, 32, 32)).info.frames == 4


def test_paths_that_cannot_be() -> None:
    for path in ("", "x" * 5000):
        with pytest.raises(UniViGUError, match=r"empty path|name too long.*Check the path"):
            read_clip(path, ClipSpec(1, 8, 8))


def test_an_mp4_without_index_is_refused(tmp_path: Path, dozen: Path) -> None:
    data = dozen.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: data.index(b"moov") - 4])
    refused(tmp_path / "cut.mp4", "cut short")


def test_damage_in_the_middle_is_passed_over_and_said(tmp_path: Path, whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    middle, size = len(data) // 2, len(data) // 5
    data[middle : middle + size] = bytes(size)
    path = tmp_path / f"damaged{whole.suffix}"
    path.write_bytes(data)
    if whole.suffix == ".mkv":  # its readers skip damaged parts, which then look like a picture standing still
        assert read_clip(path, ClipSpec(2, 32, 32)).info.frames < 50
        return
    clip = read_clip(path, ClipSpec(25, 32, 32))
    assert re.search(r"\d+ frames? of 25 cannot be decoded: the one before is shown", clip.note)
    assert clip.damage in clip.note
    right = read_clip(whole, ClipSpec(25, 32, 32)).pixels.int()
    off = (clip.pixels.int() - right).abs().float().mean((1, 2, 3))
    assert (off[:10] < 1).all()
    assert off[-1] < 1
    assert read_clip(path, ClipSpec(2, 32, 32)).damage == ""


@pytest.mark.parametrize("name", ["half.mp4", "half.ts"])
def test_half_a_download_whose_rest_is_empty(tmp_path: Path, name: str) -> None:
    """As downloads look that take their place on the disk at once."""
    muxer = {"movflags": "+faststart"} if name.endswith("mp4") else None
    path = make(tmp_path / name, detailed(50), options={"g": "12", "crf": "10"}, muxer=muxer)
    data = path.read_bytes()
    keep = len(data) * 6 // 10
    path.write_bytes(data[:keep] + bytes(len(data) - keep))
    clip = read_clip(path, ClipSpec(9, 32, 32))
    assert "cannot be decoded" in clip.damage or "breaks off" in clip.damage
    assert len({picture.float().mean().item() for picture in clip.pixels}) >= 8  # spread over what is there


# ---------------------------------------------------------------------------------------------------------- folders


def test_find_clips(tmp_path: Path) -> None:
    names = "b.mp4 a.MOV notes.txt .hidden.mp4 half.mp4.part half.part.mp4 sub/c.webm .cache/d.mp4 sub/deep/e.gif"
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in find_clips(tmp_path)] == [
        "a.MOV",
        "b.mp4",
        "sub/c.webm",
        "sub/deep/e.gif",
    ]
    assert [path.name for path in find_clips(tmp_path, recursive=False)] == ["a.MOV", "b.mp4"]
    with pytest.raises(UniViGUError, match="nothing"):
        find_clips(tmp_path / "none")
    with pytest.raises(UniViGUError, match="a file"):
        find_clips(tmp_path / "b.mp4")
