"""Every layout loads to the same network; what the file does not say is asked for, never guessed wrongly."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_networks import GOLDEN

from uvg_core.checkpoint import Overrides, load_model, read_config, read_part, save_model
from uvg_core.errors import UniViGUError


def test_every_layout_gives_the_same_network(model, tools, tmp_path, layout):
    path = tools.write_uni_vigu(model, layout, tmp_path)
    heads = {"num_heads": 2} if layout == "bare native" else {}
    loaded = load_model(path, overrides=Overrides(**heads))
    assert not loaded.training
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    inputs = tools.some_inputs(model.config)
    for ours, theirs in zip(loaded(**inputs), model(**inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_a_loaded_model_does_not_depend_on_its_file(model, tools, tmp_path):
    for layout in ("native", "release"):
        path = tools.write_uni_vigu(model, layout, tmp_path / layout)
        loaded = load_model(path)
        path.write_bytes(b"\xff" * path.stat().st_size)  # in place: a mapping would show it
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["forward_uniform", "forward_masked_source", "forward_padded_text"])
def test_golden_files_load_directly_and_agree(name):
    path = GOLDEN / f"{name}.safetensors"
    loaded = load_model(path)
    tensors = load_file(path)
    masked = name == "forward_masked_source"
    assert (loaded.config.source, loaded.config.vocab_size) == (("mask", 61) if masked else ("uniform", 97))
    inputs = {key.removeprefix("input."): value for key, value in tensors.items() if key.startswith("input.")}
    prediction = loaded(**inputs)
    torch.testing.assert_close(prediction.velocity, tensors["output.velocity"], atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction.logits, tensors["output.logits"], atol=1e-5, rtol=0)


def test_dtype_on_request_and_by_majority(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "native", tmp_path)
    assert tools.dtypes(load_model(path, dtype=torch.bfloat16)) == {torch.bfloat16}
    mixed = {n: t if t.ndim == 1 else t.bfloat16() for n, t in tools.weights_of(model).items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    assert tools.dtypes(load_model(tmp_path / "mixed.safetensors", overrides=Overrides(num_heads=2))) == {
        torch.bfloat16
    }


def test_layers_come_from_the_injected_operations(model, tools, tmp_path):
    class Operations(torch.nn.Module):
        class Linear(torch.nn.Linear):
            pass

        Conv3d, Embedding, LayerNorm, RMSNorm = (
            torch.nn.Conv3d,
            torch.nn.Embedding,
            torch.nn.LayerNorm,
            torch.nn.RMSNorm,
        )

    loaded = load_model(tools.write_uni_vigu(model, "native", tmp_path), operations=Operations)
    assert type(loaded.blocks[0].ffn_t[0]) is Operations.Linear


def test_text_flow_is_seen_in_the_head_or_stated(make, tools, tmp_path):
    model = make(text_flow="embedding", vocab_size=31)
    path = tools.write_uni_vigu(model, "release", tmp_path)
    loaded = load_model(path)
    assert loaded.config.text_flow == "embedding"
    assert loaded(**tools.some_inputs(loaded.config)).logits.shape == (1, 5, 24)
    # as many tokens as channels: the shapes say nothing, so the discrete rule holds unless somebody says otherwise
    ambiguous = tools.write_uni_vigu(make(text_flow="embedding", vocab_size=24), "release", tmp_path / "b")
    assert load_model(ambiguous).config.text_flow == "discrete"
    assert load_model(ambiguous, overrides=Overrides(text_flow="embedding")).config.text_flow == "embedding"


def test_arguments_may_not_contradict_the_file(make, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(make(source="mask"), path)
    assert load_model(path).config.vocab_size == 31
    for wrong in ({"text_flow": "embedding"}, {"source": "uniform"}, {"num_heads": 3}):
        with pytest.raises(UniViGUError, match=rf"m\.safetensors.*{next(iter(wrong))}"):
            load_model(path, overrides=Overrides(**wrong))
    assert load_model(path, overrides=Overrides(latent_space="raw")).config.latent_space == "raw"


def test_heads_are_asked_for_where_nothing_shows_them(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "bare native", tmp_path)
    with pytest.raises(UniViGUError, match="pass num_heads"):
        load_model(path)
    with pytest.raises(UniViGUError, match="divide width 24"):
        load_model(path, overrides=Overrides(num_heads=7))
    assert load_model(path, overrides=Overrides(num_heads=3)).config.num_heads == 3
    # the release's rotary buffer shows them
    assert load_model(tools.write_uni_vigu(model, "release", tmp_path)).config.num_heads == 2
    with pytest.raises(UniViGUError, match="contradictory"):
        load_model(tmp_path / "model.pth", overrides=Overrides(num_heads=3))


def test_wan_rule_of_128_channels_per_head(make, tmp_path):
    save_file(dict(make(dim=256, num_layers=1).state_dict()), tmp_path / "wide.safetensors")
    assert load_model(tmp_path / "wide.safetensors").config.num_heads == 2


def test_read_config_reads_every_layout(model, tools, tmp_path, layout):
    path = tools.write_uni_vigu(model, layout, tmp_path)
    if layout == "bare native":
        with pytest.raises(UniViGUError, match="num_heads"):
            read_config(path)
        return
    config = read_config(path).model
    assert (config.dim, config.num_heads, config.token_rows) == (24, 2, 31)
    assert config.latent_space == ("raw" if "release" in layout else "normalised")


def test_read_part(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "all-in-one", tmp_path)
    part = read_part(path, "vae.")
    assert list(part) == ["conv1.weight"]
    assert torch.equal(part["conv1.weight"], torch.ones(3))
    assert read_part(path, "nothing.") == {}


def test_scalars_empty_and_narrow_tensors_are_read(tmp_path):
    tensors = {"a": torch.tensor(3.0), "b": torch.zeros(0, 4), "c": torch.tensor([True]), "d": torch.ones(3).half()}
    save_file(tensors, tmp_path / "odd.safetensors")
    for name, tensor in read_part(tmp_path / "odd.safetensors", "").items():
        assert torch.equal(tensor, tensors[name])
        assert tensor.dtype == tensors[name].dtype


def test_metadata_of_newer_files_is_tolerated(model, tmp_path):
    config = {"transformer": {"num_heads": 2, "invented_later": 1}, "run": {"later": 2}, "later": 3}
    save_file(dict(model.state_dict()), tmp_path / "new.safetensors", {"config": json.dumps(config)})
    assert load_model(tmp_path / "new.safetensors").config.num_heads == 2
