"""Containers and pictures of all kinds: read by what is in them, found by one list of names."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import pytest
import torch
from numbered_clips import make, numbered, numbers
from PIL import Image, ImageOps

from uvg_core.errors import UniViGUError
from uvg_core.media.video import ClipSpec, animation, find_clips, probe, read_clip
from uvg_core.media.video.find import CLIP_SUFFIXES

VP8 = {"codec": "libvpx", "options": {"crf": "4", "b": "2M"}}
MPEG2 = {"codec": "mpeg2video"}
CONTAINERS = {
    "camera.mts": {"container": "mpegts"},
    "disc.m2ts": {"container": "mpegts", "muxer": {"mpegts_m2ts_mode": "1"}},
    "phone.3gp": {},
    "phone.3g2": {},
    "vp8.ogv": {**VP8, "container": "ogg"},
    "studio.mxf": MPEG2,
    "windows.wmv": {"codec": "wmv2"},
    "windows.asf": {"codec": "wmv2"},
    "disc.vob": MPEG2,
    "bare.m2v": {**MPEG2, "container": "mpeg2video"},
    "flash.f4v": {},
    "old.divx": {"codec": "mpeg4", "container": "avi"},
    "quick.qt": {"container": "mov"},
    "pictures.apng": {"codec": "apng", "layout": "rgb24"},
    "av1.avif": {"codec": "libsvtav1", "options": {"crf": "10"}},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_found_and_read(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, numbered(24, height=64, width=64), **CONTAINERS[name])
    assert find_clips(tmp_path) == [path]
    clip = read_clip(path, ClipSpec(24, 64, 64))
    assert numbers(clip.pixels) == list(range(24))
    assert (clip.info.frames, probe(path).frames) == (24, 24)
    assert (clip.info.duration, probe(path).duration) == pytest.approx((0.96, 0.96), abs=0.05)


def test_theora(tmp_path: Path) -> None:
    """Twelve numbered frames, encoded by Debian's ffmpeg 5.1.9: PyAV has no encoder for it."""
    clip = read_clip(Path(__file__).with_name("theora.ogv"), ClipSpec(12, 32, 32))
    assert numbers(clip.pixels) == list(range(12))
    assert clip.info.duration == pytest.approx(0.48)


def moving(path: Path, **options: object) -> Path:
    """Twelve frames of 40 ms, the last of a second."""
    first, *others = (Image.fromarray(picture.numpy()) for picture in numbered(12))
    first.save(path, save_all=True, append_images=others, duration=[40] * 11 + [1000], loop=0, **options)
    return path


