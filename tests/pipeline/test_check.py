"""``check`` decides how a network is meant to be run: on planted networks whose preference is known, on weights at
random, and on the embedded model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.worlds.recipe import initialise
from recipes.worlds.source import WorldSource
from uvg_core.checkpoint import Overrides, read_config, save_model
from uvg_core.checkpoint.config import say_unchecked
from uvg_core.checkpoint.convert import convert
from uvg_core.checkpoint.read import open_weights
from uvg_core.cli.common import Model
from uvg_core.cli.main import main
from uvg_core.config import CheckpointConfig, ModelConfig, RunConfig
from uvg_core.data.build import build_shards
from uvg_core.data.encoders import Encoders
from uvg_core.data.sources import TrainingClip
from uvg_core.errors import UniViGUError
from uvg_core.media.text_encoder import TextEncoder, as_plain_t5, build_encoder, load_encoder
from uvg_core.media.tokenizer import Tokenizer
from uvg_core.media.vae import WAN_LATENT_MEAN, WAN_LATENT_STD, to_latent_space
from uvg_core.model import UniViGU
from uvg_core.pipeline.check import PipelineCheck, loss_size, reference_clips, rounded_times, thoroughness
from uvg_core.pipeline.components import Components
from uvg_core.pipeline.evidence import Predict, Sample, Verdict, views, weigh
from uvg_core.pipeline.pipeline import EMBEDDED_MODEL, Pipeline, Size
from uvg_core.progress import bars
from uvg_core.training.config import TrainConfig, from_dict
from uvg_core.training.objective import plain_attention
from uvg_core.training.run import make_accelerator
from uvg_core.training.start import starting_network
from uvg_core.training.trainer import Trainer

CLIPS, ROWS, WIDTH = 5, 6, 8
COMBINATIONS = [(space, kind) for space in ("normalised", "raw") for kind in ("umT5", "release")]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PADDING = draw(1, 1, WIDTH, seed=1)


def states(seed: int) -> dict[str, Tensor]:
    """Two words and padding: zero, or what the release leaves there."""
    words = draw(1, 2, WIDTH, seed=seed)
    return {
        "umT5": torch.cat([words, torch.zeros(1, ROWS - 2, WIDTH)], 1),
        "release": torch.cat([words, PADDING.expand(1, ROWS - 2, WIDTH)], 1),
    }


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Clips with Wan's statistics; the first id tells which one it is."""
    mean, std = (torch.tensor(part).view(1, 16, 1, 1, 1) for part in (WAN_LATENT_MEAN, WAN_LATENT_STD))
    raw = [mean + std * draw(1, 16, 2, 6, 6, seed=100 + k) for k in range(CLIPS)]
    return [Sample(f"clip {k}", raw[k], [k, 1], states(10 + k), states(9)) for k in range(CLIPS)]


