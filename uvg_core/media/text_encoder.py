"""Prompts -> prompt condition.

Outside ComfyUI the encoder comes from ``transformers``; it is imported when an encoder is built, not before.

Legend: B batch, S rows of the prompt condition, E encoder width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.build import with_weights
from ..checkpoint.quant import FP8_DTYPES, dequantise, is_companion, scaled_weight
from ..errors import UniViGUError
from .tokenizer import Tokenizer

SPIECE = "spiece_model"  # the tokenizer inside ComfyUI's files of text encoders
SHARED = "shared.weight"
EMBEDDED = "encoder.embed_tokens.weight"  # the same tensor again
KNOWS_FP8 = ("cpu", "cuda")
# Wan's own names for umT5 (models_t5_umt5-xxl-enc-bf16.pth) and Hugging Face's.
_ORIGINAL = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
_ORIGINAL_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_ORIGINAL_NAME = re.compile(r"^(?:blocks\.([0-9]{1,4})\.)?(.+)\.weight$")


def encoder_config(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of a umT5 encoder from its weights (Hugging Face naming)."""
    attention, feed_forward = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    try:
        vocabulary, width = weights[SHARED].shape
        buckets, heads = weights[f"{attention}.relative_attention_bias.weight"].shape
        d_kv = weights[f"{attention}.q.weight"].shape[0] // heads
        d_ff = weights[f"{feed_forward}.wi_0.weight"].shape[0]
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UniViGUError(
            f"the text encoder is not a umT5 encoder: a tensor is missing or has another shape ({error})"
        ) from None
    layers = {match[1] for name in weights if (match := re.match(r"encoder\.block\.([0-9]{1,4})\.", name))}
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_heads": heads,
        "d_kv": d_kv,
        "d_ff": d_ff,
        "num_layers": 1 + max(map(int, layers)),
        "relative_attention_num_buckets": buckets,
    }


def build_encoder(sizes: Mapping[str, int], text_states: str = "umT5") -> nn.Module:
    """A freshly initialised encoder; ``text_states`` as in ``TextEncoder``."""
    try:
        import transformers
    except ImportError as error:
        raise UniViGUError(
            f"the text encoder needs transformers, which cannot be imported ({error}): "
            "pip install -e '.[standalone]' in the project's folder"
        ) from None
    kinds: dict[str, tuple[Callable[..., nn.Module], Any]] = {
        "umT5": (transformers.UMT5EncoderModel, transformers.UMT5Config),
        "release": (transformers.T5EncoderModel, transformers.T5Config),
    }
    if text_states not in kinds:
        raise UniViGUError(f"text states are {text_states!r}; expected one of {', '.join(kinds)}")
    model, config = kinds[text_states]
    return model(config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False))


