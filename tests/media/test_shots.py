"""Where the shots of a film lie, and which pictures of them are kept."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from uvg_core.errors import UniViGUError
from uvg_core.media.video import ClipSpec, read_clip
from uvg_core.media.video import shots as module
from uvg_core.media.video.shots import Cutting, Shot, shots

SPEC = ClipSpec(5, 16, 16)
RATE = 12
CUTS, WINDOWS = Cutting(shots=True), Cutting(every=2.0)


def texture(seed: int) -> Any:
    """A picture of one look, in colours of its own."""
    draw = np.random.default_rng(seed)
    colour = draw.permutation([40, 130, 220])
    return np.clip(colour + draw.integers(-30, 30, (8, 8, 3)), 20, 255).astype(np.uint8).repeat(6, 0).repeat(6, 1)


def scene(seed: int, frames: int) -> list[Any]:
    """Frames of one look that move a little."""
    return [np.roll(texture(seed), n // 4, axis=1) for n in range(frames)]


def film(path: Path, frames: Sequence[Any], times: Sequence[float] | None = None) -> Path:
    """A film of these frames, shown at these times in seconds."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"crf": "12", "g": "12"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1200)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base = Fraction(1, 1200)
            frame.pts = round(1200 * (number / RATE if times is None else times[number]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def found(path: Path, how: Cutting = CUTS, **options: Any) -> list[Shot]:
    if how.shots:
        pytest.importorskip("scenedetect", reason="shots are found with PySceneDetect")
    return list(shots(path, how, SPEC, **options))


def spans(parts: Sequence[Shot]) -> list[tuple[float, float]]:
    return [(round(part.start, 2), round(part.end, 2)) for part in parts]


def test_cuts_are_found_and_each_shot_has_the_pictures_of_its_part(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", [*scene(0, 24), *scene(1, 36), *scene(2, 18)])
    parts = found(path)
    assert spans(parts) == [(0, 2), (2, 5), (5, 6.5)]
    for part in parts:
        alone = read_clip(path, SPEC, start=part.start, seconds=part.end - part.start)
        assert torch.equal(part.pixels, alone.pixels)


def test_flashes_and_short_shots_are_no_shots_of_their_own(tmp_path: Path) -> None:
    white = [np.full((48, 48, 3), 250, np.uint8)]
    frames = [*scene(0, 20), *white, *scene(0, 20), *white * 3, *scene(0, 16), *scene(1, 5), *scene(2, 24)]
    assert spans(found(film(tmp_path / "film.mp4", frames))) == [(0, 5), (5, 7.42)]


def test_a_short_shot_at_either_end_joins_its_neighbour(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", [*scene(0, 6), *scene(1, 24), *scene(2, 6)])
    assert spans(found(path)) == [(0, 3)]
    assert spans(found(path, Cutting(shots=True, shortest=0.25))) == [(0, 0.5), (0.5, 2.5), (2.5, 3)]


def test_a_fade_over_black_is_one_cut(tmp_path: Path) -> None:
    out = [(one * share).astype(np.uint8) for one, share in zip(scene(0, 25), np.linspace(1, 0, 25), strict=True)]
    back = [(one * share).astype(np.uint8) for one, share in zip(scene(1, 25), np.linspace(0, 1, 25), strict=True)]
    parts = found(film(tmp_path / "film.mp4", [*scene(0, 24), *out, *back, *scene(1, 49)[25:]]))
    assert len(parts) == 2
    assert 3.5 < parts[1].start < 4.8


def test_times_are_those_of_a_varying_rate(tmp_path: Path) -> None:
    times = [n / RATE if n < 24 else 2 + (n - 24) / 6 for n in range(48)]
    path = film(tmp_path / "film.mkv", [*scene(0, 24), *scene(1, 12), *scene(2, 12)], times)
    assert spans(found(path))[:2] == [(0, 2), (2, 4)]
    assert spans(found(path, WINDOWS))[:3] == [(0, 2), (2, 4), (4, pytest.approx(6, abs=0.1))]


def test_windows_have_the_pictures_of_their_parts_and_need_no_detector(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", [*scene(0, 30), *scene(1, 30)])
    parts = list(shots(path, WINDOWS, SPEC))
    assert spans(parts) == [(0, 2), (2, 4), (4, 5)]
    for part in parts:
        alone = read_clip(path, SPEC, start=part.start, seconds=part.end - part.start)
        assert torch.equal(part.pixels, alone.pixels)
    assert spans(found(path, WINDOWS, start=1.0, seconds=3.0)) == [(1, 3), (3, 4)]


@pytest.mark.parametrize("how", [CUTS, WINDOWS])
def test_going_on_gives_the_same_parts(tmp_path: Path, how: Cutting) -> None:
    path = film(tmp_path / "film.mp4", [*scene(0, 24), *scene(1, 24), *scene(2, 24)])
    parts = found(path, how)
    rest = found(path, how, done=parts[0].end)
    assert spans(rest) == spans(parts)[1:]
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(rest, parts[1:], strict=True))


def test_of_a_long_shot_a_bounded_number_of_pictures_is_kept() -> None:
    frames = module._Frames(10)
    for time in range(10_000):
        frames.add(time, torch.tensor(time))
        assert len(frames.pictures) <= 10
    assert len(frames.pictures) >= 5
    for time in range(0, 9000, 100):
        assert abs(int(frames.at([time])[0]) - time) <= frames.step / 2


@pytest.mark.parametrize("raw", [0, 2**18])  # bytes for decoded frames; 0: pictures are kept instead
def test_few_frames_are_held_however_long_the_shot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: int) -> None:
    monkeypatch.setattr(module, "_FITTED", 0)
    monkeypatch.setattr(module, "_RAW", raw)
    most = 0
    add = module._Frames.add

    def counted(self: Any, *one: Any) -> None:
        nonlocal most
        add(self, *one)
        most = max(most, len(self.pictures))

    monkeypatch.setattr(module._Frames, "add", counted)
    part = found(film(tmp_path / "film.mp4", scene(0, 120)))[0]
    assert most == 2 * SPEC.frames if not raw else 4 * SPEC.frames <= most <= raw // (48 * 48 * 3 // 2)
    assert part.pixels.shape == (5, 16, 16, 3)


def test_what_is_left_of_a_film_that_breaks_off_is_read(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mkv", [*scene(0, 24), *scene(1, 48)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    parts = found(path)
    assert spans(parts)[0] == (0, 2)
    assert 2 < parts[-1].end < 6
    assert "breaks off" in parts[-1].damage


@pytest.mark.parametrize("how", [CUTS, WINDOWS])
def test_nothing_is_left_of_a_film_that_is_done(tmp_path: Path, how: Cutting) -> None:
    path = film(tmp_path / "film.mp4", [*scene(0, 24), *scene(1, 30)])
    assert found(path, how, done=found(path, how)[-1].end) == []
    part = {"start": 0.5, "seconds": 3.1}
    assert found(path, how, done=found(path, how, **part)[-1].end, **part) == []


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UniViGUError, match="choose one"):
        Cutting(shots=True, every=2.0)
    with pytest.raises(UniViGUError, match="every is 0"):
        Cutting(every=0.0)
    with pytest.raises(UniViGUError, match="add --shots"):
        Cutting(every=2.0, shortest=3.0)


def test_without_the_detector_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scenedetect", None)
    with pytest.raises(UniViGUError, match="pip install scenedetect-headless"):
        next(shots(film(tmp_path / "film.mp4", scene(0, 24)), CUTS, SPEC))
