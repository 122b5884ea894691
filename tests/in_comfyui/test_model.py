"""Our network as one of ComfyUI's models: parity with core's Wan, every kind of file, both latent spaces."""

from __future__ import annotations

from typing import Any

import pytest
from in_comfyui_host import Inside
from tiny_networks import GOLDEN


def test_the_pack_loads(inside: Inside) -> None:
    assert inside.pack_problem is None


def test_an_empty_text_stream_is_cores_wan_bit_for_bit(inside: Inside) -> None:
    found = inside.call("model", "parity_with_wan")
    assert found == dict.fromkeys(found, 0.0)


def test_fused_kernels_do_what_the_network_does(inside: Inside) -> None:
    found = inside.call("model", "fused_kernels")
    assert len(found) == 5
    assert max(found.values()) <= 1e-5
    assert found["interleaved, in place or not"] == found["half, in place or not"] == 0.0


def test_and_with_fp8_weights(inside: Inside) -> None:
    found = inside.call("model", "parity_in_fp8")
    assert all(value <= 1e-5 for value in found.values()), found


def test_plain_conditioning_through_our_sampler_is_plain_wan(inside: Inside) -> None:
    assert inside.call("model", "empty_text_is_wan") == 0.0


@pytest.mark.parametrize("name", ["forward_uniform", "forward_masked_source", "forward_padded_text"])
def test_golden_numbers_through_comfyuis_operations(inside: Inside, name: str) -> None:
    found = inside.call("model", "golden", path=str(GOLDEN / f"{name}.safetensors"))
    assert found.pop("layers") == "comfy.ops"
    assert all(value <= 2e-5 for value in found.values()), found


def test_golden_run_through_comfyuis_samplers(inside: Inside) -> None:
    found = inside.call("model", "golden_run", path=str(GOLDEN / "sample_t2v_cfg.safetensors"))
    assert found["latent"] <= 2e-5


def test_every_kind_of_file_gives_the_same_network(inside: Inside) -> None:
    found: dict[str, Any] = inside.call("model", "every_file")
    assert len(found) == 14
    limits = {"fp32": 2e-5, ".pth": 2e-5, "fp16": 0.02, "bf16": 0.12, "fp8": 0.6}
    for kind, value in found.items():
        if kind.startswith("reloaded"):
            assert value is True, kind
            continue
        name, gap = value
        assert name == "UniViGUModel", kind
        assert gap <= limits[kind.split()[-1]], (kind, gap)


def test_the_embedded_file_through_every_loader(inside: Inside) -> None:
    found = inside.call("model", "all_in_one")
    assert found["names"] == ["UniViGUModel"] * 3
    assert found["rows"] == [32, 32]  # as many as the model was trained with
    assert found["words"] <= 1e-5
    assert found["vae"] == found["stock"] == found["only"] == 0.0
    assert found["first in the list"] == "uvg_tiny.safetensors"
    assert found["run"] == [24] * 5


def test_a_plain_wan_file_stays_plain_wan(inside: Inside) -> None:
    model, network, message = inside.call("model", "plain_wan_stays_plain")
    assert (model, network) == ("WAN21", "WanModel")
    assert "plain Wan base" in message
    assert "plain_wan.safetensors" in message


def test_a_file_with_a_hole_is_an_error(inside: Inside) -> None:
    messages = inside.call("model", "incomplete")
    assert len(messages) == 2
    for message in messages:
        assert "lacks 2 of" in message
        assert "blocks.1.ffn_t.0.bias" in message


def test_raw_and_normalised_latents(inside: Inside) -> None:
    found = inside.call("model", "latent_spaces")
    assert found["raw"] == found["chosen"] == 0.0
    assert found["moved"] > 0.5
    assert found["back"] <= 1e-5
    assert found["previews"] <= 1


def test_core_s_savers_keep_the_facts_of_the_model(inside: Inside) -> None:
    """Of metadata they write their own only: without latent space, sizes and recipe the model runs as it was not
    trained, and nothing says so."""
    found = inside.call("model", "saved_by_core")
    assert found["wanted"][0]["transformer"]["latent_space"] == "raw"
    assert found["one"] == [found["wanted"]] * 3
    assert found["whole"] == [found["wanted tiny"]] * 3
    assert found["one weights"] == found["whole weights"] == 0.0
    assert found["stock"] == [found["wanted tiny"], found["wanted tiny"][0]["run"]["text_length"]]
    assert "lying_no_json.safetensors" in found["no json"]
    assert "not JSON" in found["no json"]
    assert "expected a text in bytes" in found["numbers"]
