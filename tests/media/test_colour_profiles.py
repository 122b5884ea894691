"""Pictures with a colour profile (ICC), as phones, cameras and printers write it: shown in sRGB."""

from __future__ import annotations

import gc
import struct
from pathlib import Path

import pytest
import torch
from numbered_clips import make, numbered, numbers
from PIL import Image, ImageCms

from uvg_core.media.video import ClipSpec, profile, read_clip

COLOURS = [(200, 50, 50), (30, 160, 60), (60, 60, 220), (240, 200, 40), (128, 128, 128), (90, 70, 60), (250, 250, 250)]
# Red, green and blue of Display P3 and of Adobe RGB as XYZ for D50, columns of the matrix to light (Apple's and Adobe's
# profiles have these), and of sRGB (IEC 61966-2-1).
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
CURVE = b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *(round(v * 65536) for v in (2.4, 1 / 1.055, 0.055 / 1.055)),
                                         round(65536 / 12.92), round(0.04045 * 65536))  # fmt: skip


def icc(space: bytes, name: str, tags: dict[bytes, bytes], *, kind: bytes = b"mntr", target: bytes = b"XYZ ") -> bytes:
    """A profile of version 4."""
    words = name.encode("utf-16-be")
    text = b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(words), 28) + words
    tags = {b"desc": text, b"cprt": text, b"wtpt": xyz(0.9642, 1.0, 0.8249), **tags}
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = bytes(8) + b"\x04\x30\0\0" + kind + space + target + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return (132 + len(table) - 4 + len(body)).to_bytes(4, "big") + head[4:128] + table + body


def xyz(*numbers: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in numbers))


def rgb_profile(name: str, primaries: tuple, curve: bytes = CURVE) -> bytes:
    colorants = {tag: xyz(*one) for tag, one in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return icc(b"RGB ", name, {**colorants, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)})


def gamma(value: float) -> bytes:
    return b"para" + bytes(4) + struct.pack(">HHi", 0, 0, round(value * 65536))


def encoded(light: torch.Tensor) -> torch.Tensor:
    light = light.clamp(0, 1)
    return 255 * torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def to_srgb(colour: tuple[int, ...], primaries: tuple, power: float | None = None) -> torch.Tensor:
    """IEC 61966-2-1, or a power where there is one, and the matrices."""
    value = torch.tensor(colour, dtype=torch.float64) / 255
    light = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    light = value**power if power else light
    into, out = (torch.tensor(one, dtype=torch.float64).T for one in (primaries, SRGB))
    return encoded(torch.linalg.solve(out, into @ light))


DISPLAY_P3 = rgb_profile("Display P3", P3)
LOSSLESS = {".webp": {"lossless": True}, ".avif": {"quality": 100, "subsampling": "4:4:4"}, ".jpg": {"quality": 100}}


def picture(path: Path, profile: bytes, mode: str = "RGB", colours: list = COLOURS) -> Path:
    """Patches of 16 pixels, one beside the other."""
    image = Image.new(mode, (16 * len(colours), 16))
    for number, colour in enumerate(colours):
        image.paste(colour, (16 * number, 0, 16 * number + 16, 16))
    how = LOSSLESS.get(path.suffix, {})
    image.save(path, icc_profile=profile, **how, **({"subsampling": 0} if path.suffix == ".jpg" else {}))
    return path


def patches(path: Path, count: int = len(COLOURS)) -> tuple[list[torch.Tensor], str]:
    clip = read_clip(path, ClipSpec(1, 16, 16 * count))
    return [clip.pixels[0, 4:12, 16 * n + 4 : 16 * n + 12].double().mean((0, 1)) for n in range(count)], clip.note


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".avif"])
@pytest.mark.parametrize(
    ("name", "data", "primaries", "power"),
    [
        ("Display P3", DISPLAY_P3, P3, None),
        ("Adobe RGB (1998)", rgb_profile("Adobe RGB (1998)", ADOBE, gamma(2.19921875)), ADOBE, 2.19921875),
    ],
)
def test_wide_profiles_are_brought_to_srgb(
    tmp_path: Path, suffix: str, name: str, data: bytes, primaries: tuple, power: float | None
) -> None:
    found, note = patches(picture(tmp_path / f"photo{suffix}", data))
    within = 2 if suffix in (".png", ".tiff") else 4  # the others change the colours themselves
    for colour, one in zip(COLOURS, found, strict=True):
        assert (one - to_srgb(colour, primaries, power)).abs().max() <= within, (colour, one)
    assert note.endswith(f"; colours brought from {name} to sRGB")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".avif"])
def test_pictures_with_transparent_parts_and_animations_agree(tmp_path: Path, suffix: str) -> None:
    """Animated WebP and AVIF with transparency are read by Pillow, the others by FFmpeg; what lies behind is sRGB."""
    clear = Image.new("RGBA", (32, 16), (90, 90, 90, 0))
    clear.paste((200, 50, 50, 255), (0, 0, 16, 16))
    path = tmp_path / f"clear{suffix}"
    frames = (
        {} if suffix == ".png" else {"save_all": True, "append_images": [Image.new("RGBA", (32, 16), (90, 90, 90, 0))]}
    )
    clear.save(path, icc_profile=DISPLAY_P3, **LOSSLESS.get(suffix, {}), **frames)
    clip = read_clip(path, ClipSpec(1, 16, 32, background=(10, 200, 60)))
    assert (clip.pixels[0, 8, 8].double() - to_srgb((200, 50, 50), P3)).abs().max() <= 3
    assert (clip.pixels[0, 8, 24].int() - torch.tensor([10, 200, 60])).abs().max() <= 1
    assert clip.note.endswith("; colours brought from Display P3 to sRGB")


