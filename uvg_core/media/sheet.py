"""Contact sheets: one picture that shows how a video and its text take shape, step by step."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UniViGUError
from ..io import written_whole

GROUND = (17, 19, 23)
CARD = (25, 28, 33)  # behind each row
_EMPTY = (34, 38, 45)  # where a frame would be
BRIGHT = (240, 242, 245)
BODY = (200, 205, 213)
MUTED = (126, 134, 147)
ACCENT = (240, 168, 92)

_TEXT_LINES = 3  # more is cut with an ellipsis: early text is noise, and rows must stay comparable


@dataclass(frozen=True)
class SheetRow:
    """One step of a run.

    label    e.g. ``step 3/24 · t 0.87``; the parts between the dots go on lines of their own
    pixels   uint8 ``[T,H,W,3]``, RGB 0-255, or None for a step without pictures
    text     the text of that step, as raw as it comes
    """

    label: str
    pixels: Tensor | None
    text: str


def contact_sheet(
    rows: Sequence[SheetRow],
    path: str | Path,
    *,
    title: str = "",
    columns: int = 9,
    cell: int = 96,
    subtitle: str = "",
) -> None:
    """Draw a contact sheet (see ``draw_sheet``) and save it as one picture.

    The suffix of ``path`` chooses the format, best ``.png``. Raises UniViGUError as ``draw_sheet`` does, or when the
    file cannot be written.
    """
    path = Path(path)
    try:
        from PIL import Image

        if path.suffix.lower() not in Image.registered_extensions():
            raise UniViGUError(f"Pillow knows no picture format {path.suffix!r}; let the name end in .png")
        sheet = draw_sheet(rows, title=title, columns=columns, cell=cell, subtitle=subtitle)
    except ImportError as error:
        raise UniViGUError(
            f"{path}: contact sheets are drawn by Pillow, which is not installed: pip install pillow"
        ) from error
    except UniViGUError as error:
        raise UniViGUError(f"{path}: {error}") from None
    with written_whole(path) as temporary:
        sheet.save(temporary)


def draw_sheet(
    rows: Sequence[SheetRow], *, title: str = "", columns: int = 9, cell: int = 96, subtitle: str = ""
) -> Any:
    """One row per step, label at the left, frames side by side, text below them; a Pillow picture.

    ``columns`` is the most frames shown in a row (of more, evenly spread ones, first and last included); ``cell`` the
    box of a frame in pixels, to which everything else is scaled. Frames smaller than the box are enlarged by whole
    factors, so that each pixel stays crisp; larger ones are reduced properly. Text is cut after three lines; what
    cannot be printed, or is missing from Pillow's own font (which knows English letters and signs, no accents), shows
    as the bare letter or a dot.

    Raises UniViGUError when there are no rows or pixels have another form, ImportError without Pillow.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = list(rows)
    if not rows:
        raise UniViGUError("there are no rows to draw; expected at least one step")
    if columns < 1 or cell < 16:
        raise UniViGUError(f"columns is {columns} and cell {cell}; expected at least 1 and 16")
    strips = [_frames(row, columns, cell) for row in rows]

    def pixels(share: float) -> int:
        """A length that is right for cells of 96 pixels, for these cells."""
        return max(1, round(share * cell / 96))

    fonts = {name: ImageFont.load_default(size=pixels(size)) for name, size in _SIZES.items()}
    line = {name: pixels(size * 1.42) for name, size in _SIZES.items()}
    clean = cleaner(fonts["body"])

    margin, pad, gap = pixels(32), pixels(16), pixels(7)
    shown = max([5, *(len(strip) for strip in strips)])  # narrower than five frames, text would not fit
    strip_width = shown * cell + (shown - 1) * gap
    labels = [[clean(part) for part in row.label.split(" · ")] for row in rows]
    label_width = min(
        max(fonts["label" if n == 0 else "small"].getlength(part) for parts in labels for n, part in enumerate(parts)),
        3 * cell,
    )
    left = margin + pad + round(label_width) + pixels(24)
    width = left + strip_width + pad + margin

    texts = [_wrap(clean(row.text), fonts["body"].getlength, strip_width, _TEXT_LINES) for row in rows]
    heads = [
        (name, colour, part)
        for name, colour, words, most in (("title", BRIGHT, title, 2), ("subtitle", MUTED, subtitle, 3))
        for part in _wrap(clean(words), fonts[name].getlength, width - 2 * margin, most)
    ]
    tall = [max((frame.height for frame in strip), default=0) for strip in strips]
    heights = [
        2 * pad
        + max(
            tall[n] + (pixels(8) if tall[n] and texts[n] else 0) + len(texts[n]) * line["body"],
            line["label"] + (len(labels[n]) - 1) * line["small"],
        )
        for n in range(len(rows))
    ]
    head = sum(line[name] for name, _, _ in heads) + (pixels(20) if heads else 0)
    height = 2 * margin + head + sum(heights) + (len(rows) - 1) * gap

    sheet = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(sheet)
    top = margin
    for name, colour, part in heads:
        draw.text((margin, top), part, font=fonts[name], fill=colour)
        top += line[name]
    top = margin + head
    for n, strip in enumerate(strips):
        draw.rounded_rectangle((margin, top, width - margin, top + heights[n]), radius=pixels(8), fill=CARD)
        inner = top + pad
        for k, part in enumerate(labels[n]):
            name, colour = ("label", ACCENT) if k == 0 else ("small", MUTED)
            part = shorten(part, fonts[name].getlength, label_width)
            below = line["label"] + (k - 1) * line["small"] if k else 0
            draw.text((margin + pad, inner + below), part, font=fonts[name], fill=colour)
        for k, frame in enumerate(strip):
            # Whole factors may leave room in the box: centred, so that columns line up between rows.
            across = left + k * (cell + gap) + (cell - frame.width) // 2
            draw.rectangle((across - 1, inner - 1, across + frame.width, inner + frame.height), outline=_EMPTY)
            sheet.paste(frame, (across, inner))
        below = inner + tall[n] + (pixels(8) if tall[n] else 0)
        for k, part in enumerate(texts[n]):
            draw.text((left, below + k * line["body"]), part, font=fonts["body"], fill=BODY)
        top += heights[n] + gap
    return sheet


