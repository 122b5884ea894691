"""What is written is read back bit for bit, by others too; failures leave nothing behind."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from uvg_core.checkpoint import Overrides, convert, load_model, read_config, save_model
from uvg_core.cli.main import main
from uvg_core.config import RunConfig
from uvg_core.errors import UniViGUError


def test_save_and_load_are_bit_identical(make, tmp_path):
    model = make(source="mask", kappa_exponent=2.0, latent_space="raw", held_parts="clean")
    save_model(model, tmp_path / "m.safetensors", run=RunConfig(steps=7), card={"recipe": "toy"})
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.config == model.config
    for (name, ours), (other, theirs) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
    config = read_config(tmp_path / "m.safetensors")
    assert (config.model, config.run.steps, config.card) == (model.config, 7, {"recipe": "toy"})


def test_the_metadata_holds_what_comfyui_needs(model, tmp_path):
    save_model(model, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    transformer = json.loads(metadata["config"])["transformer"]
    needed = ("num_heads", "freq_dim", "text_dim", "vocab_size")
    assert [transformer[name] for name in needed] == [2, 16, 20, 31]


def test_extra_parts_make_an_all_in_one_file(model, tmp_path):
    extra = {"vae.conv.weight": torch.ones(2, 3), "text_encoders.umt5xxl.spiece_model": torch.arange(9).to(torch.uint8)}
    save_model(model, tmp_path / "all.safetensors", dtype=torch.bfloat16, extra=extra)
    stored = load_file(tmp_path / "all.safetensors")
    assert stored["model.diffusion_model.token_embedding.weight"].dtype == torch.bfloat16
    assert all(torch.equal(stored[name], tensor) for name, tensor in extra.items())
    assert load_model(tmp_path / "all.safetensors").config == model.config
    with pytest.raises(UniViGUError, match="another name"):
        save_model(model, tmp_path / "x.safetensors", extra={"model.diffusion_model.x": torch.ones(1)})


def test_convert_reads_every_layout(model, tools, tmp_path, layout):
    path = tools.write_uni_vigu(model, layout, tmp_path)
    target = tmp_path / "converted.safetensors"
    seen = []
    convert(path, target, overrides=Overrides(num_heads=2), on_progress=lambda done, total: seen.append((done, total)))
    loaded = load_model(target)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    with safe_open(target, "pt") as file:
        prefix = "model.diffusion_model." if layout == "all-in-one" else ""
        assert {prefix + name for name in model.state_dict()} <= set(file.keys())
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] <= target.stat().st_size


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16), (None, torch.float32)]
)
def test_convert_to_another_dtype(model, tools, tmp_path, dtype, expected):
    path = tools.write_uni_vigu(model, "release", tmp_path)
    convert(path, tmp_path / "c.safetensors", dtype=dtype)
    weights = load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(weights[name], tensor.to(expected)) for name, tensor in model.state_dict().items())


def test_converting_carries_run_card_other_metadata_and_overrides(make, tools, tmp_path):
    save_model(make(), tmp_path / "a.safetensors", run=RunConfig(steps=9), card={"x": 1})
    convert(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="bf16", overrides=Overrides(latent_space="raw")
    )
    config = read_config(tmp_path / "b.safetensors")
    assert (config.run.steps, config.card, config.model.latent_space) == (9, {"x": 1}, "raw")


def test_other_parts_are_carried_over_unchanged(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "all-in-one", tmp_path)
    convert(path, tmp_path / "c.safetensors", dtype="fp8")
    before, after = load_file(path), load_file(tmp_path / "c.safetensors")
    for name in ("vae.conv1.weight", "text_encoders.umt5xxl.x"):
        assert torch.equal(before[name], after[name])
        assert before[name].dtype == after[name].dtype


def test_same_input_same_bytes(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "release", tmp_path)
    for name in ("a", "b"):
        convert(path, tmp_path / f"{name}.safetensors", dtype="fp8")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("where", ["uvg_core.checkpoint.write.bytes_of", "os.replace"])
def test_a_full_disk_leaves_nothing_behind(model, tools, tmp_path, monkeypatch, where):
    source = tools.write_uni_vigu(model, "native", tmp_path)
    target = tmp_path / "out" / "m.safetensors"
    target.parent.mkdir()
    target.write_bytes(b"older")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, full)
    for write in (lambda: save_model(model, target), lambda: convert(source, target)):
        with pytest.raises(UniViGUError, match=r"m\.safetensors.*No space left.*Free some space"):
            write()
        assert [file.name for file in target.parent.iterdir()] == ["m.safetensors"]
        assert target.read_bytes() == b"older"


def test_cancelling_leaves_nothing_behind(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "native", tmp_path)

    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, tmp_path / "c.safetensors", on_progress=cancel)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_impossible_targets(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "native", tmp_path)
    for target, message in (
        (tmp_path / "no" / "m.safetensors", "folder does not exist"),
        (path / "m.safetensors", "folder does not exist"),
        (tmp_path / "m.pth", "ends in .safetensors"),
        (path, "onto a file"),
    ):
        with pytest.raises(UniViGUError, match=message):
            convert(path, target)
    with pytest.raises(UniViGUError, match="expected one of bf16"):
        convert(path, tmp_path / "c.safetensors", dtype="int4")


def test_numbers_that_do_not_fit_are_not_written(make, tmp_path):
    model = make()  # one of its own: it is damaged
    with torch.no_grad():
        model.blocks[0].ffn[0].weight[0, 0] = 1e6
    save_model(model, tmp_path / "large.safetensors", dtype=torch.float32)
    with pytest.raises(UniViGUError, match=r"blocks\.0\.ffn\.0\.weight: its largest number, 1e\+06, .*choose bf16"):
        convert(tmp_path / "large.safetensors", tmp_path / "c.safetensors", dtype="fp16")
    convert(tmp_path / "large.safetensors", tmp_path / "c.safetensors", dtype="bf16")
    with torch.no_grad():
        model.blocks[0].ffn[0].weight[0, 0] = float("nan")
    save_model(model, tmp_path / "broken.safetensors", dtype=torch.float32)
    for dtype in ("bf16", "fp8"):
        with pytest.raises(UniViGUError, match="values that are not numbers"):
            convert(tmp_path / "broken.safetensors", tmp_path / "d.safetensors", dtype=dtype)
    assert not (tmp_path / "d.safetensors").exists()


def test_a_weight_that_overflows_is_kept_in_bf16_on_request(make, tmp_path):
    model = make()
    with torch.no_grad():
        model.blocks[0].ffn[0].weight[0, 0] = 1e6
    save_model(model, tmp_path / "large.safetensors", dtype=torch.float32)
    convert(tmp_path / "large.safetensors", tmp_path / "c.safetensors", dtype="fp16", overflow="bf16")
    stored = load_file(tmp_path / "c.safetensors")
    assert {name for name, weight in stored.items() if weight.dtype == torch.bfloat16} == {"blocks.0.ffn.0.weight"}
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16, torch.float16}
    again = load_model(tmp_path / "c.safetensors", dtype=torch.float32)
    torch.testing.assert_close(again.blocks[0].ffn[0].weight, model.blocks[0].ffn[0].weight, rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        model.blocks[0].ffn[0].weight[0, 0] = float("inf")
    save_model(model, tmp_path / "inf.safetensors", dtype=torch.float32)
    with pytest.raises(UniViGUError, match=r"blocks\.0\.ffn\.0\.weight: holds values that are not numbers"):
        convert(tmp_path / "inf.safetensors", tmp_path / "d.safetensors", dtype="fp16", overflow="bf16")


def test_a_lora_is_not_written_over(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "native", tmp_path)
    lora = tmp_path / "lora.safetensors"
    weight = model.blocks[0].ffn[0].weight
    save_file({f"diffusion_model.blocks.0.ffn.0.lora_{k}.weight": w for k, w in
               (("A", torch.ones(1, weight.shape[1])), ("B", torch.ones(weight.shape[0], 1)))}, lora)  # fmt: skip
    before = lora.read_bytes()
    with pytest.raises(UniViGUError, match="onto a file that is being read"):
        convert(path, lora, loras=[lora])
    for command in (["convert", str(path), str(lora), "--lora", str(lora)],
                    ["check", "--vae", str(lora), "--write", str(lora)]):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
    assert lora.read_bytes() == before


def test_a_header_that_begins_like_a_pickle_is_still_safetensors(model, tmp_path):
    path = tmp_path / "m.safetensors"
    for padding in range(0, 256, 8):
        save_model(model, path, card={"filler": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert load_model(path).config == model.config