@pytest.mark.parametrize("suffix", ["webp", "gif", "png", "avif"])
def test_moving_pictures(tmp_path: Path, suffix: str) -> None:
    path = moving(tmp_path / f"moving.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    clip = read_clip(path, ClipSpec(12, 32, 32))
    assert numbers(clip.pixels) == list(range(12))
    assert clip.info == probe(path)
    assert (clip.info.frames, clip.info.duration) == (12, pytest.approx(1.44))
    part = read_clip(path, ClipSpec(5, 32, 32), start=0.2, seconds=0.2)
    assert numbers(part.pixels) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("suffix", ["webp", "avif"])
def test_moving_pictures_with_transparent_parts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGBA", (32, 32), (90, 90, 90, 0)) for _ in range(4)]
    for number, frame in enumerate(frames):
        frame.paste((250, 250, 250, 255), (8 * number, 0, 8 * number + 8, 32))
    how = {"lossless": True} if suffix == "webp" else {"quality": 95}
    frames[0].save(tmp_path / f"clear.{suffix}", save_all=True, append_images=frames[1:], duration=100, **how)
    pixels = read_clip(tmp_path / f"clear.{suffix}", ClipSpec(4, 32, 32, background=(200, 0, 0))).pixels.int()
    for number, picture in enumerate(pixels):
        bar = slice(8 * number + 2, 8 * number + 6)
        assert picture[:, bar].min() > 240
        picture[:, max(0, 8 * number - 2) : 8 * number + 10] = torch.tensor([200, 0, 0], dtype=torch.int32)
        assert (picture - torch.tensor([200, 0, 0])).abs().max() < 16


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    photo, exif = Image.new("RGB", (48, 32), (20, 20, 20)), Image.Exif()
    photo.paste((240, 240, 240), (0, 0, 24, 16))
    photo.paste((120, 120, 120), (24, 16, 48, 32))
    exif[0x112], exif[0x10F] = orientation, "Camera"
    exif[0x9286] = bytes(range(256)) * 40  # as long as a preview picture: what comes first tells little
    path = tmp_path / f"photo.{suffix}"
    photo.save(path, exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    right = torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8).view(upright.height, upright.width, 3)
    clip = read_clip(path, ClipSpec(1, upright.height, upright.width))
    assert (clip.pixels[0].int() - right.int()).abs().float().mean() < 3
    info = probe(path)
    assert (info.width, info.height, info.frames) == (*upright.size, 1)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    webp = moving(tmp_path / "a.webp", lossless=True)
    film = make(tmp_path / "a.mkv", numbered(12))
    Image.fromarray(numbered(6)[5].numpy()).save(tmp_path / "a.jpg", quality=95)
    for source, name, right in [
        (webp, "webp.mp4", list(range(12))),
        (webp, "webp.txt", list(range(12))),
        (film, "film.gif", list(range(12))),
        (film, "film.webp", list(range(12))),
        (film, "film", list(range(12))),
        (tmp_path / "a.jpg", "still.png", [5] * 12),
        (tmp_path / "a.jpg", "still.mp4", [5] * 12),
    ]:
        shutil.copy(source, tmp_path / name)
        assert numbers(read_clip(tmp_path / name, ClipSpec(12, 32, 32)).pixels) == right


def test_a_torn_animation_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = moving(tmp_path / "torn.webp", lossless=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    clip = read_clip(path, ClipSpec(5, 32, 32))
    found = numbers(clip.pixels)
    assert found == sorted(found)
    assert found[0] == 0
    assert 6 <= found[-1] <= 9
    assert "breaks off" in clip.damage
    path.write_bytes(data[: len(data) // 20])
    with pytest.raises(UniViGUError, match=r"torn\.webp: "):
        read_clip(path, ClipSpec(5, 32, 32))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
@pytest.mark.parametrize("share", [0.5, 0.67])
def test_every_torn_animation_says_where_it_breaks_off(tmp_path: Path, suffix: str, share: float) -> None:
    path = moving(tmp_path / f"torn.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert not read_clip(path, ClipSpec(5, 32, 32)).damage
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    clip = read_clip(path, ClipSpec(2, 32, 32))
    assert numbers(clip.pixels[:1]) == [0]
    assert clip.damage.startswith("The file breaks off at 0.")
    assert clip.damage in clip.note


@pytest.mark.parametrize("clear", [False, True])
def test_a_torn_avif_is_read_as_far_as_it_goes(tmp_path: Path, clear: bool) -> None:
    frames = [Image.effect_noise((64, 64), 80 + number).convert("RGB") for number in range(12)]
    if clear:
        for frame in frames:
            frame.putalpha(Image.effect_noise((64, 64), 80))
    path = tmp_path / "torn.avif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
    assert not read_clip(path, ClipSpec(5, 64, 64)).damage
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    clip = read_clip(path, ClipSpec(5, 64, 64))
    assert 1 < clip.info.frames < 12
    assert clip.damage.startswith("The file breaks off at 0.")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_torn_photo_is_read_and_said(tmp_path: Path, progressive: bool) -> None:
    """Its Exif holds a preview, which has an end of its own."""
    preview, photo, exif = BytesIO(), Image.effect_noise((64, 64), 80).convert("RGB"), Image.Exif()
    photo.resize((16, 16)).save(preview, "JPEG")
    exif[0x9286] = preview.getvalue()
    path = tmp_path / "photo.jpg"
    photo.save(path, exif=exif, progressive=progressive)
    assert not read_clip(path, ClipSpec(1, 32, 32)).damage
    data = path.read_bytes()
    path.write_bytes(data + bytes(1000))  # something appended is no harm
    assert not read_clip(path, ClipSpec(1, 32, 32)).damage
    path.write_bytes(data[: len(data) * 9 // 10])
    clip = read_clip(path, ClipSpec(1, 32, 32))
    assert clip.note.endswith("The file breaks off inside the picture: its lower part is missing")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "I;16", "CMYK", "RGBA"])
def test_tiffs_of_usual_kinds_are_read(tmp_path: Path, mode: str) -> None:
    path, white = tmp_path / "white.tiff", Image.new("RGB", (32, 32), (255, 255, 255))
    (Image.new("I;16", (32, 32), 65535) if mode == "I;16" else white.convert(mode)).save(path)
    assert read_clip(path, ClipSpec(1, 32, 32)).pixels.min() >= 252


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_a_tiff_that_is_not_read_is_not_called_a_damaged_video(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (32, 32)).save(tmp_path / "odd.tiff")
    with pytest.raises(UniViGUError, match=r"odd\.tiff: the picture .*floating-point.* Convert it to PNG"):
        read_clip(tmp_path / "odd.tiff", ClipSpec(1, 32, 32))


def test_of_a_tiff_of_several_pages_the_first_is_read_and_said(tmp_path: Path) -> None:
    first, *others = (Image.fromarray(picture.numpy()) for picture in numbered(3))
    first.save(tmp_path / "one.tiff")
    first.save(tmp_path / "scan.tiff", save_all=True, append_images=others)
    clip = read_clip(tmp_path / "scan.tiff", ClipSpec(1, 32, 32))
    assert numbers(clip.pixels) == [0]
    assert clip.note.endswith("; the first of 3 pages")
    assert "pages" not in read_clip(tmp_path / "one.tiff", ClipSpec(1, 32, 32)).note


def test_an_animation_that_claims_a_large_canvas_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = moving(tmp_path / "bomb.webp", lossless=True)
    data = bytearray(path.read_bytes())
    data[24:30] = (16382).to_bytes(3, "little") * 2
    path.write_bytes(data)
    with pytest.raises(UniViGUError, match=r"bomb\.webp: found frames of 16383x16383 pixels"):
        read_clip(path, ClipSpec(5, 32, 32))
    path = moving(tmp_path / "heavy.webp", lossless=True)
    monkeypatch.setattr(animation, "_MOST_BYTES", 100)
    with pytest.raises(UniViGUError, match=r"heavy\.webp: is larger than"):
        read_clip(path, ClipSpec(5, 32, 32))


def test_the_list_of_names(tmp_path: Path) -> None:
    wanted = "mp4 mov mkv webm avi m4v gif mpg mpeg wmv flv ts mts m2ts 3gp ogv mxf vob webp apng avif jpg jpeg png bmp"
    assert {f".{suffix}" for suffix in wanted.split()} <= CLIP_SUFFIXES
    for name in ("a.MTS", "b.jpg", "c.mp4", "c.jpg", "c.png", "d.txt", "e.PNG", "f.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in find_clips(tmp_path)] == ["a.MTS", "b.jpg", "c.mp4", "e.PNG", "f.webp"]
