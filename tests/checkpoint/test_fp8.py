"""Eight-bit files: bounded error, and the layout that ComfyUI's loader expects."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from uvg_core.checkpoint import Overrides, convert, load_model
from uvg_core.checkpoint.quant import dequantise, quantise
from uvg_core.errors import UniViGUError

FP8 = torch.float8_e4m3fn


@pytest.fixture
def files(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "release", tmp_path)
    convert(path, tmp_path / "fp8.safetensors", dtype="fp8")
    return path, tmp_path / "fp8.safetensors"


@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e4])
def test_round_trip_error_is_bounded_by_the_format(magnitude):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * magnitude
    numbers, scale = quantise(weight)
    assert numbers.dtype == FP8
    assert scale.dtype == torch.float32
    assert scale.shape == ()
    assert numbers.float().abs().max() == 448
    # three bits behind the point: half a step is 1/16 of the value, and below 2^-6 half of 2^-9
    bound = torch.maximum(weight.abs() / 16, scale * 2**-10) * (1 + 1e-5)
    assert ((dequantise(numbers, scale) - weight).abs() <= bound).all()


def test_zero_weights_stay_zero():
    numbers, scale = quantise(torch.zeros(3, 3))
    assert scale == 1
    assert not numbers.float().any()


def test_only_the_blocks_matrices_are_quantised(model, files):
    with safe_open(files[1], "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(layers) == 2 * (4 + 4 + 2 + 2)
    for layer, entry in layers.items():
        assert entry["format"] == "float8_e4m3fn"
        assert stored[f"{layer}.weight"].dtype == FP8
        assert stored[f"{layer}.weight_scale"].shape == ()
        assert stored[f"{layer}.weight_scale"].dtype == torch.float32
        assert isinstance(model.get_submodule(layer), torch.nn.Linear)
    rest = {n for n in stored if n.removesuffix("_scale").removesuffix(".weight") not in layers}
    assert {stored[name].dtype for name in rest} == {torch.bfloat16}


def test_layers_are_named_with_the_prefix_of_an_all_in_one_file(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "all-in-one", tmp_path)
    convert(path, tmp_path / "c.safetensors", dtype="fp8")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    assert "model.diffusion_model.blocks.0.ffn_t.0" in layers
    assert load_model(tmp_path / "c.safetensors").config.num_heads == 2


def test_loading_restores_the_values(model, tools, files):
    assert tools.dtypes(load_model(files[1])) == {torch.bfloat16}
    exact = load_model(files[1], dtype=torch.float32)
    for (name, ours), theirs in zip(exact.named_parameters(), model.parameters(), strict=True):
        largest = theirs.abs().max()
        assert (ours - theirs).abs().max() <= largest / 16, name


def test_converting_again_changes_nothing(files, tmp_path):
    for dtype in (None, "fp8"):
        convert(files[1], tmp_path / "again.safetensors", dtype=dtype)
        before, after = load_file(files[1]), load_file(tmp_path / "again.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name].float(), after[name].float()) for name in before)


def test_back_to_bf16(files, tmp_path):
    convert(files[1], tmp_path / "bf16.safetensors", dtype="bf16")
    stored = load_file(tmp_path / "bf16.safetensors")
    assert not any(name.endswith("_scale") for name in stored)
    restored = load_model(files[1])
    assert all(torch.equal(stored[name], p) for name, p in restored.named_parameters())


def test_files_that_comfyui_saved_are_read(files, tmp_path):
    """Core keeps the entry of each layer as a tensor, and older files call the scale ``scale_weight``."""
    stored = load_file(files[1])
    entry = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    scales = [name for name in stored if name.endswith("weight_scale")]
    core = stored | {name.replace("weight_scale", "comfy_quant"): entry.clone() for name in scales}
    old = {n.replace("weight_scale", "scale_weight"): t for n, t in stored.items()} | {"scaled_fp8": torch.zeros(2)}
    expected = load_model(files[1])
    for tensors in (core, old):
        save_file(tensors, tmp_path / "x.safetensors")
        loaded = load_model(tmp_path / "x.safetensors", overrides=Overrides(num_heads=2))
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))


def test_other_quantisations_are_named(files, tmp_path):
    stored = load_file(files[1])
    save_file(stored | {"blocks.0.ffn.0.weight": torch.zeros(40, 24, dtype=torch.int8)}, tmp_path / "int8.safetensors")
    with pytest.raises(UniViGUError, match=r"blocks.0.ffn.0.weight is stored as I8.*bf16"):
        load_model(tmp_path / "int8.safetensors", overrides=Overrides(num_heads=2))
    save_file(stored | {"blocks.0.ffn.0.weight_scale": torch.ones(40)}, tmp_path / "rows.safetensors")
    with pytest.raises(UniViGUError, match="40 values, expected one per tensor"):
        load_model(tmp_path / "rows.safetensors", overrides=Overrides(num_heads=2))
