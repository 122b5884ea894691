"""Prompts for the text encoder and for the text stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...uvg_core.config import RunConfig
from ...uvg_core.errors import UniViGUError
from ...uvg_core.media.tokenizer import Tokenizer
from .names import TEXT_MASK, TEXT_TOKENS
from .network import network_of, run_facts


def tokenizer_of(clip: Any) -> Tokenizer:
    """The SentencePiece tokenizer that a umT5 CLIP carries. Raises UniViGUError for another CLIP."""
    tokenizer: Any = getattr(clip, "tokenizer", None)
    proto = tokenizer.state_dict().get("spiece_model") if hasattr(tokenizer, "state_dict") else None
    if proto is None or getattr(tokenizer, "clip_name", "") != "umt5xxl":
        kind = "no CLIP" if clip is None else f"a CLIP of another kind ({type(tokenizer).__name__})"
        raise UniViGUError(
            f"found {kind}, expected a umT5: it also turns tokens into words. Take the CLIP of Load Uni-ViGU, or Load "
            "CLIP with type wan"
        )
    return Tokenizer(proto.numpy().tobytes(), run_facts(clip))


def encode_prompt(clip: Any, text: str, stream: str | None, states: Tensor | None = None) -> list[Any]:
    """CONDITIONING with the states of ``text`` and, as the held-clean text stream, the tokens of ``stream``.

    ``stream`` None is the same text; an empty stream is plain Wan. ``states`` ``[1,S,E]`` take the place of the text's.
    Raises UniViGUError for texts that do not fit.
    """
    tokenizer_of(clip)  # another CLIP is told here, in words
    run = run_facts(clip)
    tokens = clip.tokenize(text)
    length = len(_real_tokens(tokens, run))
    if length > run.context_length:
        raise UniViGUError(
            f"the prompt has {length} tokens and this model reads {run.context_length}: shorten it (words that the "
            "tokenizer does not know are spelled out, a token a letter)"
        )
    words = text if stream is None else stream
    extra: dict[str, Any] = {}
    if words.strip():
        ids = _real_tokens(clip.tokenize(words), run)
        limit = max(run.text_length, run.context_length)
        if len(ids) > limit:
            raise UniViGUError(f"the text-stream text has {len(ids)} tokens; at most {limit} fit: shorten it")
        extra[TEXT_TOKENS] = torch.tensor([ids])
    if states is not None:
        return [[states, extra]]
    return clip.encode_from_tokens_scheduled(tokens, add_dict=extra)


def _real_tokens(tokens: Mapping[str, Any], run: RunConfig) -> list[int]:
    """The ids of core's tokenization up to the end of the text; prompt weights and embeddings fall away."""
    ids: list[int] = []
    for token, *_ in tokens["umt5xxl"][0]:
        if isinstance(token, int):
            ids.append(token)
            if token == run.eos_token:
                break
    return ids


def with_tokens_of(positive: list[Any], negative: list[Any]) -> list[Any]:
    """``negative`` with the text stream of ``positive``: both passes of guidance see the same text, as in the
    release."""
    keys = (TEXT_TOKENS, TEXT_MASK)
    shared = {key: positive[0][1][key] for key in keys if positive and key in positive[0][1]}
    return [[c, {k: v for k, v in extra.items() if k not in keys} | shared] for c, extra in negative]


def tokens_of(positive: list[Any]) -> Tensor | None:
    """The text stream ``[1,L]`` of a prompt, None for an empty one."""
    found: Tensor | None = positive[0][1].get(TEXT_TOKENS) if positive else None
    return found


def hint_conditioning(model: Any, hint: list[Any] | None) -> list[Any]:
    """CONDITIONING to look at beside a clip, without timestep ranges: a run that describes a clip has only one time for
    the video. No hint is zeros, as in the release's video-to-text."""
    if not hint:
        return [[torch.zeros(1, 1, network_of(model).config.text_dim), {}]]
    ranges = ("start_percent", "end_percent")
    return [[c, {k: v for k, v in extra.items() if k not in ranges}] for c, extra in hint]
