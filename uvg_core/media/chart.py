"""A ranking as a picture: one bar per text, the best one marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UniViGUError
from .sheet import ACCENT, BODY, BRIGHT, CARD, GROUND, MUTED, cleaner, shorten

WIDTH, ROW, MARGIN = 960, 64, 36


def draw_ranking(texts: Sequence[str], scores: Sequence[float], shares: Sequence[float], title: str = "") -> Any:
    """Texts from best to worst, each with its score in nats and a bar as long as its share (0 to 1); a Pillow picture.

    Raises UniViGUError when the lists differ in length or are empty, ImportError without Pillow.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not texts or not len(texts) == len(scores) == len(shares):
        raise UniViGUError(f"found {len(texts)} texts, {len(scores)} scores and {len(shares)} shares; expected as many")
    big, small = ImageFont.load_default(size=19), ImageFont.load_default(size=15)
    clean = cleaner(big)
    head = 52 if title else 0
    picture = Image.new("RGB", (WIDTH, 2 * MARGIN + head + ROW * len(texts)), GROUND)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((MARGIN, MARGIN), title, font=ImageFont.load_default(size=24), fill=BRIGHT)
    order = sorted(range(len(texts)), key=lambda n: -scores[n])
    room = WIDTH - 2 * MARGIN
    for place, n in enumerate(order):
        top = MARGIN + head + place * ROW
        numbers = f"{scores[n]:.2f} nats   {shares[n]:.1%}"
        colour = ACCENT if place == 0 else BODY
        words = shorten(clean(texts[n]), big.getlength, room - small.getlength(numbers) - 24)
        draw.text((MARGIN, top), words, font=big, fill=colour)
        draw.text((WIDTH - MARGIN, top + 4), numbers, font=small, fill=colour if place == 0 else MUTED, anchor="ra")
        draw.rounded_rectangle((MARGIN, top + 32, WIDTH - MARGIN, top + 42), radius=5, fill=CARD)
        length = max(10, round(room * shares[n]))
        draw.rounded_rectangle(
            (MARGIN, top + 32, MARGIN + length, top + 42), radius=5, fill=ACCENT if place == 0 else MUTED
        )
    return picture
