"""Several clips of a folder at a time: what is captioned together, and that each still stands for itself."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from uvg_core.config import ModelConfig, RunConfig
from uvg_core.errors import UniViGUError
from uvg_core.io import PACK
from uvg_core.media.video import Clip
from uvg_core.media.video.footage import FOOTAGE
from uvg_core.pipeline.folders import Captioner, Captions, caption_folder
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.pipeline.together import MOST, Together, clips_together
from uvg_core.sampling import Sampling


class Groups(Captioner):
    """Notes what it is asked for."""

    def __init__(self, together: int) -> None:
        self.together, self.asked = together, list[tuple[list[str], list[str]]]()

    def __call__(self, clips: Sequence[Path], upcoming: Sequence[Path]) -> Sequence[str | Exception]:
        self.asked.append(([clip.stem for clip in clips], [clip.stem for clip in upcoming]))
        return [UniViGUError(f"{clip}: too dark") if clip.stem == "n3" else f"about {clip.stem}" for clip in clips]


def many(folder: Path, count: int = 7) -> Path:
    """A folder of its own with so many clips, empty files."""
    for number in range(count):
        (folder / "clips" / f"n{number}.mp4").parent.mkdir(exist_ok=True)
        (folder / "clips" / f"n{number}.mp4").touch()
    return folder / "clips"


def stub(path: Path) -> Clip:
    """A clip whose pictures are as large as the number in its name says."""
    side = 8 if path.stem in ("n1", "n2") else 16
    info: Any = None
    return Clip(torch.zeros(1, side, side, 3, dtype=torch.uint8), info, path.stem)


def test_only_clips_that_want_a_caption_come_together(tmp_path: Path) -> None:
    folder, captioner = many(tmp_path), Groups(3)
    (folder / "n1.txt").write_text("by hand")
    report = caption_folder(folder, captioner)
    assert captioner.asked == [(["n0", "n2", "n3"], ["n4", "n5", "n6"]), (["n4", "n5", "n6"], [])]
    assert [path.stem for path in report.written] == ["n0", "n2", "n4", "n5", "n6"]
    assert [path.stem for path, _ in report.failed] == ["n3"]
    assert (folder / "n6.txt").read_text() == "about n6"
    assert not list(folder.glob(".uvg*"))
    assert caption_folder(folder, Groups(2), Captions(overwrite=True)).written


def test_a_text_written_meanwhile_stays(tmp_path: Path) -> None:
    folder = many(tmp_path, 3)

    class Slow(Groups):
        def __call__(self, clips: Sequence[Path], upcoming: Sequence[Path]) -> Sequence[str | Exception]:
            (folder / "n2.txt").write_text("by hand")
            return super().__call__(clips, upcoming)

    report = caption_folder(folder, Slow(3))
    assert [path.stem for path in report.skipped] == ["n2"]
    assert (folder / "n2.txt").read_text() == "by hand"


def test_an_interrupted_group_costs_no_other(tmp_path: Path) -> None:
    folder, reports = many(tmp_path), []

    class Stopped(Groups):
        def __call__(self, clips: Sequence[Path], upcoming: Sequence[Path]) -> Sequence[str | Exception]:
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(clips, upcoming)

    with pytest.raises(KeyboardInterrupt):
        caption_folder(folder, Stopped(3), on_stop=reports.append)
    assert [path.stem for path in reports[0].written] == ["n0", "n1", "n2"]
    assert not list(folder.glob(".uvg*"))
    assert [path.stem for path in caption_folder(folder, Groups(3)).written] == ["n4", "n5", "n6"]


def test_the_next_clips_are_read_while_these_are_described(tmp_path: Path) -> None:
    read = {f"n{number}": threading.Event() for number in range(6)}

    def reading(path: Path) -> Clip:
        read[path.stem].set()
        return replace(stub(path), pixels=torch.zeros(1, 8, 8, 3, dtype=torch.uint8))

    def describe(clips: Sequence[Clip], paths: Sequence[Path]) -> list[str]:
        if paths[0].stem == "n0":
            assert all(read[name].wait(20) for name in ("n3", "n4", "n5"))
        return [clip.note for clip in clips]

    report = caption_folder(many(tmp_path, 6), Together(reading, describe, 3))
    assert len(report.written) == 6


def test_what_cannot_be_read_or_described_costs_no_other_its_caption(tmp_path: Path) -> None:
    groups: list[list[str]] = []

    def reading(path: Path) -> Clip:
        if path.stem == "n4":
            raise UniViGUError(f"{path}: damaged")
        return stub(path)

    def describe(clips: Sequence[Clip], paths: Sequence[Path]) -> list[str]:
        groups.append([path.stem for path in paths])
        if "n5" in groups[-1]:
            raise torch.OutOfMemoryError("too much")
        return [clip.note for clip in clips]

    report = caption_folder(many(tmp_path), Together(reading, describe, 7))
    assert {path.stem: reason.split(": ")[-1] for path, reason in report.failed} == {"n4": "damaged", "n5": "too much"}
    assert [path.stem for path in report.written] == ["n0", "n1", "n2", "n3", "n6"]
    assert ["n1", "n2"] in groups  # of another size than the others


def test_clips_that_are_not_asked_for_after_all_are_let_go(tmp_path: Path) -> None:
    together = Together(stub, lambda clips, _: [clip.note for clip in clips], 2)
    paths = [tmp_path / f"n{number}.mp4" for number in range(5)]
    assert list(together(paths[:2], paths[2:4])) == ["n0", "n1"]
    assert list(together(paths[4:], [])) == ["n4"]  # another process has the two in between
    assert not together._reading
    together.close()


def test_as_many_as_the_memory_takes() -> None:
    tiny = ModelConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=12, vocab_size=300)
    assert clips_together(tiny, RunConfig(text_length=24), (9, 48, 48), 2**30) == MOST
    released, run = ModelConfig(), RunConfig()
    assert clips_together(released, run, (81, 480, 832), 2**30) == 1
    assert clips_together(released, run, (81, 480, 832), 24e9) == 3  # 6 GB of keys and values each
    assert clips_together(released, run, (17, 480, 832), 24e9) > 8
    assert clips_together(tiny, run, (1025, 4096, 4096), 1e15) == 1  # their pictures would not fit


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, steps=6), Sampling(stop_when_sure=0.9)])
def test_captions_of_a_batch_are_those_of_its_clips(sampling: Sampling) -> None:
    pipe = Pipeline(device="cpu")
    spec = FOOTAGE.spec(9, 48, 48)
    clips = [FOOTAGE.read(path, spec).pixels for path in sorted((PACK / "samples/uvg_sample_clips").glob("*.mp4"))]
    latents = pipe.encode_clips(clips)
    assert torch.allclose(latents[1:2], pipe.encode_clip(clips[1]), atol=1e-4)
    seeds = [7, 7, 2**63 - 1]
    alone = [
        pipe.caption(latent, sampling=replace(sampling, seed=seed))
        for latent, seed in zip(latents.split(1), seeds, strict=True)
    ]
    assert len(set(alone)) > 1
    assert pipe.captions(latents, seeds, sampling=sampling) == alone
    template = "a ___ moves ___"
    filled = [pipe.caption(latents[:1], template=template, sampling=replace(sampling, seed=s)) for s in (1, 2)]
    assert pipe.captions(latents[[0, 0]], [1, 2], template=template, sampling=sampling) == filled


def test_a_folder_is_captioned_as_its_clips_are(tmp_path: Path) -> None:
    for path in sorted((PACK / "samples/uvg_sample_clips").glob("*.mp4")):
        shutil.copy(path, tmp_path)
    pipe = Pipeline(device="cpu")
    spec = FOOTAGE.spec(9, 48, 48)

    def describe(clips: Sequence[Clip], paths: Sequence[Path]) -> list[str]:
        return pipe.captions(pipe.encode_clips([clip.pixels for clip in clips]), [0] * len(clips))

    report = caption_folder(tmp_path, Together(lambda path: FOOTAGE.read(path, spec), describe, 2))
    assert len(report.captions) == 3
    for clip, text in report.captions:
        assert text == pipe.caption(pipe.latent_of(clip)[0])