_SIZES = {"title": 26, "subtitle": 15, "label": 16, "small": 14, "body": 15}


def _frames(row: SheetRow, columns: int, cell: int) -> list[Any]:
    """The chosen frames of a row as Pillow images that fit the box."""
    from PIL import Image

    if row.pixels is None:
        return []
    if row.pixels.ndim != 4 or row.pixels.shape[-1] != 3 or row.pixels.dtype != torch.uint8 or 0 in row.pixels.shape:
        raise UniViGUError(
            f"row {row.label!r} has pixels of shape {list(row.pixels.shape)} and type {row.pixels.dtype}; "
            "expected uint8 of shape [frames, height, width, 3]"
        )
    count, height, width, _ = row.pixels.shape
    chosen = torch.linspace(0, count - 1, min(count, columns)).round().long()
    longer = max(height, width)
    if longer <= cell:
        scale: float = cell // longer
        filter_ = Image.Resampling.NEAREST
    else:
        scale = cell / longer
        filter_ = Image.Resampling.LANCZOS
    size = max(1, round(width * scale)), max(1, round(height * scale))
    images = []
    for picture in row.pixels[chosen.to(row.pixels.device)].cpu():
        memory = bytearray(picture.numel())  # the way to Pillow that needs no numpy
        torch.frombuffer(memory, dtype=torch.uint8).copy_(picture.flatten())
        images.append(Image.frombytes("RGB", (width, height), bytes(memory)).resize(size, filter_))
    return images


def cleaner(font: Any) -> Callable[[str], str]:
    """A function that makes any text one printable line in ``font``."""
    missing = bytes(font.getmask("\U0010ffff"))  # what the font draws for a character it lacks

    def has(character: str) -> bool:
        return unicodedata.category(character)[0] not in "CM" and bytes(font.getmask(character)) != missing

    @cache
    def glyph(character: str) -> str:
        if character.isspace() or character == "▁":  # the tokenizer's own sign for a space
            return " "
        # A letter whose accent the font lacks is shown bare.
        base = unicodedata.normalize("NFKD", character)[0]
        return next((shown for shown in (character, base) if has(shown)), "·")

    return lambda text: " ".join("".join(map(glyph, text)).split())


def _wrap(text: str, length: Callable[[str], float], width: float, most: int) -> list[str]:
    """Break a text into at most ``most`` lines of ``width`` pixels, the last one cut with an ellipsis if need be."""
    lines: list[str] = []
    words = text.split()
    while words:
        if len(lines) == most - 1:
            return [*lines, shorten(" ".join(words), length, width)]
        taken = 0
        while taken < len(words) and length(" ".join(words[: taken + 1])) <= width:
            taken += 1
        if not taken:  # a word longer than the line: break it
            word = words[0]
            fits = max(1, next((n for n in range(1, len(word)) if length(word[: n + 1]) > width), len(word)))
            words[:1] = [word[:fits], word[fits:]] if fits < len(word) else [word]
            taken = 1
        lines.append(" ".join(words[:taken]))
        words = words[taken:]
    return lines


def shorten(text: str, length: Callable[[str], float], width: float) -> str:
    """The text itself, or as much of its start as fits with an ellipsis behind."""
    if length(text) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:  # thousands of characters of noise: halve, do not step
        half = (fits + too_long) // 2
        fits, too_long = (half, too_long) if length(text[:half].rstrip() + "…") <= width else (fits, half)
    return text[:fits].rstrip() + "…"
