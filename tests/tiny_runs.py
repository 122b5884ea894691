"""A tiny network, its shards and its configuration: a training step takes milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.worlds.recipe import initialise
from uvg_core.checkpoint import save_model
from uvg_core.config import CheckpointConfig, ModelConfig, RunConfig
from uvg_core.data.build import build_shards
from uvg_core.data.encoders import Encoders
from uvg_core.data.shards import Shards
from uvg_core.data.sources import TrainingClip
from uvg_core.model import UniViGU
from uvg_core.training.config import TrainConfig, from_dict
from uvg_core.training.run import make_accelerator
from uvg_core.training.start import starting_network
from uvg_core.training.trainer import Callbacks, Trainer

RUN = RunConfig(height=32, width=32, frames=5, fps=4.0, text_length=8, context_length=6, steps=4, text_steps=4)
WORDS = 24
STATES = torch.randn(WORDS, 12, generator=torch.Generator().manual_seed(5))


class Clips:
    """Clips of one colour each, whose prompt and detailed caption name it in made-up words."""

    def __init__(self, count: int = 12, details: bool = True) -> None:
        self.count, self.details = count, details
        self.fingerprint = f"clips {count} {details}"

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"{self.fingerprint} {index}"

    def name(self, index: int) -> str:
        return f"clip {index}"

    def item(self, index: int) -> TrainingClip:
        pixels = torch.full((RUN.frames, RUN.height, RUN.width, 3), 20 * index % 256, dtype=torch.uint8)
        detail = f"w{3 + index % 7} w{10 + index % 3} w4" if self.details else None
        return TrainingClip(pixels, f"w{3 + index % 7} w5", detail, self.name(index))


def tokens(text: str) -> list[int]:
    return [*(int(word[1:]) for word in text.split()), 1]


def _states(texts: list[str]) -> Tensor:
    rows = torch.zeros(len(texts), RUN.context_length, STATES.shape[1])
    for row, text in zip(rows, texts, strict=True):
        row[: len(tokens(text))] = STATES[tokens(text)]
    return rows


def _latents(pixels: Tensor) -> Tensor:
    """A stand-in for a VAE: fixed waves, as bright as the clip."""
    wave = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return wave * (pixels.float().mean((1, 2, 3, 4)) / 128)[:, None, None, None, None]


ENCODERS = Encoders(_latents, _states, tokens, lambda text: len(tokens(text)), "stand-ins")


def make_shards(folder: Path, **kinds: Any) -> Shards:
    return build_shards(Clips(**kinds), ENCODERS, folder, per_shard=5, in_memory=True, say=lambda _: None)


def make_start(folder: Path, **sizes: Any) -> Path:
    """A native file with random weights."""
    usual = {"dim": 32, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "text_dim": 12, "freq_dim": 32}
    model = UniViGU(ModelConfig(**{**usual, "vocab_size": WORDS, **sizes}))
    initialise(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():  # heads start at zero, and then half of the weights have no gradient
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)
    path = folder / "start.safetensors"
    save_model(model, path, run=RUN)
    return path


def make_config(folder: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "stage": "recall",
        "model": str(folder / "start.safetensors"),
        "data": "made by the test",
        "out": str(folder / "run"),
        "steps": 6,
        "batch": 4,
        "device": "cpu",
        "dropout": {"text_to_video": 0.2, "video_to_text": 0.5, "joint": 0.2},
        "optimizer": {"rate": 1e-3, "warmup": 2, "ema": 0.9},
        "keep": {"checkpoint_every": 2, "log_every": 2, "checkpoints": 2},
    }
    return from_dict(TrainConfig, {**values, **changes})


def make_trainer(config: TrainConfig, data: Shards, **more: Any) -> Trainer:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # it keeps the precision of the first run in a process, and refuses another
    model = starting_network(config, vocab_size=WORDS, dtype=torch.float32)
    facts = CheckpointConfig(model.config, RUN)
    callbacks = Callbacks(**{"say": lambda _: None, **more})
    return Trainer(config, model, data, facts, make_accelerator(config), callbacks)


WAYS: dict[str, dict[str, Any]] = {
    "as usual": {},
    "muon in bf16": {"precision": "bf16", "optimizer": {"kind": "muon", "warmup": 2, "ema": 0.9}},
    "text alone": {"trains": "text"},
    "a LoRA that drops out": {"trains": "lora", "lora": {"dropout": 0.2}},
    "embedding flow": {"text_half": "fresh", "text_flow": "embedding"},
    "accumulated": {"batch": 2, "accumulate": 2},
}


def curve(out: Path) -> list[dict[str, float]]:
    """The entries of ``losses.jsonl`` without how long they took."""
    entries = [json.loads(line) for line in (out / "losses.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


def same(first: list[dict[str, float]], second: list[dict[str, float]], within: float = 0.0) -> bool:
    assert [set(entry) for entry in first] == [set(entry) for entry in second]
    pairs = zip(first, second, strict=True)
    return all(abs(a[name] - b[name]) <= within * max(1, abs(a[name])) for a, b in pairs for name in a)


class Stop:
    """Stops a run after a step, as a user does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, step: Any, trainer: Any) -> bool:
        return bool(step.step >= self.after)
