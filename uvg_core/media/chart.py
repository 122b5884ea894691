"""A ranking as a picture: one bar per text, the best one marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UniViGUError
from ..versions import require_pillow
from .fonts import ascent, written
from .sheet import ACCENT, BODY, BRIGHT, CARD, GROUND, MUTED, shorten

WIDTH, ROW, MARGIN = 960, 64, 36


def draw_ranking(texts: Sequence[str], scores: Sequence[float], shares: Sequence[float], title: str = "") -> Any:
    """Texts from best to worst, each with its score in nats and a bar as long as its share (0 to 1); a Pillow picture.

    Raises UniViGUError when the lists differ in length or are empty, ImportError without Pillow.
    """
    from PIL import Image, ImageDraw

    require_pillow()
    if not texts or not len(texts) == len(scores) == len(shares):
        raise UniViGUError(f"found {len(texts)} texts, {len(scores)} scores and {len(shares)} shares; expected as many")
    top = MARGIN + (52 if title else 0)
    picture = Image.new("RGB", (WIDTH, top + ROW * len(texts) + MARGIN), GROUND)
    draw = ImageDraw.Draw(picture)
    line, font = written(title, 24)
    draw.text((MARGIN, MARGIN + ascent(24)), line, font=font, fill=BRIGHT, anchor="ls")
    right, room = WIDTH - MARGIN, WIDTH - 2 * MARGIN
    text_colour, colour = ACCENT, ACCENT  # of the best
    for score, share, text in sorted(zip(scores, shares, texts, strict=True), key=lambda row: -row[0]):
        numbers, small = written(f"{score:.2f} nats   {share:.1%}", 15)
        words, big = written(text, 19)
        words = shorten(words, big.getlength, room - small.getlength(numbers) - 24)
        draw.text((MARGIN, top + ascent(19)), words, font=big, fill=text_colour, anchor="ls")
        draw.text((right, top + 4), numbers, font=small, fill=colour, anchor="ra")
        for end, fill in ((right, CARD), (MARGIN + max(10, round(room * share)), colour)):
            draw.rounded_rectangle((MARGIN, top + 32, end, top + 42), radius=5, fill=fill)
        top += ROW
        text_colour, colour = BODY, MUTED
    return picture
