"""A ranking as a picture: one bar per text, the best one marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UniViGUError
from ..versions import require_pillow
from .sheet import ACCENT, BODY, BRIGHT, CARD, GROUND, MUTED, cleaner, shorten

WIDTH, ROW, MARGIN = 960, 64, 36


def draw_ranking(texts: Sequence[str], scores: Sequence[float], shares: Sequence[float], title: str = "") -> Any:
    """Texts from best to worst, each with its score in nats and a bar as long as its share (0 to 1); a Pillow picture.

    Raises UniViGUError when the lists differ in length or are empty, ImportError without Pillow.
    """
    from PIL import Image, ImageDraw, ImageFont

    require_pillow()
    if not texts or not len(texts) == len(scores) == len(shares):
        raise UniViGUError(f"found {len(texts)} texts, {len(scores)} scores and {len(shares)} shares; expected as many")
    big, small = ImageFont.load_default(size=19), ImageFont.load_default(size=15)
    clean = cleaner(big)
    top = MARGIN + (52 if title else 0)
    picture = Image.new("RGB", (WIDTH, top + ROW * len(texts) + MARGIN), GROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, font=ImageFont.load_default(size=24), fill=BRIGHT)
    right, room = WIDTH - MARGIN, WIDTH - 2 * MARGIN
    text_colour, colour = ACCENT, ACCENT  # of the best
    for score, share, text in sorted(zip(scores, shares, texts, strict=True), key=lambda row: -row[0]):
        numbers = f"{score:.2f} nats   {share:.1%}"
        words = shorten(clean(text), big.getlength, room - small.getlength(numbers) - 24)
        draw.text((MARGIN, top), words, font=big, fill=text_colour)
        draw.text((right, top + 4), numbers, font=small, fill=colour, anchor="ra")
        for end, fill in ((right, CARD), (MARGIN + max(10, round(room * share)), colour)):
            draw.rounded_rectangle((MARGIN, top + 32, end, top + 42), radius=5, fill=fill)
        top += ROW
        text_colour, colour = BODY, MUTED
    return picture
