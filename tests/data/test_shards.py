"""Laws of the cache: what is read is what was encoded, and a build that was stopped or damaged mends just that."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from recipes.worlds.grammar import is_held_out, parse
from recipes.worlds.source import WorldSource
from uvg_core import io as files
from uvg_core.checkpoint import Overrides
from uvg_core.config import RunConfig
from uvg_core.data import build as building
from uvg_core.data.build import build_shards, shard_clips
from uvg_core.data.encoders import Encoders
from uvg_core.data.folder import Survey, survey
from uvg_core.data.settings import Data
from uvg_core.data.shards import EMPTY, INDEX, Sample, Shards
from uvg_core.data.sources import TrainingClip, fingerprints
from uvg_core.errors import UniViGUError
from uvg_core.locks import LOCK
from uvg_core.media.text_encoder import TextEncoder
from uvg_core.media.video import write_video

ROWS = 12


def tokens(text: str) -> list[int]:
    return [*(100 + len(word) for word in text.split()), 1]


@dataclass
class Fake:
    """Encoders whose results tell what they were made of, and a count of their work."""

    clips: int = 0
    texts: list[str] = field(default_factory=list)
    released: int = 0
    fail_after: int = 10**9

    def latent(self, pixels: Tensor) -> Tensor:
        if self.clips + len(pixels) > self.fail_after:
            raise KeyboardInterrupt
        self.clips += len(pixels)
        means = pixels.float().mean((2, 3, 4))[:, ::4] / 255
        return means[:, None, :, None, None].expand(-1, 16, -1, 2, 3) * torch.arange(16).view(1, 16, 1, 1, 1)

    def states(self, texts: list[str]) -> Tensor:
        self.texts += texts
        states = torch.zeros(len(texts), ROWS, 4)
        for row, text in zip(states, texts, strict=True):
            ids = torch.tensor(tokens(text))
            row[: len(ids)] = ids[:, None] / 64 * torch.arange(1, 5)
        return states

    def release(self) -> None:
        self.released += 1

    def encoders(self, fingerprint: str = "one") -> Encoders:
        def rows(text: str) -> int:
            if len(tokens(text)) > ROWS:
                raise UniViGUError("the prompt does not fit")
            return len(tokens(text))

        return Encoders(self.latent, self.states, tokens, rows, fingerprint, self.release)


@dataclass
class Made:
    """Clips of one gray each."""

    texts: list[tuple[str, str | None]]
    broken: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.texts)

    def key(self, index: int) -> str:
        return str(self.texts[index])

    def name(self, index: int) -> str:
        return f"clip {index}"

    def item(self, index: int) -> TrainingClip:
        if index in self.broken:
            raise UniViGUError(f"clip {index} breaks off")
        return TrainingClip(
            torch.full((5, 16, 24, 3), 10 * index, dtype=torch.uint8), *self.texts[index], self.name(index)
        )


@pytest.fixture
def made() -> Made:
    return Made(
        [(" ".join(["red"] * (1 + i % 3)), f"a very long {'truth ' * (i % 4)}" if i % 2 else None) for i in range(10)]
    )


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def build(tmp_path: Path, said: list[str]) -> Callable[..., tuple[Shards, Fake]]:
    def build(source, fake: Fake | None = None, version: str = "one", **options) -> tuple[Shards, Fake]:
        fake = fake or Fake()
        options = {"per_shard": 4, "say": said.append, **options}
        return build_shards(source, fake.encoders(version), tmp_path / "cache", **options), fake

    return build


def same(a: Sample, b: Sample) -> bool:
    def equal(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y is None or (x is not None and y is not None and torch.equal(x, y))

    names = ("latent", "prompt_ids", "prompt_states", "detail_ids", "detail_states")
    return a.name == b.name and all(equal(getattr(a, name), getattr(b, name)) for name in names)


def all_same(a: Shards, b: Shards) -> bool:
    return len(a) == len(b) and all(same(a[i], b[i]) for i in range(len(a)))


def shard(tmp_path: Path, number: int) -> Path:
    return tmp_path / "cache" / f"uvg-shard-{number:05d}.safetensors"


def stamps(tmp_path: Path) -> dict[str, int]:
    """The files of the cache, and a number that changes when one is written anew."""
    files = [path for path in sorted((tmp_path / "cache").iterdir()) if path.name != LOCK]
    return {path.name: path.stat().st_ino for path in files}


def rewritten(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in after if after[name] != before.get(name)} - {INDEX}


def identity(samples: list[Sample]) -> list[Sample]:
    return samples


# ------------------------------------------------------------------------------------------------------- contents


def test_what_is_read_is_what_was_encoded(made: Made, build, said: list[str]) -> None:
    shards, fake = build(made)
    reference = Fake()
    assert len(shards) == len(made)
    for i, (prompt, detail) in enumerate(made.texts):
        sample = shards[i]
        assert sample.name == f"clip {i}"
        expected = reference.latent(made.item(i).pixels[None])[0]
        assert sample.latent.dtype == torch.float32
        torch.testing.assert_close(sample.latent, expected, atol=1e-2, rtol=1e-3)
        assert sample.prompt_ids.tolist() == tokens(prompt)
        assert torch.equal(sample.prompt_states, reference.states([prompt])[0, : len(tokens(prompt))])
        if detail is None:
            assert sample.detail_ids is None
            assert sample.detail_states is None
        else:
            assert sample.detail_ids is not None
            assert sample.detail_ids.tolist() == tokens(detail)
            assert sample.detail_states is not None
            assert torch.equal(sample.detail_states, reference.states([detail])[0, : len(tokens(detail))])
    assert shards.empty_ids.tolist() == [1]
    assert torch.equal(shards.empty_states, reference.states([""])[0, :1])
    assert (shards.details, shards.longest_prompt, shards.longest_detail) == (5, 4, 7)
    assert same(shards[-1], shards[9])
    with pytest.raises(IndexError):
        shards[10]
    assert (said, fake.released) == ([], 1)


def test_texts_that_clips_share_are_encoded_once_a_shard(made: Made, build) -> None:
    _, fake = build(made, per_shard=10)
    assert len(fake.texts) == len(set(fake.texts))


def test_layout_of_a_shard(made: Made, build, tmp_path: Path) -> None:
    build(made)
    tensors = load_file(shard(tmp_path, 0))
    assert tensors["latents"].shape == (4, 16, 2, 2, 3)
    assert tensors["latents"].dtype == tensors["prompt_states"].dtype == torch.float16
    assert tensors["detail_id_offsets"].tolist() == [0, 0, 5, 5, 12]
    index = json.loads((tmp_path / "cache" / INDEX).read_text())
    assert [(one["first"], one["items"], one["clips"]) for one in index["shards"]] == [(0, 4, 4), (4, 4, 4), (8, 2, 2)]
    assert all(one["bytes"] == (tmp_path / "cache" / one["file"]).stat().st_size for one in index["shards"])


def test_of_several_detailed_captions_one_is_read_each_time(build, tmp_path: Path) -> None:
    class Several(Made):
        def item(self, index: int) -> TrainingClip:
            more = {"others": ("red red",), "other_details": ("a longer one", "one more word here")}
            return replace(super().item(index), **(more if index == 1 else {}))

    shards, _ = build(Several([("red", None), ("red", "a detail"), ("red", "another one yes")]))
    seen = {
        (len(one.prompt_ids), tuple(one.detail_ids.tolist()))
        for one in (shards.sample(1, draw / 4096) for draw in range(4096))
        if one.detail_ids is not None
    }
    details = ("a detail", "a longer one", "one more word here")
    assert seen == {(length, tuple(tokens(text))) for length in (2, 3) for text in details}
    first = shards.sample(1)
    assert first.detail_ids is not None
    assert first.detail_ids.tolist() == tokens("a detail")
    assert shards.sample(0, 0.9).detail_ids is None
    assert {len(shards.sample(2, draw / 8).detail_ids) for draw in range(8)} == {4}
    assert (shards.details, shards.longest_detail) == (2, 5)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_batch_and_shard_size_do_not_matter(
    made: Made, build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(building, "MOST_TOGETHER", batch)
    shards, _ = build(made, per_shard=3)
    other = build_shards(made, Fake().encoders(), tmp_path / "other", per_shard=7)
    assert all_same(shards, other)


def test_reading_again_and_in_other_processes(made: Made, build, tmp_path: Path) -> None:
    shards, _ = build(made)
    shards[0]
    reopened = Shards(tmp_path / "cache")
    assert all_same(shards, reopened)
    assert reopened.fingerprints == shards.fingerprints
    assert all_same(shards, pickle.loads(pickle.dumps(shards)))
    loaded = Shards(tmp_path / "cache", in_memory=True)
    assert all_same(shards, loaded)
    assert all_same(shards, pickle.loads(pickle.dumps(loaded)))
    loader = DataLoader(shards, batch_size=4, num_workers=1, collate_fn=identity)
    assert all(same(a, shards[i]) for i, a in enumerate(a for batch in loader for a in batch))


def test_memory_holds_what_files_lose(made: Made, build, tmp_path: Path) -> None:
    shards, _ = build(made, in_memory=True)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    assert shards[9].prompt_ids.tolist() == tokens(made.texts[9][0])


# -------------------------------------------------------------------------------------------------------- mending


def test_a_second_build_does_nothing(made: Made, build, tmp_path: Path, said: list[str]) -> None:
    build(made)
    before = stamps(tmp_path)
    _, fake = build(made)
    assert (fake.clips, fake.texts, said) == (0, [], [])
    assert stamps(tmp_path) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "line"),
    [(cut, r"has \d+ bytes instead of"), (flip, "does not match its checksum"), (os.remove, "is missing")],
)
def test_a_damaged_shard_and_only_it_is_built_anew(
    made: Made, build, tmp_path: Path, said: list[str], damage: Callable[[Path], None], line: str
) -> None:
    whole, _ = build(made, in_memory=True)
    before = stamps(tmp_path)
    damage(shard(tmp_path, 1))
    if damage is not flip:  # a checksum is what building looks at
        with pytest.raises(UniViGUError, match=rf"uvg-shard-00001\.safetensors: the shard {line}"):
            Shards(tmp_path / "cache")
    mended, fake = build(made)
    assert fake.clips == 4
    assert all_same(whole, mended)
    assert rewritten(before, stamps(tmp_path)) <= {"uvg-shard-00001.safetensors"}
    (one,) = said
    assert "uvg-shard-00001.safetensors" in one
    assert "rebuilding" in one


def test_the_empty_prompt_is_mended_too(made: Made, build, tmp_path: Path, said: list[str]) -> None:
    build(made)
    cut(tmp_path / "cache" / EMPTY)
    _, fake = build(made)
    assert (fake.clips, fake.texts) == (0, [""])
    assert "uvg-empty" in said[0]


def test_a_stopped_build_goes_on(
    made: Made, build, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(fail_after=6)
    monkeypatch.setattr(building, "MOST_TOGETHER", 1)
    with pytest.raises(KeyboardInterrupt):
        build(made, fake)
    assert fake.released == 1
    assert set(stamps(tmp_path)) == {INDEX, EMPTY, "uvg-shard-00000.safetensors"}
    with pytest.raises(UniViGUError, match="found 4 clips of 10"):
        Shards(tmp_path / "cache")
    before = stamps(tmp_path)
    shards, again = build(made)
    assert again.clips == 6
    assert "uvg-shard-00000.safetensors" not in rewritten(before, stamps(tmp_path))
    assert all_same(shards, build_shards(made, Fake().encoders(), tmp_path / "other"))
    assert said == []


def test_a_shard_that_the_index_does_not_know_yet(made: Made, build, tmp_path: Path) -> None:
    """Stopped between the shard and the index: a changed clip's shard is new, the index still tells of the old one."""
    build(made)
    old = (tmp_path / "cache" / INDEX).read_bytes()
    made.texts[5] = ("blue blue blue", made.texts[5][1])  # as long as before
    build(made)
    (tmp_path / "cache" / INDEX).write_bytes(old)
    with pytest.raises(UniViGUError, match=r"00001\.safetensors: the shard does not hold the clips"):
        Shards(tmp_path / "cache")
    shards, fake = build(made)
    assert fake.clips == 4
    assert shards[5].prompt_ids.tolist() == tokens("blue blue blue")


