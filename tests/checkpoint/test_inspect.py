"""The report tells what is there without loading it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from uvg_core.checkpoint import inspect_checkpoint
from uvg_core.checkpoint.fit import Misfit
from uvg_core.checkpoint.read import WeightFile
from uvg_core.config import ModelConfig
from uvg_core.model import UniViGU, sdpa_attention


@pytest.fixture(autouse=True)
def no_weights_are_read(monkeypatch):
    def read(self, name, read=WeightFile.read):
        assert name.endswith("inv_freq"), f"{name} was read"
        return read(self, name)

    monkeypatch.setattr(WeightFile, "read", read)


def test_every_layout(model, tools, tmp_path, layout):
    report = inspect_checkpoint(tools.write_uni_vigu(model, layout, tmp_path))
    assert report.checkpoint.layout == ("release" if "release" in layout else "native")
    parts = dict(report.parts)
    if layout == "all-in-one":
        assert (parts.pop("vae"), parts.pop("text encoder umt5xxl")) == (3, 2)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert parts["token embedding"] == 31 * 24
    text = str(report)
    if layout == "bare native":
        assert not report.complete
        assert "pass num_heads (--num-heads" in text
        return
    assert report.complete
    assert "complete" in text
    assert "12 of" not in text
    assert "2 of 12" in text
    assert "discrete (assumed)" in text
    assert (report.checkpoint.weights.step == 12000) == (layout == "release")


def test_wan_bases(model, tools, tmp_path, wan_layout):
    report = inspect_checkpoint(tools.write_wan(model, wan_layout, tmp_path))
    assert report.checkpoint.layout == ("diffusers" if "diffusers" in wan_layout else "wan")
    assert list(report.parts) == ["video half"]
    assert report.complete == ("diffusers" in wan_layout)  # elsewhere nothing shows the number of heads
    assert report.misfit == Misfit()
    assert "plain Wan base" in str(report)
    assert "vocabulary" not in str(report)


def test_what_does_not_fit_is_listed(model, tools, tmp_path):
    path = tools.write_uni_vigu(model, "native", tmp_path)
    weights = load_file(path)
    del weights["blocks.1.ffn_t.0.bias"]
    weights |= {"blocks.0.novelty.weight": torch.ones(2), "head.head.bias": torch.ones(3)}
    save_file(weights, path, {"config": '{"transformer": {"num_heads": 2, "text_flow": "discrete"}}'})
    report = inspect_checkpoint(path)
    assert not report.complete
    assert report.misfit.missing == ("blocks.1.ffn_t.0.bias",)
    assert report.misfit.unexpected == ("blocks.0.novelty.weight",)
    assert report.misfit.misshapen == (("head.head.bias", (3,), (64,)),)
    assert "shape             1: head.head.bias [3] for [64]" in str(report)
    assert "text_flow" not in report.assumed
    assert "missing           1: blocks.1.ffn_t.0.bias" in str(report)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["blocks.0.self_attn.q.lora_A.weight"], "a LoRA"),
        (["diffusion_model.blocks.0.self_attn.q.lora_down.weight", "x.alpha"], "a LoRA"),
        (["encoder.conv1.weight", "decoder.conv1.weight", "conv2.weight"], "a VAE"),
        (["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 text encoder"),
        (["token_embedding.weight", "blocks.0.pos_embedding.embedding.weight"], "a T5 text encoder"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "another diffusion model"),
        (["something.weight"], "an unknown kind of file"),
    ],
)
def test_foreign_files_are_named(names, kind, tmp_path):
    save_file({name: torch.ones(2) for name in names}, tmp_path / "x.safetensors")
    report = inspect_checkpoint(tmp_path / "x.safetensors")
    assert report.checkpoint.layout == "unknown"
    assert f"not recognised: {kind}" in str(report)
    assert names[0] in str(report)


def test_the_full_model_is_counted_and_described(monkeypatch):
    """Sizes of design/model.md, section 2, from a table of contents alone."""
    from uvg_core.checkpoint import detect
    from uvg_core.checkpoint.read import Stored

    class Table(WeightFile):
        def read(self, name):
            raise AssertionError

    def opened(path):
        from pathlib import Path

        table = Table(Path(path))
        full = UniViGU(ModelConfig(), attention=sdpa_attention, device="meta")
        table.tensors = {name: Stored.like(t.shape, torch.bfloat16) for name, t in full.state_dict().items()}
        return table

    monkeypatch.setattr(detect, "open_weights", opened)
    report = inspect_checkpoint("full.safetensors")
    billions = {part: round(count / 1e9, 2) for part, count in report.parts.items()}
    assert billions == {
        "video half": 1.42,
        "text experts": 0.83,
        "token embedding": 0.39,
        "text head": 0.39,
        "text clock": 0.02,
    }
    assert report.config == ModelConfig()
    assert "12 (assumed) of 128" in str(report)
