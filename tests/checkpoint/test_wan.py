"""A fresh Uni-ViGU is the Wan base it came from."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from uvg_core.checkpoint import Overrides, init_from_wan, load_model
from uvg_core.errors import UniViGUError


@pytest.fixture
def wan(model, tools, tmp_path):
    return tools.write_wan(model, "wan", tmp_path)


def test_without_text_it_is_the_base_under_every_naming(model, tools, tmp_path, wan_layout):
    path = tools.write_wan(model, wan_layout, tmp_path)
    heads = {} if "diffusers" in wan_layout else {"num_heads": 2}
    fresh = init_from_wan(path, vocab_size=50, overrides=Overrides(**heads))
    inputs = tools.some_inputs(model.config, length=0)
    assert torch.equal(fresh(**inputs).velocity, model(**inputs).velocity)


def test_text_half_starts_as_copies_zero_and_noise(wan):
    fresh = init_from_wan(wan, vocab_size=50, overrides=Overrides(source="mask", num_heads=2), seed=3)
    weights = fresh.state_dict()
    copies = {
        "blocks.1.ffn_t.2.weight": "blocks.1.ffn.2.weight",
        "time_embedding_t.0.bias": "time_embedding.0.bias",
        "time_projection_t.1.weight": "time_projection.1.weight",
        "text_head.modulation": "head.modulation",
    }
    for text, video in copies.items():
        assert torch.equal(weights[text], weights[video])
    storages = [tensor.untyped_storage().data_ptr() for tensor in weights.values()]
    assert len(set(storages)) == len(storages)
    assert (weights["text_head.norm.weight"] == 1).all()
    assert not weights["text_head.head.weight"].any()
    assert not weights["text_head.head.bias"].any()
    assert weights["token_embedding.weight"].shape == (51, 24)
    assert weights["token_embedding.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert all(p.requires_grad for p in fresh.parameters())


def test_the_seed_decides(wan):
    first, same, other = (
        init_from_wan(wan, vocab_size=50, overrides=Overrides(num_heads=2), seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(first.token_embedding.weight, same.token_embedding.weight)
    assert not torch.equal(first.token_embedding.weight, other.token_embedding.weight)


def test_embedding_flow_and_dtype(wan, tools):
    fresh = init_from_wan(
        wan, vocab_size=50, overrides=Overrides(text_flow="embedding", num_heads=2), dtype=torch.bfloat16
    )
    assert fresh.text_head.head.weight.shape == (24, 24)
    assert tools.dtypes(fresh) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "shape"), [("img_emb.proj.0.bias", (24,)), ("vace_patch_embedding.weight", (24, 96, 1, 2, 2))]
)
def test_other_variants_are_refused(wan, name, shape):
    save_file(load_file(wan) | {name: torch.zeros(shape)}, wan)
    with pytest.raises(UniViGUError, match=rf"another Wan variant \({name}\)"):
        init_from_wan(wan, vocab_size=50, overrides=Overrides(num_heads=2))


def test_image_to_video_channels_are_refused(make, tools, tmp_path):
    path = tools.write_wan(make(in_dim=36), "diffusers folder", tmp_path)
    with pytest.raises(UniViGUError, match="36 input channels"):
        init_from_wan(path, vocab_size=50)


def test_each_loader_names_the_other(model, tools, wan, tmp_path):
    with pytest.raises(UniViGUError, match=r"plain Wan base.*init_from_wan"):
        load_model(wan)
    with pytest.raises(UniViGUError, match=r"Uni-ViGU checkpoint.*load_model"):
        init_from_wan(tools.write_uni_vigu(model, "native", tmp_path), vocab_size=50)


def test_incomplete_bases(model, tools, tmp_path):
    folder = tools.write_wan(model, "diffusers shards", tmp_path / "shards")
    next(folder.glob("*-2-of-2.safetensors")).unlink()
    with pytest.raises(UniViGUError, match=r"1 are missing \(first: diffusion_pytorch_model-2-of-2"):
        init_from_wan(folder, vocab_size=50)
    wan = tools.write_wan(model, "wan", tmp_path)
    weights = load_file(wan)
    del weights["blocks.1.cross_attn.o.bias"]
    save_file(weights, wan)
    with pytest.raises(UniViGUError, match=r"1 missing \(first: blocks.1.cross_attn.o.bias"):
        init_from_wan(wan, vocab_size=50, overrides=Overrides(num_heads=2))


def test_bad_arguments_and_facts(model, tools, wan, tmp_path):
    with pytest.raises(UniViGUError, match="vocab_size is 0"):
        init_from_wan(wan, vocab_size=0, overrides=Overrides(num_heads=2))
    folder = tools.write_wan(model, "diffusers folder", tmp_path / "d")
    (folder / "config.json").write_text("{")
    with pytest.raises(UniViGUError, match=r"config\.json.*JSON"):
        init_from_wan(folder, vocab_size=50)


def test_heads_of_the_original_config_json(model, tools, tmp_path):
    folder = tools.write_wan(model, "wan", tmp_path).parent
    (folder / "config.json").write_text(json.dumps({"num_heads": 3, "model_type": "t2v"}))
    assert init_from_wan(folder, vocab_size=50).config.num_heads == 3
