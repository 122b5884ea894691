"""Checkpoints whose clean video does not see the text (``v2t_attention: one_way``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_networks import TINY, random_network
from torch import Tensor

from uvg_core import UniViGU, read_config
from uvg_core.checkpoint import load_model, save_model
from uvg_core.config import ModelConfig
from uvg_core.errors import UniViGUError
from uvg_core.model import PassOptions, Prediction

ONE_WAY = replace(TINY, v2t_attention="one_way")
CLEAN = {"time_video": torch.zeros(2), "time_text": torch.tensor([900.0, 512.0])}


@pytest.fixture
def one_way() -> UniViGU:
    return random_network(ONE_WAY)


def other_words(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**inputs, "text": (inputs["text"] + 7) % 31}


def held(inputs: dict[str, Tensor]) -> PassOptions:
    """The rows whose clock stands at 0 are held clean; a run's streams say so of all rows."""
    clean = inputs["time_video"] == 0
    return PassOptions(video_clean=bool(clean[0]) if bool((clean == clean[0]).all()) else clean)


def velocity(run: Callable[..., Prediction], inputs: dict[str, Tensor]) -> Tensor:
    found = run(**inputs, options=held(inputs)).velocity
    assert found is not None
    return found


def logits(run: Callable[..., Prediction], inputs: dict[str, Tensor]) -> Tensor:
    found = run(**inputs, options=held(inputs)).logits
    assert found is not None
    return found


def test_a_clean_video_does_not_see_the_text_and_a_noisy_one_does(one_way: UniViGU, inputs: dict[str, Tensor]) -> None:
    clean = {**inputs, **CLEAN}
    assert torch.equal(velocity(one_way, clean), velocity(one_way, other_words(clean)))
    assert not torch.allclose(velocity(one_way, inputs), velocity(one_way, other_words(inputs)))


def test_the_text_still_sees_the_video_and_itself(one_way: UniViGU, inputs: dict[str, Tensor]) -> None:
    clean = {**inputs, **CLEAN}
    said = logits(one_way, clean)
    assert not torch.allclose(said, logits(one_way, {**clean, "video": inputs["video"].flip(-1)}))
    changed = clean["text"].clone()
    changed[:, -1] = (changed[:, -1] + 1) % 31
    assert not torch.allclose(said[:, 0], logits(one_way, {**clean, "text": changed})[:, 0])


def test_without_text_or_with_noise_the_rule_changes_nothing(
    one_way: UniViGU, network: UniViGU, inputs: dict[str, Tensor]
) -> None:
    for given in (inputs, {**inputs, **CLEAN, "text": inputs["text"][:, :0]}):
        assert torch.equal(velocity(one_way, given), velocity(network, given))


@pytest.mark.parametrize("masked", [False, True])
def test_training_and_mixed_batches_follow_the_same_rule(
    one_way: UniViGU, inputs: dict[str, Tensor], masked: bool
) -> None:
    """Rows of a batch give what they give alone, in training mode too."""
    mixed = {**inputs, "time_video": torch.tensor([0.0, 800.0])}
    if masked:
        mixed["text_mask"] = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    rows = [{name: value[row : row + 1] for name, value in mixed.items()} for row in range(2)]
    alone = [one_way(**row, options=held(row)) for row in rows]
    for run in (one_way, random_network(ONE_WAY).train()):
        found = run(**mixed, options=held(mixed))
        for row, want in enumerate(alone):
            torch.testing.assert_close(found.velocity[row : row + 1], want.velocity, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.logits[row : row + 1], want.logits, rtol=1e-4, atol=1e-5)


def test_the_file_carries_the_rule(tmp_path: Path, one_way: UniViGU) -> None:
    path = tmp_path / "one_way.safetensors"
    save_model(one_way, path)
    assert read_config(path).model.v2t_attention == "one_way"
    assert load_model(path).config == one_way.config


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(UniViGUError, match="v2t_attention is 'sideways'; expected one of joint, one_way"):
        ModelConfig(v2t_attention="sideways")
