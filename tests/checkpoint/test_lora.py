"""LoRA files of every kind against merges worked out by plain arithmetic; what does not fit is said."""

from __future__ import annotations

import json

import pytest
import torch
from lora_cases import CASES, FFN, RANK, Case, made_case
from safetensors.torch import load_file, save_file

from uvg_core import UniViGUError
from uvg_core.checkpoint import LoraChoice, convert, load_model
from uvg_core.checkpoint.fit import shapes_of
from uvg_core.checkpoint.keys import from_native
from uvg_core.checkpoint.lora import Lora
from uvg_core.checkpoint.lora_names import lora_place, lora_places
from uvg_core.checkpoint.quant import FP8
from uvg_core.config import ModelConfig
from uvg_core.training.config import Lora as TrainedLora
from uvg_core.training.start import save_lora


@pytest.fixture(scope="module")
def base(model, tools, tmp_path_factory):
    return tools.write_uni_vigu(model, "native", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def weights(model, tools):
    return tools.weights_of(model)


def close(found, expected, changed):
    for name, weight in expected.items():
        if name in changed:
            torch.testing.assert_close(found[name], weight, atol=3e-6, rtol=3e-5, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("name", CASES)
def test_a_file_does_what_its_numbers_say(name, base, weights, model, tools, tmp_path):
    case = made_case(name, weights)
    path = case.write(tmp_path / "in")
    lora = Lora(LoraChoice(path, 0.7, -1.5), model.config)
    assert not lora.match.unmatched
    assert not lora.match.unused
    assert lora.match.video + lora.match.text == lora.match.layers > 0
    assert set(lora.patches) == {*case.adds, *case.sets}
    loaded = load_model(base, loras=[LoraChoice(path, 0.7, -1.5)])
    expected = case.merged(lambda n: 0.7 if tools.is_video(n) else -1.5)
    close(loaded.state_dict(), expected, lora.patches)
    convert(base, tmp_path / "merged.safetensors", loras=[f"{path}:1:0"])
    expected = case.merged(lambda n: float(tools.is_video(n)))
    close(load_file(tmp_path / "merged.safetensors"), expected, lora.patches)


def test_several_are_merged_in_turn(base, weights, model, tmp_path):
    one, two = made_case("names: ComfyUI", weights), made_case("LoHa", weights)
    files = [f"{one.write(tmp_path / 'one')}:0.5", two.write(tmp_path / "two")]
    found = load_model(base, loras=files).state_dict()[f"{FFN}.weight"]
    torch.testing.assert_close(found, weights[f"{FFN}.weight"] + two.adds[f"{FFN}.weight"])
    both = load_model(base, loras=[files[0], files[0]]).state_dict()["head.head.weight"]
    torch.testing.assert_close(both, weights["head.head.weight"] + one.adds["head.head.weight"])


def test_fp8_is_quantised_after_merging(base, weights, model, tmp_path):
    case = made_case("a few-step LoRA as LightX2V writes it", weights)
    file = case.write(tmp_path / "in")
    convert(base, tmp_path / "fp8.safetensors", dtype="fp8", loras=[file])
    convert(base, tmp_path / "bare.safetensors", dtype="fp8")
    convert(tmp_path / "bare.safetensors", tmp_path / "again.safetensors", loras=[file])
    expected = case.merged(lambda name: 1.0)[f"{FFN}.weight"]
    step = float(expected.abs().max()) / 448 * 16  # half of e4m3's coarsest step
    for path, rounded in (("fp8", 1), ("again", 2)):
        stored = load_file(tmp_path / f"{path}.safetensors")
        assert stored[f"{FFN}.weight"].dtype == FP8
        found = stored[f"{FFN}.weight"].float() * stored[f"{FFN}.weight_scale"]
        assert (found - expected).abs().max() <= rounded * step
    # What no LoRA touches is carried over bit for bit.
    before, after = (load_file(tmp_path / f"{path}.safetensors") for path in ("bare", "again"))
    assert torch.equal(before["blocks.0.ffn_t.0.weight"].float(), after["blocks.0.ffn_t.0.weight"].float())


@pytest.mark.parametrize("dora", [False, True])
def test_peft_merges_its_own_files_alike(dora, model, tools, base, tmp_path):
    """peft itself is asked: layers of one rank and alpha, others of theirs, magnitudes moved."""
    peft = pytest.importorskip("peft")
    network = tools.make_model()
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=6,
        target_modules=r"blocks\.\d+\.(self_attn\.[qkvo]|ffn\.[02])|time_projection\.1",
        rank_pattern={"self_attn.q": 2},
        alpha_pattern={"ffn.0": 3},
        use_dora=dora,
    )
    tuned = peft.get_peft_model(network, config)
    generator = torch.Generator().manual_seed(3)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            change = torch.randn(weight.shape, generator=generator) * 0.3
            weight.data = weight.data * (1 + change.abs()) if "magnitude" in name else change
    tuned.save_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload().state_dict()
    lora = Lora(LoraChoice(tmp_path / "adapter" / "adapter_model.safetensors"), model.config)
    assert (lora.match.layers, lora.match.video, lora.match.text) == (13, 13, 0)
    close(load_model(base, loras=[lora]).state_dict(), merged, lora.patches)


def _refused(case: Case, model, folder) -> str:
    with pytest.raises(UniViGUError) as refused:
        Lora(LoraChoice(case.write(folder)), model.config)
    assert str(folder) in str(refused.value)
    return str(refused.value)


WIDE = {
    "the first factor": {"lora_A.weight": (RANK, 5120), "lora_B.weight": (24, RANK)},
    "the second factor": {"lora_A.weight": (RANK, 24), "lora_B.weight": (5120, RANK)},
    "diff": {"diff": (5120, 5120)},
    "diff_b": {"diff_b": (5120,)},
    "set_weight": {"set_weight": (24, 5120)},
    "w_norm": {"b_norm": (5120,)},
    "LoHa": {f"hada_w{n}_{ab}": (5120, RANK) if ab == "a" else (RANK, 24) for n in "12" for ab in "ab"},
    "LoKr": {"lokr_w1": (40, 4), "lokr_w2": (128, 6)},
    "LoKr of low rank": {"lokr_w1": (4, 4), "lokr_w2_a": (6, RANK), "lokr_w2_b": (RANK, 1280)},
    "GLoRA": {"a1.weight": (24, 4), "a2.weight": (4, 24), "b1.weight": (5120, 4), "b2.weight": (4, 24)},
    "GLoRA's other pair": {"a1.weight": (5120, 4), "a2.weight": (4, 5120), "b1.weight": (24, 4), "b2.weight": (4, 24)},
    "dora_scale": {"lora_A.weight": (RANK, 24), "lora_B.weight": (24, RANK), "dora_scale": (5120, 1)},
    "peft's magnitudes": {"lora_A.weight": (RANK, 24), "lora_B.weight": (24, RANK), "lora_magnitude_vector": (5120,)},
    "lora_B.bias": {"lora_A.weight": (RANK, 24), "lora_B.weight": (24, RANK), "lora_B.bias": (5120,)},
    "reshape": {"lora_A.weight": (RANK, 24), "lora_B.weight": (24, RANK), "reshape_weight": (24, 5120)},
}


@pytest.mark.parametrize("what", WIDE)
def test_another_width_is_an_error_wherever_it_shows(what, weights, model, tmp_path):
    case = made_case("names: ComfyUI", weights)
    for name, shape in WIDE[what].items():
        made = torch.tensor(shape) if name == "reshape_weight" else torch.ones(shape)
        case.tensors[f"diffusion_model.blocks.0.self_attn.k.{name}"] = made
    said = _refused(case, model, tmp_path)
    assert "width 5120" in said
    assert "this model's is 24" in said
    assert "1536 is the 1.3B, 5120 the 14B" in said


def test_parts_that_do_not_fit_each_other_are_damage(weights, model, tmp_path):
    for number, parts in enumerate(
        (
            {"lora_A.weight": (4, 24)},
            {"lora_A.weight": (4, 24), "lora_B.weight": (24, 5)},
            {"hada_w1_a": (24, 4), "hada_w1_b": (4, 24), "hada_w2_a": (24, 4)},
            {"hada_w1_a": (24, 4), "hada_w1_b": (4, 24), "hada_w2_a": (1, 4), "hada_w2_b": (4, 24)},
            {"lokr_w1": (4, 4)},
            {"a1.weight": (24, 4), "a2.weight": (4, 24), "b1.weight": (24, 4)},
        )
    ):
        case = Case(weights, torch.Generator())
        case.tensors = {f"diffusion_model.blocks.0.self_attn.k.{n}": torch.ones(s) for n, s in parts.items()}
        assert "factors do not fit each other" in _refused(case, model, tmp_path / str(number)), parts


def test_what_else_is_refused(weights, model, base, tmp_path):
    def refused(change, folder):
        case = made_case("names: ComfyUI", weights)
        change(case)
        return _refused(case, model, tmp_path / folder)

    q = "diffusion_model.blocks.0.self_attn.q"
    twice = refused(lambda c: c.tensors.update({"blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 24)}), "twice")
    assert "both stand for" in twice
    whole = refused(lambda c: c.tensors.update({f"{q}.lora_A.weight": torch.ones(4, 24, dtype=torch.int8)}), "int")
    assert "stored as I8" in whole
    assert "not one finite number" in refused(lambda c: c.tensors.update({f"{q}.alpha": torch.ones(2)}), "alpha")
    facts = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": "much"})}
    assert "lora_adapter_metadata cannot be read" in refused(lambda c: c.metadata.update(facts), "facts")
    with pytest.raises(UniViGUError, match="found no LoRA weights in it"):
        Lora(LoraChoice(base), model.config)
    case = made_case("names: ComfyUI", weights)
    case.tensors[f"{q}.lora_B.weight"][0, 0] = float("nan")
    with pytest.raises(UniViGUError, match="not finite"):
        load_model(base, loras=[case.write(tmp_path / "nan")])


def test_what_is_not_applied_is_named(weights, model, tmp_path):
    case = made_case("names: ComfyUI", weights)
    layers = len(case.tensors) // 2
    for block in range(2):
        for part in ("lora_A", "lora_B"):
            case.tensors[f"diffusion_model.blocks.{block}.cross_attn.k_img.{part}.weight"] = torch.ones(2, 2)
    case.tensors["diffusion_model.blocks.0.self_attn.q.oft_blocks"] = torch.ones(2, 2, 2)
    case.tensors["diffusion_model.blocks.0.self_attn.norm_q.diff_b"] = torch.ones(24)  # a norm without a bias
    case.tensors["diffusion_model.blocks.0.self_attn.v.dora_scale"] = torch.ones(24, 1)  # beside no pair of its own
    del case.tensors["diffusion_model.blocks.0.self_attn.v.lora_A.weight"]
    del case.tensors["diffusion_model.blocks.0.self_attn.v.lora_B.weight"]
    line = str(Lora(LoraChoice(case.write(tmp_path), 1.0, 0.0), model.config))
    assert line == (
        f"lora.safetensors: matched {layers - 1} of {layers + 4} layers: {layers - 5} of the video half, 4 of the text "
        "half; not found in this model: diffusion_model.blocks.N.cross_attn.k_img (2); not applied: "
        "diffusion_model.blocks.N.self_attn.q.oft_blocks, diffusion_model.blocks.N.self_attn.norm_q.diff_b, "
        "diffusion_model.blocks.N.self_attn.v.dora_scale; the text half is off (strength 0)"
    )


def test_an_alpha_that_peft_keeps_elsewhere_is_missed(weights, model, tmp_path):
    case = made_case("peft: configuration beside the file", weights)
    path = case.write(tmp_path)
    assert "alpha" not in str(Lora(LoraChoice(path), model.config))
    (tmp_path / "adapter_config.json").unlink()
    assert "states no alpha, taken as the rank" in str(Lora(LoraChoice(path), model.config))


def test_our_own_training_writes_what_loads(weights, model, tmp_path):
    state = {}
    for layer in ("blocks.0.self_attn.q", "blocks.1.ffn_t.2"):
        outputs, inputs = weights[f"{layer}.weight"].shape
        state[f"{layer}.lora_A.default.weight"] = torch.randn(RANK, inputs)
        state[f"{layer}.lora_B.default.weight"] = torch.randn(outputs, RANK)
    save_lora(tmp_path / "own.safetensors", state, TrainedLora(rank=RANK, alpha=2.0), {"uvg_training": "{}"})
    lora = Lora(LoraChoice(tmp_path / "own.safetensors", 1.0, 0.5), model.config)
    assert str(lora) == "own.safetensors: matched 2 of 2 layers: 1 of the video half, 1 of the text half"
    for layer, strength in (("blocks.0.self_attn.q", 1.0), ("blocks.1.ffn_t.2", 0.5)):
        change = state[f"{layer}.lora_B.default.weight"] @ state[f"{layer}.lora_A.default.weight"]
        before = weights[f"{layer}.weight"]
        torch.testing.assert_close(lora.apply(f"{layer}.weight", before), before + strength * change * 2 / RANK)


def test_a_file_for_another_model_says_what_it_found(weights, model, tmp_path):
    case = Case(weights, torch.Generator())
    for block in range(3):
        case.tensors[f"diffusion_model.double_blocks.{block}.img_attn.proj.lora_A.weight"] = torch.ones(4, 8)
        case.tensors[f"diffusion_model.double_blocks.{block}.img_attn.proj.lora_B.weight"] = torch.ones(8, 4)
    said = _refused(case, model, tmp_path)
    assert "matched 0 of 3 layers" in said
    assert "diffusion_model.double_blocks.N.img_attn.proj (3)" in said
    assert "made for another model" in said


def test_every_weight_has_one_place_under_every_name():
    names = list(shapes_of(ModelConfig(num_layers=12, dim=24, ffn_dim=40, num_heads=2, vocab_size=31)))
    places = lora_places(names)
    for name in names:
        layer = name.removesuffix(".weight").removesuffix(".bias")
        for layout in ("native", "release", "diffusers"):
            alias = from_native(layer, layout)
            for given in (
                () if alias is None else (alias, f"diffusion_model.{alias}", f"lycoris_{alias.replace('.', '_')}")
            ):
                assert lora_place(given, places) == layer, given
    assert lora_place("text_encoder.blocks.0.self_attn.q", places) is None
    assert lora_place("lora_te1_blocks_0_self_attn_q", places) is None


@pytest.mark.parametrize(
    ("given", "path", "strengths"),
    [
        ("x.safetensors", "x.safetensors", (1, 1)),
        ("x.safetensors:0.5", "x.safetensors", (0.5, 0.5)),
        ("x.safetensors:0.5:-2", "x.safetensors", (0.5, -2)),
        (r"C:\x.safetensors", r"C:\x.safetensors", (1, 1)),
        (r"C:\x.safetensors:1e-1", r"C:\x.safetensors", (0.1, 0.1)),
        ("a:1:2:3", "a:1", (2, 3)),
        ("a:b:3", "a:b", (3, 3)),
        ("x:nan", "x:nan", (1, 1)),
        ("x:1e999", "x:1e999", (1, 1)),
        ("x:", "x:", (1, 1)),
    ],
)
def test_strengths_are_the_last_fields_that_are_numbers(given, path, strengths):
    choice = LoraChoice.of(given)
    assert (str(choice.path), choice.video, choice.text) == (path, *strengths)


def test_a_lora_needs_a_name():
    with pytest.raises(UniViGUError, match="names no LoRA file"):
        LoraChoice.of(":1:2")


def test_a_tensor_of_text_is_no_lora(tmp_path, model):
    save_file({"blocks.0.self_attn.q.alpha": torch.ones(())}, tmp_path / "a.safetensors")
    with pytest.raises(UniViGUError, match="found no LoRA weights"):
        Lora(LoraChoice(tmp_path / "a.safetensors"), model.config)
