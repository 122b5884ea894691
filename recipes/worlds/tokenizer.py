"""The SentencePiece model of the embedded checkpoint: every word of the little worlds is one piece, everything else
falls back to letters and bytes, so that any text in any script can be tokenised."""

from __future__ import annotations

import io

from .grammar import BACKGROUNDS, COLOURS, KINDS, MOTIONS, SIZES

# Words of the captions now and of the worlds to come; one piece each. Their order and their repetitions are part of the
# trained model: another order gives other ids.
_VOCABULARY = """
a an the and on of in background moves stays still grows slowly quickly video object
star ring cross digit zero one two three four five six seven eight nine
"""
WORDS = (*_VOCABULARY.split(), *COLOURS, *BACKGROUNDS, *KINDS, *SIZES, *" ".join(MOTIONS).split())
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS = ", . ! ? ' - 0 1 2 3 4 5 6 7 8 9"


def train_tokenizer() -> bytes:
    """The serialised SentencePiece model; ids as in umT5: pad 0, end of text 1, unknown 2. Deterministic."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*(f" {word}" for word in WORDS for _ in range(8)), " ".join(LETTERS), SIGNS]),
        model_writer=model,
        model_type="unigram",
        vocab_size=3 + 256 + len(WORDS) + 1 + len(LETTERS) + 16,
        user_defined_symbols=[f"▁{word}" for word in dict.fromkeys(WORDS) if len(word) > 1],
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    return model.getvalue()
