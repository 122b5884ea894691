"""Words <-> token ids, and words -> prompt condition.

The text stream and the prompt condition share one SentencePiece vocabulary (umT5's for the released model). Outside
ComfyUI the encoder comes from ``transformers``; it is imported when an encoder is built, not before.

Legend: B batch, L text-stream tokens, S rows of the prompt condition, E encoder width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.quant import FP8_DTYPES, dequantise, is_companion, scaled_weight
from ..config import TEXT_STATES, RunConfig
from ..errors import UniViGUError
from .assign import with_weights

SPIECE = "spiece_model"  # the tokenizer inside ComfyUI's files of text encoders
SHARED = "shared.weight"
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
BLANK = re.compile(r"_{2,}")


class Tokenizer:
    """SentencePiece with an end-of-text token at the end, as umT5 uses it.

    How generated text ends is ``end_of_text`` of ``run``: at the first end token (``stop``), or end tokens are left out
    as padding is and the words behind them are read too (``skip``, as the release does)."""

    def __init__(self, model: bytes, run: RunConfig) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise UniViGUError(
                f"the tokenizer needs sentencepiece, which does not import ({error}): pip install sentencepiece"
            ) from None
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UniViGUError(f"the tokenizer is not a SentencePiece model ({error})") from None
        self.proto = model
        self.run = run

    @classmethod
    def from_file(cls, path: Path, run: RunConfig) -> Tokenizer:
        """From ``spiece.model`` of a Wan or umT5 folder."""
        if not path.is_file():
            raise UniViGUError(f"{path}: no such file; expected the SentencePiece model of the umT5 tokenizer")
        try:
            return cls(path.read_bytes(), run)
        except UniViGUError as error:
            raise UniViGUError(f"{path}: {error}") from None

    @property
    def size(self) -> int:
        """Pieces of the vocabulary; the checkpoint's embedding may have spare rows beyond."""
        return self._pieces.get_piece_size()

    def ids(self, text: str, end: bool = True) -> list[int]:
        """Token ids of a text, with the end-of-text token unless told otherwise."""
        return [*self._pieces.encode(text.strip()), *([self.run.eos_token] if end else [])]

    def text(self, ids: Sequence[int] | Tensor) -> str:
        """Words of one row of ids, up to the first end-of-text unless the model's way is ``skip``; end tokens, padding
        and ids beyond the vocabulary are left out."""
        words: list[int] = []
        for i in ids.cpu().tolist() if isinstance(ids, Tensor) else ids:
            if i == self.run.eos_token and self.run.end_of_text != "skip":
                break
            if i not in (self.run.pad_token, self.run.eos_token) and 0 <= i < self.size:
                words.append(i)
        return self._pieces.decode(words).strip()

    def stream(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Ids ``[B,L]`` for the text stream, padded, and the mask of real tokens.

        Raises UniViGUError for a text that does not fit."""
        rows = [self.ids(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > length:
                raise UniViGUError(
                    f"the text has {len(row)} tokens and the text stream {length}: shorten "
                    f"{_shown(text)} or ask for a longer text stream"
                )
        return self._padded(rows, length)

    def context(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids ``[B,S]`` for the text encoder, padded, and the mask of real tokens.

        Raises UniViGUError for a prompt that does not fit."""
        rows, length = [self.ids(prompt) for prompt in prompts], self.run.context_length
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > length:
                raise UniViGUError(
                    f"the prompt has {len(row)} tokens and this model reads {length}: shorten {_shown(prompt)} "
                    "(words that its tokenizer does not know are spelled out, a token a letter)"
                )
        return self._padded(rows, length)

    def _padded(self, rows: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
        ids = torch.full((len(rows), length), self.run.pad_token, dtype=torch.long)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = torch.tensor(row)
        # The mask follows the lengths, not the ids: a text may hold the pad token's id as a piece.
        return ids, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]

    def template(self, text: str, widths: Sequence[int], length: int) -> Tensor:
        """Pinned ids ``[L]`` of a template with blanks (two or more underscores), -1 where the model may choose.

        ``widths`` gives the tokens of each blank; a blank at the very end takes everything that is left, and a
        template that ends in words is closed with the end-of-text token and padding.
        Raises UniViGUError when it does not fit.
        """
        parts = BLANK.split(text.strip())
        open_end = parts[-1].strip() == ""
        pinned: list[int] = []
        for part, width in zip(parts, [*widths, 0], strict=True):
            pinned += [*(self.ids(part, end=False) if part.strip() else []), *[-1] * width]
        if not open_end:
            pinned.append(self.run.eos_token)
        if len(pinned) > length:
            raise UniViGUError(
                f"the template needs {len(pinned)} tokens and the text stream has {length}: shorten "
                f"{_shown(text)} or ask for a longer text stream"
            )
        rest = -1 if open_end else self.run.pad_token
        return torch.tensor(pinned + [rest] * (length - len(pinned)))


def blanks(text: str) -> tuple[int, bool]:
    """How many blanks a template has, and whether it ends in one."""
    parts = BLANK.split(text.strip())
    return len(parts) - 1, len(parts) > 1 and parts[-1].strip() == ""


def _shown(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def encoder_config(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of a umT5 encoder from its weights (Hugging Face naming)."""
    try:
        vocabulary, width = weights["shared.weight"].shape
        bias = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        inner = weights["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0]
        wide = weights["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
    except KeyError as error:
        raise UniViGUError(f"the text encoder is not a umT5 encoder: tensor {error} is missing") from None
    except (ValueError, IndexError, ZeroDivisionError):
        raise UniViGUError("the text encoder is not a umT5 encoder: its tensors have other shapes") from None
    layers = 1 + max(int(match[1]) for name in weights if (match := re.match(r"encoder\.block\.([0-9]{1,4})\.", name)))
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_heads": bias.shape[1],
        "d_kv": inner // bias.shape[1],
        "d_ff": wide,
        "num_layers": layers,
        "relative_attention_num_buckets": bias.shape[0],
    }


def build_encoder(sizes: Mapping[str, int], text_states: str = "umT5") -> nn.Module:
    """An encoder without weights worth having; ``text_states`` as in ``TextEncoder``."""
    try:
        import transformers
    except ImportError as error:
        raise UniViGUError(
            f"the text encoder needs transformers, which does not import ({error}): "
            "pip install -e '.[standalone]' in the project's folder"
        ) from None
    common: dict[str, Any] = {
        **sizes,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
    }
    if text_states == "umT5":
        return transformers.UMT5EncoderModel(transformers.UMT5Config(**common))
    if text_states == "release":
        return transformers.T5EncoderModel(transformers.T5Config(**common))
    raise UniViGUError(f"text states are {text_states!r}; expected one of {', '.join(TEXT_STATES)}")


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
    if match is None:
        return name
    if match[1] is None:
        return f"{_ORIGINAL[match[2]]}.weight" if match[2] in _ORIGINAL else name
    inside = _ORIGINAL_BLOCK.get(match[2])
    return name if inside is None else f"encoder.block.{match[1]}.{inside}.weight"


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


def load_encoder(weights: Mapping[str, Tensor], text_states: str = "umT5") -> nn.Module:
    """A umT5 encoder from its weights, without a second copy of them.

    ``weights``: with Hugging Face's or Wan's own names, in fp8 with a scale per tensor beside it too (ComfyUI's files).
    Matrices in two bytes or one stay so in memory; each is made float32 while it is used, so that the arithmetic is
    float32 whatever the file holds.
    The embedding is one tensor, not two.
    Raises UniViGUError for another encoder, an incomplete one, and for what is quantised in other ways.
    """
    stored, scales = encoder_names(weights)
    found = {name: weights[there] for name, there in stored.items()}
    with torch.device("meta"):
        encoder = build_encoder(encoder_config(found), text_states)
    for name in scales:
        if weights[scales[name]].numel() != 1 or name not in found or not found[name].is_floating_point():
            raise UniViGUError(
                f"the text encoder's {name} is quantised in a way that is not read here; expected fp8 with one scale "
                "per tensor (fp8_e4m3fn_scaled), fp16 or bf16"
            )
    held: dict[str, _Stored] = {}
    for name, module in list(encoder.named_modules()):
        kind = {nn.Linear: StoredLinear, nn.Embedding: StoredEmbedding}.get(type(module))
        weight = found.get(f"{name}.weight")
        small = name.endswith("relative_attention_bias") or name == "encoder.embed_tokens"
        if kind is None or weight is None or small or weight.dtype not in (*FP8_DTYPES, torch.float16, torch.bfloat16):
            continue
        if weight.shape != module.weight.shape:
            break  # said by what follows
        scale = scales.get(f"{name}.weight")
        held[name] = kind(weight, None if scale is None else weights[scale])
    encoder_weights = {n: w for n, w in found.items() if n.removesuffix(".weight") not in held}
    for name, part in held.items():
        encoder.set_submodule(name, part)
        encoder_weights[f"{name}.stored"] = part.stored
    for name, scale in scales.items():
        if name in encoder_weights:
            encoder_weights[name] = dequantise(encoder_weights[name], weights[scale])
    shared = encoder.get_submodule("shared")
    encoder.set_submodule("encoder.embed_tokens", shared)
    end = "stored" if isinstance(shared, StoredEmbedding) else "weight"
    encoder_weights[f"encoder.embed_tokens.{end}"] = encoder_weights[f"shared.{end}"]
    if held:
        encoder_weights = {n: w if n.endswith(".stored") else w.float() for n, w in encoder_weights.items()}
    wanted = encoder.state_dict().keys()
    missing = sorted(set(wanted) - set(encoder_weights))
    if missing:
        raise UniViGUError(f"the text encoder lacks {len(missing)} tensors, first {missing[0]}")
    encoder_weights = {name: tensor for name, tensor in encoder_weights.items() if name in wanted}
    return with_weights(encoder, encoder_weights, "the text encoder's tensors do not fit each other")


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
        states = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
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
