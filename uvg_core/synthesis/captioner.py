"""Detailed captions from a language model that sees: it is asked again until a caption has the length wanted."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.caches import ANSWERS
from ..errors import UniViGUError, counted, printable
from ..io import read_text
from ..media.video import probe
from ..media.video.footage import FOOTAGE, Footage
from .chat import Answer, ChatClient, LengthError
from .settings import Chat

INSTRUCTIONS = """\
You write the captions of a data set of short videos. You are shown frames of one video, in order and evenly spread in \
time, and the brief prompt that it was generated from.
Describe in detail what is to be seen: every subject with its shape, colour, size and place, what moves and how it \
moves from the first frame to the last, the background, the light and the camera. Where prompt and frames disagree, \
the frames are right. Do not guess what cannot be seen.
Write one paragraph of plain text in the language of the prompt, without a heading, a list or quotation marks. Speak \
of the video as a whole; mention neither the frames nor the prompt nor these instructions. Answer with the description \
alone."""

# English in large vocabularies; only the first guess, the words of the answer itself tell better.
WORDS_PER_TOKEN = 0.75


@dataclass(frozen=True)
class Caption:
    """A caption on one line, its length in the checkpoint's tokens, and how many answers it took."""

    text: str
    tokens: int
    answers: int


class Captioner:
    """Detailed captions of clips, within limits of length.

    Args:
        client: whom to ask. count: tokens of a text in the checkpoint's own vocabulary, end-of-text included.
        limits: fewest and most tokens of a caption, both included. instructions: unless its settings name others.

    How many frames are shown and how often it asks is said in the client's settings. Raises UniViGUError for a file of
    instructions that cannot be read.
    """

    def __init__(
        self,
        client: ChatClient,
        count: Callable[[str], int],
        limits: tuple[int, int],
        instructions: str = INSTRUCTIONS,
    ) -> None:
        self.client, self.chat, self.count, self.limits = client, client.chat, count, limits
        self.instructions = instructions
        if path := self.chat.instructions:
            try:
                self.instructions = read_text(path).strip()
            except FileNotFoundError:
                raise UniViGUError(f"{path}: cannot be read: no such file; pass one with the system prompt") from None
            if not self.instructions:
                raise UniViGUError(
                    f"{path}: the file is empty; write the instructions for the language model, or leave "
                    "--instructions out"
                )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that captions depend on."""
        return {
            "llm": self.chat.llm,
            "llm_options": self.client.options,
            "instructions": self.instructions,
            "tokens": list(self.limits),
            "frames_shown": self.chat.frames_shown,
            "frame_side": self.chat.frame_side,
        }

    def caption(
        self, prompt: str, clip: Path, footage: Footage = FOOTAGE, shape: tuple[int, int] | None = None
    ) -> Caption:
        """Ask for the caption of what ``footage`` reads of a video file; ``prompt`` is what is known of it, or empty.
        ``shape``: height and width that its frames are fitted to, None for its own. Raises LengthError when no answer
        has the right length, and as ``ChatClient.answer`` does."""
        fewest, most = self.limits
        messages = self._opening(prompt, clip, footage, shape)
        answers: list[Answer] = []
        counts: list[str] = []
        for _ in range(self.chat.attempts):
            answer = self.client.answer(messages)
            answers.append(answer)
            text = " ".join(map(printable, answer.text.split()))
            tokens = self.count(text)
            if fewest <= tokens <= most and not answer.cut and any(map(str.isalnum, answer.text)):
                # Only conversations that ended well are kept: a later run shall try a failed one afresh.
                for number, known in enumerate(answers):  # each added two messages to the first two
                    self.client.remember(messages[: 2 + 2 * number], known)
                return Caption(text, tokens, len(answers))
            counts.append(f"{tokens}{' (cut off)' if answer.cut else ''}")
            messages = [
                *messages,
                {"role": "assistant", "content": answer.text},
                {"role": "user", "content": self._again(text, tokens, answer.cut)},
            ]
        raise LengthError(
            f"the answers of {self.chat.llm!r} had {', '.join(counts)} tokens; expected {fewest} to {most}. Allow "
            "more answers with --attempts, or other lengths with --min-tokens and --max-tokens"
        )

    def _opening(
        self, prompt: str, clip: Path, footage: Footage, shape: tuple[int, int] | None
    ) -> list[dict[str, Any]]:
        info = probe(clip, start=footage.start, seconds=footage.seconds)
        sides = shape or (info.height, info.width)
        scale = min(1.0, self.chat.frame_side / max(sides))
        height, width = (max(1, round(scale * length)) for length in sides)
        frames, lasts = min(self.chat.frames_shown, info.frames), info.duration
        if footage.fps is not None:
            fps = min(footage.fps, info.fps)
            footage, frames = replace(footage, fps=fps), min(frames, max(1, int(lasts * fps + 1e-6)))
            lasts = min(lasts, frames / fps)
        # From the file, not from memory: a later run shows the very same frames, and finds its answers in the cache.
        pixels = footage.read(clip, footage.spec(frames, height, width)).pixels
        known = f"The prompt: {prompt}\n" if prompt else ""
        text = (
            f"{known}The video lasts {lasts:.1f} seconds; {len(pixels)} of its frames follow in "
            f"order. {self._demand(WORDS_PER_TOKEN)}"
        )
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(frame)}} for frame in pixels]
        return [
            {"role": "system", "content": self.instructions},
            {"role": "user", "content": [{"type": "text", "text": text}, *pictures]},
        ]

    def _demand(self, words_per_token: float) -> str:
        fewest, most = self.limits
        words = [max(1, round(tokens * words_per_token)) for tokens in (fewest, most, (fewest + most) / 2)]
        return (
            f"The description must have between {fewest} and {most} tokens, which is about {words[0]} to {words[1]} "
            f"words; aim for {words[2]} words."
        )

    def _again(self, text: str, tokens: int, cut: bool) -> str:
        """What is wrong with an answer, and the wish for another, in words of the kind that the answer has."""
        words = len(text.split())
        found = f"Your description has {counted(tokens, 'token')} in {counted(words, 'word')}"
        found += " and was cut off before its end" if cut else ""
        wish = "shorter" if cut or tokens > self.limits[1] else "with more of what is to be seen"
        return f"{found}. {self._demand(words / tokens)} Write it again, {wish}. Answer with the description alone."


def _data_url(frame_HWC: Tensor) -> str:
    """A frame as JPEG in a data URL; uint8 ``[H,W,3]``."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame_HWC.numpy()).save(file, "JPEG", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def make_captioner(
    chat: Chat,
    out: Path,
    count: Callable[[str], int],
    limits: tuple[int, int],
    note: Callable[[str], object],
    instructions: str = INSTRUCTIONS,
) -> Captioner | None:
    """None without an endpoint. Raises UniViGUError for settings that cannot be used."""
    if chat.endpoint is None:
        return None
    client = ChatClient(chat, cache=chat.cache or out / ANSWERS, note=lambda text: note(f"     {text}"))
    return Captioner(client, count, limits, instructions)
