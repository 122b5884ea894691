"""The rename tables are one-to-one."""

import pytest

from uvg_core.checkpoint.keys import from_native, layout_of, network_prefix, strip_wrappers, to_native


def test_release_names_go_round_for_every_weight(model):
    names = list(model.state_dict())
    release = [from_native(name, "release") for name in names]
    assert None not in release
    assert len(set(release)) == len(names)
    assert [to_native(name, "release") for name in release] == names


def test_diffusers_names_go_round_for_the_video_half_and_know_no_other(model, tools):
    video = [name for name in model.state_dict() if tools.is_video(name)]
    diffusers = [from_native(name, "diffusers") for name in video]
    assert len(set(diffusers)) == len(video)
    assert [to_native(name, "diffusers") for name in diffusers] == video
    assert from_native("text_head.norm.weight", "diffusers") is None


def test_native_and_wan_names_stay(model):
    for name in model.state_dict():
        assert to_native(name, "native") == name == from_native(name, "wan")


def test_unknown_names_are_not_guessed():
    assert to_native("blocks.0.attn2.add_k_proj.weight", "diffusers") is None
    assert to_native("video_head.proj_in.weight", "release") is None


@pytest.mark.parametrize(
    "name",
    [
        "module.blocks.0.modulation",
        "_orig_mod.module.blocks.0.modulation",
        "module._orig_mod._fsdp_wrapped_module.blocks.0.modulation",
        "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.modulation",
    ],
)
def test_wrappers_leave_no_trace(name):
    assert strip_wrappers(name) == "blocks.0.modulation"


def test_layouts_are_told_by_names():
    assert layout_of(["text_head.head.weight", "patch_embedding.weight"]) == "native"
    assert layout_of(["vocab_embed.weight"]) == "release"
    assert layout_of(["head.modulation", "patch_embedding.weight"]) == "wan"
    assert layout_of(["condition_embedder.time_proj.weight", "scale_shift_table"]) == "diffusers"
    # umT5's original file has a token_embedding of its own
    assert layout_of(["token_embedding.weight", "blocks.0.attn.q.weight"]) == "unknown"
    assert network_prefix(["vae.x", "model.diffusion_model.text_head.head.weight"]) == "model.diffusion_model."