def test_a_full_disk_keeps_what_was_written(made: Made, build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def refuse(source, target) -> None:
        if "00001" in str(target):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(UniViGUError, match=r"00001\.safetensors: could not be written \(No space left on device\)"):
        build(made)
    assert set(stamps(tmp_path)) == {INDEX, EMPTY, "uvg-shard-00000.safetensors"}
    monkeypatch.undo()
    _, fake = build(made)
    assert fake.clips == 6


def test_a_lost_or_damaged_index(made: Made, build, tmp_path: Path, said: list[str]) -> None:
    whole, _ = build(made, in_memory=True)
    index = tmp_path / "cache" / INDEX
    index.write_bytes(index.read_bytes()[:50])
    with pytest.raises(UniViGUError, match="no complete index"):
        Shards(tmp_path / "cache")
    shards, fake = build(made)
    assert fake.clips == 10
    assert "index is damaged" in said[0]
    assert all_same(whole, shards)


def test_foreign_files_stay(made: Made, build, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / INDEX).write_text('{"pages": 3}')
    with pytest.raises(UniViGUError, match="index of another kind"):
        build(made)
    assert (folder / INDEX).read_text() == '{"pages": 3}'
    (folder / INDEX).unlink()
    (folder / "notes.safetensors").touch()
    build(made)
    build(made, per_shard=5)
    names = {"uvg-shard-00000.safetensors", "uvg-shard-00001.safetensors"}
    assert set(stamps(tmp_path)) == {INDEX, EMPTY, "notes.safetensors", *names}


# --------------------------------------------------------------------------------------------------------- changes


def test_other_encoders_build_all_anew(made: Made, build, tmp_path: Path, said: list[str]) -> None:
    first, _ = build(made)
    before = stamps(tmp_path)
    second, fake = build(made, version="two")
    assert fake.clips == 10
    assert "" in fake.texts
    assert "other encoders" in said[0]
    assert rewritten(before, stamps(tmp_path)) == set(before) - {INDEX}
    assert first.fingerprints != second.fingerprints


def test_more_clips_keep_the_full_shards(made: Made, build, said: list[str]) -> None:
    build(made)
    longer = Made([*made.texts, ("blue", None)])
    shards, fake = build(longer)
    assert fake.clips == 3  # the last shard, which was not full
    assert len(shards) == 11
    assert "1 of 3 shards have changed" in said[0]


def test_clips_that_fail_are_left_out(made: Made, build, said: list[str]) -> None:
    made.broken = frozenset({1, 9})
    made.texts[4] = ("word " * 20, None)
    shards, _ = build(made)
    assert [shards[i].name for i in range(len(shards))] == [f"clip {i}" for i in (0, 2, 3, 5, 6, 7, 8)]
    assert shards[3].prompt_ids.tolist() == tokens(made.texts[5][0])
    assert [(one.name, one.found) for one in shards.left_out] == [
        ("clip 1", "clip 1 breaks off"),
        ("clip 4", "the prompt does not fit"),
        ("clip 9", "clip 9 breaks off"),
    ]
    assert "3 of 10 clips could not be used" in said[0]
    again, fake = build(made)
    assert fake.clips == 0
    assert again.left_out == shards.left_out


def test_no_clip_at_all(made: Made, build) -> None:
    made.broken = frozenset(range(10))
    with pytest.raises(UniViGUError, match="none of 10 clips could be used\n  10 could not be decoded"):
        build(made)
    made.broken = frozenset()  # the disk is plugged in again
    assert len(build(made)[0]) == 10


def test_values_that_are_not_numbers(made: Made, tmp_path: Path) -> None:
    fake = Fake()

    def latent(pixels: Tensor) -> Tensor:
        return torch.where((pixels[:, 0, 0, 0, 0] == 30)[:, None, None, None, None], 1e6, fake.latent(pixels))

    said: list[str] = []
    shards = build_shards(made, replace(fake.encoders(), latent=latent), tmp_path / "cache", say=said.append)
    assert [one.name for one in shards.left_out] == ["clip 3"]
    assert len(shards) == 9
    assert "1 with values outside float16's range: clip 3" in said[0]


def test_a_folder_of_clips(tmp_path: Path, build, said: list[str]) -> None:
    """A changed text file changes its shard; a clip that turns out damaged is left out, and the others stay."""
    data = tmp_path / "data"
    data.mkdir()
    run = RunConfig(height=16, width=32, frames=5, fps=8.0, text_length=12, context_length=12)
    for number in range(6):
        pixels = torch.randint(0, 256, (24, 64, 64, 3), dtype=torch.uint8)
        write_video(data / f"{number}.mp4", pixels, 8.0)
        (data / f"{number}.txt").write_text("a red ball")

    def source() -> Survey:
        return survey(Data(str(data), windows="first"), run, tokens)

    shards, fake = build(source(), per_shard=2)
    assert (len(shards), fake.clips) == (6, 6)
    assert fingerprints(source()) == fingerprints(source())
    before = stamps(tmp_path)
    (data / "3.txt").write_text("a red balloon")
    shards, fake = build(source(), per_shard=2)
    assert fake.clips == 2
    assert rewritten(before, stamps(tmp_path)) <= {"uvg-shard-00001.safetensors"}
    assert shards[3].prompt_ids.tolist() == tokens("a red balloon")
    clip = data / "4.mp4"
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])  # the index in front is whole: probing sees no harm
    shards, fake = build(source(), per_shard=2)
    assert [one.name for one in shards.left_out] == ["4.mp4"]
    assert "4.mp4" in said[-1]
    assert [shards[i].name for i in range(len(shards))] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "5.mp4"]


