"""Which files a folder means, as diffusers, transformers and Wan lay them out."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from uvg_core.checkpoint import init_from_wan
from uvg_core.checkpoint.keys import from_native
from uvg_core.checkpoint.locate import locate
from uvg_core.checkpoint.read import open_weights
from uvg_core.errors import UniViGUError

STEM = "diffusion_pytorch_model"
INDICES = [
    (f"{STEM}.safetensors.index.json", f"{STEM}-0000{{}}-of-00002.safetensors"),
    (f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16-0000{{}}-of-00002.safetensors"),
    (f"{STEM}.safetensors.fp16.index.json", f"{STEM}-0000{{}}-of-00002.fp16.safetensors"),
    ("model.safetensors.index.bf16.json", "model.bf16-0000{}-of-00002.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model-0000{}-of-00002.bin"),
    ("pytorch_model.bin.index.fp16.json", "pytorch_model.fp16-0000{}-of-00002.bin"),
]


def write(path, tensors):
    if path.suffix in (".safetensors", ".sft"):
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def write_shards(folder, index, shard, value=1.0):
    weight_map = {}
    for number in (1, 2):
        weight_map[f"w{number}"] = shard.format(number)
        write(folder / shard.format(number), {f"w{number}": torch.full((2,), number * value)})
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(("index", "shard"), INDICES)
def test_shards_of_every_name_are_read_as_one(index, shard, tmp_path):
    write_shards(tmp_path, index, shard)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    torch.save({"step": 1}, tmp_path / "optimizer.bin")
    for path in (tmp_path, tmp_path / index):
        file = open_weights(path)
        assert {name: file.read(name).tolist() for name in file.tensors} == {"w1": [1.0, 1.0], "w2": [2.0, 2.0]}
        assert file.facts == {"num_attention_heads": 2}
    (tmp_path / shard.format(2)).unlink()
    with pytest.raises(UniViGUError, match=rf"{re.escape(index)}: lists 2 shards, of which 1 are missing"):
        open_weights(tmp_path)


@pytest.mark.parametrize("plain", [f"{STEM}.safetensors", INDICES[0][0]])
@pytest.mark.parametrize("variant", [f"{STEM}.fp16.safetensors", INDICES[1][0], INDICES[2][0]])
def test_the_full_precision_goes_before_its_variant(plain, variant, tmp_path):
    shards = dict(INDICES)
    for name, value in ((plain, 1.0), (variant, 3.0)):
        if name in shards:
            write_shards(tmp_path, name, shards[name], value)
        else:
            write(tmp_path / name, {"w1": torch.full((2,), value)})
    assert open_weights(tmp_path).read("w1").tolist() == [1.0, 1.0]
    assert open_weights(tmp_path / variant).read("w1").tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.fp16.safetensors"], "model.fp16.safetensors"),
        (["model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.safetensors", "pytorch_model.bin", "training_args.bin"], "model.safetensors"),
        (["pytorch_model.bin", "optimizer.bin", "training_args.bin"], "pytorch_model.bin"),
        (["pytorch_model.bin", "pytorch_model.fp16.bin"], "pytorch_model.bin"),
        (
            ["diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"],
            f"{STEM}.safetensors",
        ),
        (["step-00010000.pth", "notes.txt"], "step-00010000.pth"),
        (["a.safetensors", "b.fp16.safetensors"], None),
        (["model.bf16.safetensors", "model.fp16.safetensors"], None),
        (["model.ema.safetensors", "model.safetensors"], None),
        (["a.pth", "b.pt"], None),
    ],
)
def test_one_file_of_a_folder(names, chosen, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    if chosen is None:
        with pytest.raises(UniViGUError, match=rf"several files could be meant \({names[0]}, {names[1]}\)"):
            locate(tmp_path)
    else:
        assert [file.name for file in locate(tmp_path).files] == [chosen]


def test_a_wan_base_in_half_precision_shards(model, tools, tmp_path):
    half = {str(from_native(n, "diffusers")): w.half() for n, w in tools.weights_of(model).items() if tools.is_video(n)}
    home = tmp_path / "transformer"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"num_attention_heads": model.config.num_heads}))
    names, (index, shard) = sorted(half), INDICES[1]
    for number in (1, 2):
        save_file({name: half[name] for name in names[number - 1 :: 2]}, home / shard.format(number))
    weight_map = {name: shard.format(1 + i % 2) for i, name in enumerate(names)}
    (home / index).write_text(json.dumps({"weight_map": weight_map}))
    made = init_from_wan(tmp_path, vocab_size=9)
    assert tools.dtypes(made) == {torch.float16}
    assert made.config.num_heads == model.config.num_heads


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("models_t5_umt5-xxl-enc-bf16.pth", ["token_embedding.weight", "blocks.0.attn.q.weight", "norm.weight"]),
        ("Wan2.1_VAE.pth", ["encoder.conv1.weight", "conv1.weight", "decoder.head.0.gamma"]),
    ],
)
def test_the_original_files_of_wan(file, names, zipped, tmp_path):
    tensors = {name: torch.randn(3, 2).bfloat16() for name in names}
    torch.save(tensors, tmp_path / file, _use_new_zipfile_serialization=zipped)
    opened = open_weights(tmp_path / file)
    assert list(opened.tensors) == names
    assert not opened.ignored
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in tensors.items())