def encoder_names(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Where a umT5 encoder lies among the tensors of a file: Hugging Face's names of its weights -> the names there,
    and the same for the scales of fp8 weights. The file may have Hugging Face's (also ComfyUI's) or Wan's own names;
    empty for other files."""
    stored: dict[str, str] = {}
    scales: dict[str, str] = {}
    for name in names:
        weight = scaled_weight(name)
        if not is_companion(name):
            (stored if weight is None else scales)[_hugging_face(weight or name)] = name
    return (stored, scales) if SHARED in stored else ({}, {})


def _hugging_face(name: str) -> str:
    match = _ORIGINAL_NAME.match(name)
    block, inside = match.groups() if match else (None, "")
    if block is None:
        return f"{_ORIGINAL[inside]}.weight" if inside in _ORIGINAL else name
    return f"encoder.block.{block}.{_ORIGINAL_BLOCK[inside]}.weight" if inside in _ORIGINAL_BLOCK else name


class _Stored(nn.Module):
    """A matrix that stays as its file has it and becomes numbers of another type, on another device, while it is used.

    fp8 is held as bytes: ``.to(dtype)`` and ``.double()`` of a module leave those alone."""

    def __init__(self, weight: Tensor, scale: Tensor | None) -> None:
        super().__init__()
        self.kind = weight.dtype
        held = weight.view(torch.uint8) if weight.dtype in FP8_DTYPES else weight
        self.stored = nn.Parameter(held, requires_grad=False)
        self.scale = 1.0 if scale is None else float(scale)

    # transformers compares the dtype of a weight with that of the activations and casts these where it is a tensor.
    weight = None

    def _values(self, held: Tensor, dtype: torch.dtype) -> Tensor:
        values = (held.view(self.kind) if held.dtype == torch.uint8 else held).to(dtype, copy=True)
        return values if self.scale == 1 else values.mul_(self.scale)


class StoredLinear(_Stored):
    """A linear layer without bias, in the dtype and on the device of what goes in."""

    def forward(self, x: Tensor) -> Tensor:
        held = self.stored
        if x.device.type in KNOWS_FP8:  # over the bus in as few bytes as there are
            return F.linear(x, self._values(held.to(x.device), x.dtype))
        return F.linear(x, self._values(held, x.dtype).to(x.device))


class StoredEmbedding(_Stored):
    """Rows in float32, on the device of the ids."""

    def forward(self, ids: Tensor) -> Tensor:
        return self._values(self.stored[ids.to(self.stored.device)], torch.float32).to(ids.device)


_STORED: dict[type, type[_Stored]] = {nn.Linear: StoredLinear, nn.Embedding: StoredEmbedding}
_SMALL_DTYPES = {*FP8_DTYPES, torch.float16, torch.bfloat16}


def load_encoder(weights: Mapping[str, Tensor], text_states: str = "umT5") -> nn.Module:
    """A umT5 encoder from its weights, without a second copy of them.

    ``weights``: with Hugging Face's or Wan's own names, in fp8 with a scale per tensor beside it too (ComfyUI's files).
    Matrices in two bytes or one stay so in memory; each is made float32 while it is used, so that the arithmetic is
    float32 whatever the file holds.
    The embedding is one tensor, not two.
    Raises UniViGUError for another encoder, an incomplete one, and for what is quantised in other ways.
    """
    stored, scaled = encoder_names(weights)
    found = {name: weights[there] for name, there in stored.items()}
    scales = {name: weights[there] for name, there in scaled.items()}
    with torch.device("meta"):
        encoder = build_encoder(encoder_config(found), text_states)
    for name, scale in scales.items():
        if scale.numel() != 1 or name not in found or not found[name].is_floating_point():
            raise UniViGUError(
                f"the text encoder's {name} is quantised in a way that is not read here; expected fp8 with one scale "
                "per tensor (fp8_e4m3fn_scaled), fp16 or bf16"
            )
    tensors = _place_matrices(encoder, found, scales)
    missing = sorted(encoder.state_dict().keys() - tensors.keys())
    if missing:
        raise UniViGUError(f"the text encoder lacks {len(missing)} tensors, first {missing[0]}")
    tensors = {name: tensors[name] for name in encoder.state_dict()}
    with_weights(encoder, tensors, "the text encoder's tensors do not fit each other")
    return encoder


def _place_matrices(encoder: nn.Module, found: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put layers that keep fp8 and half-precision weights as stored into the encoder; all its tensors by name."""
    layers = {f"{name}.weight": module for name, module in encoder.named_modules() if type(module) in _STORED}
    tensors: dict[str, Tensor] = {}
    for name, weight in found.items():
        layer: Any = layers.get(name)
        small = weight.dtype in _SMALL_DTYPES and not name.endswith(("relative_attention_bias.weight", EMBEDDED))
        if layer is not None and small and weight.shape == layer.weight.shape:
            kept = _STORED[type(layer)](weight, scales.get(name))
            encoder.set_submodule(name.removesuffix(".weight"), kept)
            tensors[name.removesuffix("weight") + "stored"] = kept.stored
        else:
            tensors[name] = dequantise(weight, scales[name]) if name in scales else weight
    shared = encoder.get_submodule("shared")
    encoder.set_submodule("encoder.embed_tokens", shared)
    end = "stored" if isinstance(shared, StoredEmbedding) else "weight"
    tensors[f"encoder.embed_tokens.{end}"] = tensors[f"shared.{end}"]
    if any(name.endswith(".stored") for name in tensors):
        tensors = {name: tensor if name.endswith(".stored") else tensor.float() for name, tensor in tensors.items()}
    return tensors


def move_encoder(encoder: nn.Module, device: torch.device) -> nn.Module:
    """Make an encoder work on ``device`` while its matrices stay where they are: each goes there as it is used."""
    for module in encoder.modules():
        if not isinstance(module, _Stored):
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(weight.to(device), requires_grad=False))
    return encoder


class TextEncoder:
    """Prompts -> condition ``[B,S,E]``.

    ``text_states``: ``umT5`` (one relative position bias per layer, states of padding zeroed: what Wan and ComfyUI
    feed) or ``release`` (the release loads the weights into a plain T5 class, which uses the first layer's bias
    everywhere, and leaves the states of padding in place). Which of the two the released weights were trained on is
    unknown; neither has been run on them.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Tokenizer, text_states: str = "umT5") -> None:
        self.encoder, self.tokenizer, self.text_states = encoder, tokenizer, text_states

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Raises UniViGUError for a prompt that does not fit."""
        ids, mask = self.tokenizer.context(texts)
        rows = ids.shape[1]
        if self.text_states == "umT5":  # padding is hidden and comes out as zeros: it need not be computed
            ids, mask = (part[:, : int(mask.sum(1).max())] for part in (ids, mask))
        # The matrices may be elsewhere (``StoredLinear``); norms are where the work is done.
        device = next(self.encoder.get_submodule("encoder.final_layer_norm").parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        states: Tensor = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if self.text_states != "umT5":
            return states
        return F.pad(states * mask[..., None].to(states.dtype), (0, 0, 0, rows - states.shape[1]))


@contextmanager
def as_plain_t5(encoder: nn.Module) -> Iterator[None]:
    """A umT5 runs as a plain T5 does, with the first layer's position bias everywhere, for the length of a block.

    No weight is copied; the padding's states are the caller's business. For transformers' module and ComfyUI's."""
    attentions = [block.layer[0].SelfAttention for block in encoder.get_submodule("encoder.block").children()]  # type: ignore[index, union-attr]
    own = [attention.relative_attention_bias for attention in attentions]
    try:
        for attention in attentions:
            attention.relative_attention_bias = own[0]
        yield
    finally:
        for attention, bias in zip(attentions, own, strict=True):
            attention.relative_attention_bias = bias