def test_profiles_of_gray(tmp_path: Path) -> None:
    data = icc(b"GRAY", "Dot Gain", {b"kTRC": gamma(1.8)})
    grays = [0, 20, 64, 128, 200, 255]
    for suffix in (".png", ".jpg", ".tiff"):
        found, note = patches(picture(tmp_path / f"gray{suffix}", data, "L", grays), len(grays))
        for gray, one in zip(grays, found, strict=True):
            assert (one - encoded(torch.tensor([gray / 255], dtype=torch.float64) ** 1.8)).abs().max() <= 2, (gray, one)
        assert note.endswith("; colours brought from Dot Gain to sRGB")


def test_profiles_of_four_inks(tmp_path: Path) -> None:
    """A press whose cyan is as it is printed, not as screens show it."""
    labs = []  # of all mixtures: what cyan, magenta, yellow and black leave of white
    for number in range(16):
        cyan, magenta, yellow, black = (bool(number & bit) for bit in (8, 4, 2, 1))
        a, b = 128 - 36 * cyan + 60 * magenta - 5 * yellow, 128 - 50 * cyan - 3 * magenta + 90 * yellow
        labs.append((max(255 - 115 * cyan - 133 * magenta - 28 * yellow - 204 * black, 0), a, b))
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table += 4 * ramp + bytes(v for lab in labs for v in lab) + 3 * ramp
    data = icc(b"CMYK", "Press", {b"A2B0": table}, kind=b"prtr", target=b"Lab ")
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    path = picture(tmp_path / "print.jpg", data, "CMYK", inks)
    found, note = patches(path, len(inks))
    for one, (lightness, a, b) in zip(found, (labs[0], labs[8], labs[4], labs[2]), strict=False):
        y = (lightness / 2.55 + 16) / 116
        light = [
            v**3 if v > 6 / 29 else (v - 4 / 29) * 108 / 841 for v in (y + (a - 128) / 500, y, y - (b - 128) / 200)
        ]
        white = torch.tensor([0.9642, 1.0, 0.8249], dtype=torch.float64)
        primaries = torch.tensor(SRGB, dtype=torch.float64).T
        right = encoded(torch.linalg.solve(primaries, white * torch.tensor(light, dtype=torch.float64)))
        assert (one - right).abs().max() <= 12, (one, right)
    assert note.endswith("; colours brought from Press to sRGB")
    path.write_bytes(path.read_bytes()[:-20])
    assert "its lower part is missing" in read_clip(path, ClipSpec(1, 16, 80)).note


def test_what_is_srgb_or_no_profile_is_left_alone(tmp_path: Path) -> None:
    """Whoever made it: of sRGB there are many profiles."""
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (own, rgb_profile("sRGB of a phone", SRGB)):
        found, note = patches(picture(tmp_path / "plain.png", data))
        assert [one.tolist() for one in found] == [list(colour) for colour in COLOURS]
        assert note.endswith("112x16")
    for data, why in [
        (DISPLAY_P3[:300], "damaged"),
        (b"nonsense", "not for such a picture"),
        (icc(b"GRAY", "Gray", {b"kTRC": gamma(1.8)}), "not for such a picture"),
    ]:
        found, note = patches(picture(tmp_path / "broken.png", data))
        assert [one.tolist() for one in found] == [list(colour) for colour in COLOURS]
        assert f"; its colour profile is {why}" in note


def test_without_pillow_a_profile_is_named_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError

    path = picture(tmp_path / "photo.png", DISPLAY_P3)
    monkeypatch.setattr(profile, "require_pillow", missing)
    profile.profile_of.cache_clear()
    found, note = patches(path)
    profile.profile_of.cache_clear()
    assert found[0].tolist() == list(COLOURS[0])
    assert note.endswith("its colour profile is not applied, which needs Pillow 12.3 or newer")


def test_clips_without_profiles_are_read_as_before(tmp_path: Path) -> None:
    clip = read_clip(make(tmp_path / "clip.mp4", numbered(12)), ClipSpec(12, 32, 32))
    assert numbers(clip.pixels) == list(range(12))
    assert "colours" not in clip.note


def test_a_named_profile_of_a_png_does_not_end_the_process(tmp_path: Path) -> None:
    """PyAV frees the name of such a profile twice; with Exif, whose kind it does not know, and in an animation, too."""
    exif = Image.Exif()
    exif[0x112] = 3
    path, frame = tmp_path / "photo.png", Image.new("RGB", (32, 16), (200, 50, 50))
    for more in ({}, {"exif": exif}, {"save_all": True, "append_images": [frame.point(lambda v: v // 2)]}):
        frame.save(path, icc_profile=DISPLAY_P3, **more)
        for _ in range(5):
            clip = read_clip(path, ClipSpec(1, 16, 32))
            gc.collect()
            assert (clip.pixels[0, 8, 8].double() - to_srgb((200, 50, 50), P3)).abs().max() <= 2
            assert ("turned by 180" in clip.note) == ("exif" in more)
