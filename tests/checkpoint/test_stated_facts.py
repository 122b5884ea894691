"""What a file states beyond its sizes reaches the network and the next file: frequencies, rounded clocks, recipe."""

import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from uvg_core import UniViGUError, convert, inspect_checkpoint, load_model, read_config
from uvg_core.checkpoint import Overrides
from uvg_core.config import CheckpointConfig, RunConfig
from uvg_core.model.rope import frequencies, rotations, text_angles

STORED = "rotary_emb_text.inv_freq"


def with_frequencies(tools, model, folder, values):
    path = tools.write_uni_vigu(model, "release", folder)
    whole = torch.load(path, weights_only=True)
    whole["model"][STORED] = values
    torch.save(whole, path)
    return path


def test_frequencies_rounded_by_the_file_are_used_and_said(model, tools, tmp_path, caplog):
    rounded = frequencies(12).bfloat16()
    path = with_frequencies(tools, model, tmp_path, rounded)
    with caplog.at_level(logging.INFO):
        loaded = load_model(path)
    said = [record.message for record in caplog.records if "rotary" in record.message]
    assert len(said) == 1
    assert "they are used" in said[0]
    assert loaded.config.text_inv_freq == tuple(rounded.tolist())
    assert "text rotary" in str(inspect_checkpoint(path))

    inputs = tools.some_inputs(loaded.config, 400)  # tokens far from each other
    by_formula = load_model(tools.write_uni_vigu(model, "release", tmp_path / "formula"))
    assert by_formula.config.text_inv_freq is None
    gap = loaded(**inputs).logits - by_formula(**inputs).logits
    assert gap.abs().max() > 5e-5  # rounding alone: 5e-6

    convert(path, tmp_path / "native.safetensors")
    again = load_model(tmp_path / "native.safetensors")
    assert again.config.text_inv_freq == loaded.config.text_inv_freq
    assert torch.equal(again(**inputs).logits, loaded(**inputs).logits)
    assert "text rotary" in str(inspect_checkpoint(tmp_path / "native.safetensors"))


@pytest.mark.parametrize("stored", [frequencies(12), frequencies(12).float()])
def test_the_formulas_own_frequencies_are_not_worth_a_word(model, tools, tmp_path, caplog, stored):
    path = with_frequencies(tools, model, tmp_path, stored)
    assert read_config(path).model.text_inv_freq is None
    load_model(path)
    assert not [record for record in caplog.records if "rotary" in record.message]
    assert "text rotary" not in str(inspect_checkpoint(path))


@pytest.mark.parametrize(
    ("stored", "says"),
    [(torch.ones(7), "has 7 values, expected 12"), (torch.full((6,), torch.nan), "text_inv_freq is")],
)
def test_frequencies_that_are_none(model, tools, tmp_path, stored, says):
    path = with_frequencies(tools, model, tmp_path, stored)
    with pytest.raises(UniViGUError, match=says) as caught:
        load_model(path, overrides=Overrides(num_heads=2 if len(stored) == 6 else None))
    assert path.name in str(caught.value)


def test_rotations_turn_by_the_given_frequencies():
    """The angle is position times frequency; bfloat16 moves token 255 of a released head by 0.3 rad."""
    rounded = frequencies(128).bfloat16().double()
    turned = rotations(text_angles(256, 128, inv_freq=tuple(rounded.tolist())))
    angle = torch.outer(torch.arange(256.0, dtype=torch.float64), rounded)
    torch.testing.assert_close(turned.real.double(), angle.cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.imag.double(), angle.sin(), atol=1e-6, rtol=0)
    wanted = torch.outer(torch.arange(256.0), frequencies(128))
    assert float((angle - wanted).abs().max()) == pytest.approx(0.31, abs=5e-3)


def test_what_is_asked_for_is_written_and_kept(model, tools, tmp_path):
    original = tools.write_uni_vigu(model, "release", tmp_path)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    facts = {"text_states": "release", "end_of_text": "skip", "checked": "raw latents and release states fit"}
    convert(original, first, overrides=Overrides(time_rounding="bfloat16", **facts))
    convert(first, second, dtype="bf16")
    for path in (first, second):
        config = read_config(path)
        assert config.model.time_rounding == load_model(path).config.time_rounding == "bfloat16"
        assert {name: getattr(config.run, name) for name in facts} == facts
        report = str(inspect_checkpoint(path))
        assert all(value in report for value in (*facts.values(), "bfloat16"))
    assert load_model(first, overrides=Overrides(time_rounding="none")).config.time_rounding == "none"
    assert read_config(first, Overrides(checked="")).run == replace(read_config(first).run, checked="")
    assert "never" in str(inspect_checkpoint(original))
    with pytest.raises(UniViGUError, match="text_states is 'plain'"):
        read_config(first, Overrides(text_states="plain"))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_of_tensors_alone_states_its_facts_among_them(model, tmp_path, prefix):
    """As ComfyUI's own savers write it: they keep none of a file's metadata."""
    run = RunConfig(text_length=7, fps=5.0, text_states="release")
    facts = CheckpointConfig(replace(model.config, latent_space="raw"), run)
    text = torch.frombuffer(bytearray(facts.to_json().encode()), dtype=torch.uint8)
    weights = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    save_file({**weights, f"{prefix}uni_vigu.config": text}, tmp_path / "alone.safetensors")
    found = read_config(tmp_path / "alone.safetensors")
    assert (found.model, found.run) == (facts.model, run)
    assert load_model(tmp_path / "alone.safetensors").config == facts.model
    convert(tmp_path / "alone.safetensors", tmp_path / "again.safetensors")
    assert read_config(tmp_path / "again.safetensors").run == run


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (torch.ones(3), "expected a text in bytes"),
        (torch.zeros(2**20 + 1, dtype=torch.uint8), "expected a text in bytes"),
        (torch.tensor([1, 2], dtype=torch.uint8), "not JSON"),
        (torch.tensor(list(b"[1]"), dtype=torch.uint8), "expected a JSON object"),
        (torch.tensor(list(b'{"transformer": 3}'), dtype=torch.uint8), "not a JSON object"),
        (torch.tensor(list(b"[" * 100_000), dtype=torch.uint8), "not JSON"),
    ],
)
def test_facts_among_tensors_that_lie_are_refused_in_words(model, tmp_path, lie, why):
    save_file({**model.state_dict(), "uni_vigu.config": lie}, tmp_path / "lying.safetensors")
    with pytest.raises(UniViGUError, match=rf"lying\.safetensors: .*{why}"):
        read_config(tmp_path / "lying.safetensors")