def planted(samples: list[Sample], space: str, kind: str, minds: float = 0.3) -> Predict:
    """A network that has nearly learnt the clips by heart in one latent space, and that foreign padding throws."""

    def predict(video: Tensor, ids: Tensor, mask: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        k = int(ids[0, 0])
        padding = condition[:, 2:]
        at_home = not bool(padding.any()) or (kind == "release" and torch.equal(padding, states(9)["release"][:, 2:]))
        error = 0.4 + (0.0 if at_home else minds)
        known = to_latent_space(samples[k].raw, space) + error * draw(*video.shape, seed=500 + k)
        return (video - known) / (time / 1000)

    return predict


def found(verdict: Verdict) -> tuple[str, str, str]:
    space, kind, rounding = (answer.best for answer in verdict.answers)
    return space, kind, rounding


@pytest.mark.parametrize(("space", "kind"), COMBINATIONS)
def test_a_network_is_found_to_be_what_it_was_planted_as(samples: list[Sample], space: str, kind: str) -> None:
    network = planted(samples, space, kind)
    verdict = weigh(network, network, samples)
    assert found(verdict) == (space, kind, "")
    assert verdict.skill > 0.3
    assert min(verdict.errors, key=verdict.errors.__getitem__).startswith(space)
    model, run = verdict.applied(ModelConfig(), RunConfig(), "check of 1")
    assert (model.latent_space, run.text_states, model.time_rounding) == (space, kind, "none")
    assert run.checked.startswith("check of 1: ")
    assert "time rounding cannot be told" in run.checked


def test_text_states_that_nobody_minds_cannot_be_told(samples: list[Sample]) -> None:
    network = planted(samples, "raw", "umT5", minds=0.0)
    assert found(weigh(network, network, samples)) == ("raw", "", "")


@pytest.mark.parametrize("rounding", ["none", "bfloat16"])
def test_clocks_that_matter_are_told(samples: list[Sample], rounding: str) -> None:
    home = planted(samples, "raw", "umT5")

    def worse(video: Tensor, ids: Tensor, mask: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        return home(video, ids, mask, time, condition) * 1.1

    pair = (home, worse) if rounding == "none" else (worse, home)
    assert weigh(*pair, samples).rounding.best == rounding


@pytest.mark.parametrize("seed", range(2))
def test_weights_at_random_give_no_verdict(samples: list[Sample], seed: int) -> None:
    sizes = {"dim": 32, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "text_dim": WIDTH, "vocab_size": 16}
    network = UniViGU(ModelConfig(**sizes, freq_dim=32))
    initialise(network, seed)
    if seed:  # at first its heads are zero
        torch.nn.init.xavier_uniform_(network.head.head.weight)

    predict = rounded_times(network, "none")
    verdict = weigh(predict, predict, samples)
    assert found(verdict) == ("", "", "")
    assert abs(verdict.skill) < 0.1
    assert "not trained well enough" in verdict.space.why


def test_a_stored_null_condition_settles_text_states_or_contradicts(samples: list[Sample]) -> None:
    deaf, hears = planted(samples, "raw", "umT5", minds=0.0), planted(samples, "raw", "umT5")
    stored = {kind: rows + 0.01 for kind, rows in states(9).items()}
    for kind, null in stored.items():
        assert found(weigh(deaf, deaf, samples, null=null))[1] == kind
    assert found(weigh(hears, hears, samples, null=stored["umT5"]))[1] == "umT5"
    contradicted = weigh(hears, hears, samples, null=stored["release"]).states
    assert contradicted.best == ""
    assert "the null file says release, the losses umT5" in contradicted.why
    foreign = weigh(hears, hears, samples, null=draw(1, ROWS, WIDTH, seed=3)).states
    assert (foreign.best, "null file" in foreign.why) == ("umT5", True)


def test_numbers_that_are_none_are_said(samples: list[Sample]) -> None:
    with pytest.raises(UniViGUError, match="not numbers"):
        weigh(lambda video, *_: video * float("nan"), lambda video, *_: video, samples)


def test_clips_weigh_the_same_together_and_alone(samples: list[Sample]) -> None:
    torch.manual_seed(0)
    network = UniViGU(ModelConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=WIDTH, vocab_size=16))
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    uneven = [replace(one, ids=[*one.ids, *[2] * k]) for k, one in enumerate(samples)]
    predict = rounded_times(network, "none")
    alone, together = (views(predict, uneven, "raw", "control", at_once=n).errors for n in (1, 3))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)


def test_watching_counts_every_pass_and_may_stop(samples: list[Sample]) -> None:
    network, seen = planted(samples, "raw", "umT5"), []
    weigh(network, network, samples, draws=2, progress=lambda what, done, total: seen.append((done, total)))
    assert seen[-1] == (len(seen), len(seen))

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weigh(network, network, samples, progress=stop)


# ------------------------------------------------------------------------------------------------------ text encoders


