"""Words <-> token ids, and words -> prompt condition.

The text stream and the prompt condition share one SentencePiece vocabulary (umT5's for the released model). Outside
ComfyUI the encoder comes from ``transformers``; it is imported when an encoder is built, not before.

Legend: B batch, L text-stream tokens, S rows of the prompt condition, E encoder width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TEXT_STATES, RunConfig
from ..errors import UniViGUError
from .assign import with_weights

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
        for i in ids.tolist() if isinstance(ids, Tensor) else ids:
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


def load_encoder(weights: Mapping[str, Tensor], text_states: str = "umT5") -> nn.Module:
    """A umT5 encoder from its weights, without a second copy of them."""
    with torch.device("meta"):
        encoder = build_encoder(encoder_config(weights), text_states)
    tied = {"encoder.embed_tokens.weight": weights["shared.weight"]}
    wanted = encoder.state_dict().keys()
    found = {name: tensor for name, tensor in {**tied, **weights}.items() if name in wanted}
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise UniViGUError(f"the text encoder lacks {len(missing)} tensors, first {missing[0]}")
    return with_weights(encoder, found, "the text encoder's tensors do not fit each other")


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
        device = next(self.encoder.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        states = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states * mask[..., None].to(states.dtype) if self.text_states == "umT5" else states