# ---------------------------------------------------------------------------------------------------------- worlds


def test_a_world_depends_on_its_number_alone() -> None:
    pytest.importorskip("sklearn")
    source, larger = WorldSource(6, side=16, frames=5), WorldSource(60, side=16, frames=5)
    items = [source.item(i) for i in range(6)]
    for i in reversed(range(6)):
        again = larger.item(i)
        assert torch.equal(again.pixels, items[i].pixels)
        assert again.prompt == items[i].prompt
        assert source.key(i) == larger.key(i)
    other = WorldSource(60, side=16, frames=5, seed=1)
    assert fingerprints(source) != fingerprints(larger) != fingerprints(other)
    assert any(WorldSource(6, seed=1).item(i).detail != items[i].detail for i in range(6))
    shown = [parse(larger.item(i).detail or "") for i in range(60)]
    found = [world for world in shown if world is not None]
    assert len(found) == 60
    assert all(larger.item(i).prompt == found[i].brief for i in range(60))
    assert 8 <= sum(len(world.shapes) == 2 for world in found) <= 32
    assert not any(is_held_out(thing) for world in found for thing in world.shapes)
    kept = WorldSource(8, side=16, frames=5, pairs=1.0, held_out=True, split="test")
    tested = [parse(kept.item(i).detail or "") for i in range(8)]
    assert all(world is not None and len(world.shapes) == 2 for world in tested)
    assert all(is_held_out(thing) for world in tested if world for thing in world.shapes)
    with pytest.raises(IndexError):
        source.item(6)