def test_a_umt5_runs_as_a_plain_t5_without_a_second_copy() -> None:
    pytest.importorskip("transformers")
    from recipes.worlds.tokenizer import train_tokenizer

    run = RunConfig(text_length=16, context_length=12)
    tokenizer = Tokenizer(train_tokenizer(), run)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_heads": 2, "d_kv": 8, "d_ff": 32, "num_layers": 3, "vocab_size": tokenizer.size}
    umt5 = build_encoder({**sizes, "relative_attention_num_buckets": 8}).eval()
    for block in umt5.encoder.block:  # they start at zero
        torch.nn.init.normal_(block.layer[0].SelfAttention.relative_attention_bias.weight)
    texts = ["a red circle", "a blue star moves left"]
    plain = load_encoder(umt5.state_dict(), "release")
    with torch.no_grad():
        own = TextEncoder(umt5, tokenizer, "umT5")(texts)
        with as_plain_t5(umt5):
            found = TextEncoder(umt5, tokenizer, "release")(texts)
        assert torch.equal(TextEncoder(umt5, tokenizer, "umT5")(texts), own)
        torch.testing.assert_close(found, TextEncoder(plain, tokenizer, "release")(texts))
    assert (found[0, :3] - own[0, :3]).abs().max() > 0.01


# ------------------------------------------------------------------------------------------------------------- files


def test_check_decides_on_the_embedded_model_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    unchecked, written, report = tmp_path / "unchecked.safetensors", tmp_path / "new.safetensors", tmp_path / "r.json"
    convert(EMBEDDED_MODEL, unchecked, overrides=Overrides(latent_space="raw", checked="", text_states=""))
    assert main(["check", "--model", str(unchecked), "--write", str(written), "--json", str(report)]) == 0
    said = capsys.readouterr().out
    assert "raw latents, umT5 states (assumed); checked: never" in said
    assert "latent space   normalised" in said
    assert "text states    umT5" in said
    assert "stated are raw latents and umT5 states, found normalised and umT5" in said
    assert said.count("all finite") == 2
    config = read_config(written)
    assert (config.model.latent_space, config.run.text_states) == ("normalised", "umT5")
    assert "latent space normalised; text states umT5" in config.run.checked
    kept = json.loads(report.read_text())
    assert kept["verdict"]["space"]["best"] == "normalised"
    assert kept["lines"] == said.splitlines()


def test_an_unchecked_file_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("diffusers")
    say_unchecked.cache_clear()
    path = tmp_path / "unchecked.safetensors"
    convert(EMBEDDED_MODEL, path, overrides=Overrides(checked=""))
    with bars() as shown:
        for model, lines in ((path, 1), (path, 1), (EMBEDDED_MODEL, 1)):
            Model(model=model).pipeline(shown)
            assert sum("never been checked" in record.message for record in caplog.records) == lines
    assert read_config(EMBEDDED_MODEL).run.checked


@pytest.mark.parametrize(
    ("large", "device", "size", "expected"),
    [
        (True, "cuda", Size(), (17, 480, 832)),
        (True, "cpu", Size(), (17, 176, 304)),
        (True, "cpu", Size(480, 832, 5), (5, 480, 832)),
        (False, "cpu", Size(), (17, 480, 832)),
        (True, "cuda", Size(None, None, 81), (81, 240, 416)),
    ],
)
def test_how_much_of_a_clip_is_loss_size(large: bool, device: str, size: Size, expected: tuple[int, int, int]) -> None:
    assert loss_size(RunConfig(), size, large, torch.device(device)) == expected


def test_captions_are_cut_to_what_a_model_reads() -> None:
    pytest.importorskip("sentencepiece")
    from recipes.worlds.tokenizer import train_tokenizer

    for run in (RunConfig(text_length=24, context_length=32), RunConfig()):
        tokenizer = Tokenizer(train_tokenizer(), run)
        clips = reference_clips(tokenizer, run)
        assert len(clips) >= 5
        assert all(clip.path.is_file() for clip in clips)
        assert all(len(tokenizer.ids(clip.caption)) <= min(run.text_length, run.context_length) for clip in clips)
        assert all(len(clip.caption.split()) > 2 for clip in clips)


# ----------------------------------------------------------------------------------------------------------- trained


