"""Laws of the network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from tiny_networks import TINY, random_network
from torch import nn

from uvg_core import ModelConfig, UniViGU, UniViGUError
from uvg_core.checkpoint.keys import from_native
from uvg_core.model import Hooks, Pass, PassOptions, sdpa_attention
from uvg_core.model.attention import XformersAttention
from uvg_core.model.rope import matrices, rotations, video_angles


def test_empty_text_is_plain_wan() -> None:
    """Against the Wan network of diffusers on the same random weights."""
    diffusers = pytest.importorskip("diffusers")
    config = ModelConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=20, freq_dim=32, vocab_size=31)
    model = random_network(config)
    wan = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=16,
        out_channels=16,
        text_dim=20,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        cross_attn_norm=True,
        eps=1e-6,
    ).eval()
    renamed = {from_native(name, "diffusers"): weight for name, weight in model.state_dict().items()}
    wan.load_state_dict({name: renamed[name] for name in wan.state_dict()}, strict=True)
    g = torch.Generator().manual_seed(2)
    video, context = torch.randn(2, 16, 3, 6, 4, generator=g), torch.randn(2, 9, 20, generator=g)
    time = torch.tensor([999.0, 125.0])
    ours, logits = model(video, None, time, time, context)
    with torch.no_grad():
        theirs = wan(video, timestep=time, encoder_hidden_states=context, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    assert logits.shape == (2, 0, 31)


def test_empty_text_ignores_the_text_half(network: UniViGU, inputs: dict[str, torch.Tensor]) -> None:
    """Bit for bit: another text expert changes nothing when there is no text."""
    other = random_network()
    for name, parameter in other.named_parameters():
        if any(part in name for part in ("ffn_t", "time_embedding_t", "time_projection_t", "token_", "text_head")):
            parameter.normal_()
    inputs["text"] = inputs["text"][:, :0]
    assert torch.equal(network(**inputs).velocity, other(**inputs).velocity)


def test_batch_of_two_is_two_batches_of_one(network: UniViGU, inputs: dict[str, torch.Tensor]) -> None:
    both = network(**inputs)
    for row in range(2):
        one = network(**{name: value[row : row + 1] for name, value in inputs.items()})
        torch.testing.assert_close(one.velocity[0], both.velocity[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.logits[0], both.logits[row], atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing(network: UniViGU, inputs: dict[str, torch.Tensor]) -> None:
    plain = network(**inputs)
    pad = torch.full((2, 4), 7)
    mask = torch.arange(9) < torch.tensor([5, 5])[:, None]
    padded = network(**{**inputs, "text": torch.cat([inputs["text"], pad], 1)}, text_mask=mask)
    torch.testing.assert_close(padded.velocity, plain.velocity, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.logits[:, :5], plain.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_masks_of_tokenizers_work_as_they_are(
    network: UniViGU, inputs: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    mask = torch.arange(5) < torch.tensor([5, 2])[:, None]
    want, got = network(**inputs, text_mask=mask), network(**inputs, text_mask=mask.to(dtype))
    assert torch.equal(want.velocity, got.velocity)


def test_streams_see_each_other(network: UniViGU, inputs: dict[str, torch.Tensor]) -> None:
    before = network(**inputs)
    inputs["text"] = (inputs["text"] + 1) % 31
    inputs["time_video"] = inputs["time_video"] + 50
    after = network(**inputs)
    assert (after.velocity - before.velocity).abs().max() > 1e-3
    assert (after.logits - before.logits).abs().max() > 1e-3


def test_heads_on_demand(network: UniViGU, inputs: dict[str, torch.Tensor]) -> None:
    both = network(**inputs)
    assert network(**inputs, options=PassOptions(want_logits=False)).logits is None
    assert torch.equal(network(**inputs, options=PassOptions(want_velocity=False)).logits, both.logits)


def test_layers_and_attention_are_injected(inputs: dict[str, torch.Tensor]) -> None:
    made: list[nn.Module] = []

    def recording(kind: type[nn.Module]) -> type[nn.Module]:
        def init(self: nn.Module, *args: object, device: object = None, dtype: object = None, **kwargs: object) -> None:
            assert device == "cpu"
            assert dtype == torch.float64
            kind.__init__(self, *args, device=device, dtype=dtype, **kwargs)
            made.append(self)

        return type(kind.__name__, (kind,), {"__init__": init})

    names = ("Linear", "LayerNorm", "RMSNorm", "Embedding", "Conv3d")
    calls: list[torch.Size] = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None):
        calls.append(k.shape)
        return sdpa_attention(q, k, v, heads, mask)

    operations = SimpleNamespace(**{name: recording(getattr(nn, name)) for name in names})
    model = UniViGU(TINY, operations=operations, attention=attention, device="cpu", dtype=torch.float64)
    with_weights = [m for m in model.modules() if isinstance(m, tuple(getattr(nn, name) for name in names))]
    assert {id(m) for m in with_weights} == {id(m) for m in made}
    model(**{name: value.double() if value.is_floating_point() else value for name, value in inputs.items()})
    # Per block: once over both streams, then both read the prompt.
    assert [shape[1] for shape in calls] == [12 + 5, 7] * 2


def test_no_layer_of_a_block_is_called_twice(network: UniViGU, inputs: dict[str, torch.Tensor]) -> None:
    """A host that keeps weights elsewhere brings them with every call."""
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        calls[name] = calls.get(name, 0) + 1

    layers = {name: layer for name, layer in network.blocks.named_modules() if not list(layer.children())}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda *_, name=name: count(name))
    network(**inputs)
    assert calls == dict.fromkeys(layers, 1)


def test_patches_are_made_in_float32_whatever_the_rest_is(inputs: dict[str, torch.Tensor]) -> None:
    """As in ComfyUI's Wan. Plain layers compute in their weights' dtype, and take inputs of any."""
    model = UniViGU(TINY, dtype=torch.bfloat16)
    assert {name for name, p in model.named_parameters() if p.dtype != torch.bfloat16} == {
        "patch_embedding.weight",
        "patch_embedding.bias",
    }
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    mask = torch.arange(5) < torch.tensor([5, 2])[:, None]
    out = model(**inputs, text_mask=mask)
    assert out.velocity.dtype == out.logits.dtype == torch.bfloat16
    assert bool(out.velocity.isfinite().all())


def test_embedding_flow_takes_and_gives_vectors() -> None:
    config = ModelConfig(
        dim=48, ffn_dim=64, num_heads=2, num_layers=1, text_dim=20, vocab_size=31, text_flow="embedding"
    )
    model = random_network(config)
    g = torch.Generator().manual_seed(0)
    given = torch.randn(1, 16, 1, 2, 2, generator=g), torch.randn(1, 5, 48, generator=g)
    out = model(*given, torch.tensor([0.0]), torch.tensor([400.0]), torch.randn(1, 3, 20, generator=g))
    assert out.logits.shape == (1, 5, 48)
    with pytest.raises(UniViGUError, match="expected vectors"):
        model(given[0], torch.zeros(1, 5, dtype=torch.long), *[torch.zeros(1)] * 2, torch.zeros(1, 3, 20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": torch.zeros(2, 4, 2, 4, 6)}, "expected \\[batch, 16"),
        ({"video": torch.zeros(2, 16, 2, 5, 6)}, "height 5.*off the model's grid"),
        ({"video": torch.zeros(2, 16, 0, 4, 6)}, "frames 0"),
        ({"context": torch.zeros(2, 7, 64)}, "text encoder of another width"),
        ({"text": torch.zeros(2, 5, 48)}, "expected token ids"),
        ({"text_mask": torch.ones(2, 3, dtype=torch.bool)}, "text mask"),
        ({"context": torch.zeros(3, 7, 20)}, "prompt condition has a batch of 3"),
        ({"time_text": torch.zeros(1)}, "text time has a batch of 1"),
    ],
)
def test_inputs_that_do_not_fit(network: UniViGU, inputs: dict[str, torch.Tensor], change: dict, message: str) -> None:
    with pytest.raises(UniViGUError, match=message):
        network(**{**inputs, **change})


def test_added_and_boolean_masks_say_the_same() -> None:
    q, k, v = torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    seen = torch.arange(6) < torch.tensor([6, 2])[:, None, None]
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    torch.testing.assert_close(sdpa_attention(q, k, v, 2, added), sdpa_attention(q, k, v, 2, seen))
    alone = sdpa_attention(q[1:], k[1:, :2], v[1:, :2], 2)
    torch.testing.assert_close(sdpa_attention(q, k, v, 2, added)[1:], alone)


def test_broken_xformers_falls_back_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    attention = object.__new__(XformersAttention)
    attention._works = True

    def broken(*_: object) -> None:
        raise RuntimeError("no kernel image")

    attention._attend = broken

    class OnCuda(torch.Tensor):
        is_cuda = True

    q, k, v = torch.randn(3, 1, 6, 8).unbind(0)
    want = sdpa_attention(q, k, v, 2)
    for _ in range(2):
        got = attention(q.as_subclass(OnCuda), k, v, 2)
        torch.testing.assert_close(got.as_subclass(torch.Tensor), want)
    assert [record.message for record in caplog.records if "xformers" in record.message] == [
        "xformers attention failed (no kernel image); using torch's attention from here on"
    ]


def test_core_imports_neither_comfy_nor_optional_packages_nor_what_is_slow() -> None:
    unwanted = ["comfy", "nodes", "diffusers", "transformers", "sentencepiece", "PIL", "xformers"]
    unwanted += ["torch._dynamo", "torch.distributed.checkpoint"]  # each takes as long to import as torch itself
    code = (
        "import sys, uvg_core.pipeline.pipeline, uvg_core.cli.main; "
        f"sys.exit(', '.join(m for m in {unwanted} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_empty_text_stream_asks_nobody_for_anything(inputs: dict[str, torch.Tensor]) -> None:
    """Several attention functions, and quantised layers, refuse sequences without tokens."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: object = None) -> torch.Tensor:
        assert q.shape[1] > 0
        return sdpa_attention(q, k, v, heads)

    model = random_network()
    expected = model(**{**inputs, "text": None}, options=PassOptions(want_logits=False)).velocity
    model.attention = attention
    assert torch.equal(model(**{**inputs, "text": None}, options=PassOptions(want_logits=False)).velocity, expected)


