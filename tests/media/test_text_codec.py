"""Tokens, padding, and the text encoder with both ways of running it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recipes.worlds.tokenizer import WORDS, train_tokenizer
from uvg_core import UniViGUError
from uvg_core.config import RunConfig
from uvg_core.media.text_encoder import TextEncoder, build_encoder, load_encoder
from uvg_core.media.tokenizer import Tokenizer

RUN = RunConfig(text_length=16, context_length=12)
SIZES = {"d_model": 16, "num_heads": 2, "d_kv": 8, "d_ff": 24, "num_layers": 2, "relative_attention_num_buckets": 8}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(), RUN)


@pytest.fixture(scope="module")
def weights(tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    encoder = build_encoder({**SIZES, "vocab_size": tokenizer.size})
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return dict(encoder.state_dict())


@pytest.mark.parametrize(
    "text", ["a small red circle moves left on a navy background", "한국어 caption, ünïcode!", "rain redo 42"]
)
def test_words_survive(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.text(tokenizer.ids(text)) == text


def test_halves_of_surrogate_pairs_are_question_marks(tokenizer: Tokenizer) -> None:
    assert tokenizer.ids("a red \udce9 circle") == tokenizer.ids("a red ? circle")


def test_world_words_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert [word for word in WORDS if len(tokenizer.ids(word, end=False)) != 1] == []


def test_decoding_stops_at_the_first_end_of_text(tokenizer: Tokenizer) -> None:
    red, blue = tokenizer.ids("red", end=False), tokenizer.ids("blue", end=False)
    assert tokenizer.text([*red, 0, 1, *blue, 10_000]) == "red"


def test_an_early_end_is_the_end_or_passed_over(tokenizer: Tokenizer) -> None:
    """Words drawn at random may hold an end token anywhere: read up to it, a caption that begins with one is empty."""
    a, red, blue = (tokenizer.ids(word, end=False)[0] for word in ("a", "red", "blue"))
    skips = Tokenizer(tokenizer.proto, replace(RUN, end_of_text="skip"))
    for ids, stop, skip in (
        ([1, a, red, 1, 0, 0], "", "a red"),
        ([a, 1, red, 0, blue, 1], "a", "a red blue"),
        ([a, red, 1, 0, 0, 0], "a red", "a red"),
        ([1, 0, 1, 0], "", ""),
    ):
        assert tokenizer.text(ids) == stop
        assert skips.text(torch.tensor(ids)) == skip


def test_overlong_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UniViGUError, match=r"5 tokens and the text stream 3"):
        tokenizer.stream(["red red red red"], 3)


def test_a_file_that_is_no_tokenizer() -> None:
    with pytest.raises(UniViGUError, match="not a SentencePiece model"):
        Tokenizer(b"something else", RUN)


def test_states_are_umt5s_with_padding_zeroed(tokenizer: Tokenizer, weights: dict[str, torch.Tensor]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(**SIZES, vocab_size=tokenizer.size, feed_forward_proj="gated-gelu", dropout_rate=0)
    reference = transformers.UMT5EncoderModel(config).eval()
    reference.load_state_dict(weights)
    prompts = ["a red circle", ""]
    ids, mask = tokenizer.stream(prompts, 12)
    with torch.no_grad():
        states = TextEncoder(load_encoder(weights), tokenizer)(prompts)
        want = reference(ids, attention_mask=mask.long()).last_hidden_state
    assert states.shape == (2, 12, 16)
    torch.testing.assert_close(states[mask], want[mask])
    assert not states[~mask].any()


def test_release_states_use_one_bias_and_keep_padding(tokenizer: Tokenizer, weights: dict[str, torch.Tensor]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(**SIZES, vocab_size=tokenizer.size, feed_forward_proj="gated-gelu", dropout_rate=0)
    reference = transformers.T5EncoderModel(config).eval()
    reference.load_state_dict(weights, strict=False)
    ids, mask = tokenizer.stream(["a red circle"], 12)
    with torch.no_grad():
        want = reference(ids, attention_mask=mask.long()).last_hidden_state
        states = TextEncoder(load_encoder(weights, "release"), tokenizer, "release")(["a red circle"])
        ours = TextEncoder(load_encoder(weights), tokenizer)(["a red circle"])
    torch.testing.assert_close(states, want)
    assert states[~mask].abs().max() > 0
    assert (states - ours)[mask].abs().max() > 0.1


def test_prompts_that_do_not_fit_and_files_that_are_none(
    tokenizer: Tokenizer, weights: dict[str, torch.Tensor]
) -> None:
    encoder = TextEncoder(load_encoder(weights), tokenizer)
    with pytest.raises(UniViGUError, match="13 tokens and this model reads 12: shorten 'red red"):
        encoder(["red " * 12])
    with pytest.raises(UniViGUError, match="not a umT5 encoder"):
        load_encoder({"shared.weight": torch.zeros(3, 4)})
    with pytest.raises(UniViGUError, match="text states"):
        load_encoder(weights, "magic")