class Pans:
    """Windows that move over made-up landscapes, and little worlds in turn: none is a clip that ``check`` looks at.

    A landscape is noise whose spectrum falls with frequency, as that of photographs does.
    """

    ways = (("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1), ("nowhere", 0, 0))

    def __init__(self, count: int, run: RunConfig) -> None:
        self.count, self.side, self.frames = count, run.height, run.frames
        self.worlds = WorldSource(count, side=run.height, frames=run.frames, pairs=0.0)

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"pans {self.count} {index}"

    def name(self, index: int) -> str:
        return f"clip {index}"

    def item(self, index: int) -> TrainingClip:
        if index % 5 < 2:
            return self.worlds.item(index)
        generator = torch.Generator().manual_seed(index)
        size, reach = 2 * self.side, self.side // 3
        spectrum = torch.fft.rfft2(torch.randn(3, size, size, generator=generator))
        rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
        falling = torch.fft.irfft2(
            spectrum / (rows.square() + columns.square()).sqrt().clamp(min=1 / size), s=(size, size)
        )
        tint = torch.rand(3, 1, 1, generator=generator)
        scene = (falling / falling.std() * 0.2 + 0.3 + 0.4 * tint).clamp(0, 1).mul(255).to(torch.uint8).movedim(0, -1)
        way, dx, dy = self.ways[index % len(self.ways)]
        starts = [(reach + (reach * frame // (self.frames - 1)) * d for d in (dx, dy)) for frame in range(self.frames)]
        views = [scene[y : y + self.side, x : x + self.side] for x, y in starts]
        colour = ["red", "green", "blue"][int(tint.argmax())]
        caption = f"a {colour} background moves {way}"
        return TrainingClip(torch.stack(views), caption, caption, self.name(index))


@pytest.mark.slow
@pytest.mark.parametrize(("space", "kind"), COMBINATIONS)
def test_a_model_trained_here_is_found_out(tmp_path: Path, space: str, kind: str) -> None:
    for package in ("diffusers", "accelerate"):
        pytest.importorskip(package)
    begin = tmp_path / "begin.safetensors"
    facts, stored = read_config(EMBEDDED_MODEL), open_weights(EMBEDDED_MODEL)
    own = {"text_dim": facts.model.text_dim, "vocab_size": facts.model.vocab_size, "latent_space": space}
    model = UniViGU(ModelConfig(dim=64, ffn_dim=192, num_heads=2, num_layers=3, freq_dim=64, **own))
    initialise(model, 0)
    others = {name: stored.read(name) for name in stored.tensors if name.startswith(("vae.", "text_encoders."))}
    save_model(model, begin, run=replace(facts.run, text_states=kind, checked=""), extra=others)

    source, encoders = Pans(640, facts.run), Encoders.from_components(Components(begin, device="cpu"))
    data = build_shards(source, encoders, tmp_path / "cache", in_memory=True, say=lambda _: None)
    values: dict[str, Any] = {
        "stage": "recall",
        "model": str(begin),
        "data": "made by the test",
        "out": str(tmp_path / "run"),
        "steps": 300,
        "batch": 16,
        "device": "cpu",
        "jobs": {"text_to_video": 0.8, "video_to_text": 0.15, "joint": 0.05},
        "empty_text": 0.5,  # as a Wan base, it hears its prompt through the condition alone
        "video_times": {"kind": "logit_normal", "uniform_share": 0.3},
        "optimizer": {"kind": "muon", "rate": 2e-3, "muon_rate": 0.02, "warmup": 50, "ema": 0.98},
        "keep": {"checkpoint_every": 0},
    }
    config = from_dict(TrainConfig, values)
    network = starting_network(
        config, vocab_size=facts.model.vocab_size, attention=plain_attention, dtype=torch.float32
    )
    facts = CheckpointConfig(network.config, facts.run)
    result = Trainer(config, network, data, facts, make_accelerator(config)).run()
    assert result.file is not None

    check = PipelineCheck(Pipeline(result.file, device="cpu"))
    verdict = check.weigh(check.samples(9, 48, 48)[0], **thoroughness(large=False))
    assert verdict.space.best == space
    assert verdict.states.best in ("", kind)