def test_hooks_stand_around_blocks_and_attention(inputs: dict[str, torch.Tensor]) -> None:
    model = random_network()
    plain = model(**inputs)
    seen: list[int] = []
    attended: list[str] = []

    def block(index: int, run: Callable[..., torch.Tensor], x: torch.Tensor, at: Pass) -> torch.Tensor:
        seen.append(index)
        assert x.shape[1] == 12 + 5
        assert at.text == 5
        return run(x, at)

    def named(name: str) -> Callable[..., torch.Tensor]:
        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: object = None):
            attended.append(name)
            return sdpa_attention(q, k, v, heads)

        return attention

    hooks = Hooks(attention=named("self"), cross_attention=named("cross"), block=block)
    hooked = model(**inputs, options=PassOptions(hooks=hooks))
    assert torch.equal(hooked.velocity, plain.velocity)
    assert torch.equal(hooked.logits, plain.logits)
    assert seen == [0, 1]
    assert attended == ["self", "cross"] * 2

    skipped = model(
        **inputs, options=PassOptions(hooks=Hooks(block=lambda index, run, x, at: x if index == 1 else run(x, at)))
    )
    assert not torch.allclose(skipped.velocity, plain.velocity)


def test_logits_of_some_rows(inputs: dict[str, torch.Tensor]) -> None:
    model = random_network()
    plain = model(**inputs)
    last = model(**inputs, options=PassOptions(want_logits=slice(1, 2)))
    assert torch.equal(last.velocity, plain.velocity)
    torch.testing.assert_close(last.logits, plain.logits[1:])
    assert model(**inputs, options=PassOptions(want_logits=False)).logits is None


def test_rotary_positions_can_be_scaled_and_shifted() -> None:
    plain = video_angles((3, 4, 5), 24)
    assert torch.equal(video_angles((3, 4, 5), 24, scale=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0)), plain)
    far = rotations(video_angles((5, 4, 5), 24)).view(5, 20, 12)
    doubled = rotations(video_angles((3, 4, 5), 24, scale=(2.0, 1.0, 1.0))).view(3, 20, 12)
    torch.testing.assert_close(doubled, far[::2])
    moved = rotations(video_angles((3, 4, 5), 24, shift=(2.0, 0.0, 0.0))).view(3, 20, 12)
    torch.testing.assert_close(moved, far[2:])


def test_matrices_and_complex_numbers_are_the_same_rotations() -> None:
    angles, pair = video_angles((3, 4, 5), 24), torch.randn(2)
    turned = torch.view_as_real(rotations(angles) * torch.view_as_complex(pair))
    torch.testing.assert_close(matrices(angles) @ pair, turned)
