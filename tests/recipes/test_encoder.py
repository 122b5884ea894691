"""The small text encoder: the questions it learns by are asked of the right words, and a short training teaches it."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

from recipes.worlds import encoder
from recipes.worlds.encoder import _ANSWERS, _question, train_encoder
from recipes.worlds.grammar import BACKGROUNDS, COLOURS, KINDS, MOTIONS, SIZES, SPEEDS, parse
from recipes.worlds.tokenizer import train_tokenizer
from uvg_core.config import RunConfig
from uvg_core.media.tokenizer import Tokenizer

RUN = RunConfig(height=48, width=48, frames=9, fps=4.0, text_length=24, context_length=32)
NAMES = list(_ANSWERS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(), RUN)


def segments(text: str) -> list[str]:
    """The parts of a text, each word in one of them: objects, the "and" between them, the ground."""
    ground = re.search(r" on a \w+ background$", text)
    body = text[: ground.start()] if ground else text
    first, *second = body.split(" and ")
    return [first, *(["and", *second] if second else []), *([ground[0].strip()] if ground else [])]


def said(words: str) -> dict[str, str]:
    """The attributes that a part names, by the tables of the grammar."""
    tables = {"kind": KINDS, "colour": COLOURS, "size": SIZES}
    tables |= {"motion": MOTIONS, "speed": SPEEDS, "background": BACKGROUNDS}
    return {name: word for name, table in tables.items() for word in table if f" {word} " in f" {words} "}


def test_every_token_is_asked_about_its_own_object(tokenizer: Tokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds: set[tuple[int, bool]] = set()
    for _ in range(150):
        text, answers = _question(tokenizer, generator)
        ids = tokenizer.ids(text)
        assert answers.shape == (len(ids), len(NAMES))
        assert answers[-1].tolist() == [-1] * len(NAMES)  # the end of the text is asked nothing
        assert tokenizer.text(ids) == text
        parts = segments(text)
        ground = said(parts[-1]).get("background") if parts[-1].startswith("on a") else None
        kinds.add((sum(part.startswith("a ") for part in parts), ground is not None))
        place = 0
        for part in parts:
            pieces = tokenizer.ids(part, end=False)
            assert tokenizer.text(ids[place : place + len(pieces)]) == part
            expected = dict.fromkeys(NAMES) | said(part) | {"background": ground}
            for row in answers[place : place + len(pieces)].tolist():
                found = {name: _ANSWERS[name][index] for name, index in zip(NAMES, row, strict=True)}
                assert found == expected, (text, part)
            place += len(pieces)
        assert place == len(ids) - 1
    assert kinds == {(1, False), (1, True), (2, False), (2, True)}


def test_brief_prompts_and_whole_captions_are_among_the_texts(tokenizer: Tokenizer) -> None:
    generator = torch.Generator().manual_seed(1)
    texts = [_question(tokenizer, generator)[0] for _ in range(200)]
    whole = sum(parse(text) is not None for text in texts)
    brief = sum(all(set(said(part)) == {"kind", "colour"} for part in text.split(" and ")) for text in texts)
    assert 80 <= whole <= 130  # half of them, and a few by chance
    assert 25 <= brief <= 70
    assert whole + brief < 190  # the others leave some parts out


def test_a_short_training_lowers_the_loss(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "SIZES", {**encoder.SIZES, "d_model": 64, "d_kv": 16, "d_ff": 128})
    lines: list[str] = []
    trained = train_encoder(tokenizer, steps=200, batch=12, say=lines.append)
    losses = [float(line.split()[-1]) for line in lines]
    blind = sum(torch.tensor(len(answers)).log() for answers in _ANSWERS.values())  # 10.2 nats: all answers alike
    assert len(losses) == 2
    assert losses[0] < 0.6 * blind
    assert losses[1] < 0.85 * losses[0]
    assert not trained.training
    assert not any(weight.requires_grad for weight in trained.parameters())


def test_training_is_a_function_of_its_seed(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "SIZES", {**encoder.SIZES, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1})
    first, again, other = (train_encoder(tokenizer, steps=3, batch=4, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not torch.equal(first["shared.weight"], other["shared.weight"])