def test_shard_sizes() -> None:
    assert shard_clips(RunConfig(height=64, width=64, frames=17)) == 512
    assert 50 < shard_clips(RunConfig()) < 200


def test_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint's own parts: the same latents alone and together, and conditions as the encoder gives them."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pytest.importorskip("sklearn")
    from uvg_core.media.vae import LatentCodec
    from uvg_core.pipeline.components import Components
    from uvg_core.pipeline.pipeline import EMBEDDED_MODEL

    def parts(text_states: str) -> Components:
        return Components(EMBEDDED_MODEL, device="cpu", overrides=Overrides(text_states=text_states))

    checkpoint = parts("umT5")
    run = checkpoint.config.run
    source = WorldSource(5, side=min(run.height, run.width), frames=run.frames)
    encoders = Encoders.from_components(checkpoint)
    assert encoders.fingerprint == Encoders.from_components(parts("umT5")).fingerprint
    assert encoders.fingerprint != Encoders.from_components(parts("release")).fingerprint
    monkeypatch.setattr(building, "MOST_TOGETHER", 4)
    together = build_shards(source, encoders, tmp_path / "together")
    monkeypatch.setattr(building, "MOST_TOGETHER", 1)
    alone = build_shards(source, encoders, tmp_path / "alone")
    assert len(together) == 5
    with checkpoint.using("vae") as vae:
        codec = LatentCodec(vae, checkpoint.config.model.latent_space)
        latents = [codec.encode(source.item(i).pixels[None])[0] for i in range(5)]
    prompts = [source.item(i).prompt for i in range(5)]
    with checkpoint.using("encoder") as encoder, torch.no_grad():
        wanted = TextEncoder(encoder, checkpoint.tokenizer)([*prompts, ""])
    for i, (sample, other) in enumerate(zip(together, alone, strict=True)):
        torch.testing.assert_close(sample.latent, latents[i], atol=5e-3, rtol=2e-3)
        torch.testing.assert_close(sample.latent, other.latent, atol=5e-3, rtol=2e-3)
        assert sample.prompt_ids.tolist() == checkpoint.tokenizer.ids(prompts[i])
        states = torch.zeros_like(wanted[i])
        states[: len(sample.prompt_states)] = sample.prompt_states
        torch.testing.assert_close(states, wanted[i], atol=2e-3, rtol=2e-3)
    null = torch.zeros_like(wanted[-1])
    null[: len(together.empty_states)] = together.empty_states
    torch.testing.assert_close(null, wanted[-1], atol=2e-3, rtol=2e-3)
    released = Encoders.from_components(parts("release"))
    assert released.rows("a") == run.context_length
    assert encoders.rows("a") == len(encoders.tokens("a"))
