"""Patches, wrappers, LoRA, low memory and compilation: what plain Wan accepts, with plain Wan's result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from in_comfyui_host import Inside
from lora_cases import CASES, made_case
from tiny_networks import TINY, random_network

from uvg_core.checkpoint import save_model

SAME = 1e-5


def test_patches_do_to_ours_what_they_do_to_wan(inside: Inside) -> None:
    found = inside.call("patches", "patched")
    for name, value in found.items():
        assert value["gap"] <= SAME, (name, value)
        assert value["effect"] > 1e-3, (name, value)


def test_patches_reach_joint_runs(inside: Inside) -> None:
    for name, (effect, shape) in inside.call("patches", "patched_joint_runs").items():
        assert effect > 1e-3, name
        assert shape == [1, 4], name


def test_patches_keep_to_who_sees_whom(inside: Inside) -> None:
    found = inside.call("patches", "reading_under_patches")
    assert found["rule"] == "one_way"
    assert found["same block"] == found["bare"]
    assert found["weaker attention"] != found["bare"]


def test_guidance_may_end_before_the_run(inside: Inside) -> None:
    found = inside.call("patches", "guidance_that_ends")
    for node in ("UniFlowSampler", "JointSampler"):
        never, half, whole = (found[f"{node} {end}"] for end in (0.0, 0.5, 1.0))
        assert [rows for rows, *_ in (never, half, whole)] == [4, 6, 8]
        assert found[f"{node}, 17 of 20"] == 2 * 17 + 3
        assert never[2] == 0
        assert whole[1] == 0
        assert min(half[1:]) > 1e-3


def test_skip_layer_guidance_leaves_the_text_alone(inside: Inside) -> None:
    found = inside.call("patches", "skip_layer_text")
    assert found["words"] == 0
    assert found["video"] <= 1e-3


def test_other_kinds_of_adapters(inside: Inside) -> None:
    found = inside.call("patches", "other_adapters")
    assert found == dict.fromkeys(
        ("loha", "lokr", "diff"), "matched 1 of 1 layers: 1 of the video half, 0 of the text half"
    )


def test_every_kind_of_lora_file_as_on_the_command_line(inside: Inside, tmp_path: Path) -> None:
    network = random_network(TINY)
    save_model(network, tmp_path / "base.safetensors")
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    kinds = ["names: ComfyUI", "names: the release", *(name for name in CASES if not name.startswith("names:"))]
    files = {str(made_case(name, weights).write(tmp_path / str(n))): name for n, name in enumerate(kinds)}
    found = inside.call("patches", "merged_loras", base=str(tmp_path / "base.safetensors"), files=list(files))
    for path, value in found["files"].items():
        assert value["gap"] <= SAME, (files[path], value)
        assert value["changed"] > 0, (files[path], value)
        assert "not " not in value["match"], (files[path], value)
    assert found["loaded"] <= SAME
    assert found["unloaded"] == 0.0


def test_wan_loras_in_every_kind_of_names(inside: Inside) -> None:
    found = inside.call("patches", "loras")
    for style in ("comfyui", "musubi", "diffusers"):
        assert found[style] == "matched 12 of 12 layers: 12 of the video half, 0 of the text half"
        assert found[f"{style} effect"] > 1e-2
    assert found["styles agree"] <= SAME
    assert found["stock loader, ours and Wan"] <= SAME
    assert found["stock loader and our node"] <= SAME


def test_our_lora_reaches_both_experts(inside: Inside) -> None:
    found = inside.call("patches", "own_lora")
    assert (
        found["report"]
        == "matched 15 of 15 layers: 12 of the video half, 3 of the text half; the video half is off (strength 0)"
    )
    assert found["video moves video"] > 1e-2
    assert found["text moves video through attention"] > 1e-4
    assert found["text leaves plain Wan alone"] == 0.0


def test_a_few_step_lora_brings_its_recipe(inside: Inside) -> None:
    found = inside.call("patches", "student_lora")
    assert "draws clips in 2 steps, with captions in 3; without guidance" in found["report"]
    assert found["recipes"] == [[24, 0, 5.0], [24, 0, 5.0], [2, 3, 1.0], [2, 3, 1.0]]
    assert found["config"] == ["none", "bfloat16"]
    assert found["listed"] == {"checkpoint": ["mine.safetensors"], "lora": ["mine_fast.safetensors"]}


def test_wrong_loras_are_named(inside: Inside) -> None:
    wide, other, none = inside.call("patches", "wrong_loras")
    assert "width 5120" in wide
    assert "64" in wide
    assert "matched 0 of 1 layers" in other
    assert "no LoRA weights" in none


def test_a_lora_hook_on_one_prompt(inside: Inside) -> None:
    found = inside.call("patches", "lora_hooks")
    assert found["gap"] <= SAME
    assert found["effect"] > 1e-3


def test_weights_cast_and_patched_layer_by_layer(inside: Inside) -> None:
    found = inside.call("patches", "low_memory")
    assert found["cast on the way"] == 1.0
    assert found["patched on the way"] == 1.0
    assert found["gap"] <= SAME


def test_the_compile_node(inside: Inside) -> None:
    assert inside.call("patches", "compiled", timeout=500, backend="aot_eager", both=False)["text"] <= 1e-4


@pytest.mark.slow
def test_the_compile_node_traces_every_kind_of_run(inside: Inside) -> None:
    found = inside.call("patches", "compiled", timeout=500, backend="eager")
    assert len(found) == 4
    assert all(value <= 1e-4 for value in found.values()), found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compile_node_with_its_own_backend(inside: Inside) -> None:
    found = inside.call("patches", "compiled", timeout=500, backend="inductor")
    assert all(value <= 1e-4 for value in found.values()), found
