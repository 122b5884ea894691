"""What lies in the folders of trainings and of clips: configurations, checkpoints, indexes, records, texts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random

import torch
import yaml
from safetensors.torch import save_file
from tiny_runs import Stop, make_config, make_shards, make_start, make_trainer

from mutants import TEXTS, Parser, wrong, wrong_json
from mutants.checkpoints import lie_in_safetensors, lie_in_zip
from uvg_core.checkpoint.torch_file import read_saved
from uvg_core.content import content_of, remembered
from uvg_core.data.shards import Shards
from uvg_core.io import read_text
from uvg_core.training import checkpoints
from uvg_core.training.config import load_config
from uvg_core.training.trainer import Trainer


def _make_run(folder: Path, file: str) -> Path:
    make_start(folder)
    make_trainer(make_config(folder), make_shards(folder / "cache"), watch=Stop(2)).run()
    last = checkpoints.newest(folder / "run")
    assert last is not None
    return last / file


@cache
def _trainer(folder: Path) -> Trainer:
    return make_trainer(make_config(folder), make_shards(folder / "cache"))


def _read_run(path: Path) -> object:
    trainer = _trainer(path.parents[3])
    last = checkpoints.require_startable(trainer.config, trainer.global_batch, True)
    assert last is not None
    checkpoints.load(last, trainer.state)
    return last


def _make_shard_index(folder: Path) -> Path:
    make_shards(folder / "cache")
    return folder / "cache" / "index.json"


def _read_shards(path: Path) -> object:
    shards = Shards(path.parent)
    return [shards[index] for index in range(len(shards))]


def _make_optimizer(folder: Path) -> Path:
    weight = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    return folder / "optimizer.bin"


def _make_yaml(folder: Path) -> Path:
    config = make_config(folder).to_dict()
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    return folder / "train.yaml"


def _wrong_yaml(data: bytes, random: Random) -> bytes:
    value = wrong(yaml.safe_load(data), random)
    try:
        text = yaml.safe_dump(value, allow_unicode=random.randrange(2) == 0)
    except RecursionError:
        text = json.dumps(value)  # which is YAML, too
    return text.encode("utf-8", "surrogatepass")


def _make_text(folder: Path) -> Path:
    (folder / "clip.txt").write_text("a red circle moves left; ein grüner Kreis\n" * 3)
    return folder / "clip.txt"


def _wrong_text(data: bytes, random: Random) -> bytes:
    text = data.decode() + random.choice(TEXTS) * random.choice([1, 1, 30])
    encoding = random.choice(["utf-8", "utf-16", "utf-32", "utf-7", "latin-1", "cp1252", "shift-jis"])
    return text.encode(encoding, random.choice(["ignore", "backslashreplace"]))


def _make_contents(folder: Path) -> Path:
    save_file({"x": torch.zeros(2)}, folder / "some.safetensors")
    with remembered(folder / "contents.json"):
        content_of(folder / "some.safetensors")
    (folder / "contents.json").write_text(json.dumps({"1 2 3 4 5": "0" * 48}))
    return folder / "contents.json"


def _read_contents(path: Path) -> object:
    with remembered(path):
        return content_of(path.with_name("some.safetensors"))


PARSERS = {
    "run.json": Parser(lambda folder: _make_run(folder, "run.json"), _read_run, wrong_json),
    "state.json": Parser(lambda folder: _make_run(folder, "state.json"), _read_run, wrong_json),
    "optimizer.safetensors": Parser(
        lambda folder: _make_run(folder, "optimizer.safetensors"), _read_run, lie_in_safetensors
    ),
    "optimizer.bin": Parser(_make_optimizer, read_saved, lie_in_zip),
    "training configuration": Parser(_make_yaml, load_config, _wrong_yaml),
    "index of shards": Parser(_make_shard_index, _read_shards, wrong_json),
    "caption": Parser(_make_text, read_text, _wrong_text),
    "contents.json": Parser(_make_contents, _read_contents, wrong_json),
}
