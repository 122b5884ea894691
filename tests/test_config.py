"""A configuration is right or refused by the name of its entry, wherever it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import TINY, random_network

from uvg_core import CheckpointConfig, ModelConfig, RunConfig, UniViGUError, inspect_checkpoint, load_model, read_config
from uvg_core.config import shown

TINY_RUN = RunConfig(height=48, width=48, frames=9, fps=8, text_length=16, context_length=32)
HUGE = 10**5000

WRONG_MODEL: list[tuple[str, Any]] = [
    *((name, value) for name in ("eps", "kappa_exponent") for value in ("x", None, [1], True, 0, -1e9, HUGE)),
    *((name, float(value)) for name in ("eps", "kappa_exponent") for value in ("nan", "inf")),
    ("eps", 0.2),
    *(
        (name, value)
        for name in ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim", "freq_dim")
        for value in (0, -2, 2.0, "2", None, True, [2], HUGE)
    ),
    *(("vocab_size", value) for value in (-1, 2.5, None, False, HUGE)),
    *(("patch_size", value) for value in (5, "122", None, (1, 2), (1, 2, 0), (1, 2, True), (1, 2, 2.0), (1, 2, HUGE))),
    *((name, value) for name in ("text_flow", "source", "latent_space") for value in ("prose", None, ["x"], 1)),
    *(("time_rounding", value) for value in ("", "bf16", None, True)),
    *(("text_inv_freq", value) for value in ("x", 1.0, [1.0] * 11, [1.0] * 13, [True] * 12, [-1.0] + [1.0] * 11)),
    *(("text_inv_freq", [1.0] * 11 + [value]) for value in (float("nan"), float("inf"), HUGE, "1", None)),
    ("num_layers", 10**6),
    ("freq_dim", 33),
]
WRONG_RUN: list[tuple[str, Any]] = [
    *(
        (name, value)
        for name in ("height", "width")
        for value in (0, 8, 50, -48, 8208, 48.0, "48", None, True, [48], HUGE)
    ),
    *(("frames", value) for value in (0, -3, 10, 1029, 9.0, "9", None, True, HUGE)),
    *(("fps", value) for value in (0, -1, 241, "a", None, True, [24], float("nan"), float("inf"), HUGE)),
    *(("text_length", value) for value in (0, 4097, None, 16.0, True)),
    *(("context_length", value) for value in (0, 10**12, None, "512")),
    *((name, value) for name in ("steps", "text_steps") for value in (0, 10_001, 2.5, None, True)),
    *((name, value) for name in ("pad_token", "eos_token") for value in (-1, 10**12, None, 0.0, "0", True)),
    *(("shift", value) for value in (0, -3, "3", None, float("nan"), float("inf"), HUGE, True)),
    *(("text_temperature", value) for value in ("0", None, -0.1, 101, float("nan"), True)),
    *(("stop_when_sure", value) for value in ("0", None, -0.1, 1.1, float("nan"), True)),
    *((name, value) for name in ("text_states", "end_of_text") for value in ("prose", None, 1, True)),
    *(("checked", value) for value in (None, True, 1, "x" * 1001)),
    *(("guidance_scale", value) for value in ("5", None, [5], float("nan"), float("-inf"), -HUGE, False)),
]


def named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {"argvalues": pairs, "ids": [f"{name}={shown(value)}" for name, value in pairs]}


@pytest.mark.parametrize(("name", "value"), **named(WRONG_MODEL))
def test_wrong_network_entries_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UniViGUError, match=name) as caught:
        ModelConfig(**{**asdict(TINY), name: value})
    assert "expected" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("name", "value"), **named(WRONG_RUN))
def test_wrong_run_entries_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UniViGUError, match=f"^{name} is .*expected") as caught:
        RunConfig(**{name: value})
    assert len(str(caught.value)) < 300


def test_the_limits_themselves_are_allowed() -> None:
    small = ModelConfig(
        dim=2, ffn_dim=1, num_heads=1, num_layers=1, in_dim=1, out_dim=1, text_dim=1, freq_dim=2, vocab_size=0
    )
    assert ModelConfig(**asdict(small)) == small
    assert ModelConfig(eps=0.1, kappa_exponent=1e-3, patch_size=[1, 1, 1]).patch_size == (1, 1, 1)  # type: ignore[arg-type]
    RunConfig(height=16, width=8192, frames=1, fps=0.1, text_length=1, context_length=1, steps=1, text_steps=1)
    RunConfig(height=8192, width=16, frames=1025, fps=240, text_length=4096, context_length=8192, steps=10_000)
    RunConfig(shift=0.01, guidance_scale=-1.5, pad_token=5, eos_token=0)
    RunConfig(guidance_scale=0)
    RunConfig(text_temperature=0, stop_when_sure=1)


def test_every_configuration_survives_its_own_json() -> None:
    stated = replace(TINY, time_rounding="bfloat16", text_inv_freq=tuple(1 / n for n in range(1, 13)))
    run = replace(TINY_RUN, text_states="release", end_of_text="skip", checked="raw latents, release states: 3 of 3")
    for config in (
        CheckpointConfig(),
        CheckpointConfig(TINY, TINY_RUN, {"recipe": ["toy", 1]}),
        CheckpointConfig(stated, run),
    ):
        assert CheckpointConfig.from_json(config.to_json()) == config
        hash(config.model)


def test_an_embedding_flow_has_no_temperature() -> None:
    cold = RunConfig(text_temperature=0.0, stop_when_sure=0.7)
    assert CheckpointConfig(ModelConfig(), cold).run == cold
    run = CheckpointConfig(ModelConfig(text_flow="embedding"), cold).run
    assert (run.text_temperature, run.stop_when_sure) == (1, 0)


def test_tokens_lie_in_the_vocabulary() -> None:
    CheckpointConfig(TINY, RunConfig(pad_token=30))
    for name in ("pad_token", "eos_token"):
        with pytest.raises(UniViGUError, match=f"{name} is 31; expected a whole number from 0 to 30"):
            CheckpointConfig(TINY, RunConfig(**{name: 31}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a Uni-ViGU configuration"),
        ("[1]", "not a Uni-ViGU configuration"),
        ("{}", "transformer"),
        ('{"transformer": null}', "not a Uni-ViGU configuration"),
        ('{"transformer": {}, "run": []}', "not a Uni-ViGU configuration"),
        ('{"transformer": {}, "card": "words"}', "not a Uni-ViGU configuration"),
        ('{"transformer": {"dim": ' + "9" * 5000 + "}}", "not a Uni-ViGU configuration"),
        ("[" * 200_000, "not a Uni-ViGU configuration"),
        ('{"transformer": {"eps": "x"}}', "'config': eps is 'x'; expected"),
        ('{"transformer": {"kappa_exponent": [1]}}', r"kappa_exponent is \[1\]; expected"),
        ('{"transformer": {}, "run": {"fps": NaN}}', "fps is nan; expected"),
        ('{"transformer": {}, "run": {"pad_token": 1000000}}', "pad_token is 1000000; expected"),
    ],
)
def test_text_that_is_no_configuration(text: str, says: str) -> None:
    with pytest.raises(UniViGUError, match=says):
        CheckpointConfig.from_json(text)


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "frames is None": lambda data: data["run"].update(frames=None),
    "frames is 10": lambda data: data["run"].update(frames=10),
    "height is 50": lambda data: data["run"].update(height=50),
    "fps is 'a'": lambda data: data["run"].update(fps="a"),
    "steps is 0": lambda data: data["run"].update(steps=0),
    "pad_token is 1000000": lambda data: data["run"].update(pad_token=10**6),
    "pad_token is 31": lambda data: data["run"].update(pad_token=31),
    "context_length is 1000000000000": lambda data: data["run"].update(context_length=10**12),
    "eps is 'x'": lambda data: data["transformer"].update(eps="x"),
    "eps is None": lambda data: data["transformer"].update(eps=None),
    "eps is -1000000000.0": lambda data: data["transformer"].update(eps=-1e9),
    r"kappa_exponent is \[1\]": lambda data: data["transformer"].update(kappa_exponent=[1]),
    r"its metadata gives \[2\] heads": lambda data: data["transformer"].update(num_heads=[2]),
    "its metadata gives True heads": lambda data: data["transformer"].update(num_heads=True),
    "not a Uni-ViGU configuration": lambda data: data.update(run=None),
}


@pytest.mark.parametrize("says", CHANGES)
def test_wrong_metadata_is_told_with_the_file(tmp_path: Path, says: str) -> None:
    data = json.loads(CheckpointConfig(TINY, TINY_RUN).to_json())
    CHANGES[says](data)
    path = tmp_path / "model.safetensors"
    save_file(dict(random_network().state_dict()), path, {"config": json.dumps(data)})
    with pytest.raises(UniViGUError, match=rf"model\.safetensors: .*{says}.*( again|pass a right num_heads)"):
        read_config(path)
    if data["transformer"] != asdict(TINY) | {"patch_size": list(TINY.patch_size), "run": asdict(TINY_RUN)}:
        with pytest.raises(UniViGUError, match=rf"model\.safetensors: .*{says}"):
            load_model(path)
        assert not inspect_checkpoint(path).complete


def test_metadata_nested_without_end(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1)} | dict(random_network().state_dict()), path, {"config": "[" * 200_000})
    with pytest.raises(UniViGUError, match=r"model\.safetensors: metadata entry 'config' is not JSON"):
        read_config(path)
