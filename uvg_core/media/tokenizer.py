"""Words <-> token ids.

The text stream and the prompt condition share one SentencePiece vocabulary (umT5's for the released model).

Legend: B batch, L text-stream tokens, S rows of the prompt condition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import UniViGUError
from ..versions import require

_BLANK = re.compile(r"_{2,}")


class Tokenizer:
    """SentencePiece with an end-of-text token at the end, as umT5 uses it.

    How generated text ends is ``end_of_text`` of ``run``: at the first end token (``stop``), or end tokens are left out
    as padding is and the words behind them are read too (``skip``, as the release does)."""

    def __init__(self, model: bytes, run: RunConfig) -> None:
        try:
            import sentencepiece

            # Planted models read and write beyond memory before: CVE-2026-1260 until 0.2.1, OSV-2026-646 in 0.2.1.
            require("sentencepiece", (0, 2, 3), "crash, or worse, on a planted tokenizer (CVE-2026-1260, OSV-2026-646)")
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except ImportError as error:
            raise UniViGUError(
                f"the tokenizer needs sentencepiece, which does not import ({error}): pip install sentencepiece"
            ) from None
        except UniViGUError:
            raise
        except (RuntimeError, ValueError) as error:  # the latter for a reason that is not UTF-8
            raise UniViGUError(f"the tokenizer is not a SentencePiece model ({error})") from None
        self.proto, self.run = model, run

    @property
    def size(self) -> int:
        """Pieces of the vocabulary; the checkpoint's embedding may have spare rows beyond."""
        return self._pieces.get_piece_size()

    def ids(self, text: str, end: bool = True) -> list[int]:
        """Token ids of a text, with the end-of-text token unless told otherwise. Halves of surrogate pairs, which no
        encoding has, become question marks."""
        text = text.strip().encode("utf-8", "replace").decode()
        return [*self._pieces.encode(text), *([self.run.eos_token] if end else [])]

    def text(self, ids: Sequence[int] | Tensor) -> str:
        """Words of one row of ids, up to the first end-of-text unless the model's way is ``skip``; end tokens, padding
        and ids beyond the vocabulary are left out."""
        row: list[int] = ids.cpu().tolist() if isinstance(ids, Tensor) else list(ids)
        eos, pad = self.run.eos_token, self.run.pad_token
        if self.run.end_of_text != "skip" and eos in row:
            row = row[: row.index(eos)]
        return str(self._pieces.decode([i for i in row if i not in (pad, eos) and 0 <= i < self.size])).strip()

    def stream(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Ids ``[B,L]`` for the text stream, padded, and the mask of real tokens.

        Raises UniViGUError for a text that does not fit."""
        problem = "the text has {} tokens and the text stream {}: shorten {} or ask for a longer text stream"
        return self._padded(texts, length, problem)

    def context(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids ``[B,S]`` for the text encoder, padded, and the mask of real tokens.

        Raises UniViGUError for a prompt that does not fit."""
        problem = "the prompt has {} tokens and this model reads {}: shorten {} (unknown words are spelled out)"
        return self._padded(prompts, self.run.context_length, problem)

    def _padded(self, texts: Sequence[str], length: int, problem: str) -> tuple[Tensor, Tensor]:
        rows = [self.ids(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > length:
                raise UniViGUError(problem.format(len(row), length, _shortened(text)))
        ids = torch.tensor([row + [self.run.pad_token] * (length - len(row)) for row in rows])
        # By length, not by id: a text may hold the pad token's id as a piece.
        return ids, torch.arange(length) < torch.tensor([[len(row)] for row in rows])

    def template(self, text: str, widths: Sequence[int], length: int) -> Tensor:
        """Pinned ids ``[L]`` of a template with blanks (two or more underscores), -1 where the model may choose.

        ``widths`` gives the tokens of each blank; a blank at the very end takes everything that is left, and a
        template that ends in words is closed with the end-of-text token and padding.
        Raises UniViGUError when it does not fit.
        """
        parts = _BLANK.split(text.strip())
        open_end = not parts[-1].strip()
        pinned: list[int] = []
        for part, width in zip(parts, [*widths, 0], strict=True):
            pinned += [*(self.ids(part, end=False) if part.strip() else []), *[-1] * width]
        if not open_end:
            pinned.append(self.run.eos_token)
        if len(pinned) > length:
            raise UniViGUError(
                f"the template needs {len(pinned)} tokens and the text stream has {length}: shorten "
                f"{_shortened(text)} or ask for a longer text stream"
            )
        return torch.tensor(pinned + [-1 if open_end else self.run.pad_token] * (length - len(pinned)))


def blanks(text: str) -> tuple[int, bool]:
    """How many blanks a template has, and whether it ends in one."""
    parts = _BLANK.split(text.strip())
    return len(parts) - 1, len(parts) > 1 and not parts[-1].strip()


def require_blank(template: str) -> None:
    """Raise UniViGUError for a template without a blank."""
    if not blanks(template)[0]:
        raise UniViGUError(
            f"the template {template!r} has no blank; mark each with underscores, e.g. 'a red ___ moves ___'"
        )


def without_blanks(text: str) -> str:
    """The words of a template."""
    return " ".join(_BLANK.sub(" ", text).split())


def _shortened(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
