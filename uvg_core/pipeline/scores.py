"""Captions held against human ones: BLEU, ROUGE-L, CIDEr-D and METEOR, all by pycocoevalcap, whose numbers papers
report. Its tokenizer and METEOR are Java programs."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from ..errors import UniViGUError

_PLAIN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def require_scorers() -> None:
    """Raise UniViGUError where pycocoevalcap is missing."""
    try:
        import pycocoevalcap.cider.cider  # noqa: F401
    except ImportError as error:
        raise UniViGUError(f'scores need pycocoevalcap ({error}): pip install "pycocoevalcap>=1.2"') from None


def scores_of(
    captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]], note: Callable[[str], object]
) -> dict[str, Any]:
    """The scores under pycocoevalcap's names (its ``CIDEr`` is CIDEr-D), the tokenizer, and how many clips they are of:
    those that have a caption and references. ``note`` is told what is left out."""
    require_scorers()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    shared = [id for id in captions if id in references]
    if not shared:
        raise UniViGUError("none of the captioned clips is in --references; check that both name the same clips")
    has_java = shutil.which("java") is not None
    if not has_java:
        note(
            "no Java found: METEOR is left out, and a plain tokenizer stands in for the Penn Treebank's, so the other "
            "scores are not comparable with published ones"
        )
    tokenized = PTBTokenizer().tokenize if has_java else _plainly
    with redirect_stdout(io.StringIO()):  # the scorers print
        # Whitespace of any kind is a space to the tokenizer, but a line of its own would shift all that follow.
        told = tokenized({id: [{"caption": " ".join(one.split())} for one in references[id]] for id in shared})
        said = tokenized({id: [{"caption": " ".join(captions[id].split())}] for id in shared})
        bleu, _ = Bleu(4).compute_score(told, said)
        scores = {f"Bleu_{n}": float(score) for n, score in enumerate(bleu, 1)}
        scores["ROUGE_L"] = float(Rouge().compute_score(told, said)[0])
        scores["CIDEr"] = float(Cider().compute_score(told, said)[0])
        if has_java:
            scores["METEOR"] = float(Meteor().compute_score(told, said)[0])
    return {**scores, "tokenizer": "PTB" if has_java else "plain", "clips": len(shared)}


def _plainly(texts: Mapping[Any, list[dict[str, str]]]) -> dict[Any, list[str]]:
    """Lower-case words without punctuation."""
    return {id: [" ".join(_PLAIN.findall(one["caption"].lower())) for one in some] for id, some in texts.items()}
