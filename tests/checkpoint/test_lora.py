"""LoRA files of every kind against merges worked out by plain arithmetic; what does not fit is said."""

from __future__ import annotations

import json

import pytest
import torch
from lora_cases import CASES, FFN, RANK, Case, made_case
from safetensors.torch import load_file, save_file

from uvg_core import UniViGUError
from uvg_core.checkpoint import LoraChoice, convert, load_model
from uvg_core.checkpoint.keys import from_native, lora_place, lora_places
from uvg_core.checkpoint.lora import Lora
from uvg_core.checkpoint.quant import FP8
from uvg_core.config import ModelConfig


@pytest.fixture(scope="module")
def base(model, tools, tmp_path_factory):
    return tools.write_uni_vigu(model, "native", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def weights(model, tools):
    return tools.weights_of(model)


def close(found, expected, changed):
    for name, weight in expected.items():
        if name in changed:
            torch.testing.assert_close(found[name], weight, atol=3e-6, rtol=3e-5, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("name", CASES)
def test_a_file_does_what_its_numbers_say(name, base, weights, model, tools, tmp_path):
    case = made_case(name, weights)
    path = case.write(tmp_path / "in")
    lora = Lora(LoraChoice(path, 0.7, -1.5), model.config)
    assert not lora.match.unmatched
    assert not lora.match.unused
    assert lora.match.video + lora.match.text == lora.match.layers > 0
    assert set(lora.patches) == {*case.adds, *case.sets}
    loaded = load_model(base, loras=[LoraChoice(path, 0.7, -1.5)])
    expected = case.merged(lambda n: 0.7 if tools.is_video(n) else -1.5)
    close(loaded.state_dict(), expected, lora.patches)
    convert(base, tmp_path / "merged.safetensors", loras=[f"{path}:1:0"])
    expected = case.merged(lambda n: float(tools.is_video(n)))
    close(load_file(tmp_path / "merged.safetensors"), expected, lora.patches)
