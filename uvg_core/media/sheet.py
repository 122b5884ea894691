"""Contact sheets: one picture that shows how a video and its text take shape, step by step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.read import bytes_of
from ..errors import UniViGUError
from ..io import written_whole
from ..versions import require_pillow
from .fonts import DOT, ascent, written
from .video.clip import require_frames

GROUND = (17, 19, 23)
CARD = (25, 28, 33)  # behind each row
_EMPTY = (34, 38, 45)  # where a frame would be
BRIGHT = (240, 242, 245)
BODY = (200, 205, 213)
MUTED = (126, 134, 147)
ACCENT = (240, 168, 92)

LACKING = f"{DOT} replaces letters that no font on this computer has"
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
            raise UniViGUError(f"Pillow does not support the format {path.suffix!r}; use a name that ends in .png")
        sheet = draw_sheet(rows, title=title, columns=columns, cell=cell, subtitle=subtitle)
    except ImportError as error:
        raise UniViGUError(f"{path}: contact sheets need Pillow, which is missing: pip install pillow") from error
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
    factors, so that each pixel stays crisp; larger ones are reduced properly. Text, in any language (see ``fonts``), is
    cut after three lines; where no font has a letter of the title or of the last row, a line at the end says so.

    Raises UniViGUError when there are no rows or pixels have another form, ImportError without Pillow.
    """
    from PIL import Image, ImageDraw

    require_pillow()
    if not rows:
        raise UniViGUError("there are no rows to draw; expected at least one step")
    if columns < 1 or cell < 16:
        raise UniViGUError(f"columns is {columns} and cell {cell}; expected at least 1 and 16")
    pen = _Pen(cell)
    margin, pad, gap = pen.px(32), pen.px(16), pen.px(7)
    strips = [_frames(row, columns, cell) for row in rows]
    label_width = min(max(pen.label_width(row.label) for row in rows), 3 * cell)
    shown = max(5, *map(len, strips))  # narrower than five frames, text would not fit
    strip_width = shown * cell + (shown - 1) * gap
    left = margin + pad + round(label_width) + pen.px(24)
    width = left + strip_width + pad + margin
    head = pen.wrapped("title", title, width - 2 * margin, 2) + pen.wrapped("subtitle", subtitle, width - 2 * margin, 3)
    lacks = any(DOT in written(text, 16)[0] and DOT not in text for text in (title, rows[-1].text))
    foot = pen.wrapped("small", LACKING, width - 2 * margin, 2) if lacks else []
    room = pen.height(foot) + pen.px(20) if foot else 0
    labels = [pen.label(row.label, label_width) for row in rows]
    texts = [pen.wrapped("body", row.text, strip_width, _TEXT_LINES) for row in rows]
    # Where the text of each row begins below the top of its frames, and how high the row is.
    below = [
        max((frame.height for frame in strip), default=0) + (pen.px(8) if strip and text else 0)
        for strip, text in zip(strips, texts, strict=True)
    ]
    heights = [
        2 * pad + max(under + pen.height(text), pen.height(label))
        for label, text, under in zip(labels, texts, below, strict=True)
    ]

    top = margin + pen.height(head) + (pen.px(20) if head else 0)
    sheet = Image.new("RGB", (width, top + sum(heights) + (len(rows) - 1) * gap + margin + room), GROUND)
    draw = ImageDraw.Draw(sheet)
    pen.write(draw, margin, margin, head)
    for strip, label, text, under, height in zip(strips, labels, texts, below, heights, strict=True):
        draw.rounded_rectangle((margin, top, width - margin, top + height), radius=pen.px(8), fill=CARD)
        pen.write(draw, margin + pad, top + pad, label)
        for k, frame in enumerate(strip):
            # Whole factors may leave room in the box: centred, so that columns line up between rows.
            across, down = left + k * (cell + gap) + (cell - frame.width) // 2, top + pad
            draw.rectangle((across - 1, down - 1, across + frame.width, down + frame.height), outline=_EMPTY)
            sheet.paste(frame, (across, down))
        pen.write(draw, left, top + pad + under, text)
        top += height + gap
    pen.write(draw, margin, top + pen.px(8), foot)
    return sheet


# Style: size in pixels on a sheet with cells of 96, and colour.
_STYLES = {
    "title": (26, BRIGHT),
    "subtitle": (15, MUTED),
    "label": (16, ACCENT),
    "small": (14, MUTED),
    "body": (15, BODY),
}
_Lines = list[tuple[str, str, Any]]  # style, text and font of each


class _Pen:
    """Writes lines of text, at a size that suits the cells."""

    def __init__(self, cell: int) -> None:
        self.cell = cell

    def px(self, length: float) -> int:
        """A length that is right for cells of 96 pixels, for these cells."""
        return max(1, round(length * self.cell / 96))

    def height(self, lines: _Lines) -> int:
        return sum(self.px(_STYLES[style][0] * 1.42) for style, *_ in lines)

    def label(self, text: str, width: float = math.inf) -> _Lines:
        """The parts between the dots on lines of their own, the first of them larger, none wider than ``width``."""
        parts = [self.wrapped("small" if n else "label", part, width, 1) for n, part in enumerate(text.split(" · "))]
        return [line for lines in parts for line in lines]

    def label_width(self, text: str) -> float:
        return max((font.getlength(line) for _, line, font in self.label(text)), default=0)

    def wrapped(self, style: str, text: str, width: float, most: int) -> _Lines:
        text, font = written(text, self.px(_STYLES[style][0]))
        return [(style, line, font) for line in _wrap(text, font.getlength, width, most)]

    def write(self, draw: Any, left: int, top: int, lines: _Lines) -> None:
        for style, line, font in lines:
            base = top + ascent(self.px(_STYLES[style][0]))
            draw.text((left, base), line, font=font, fill=_STYLES[style][1], anchor="ls")
            top += self.height([(style, line, font)])


def _frames(row: SheetRow, columns: int, cell: int) -> list[Any]:
    """The chosen frames of a row as Pillow images that fit the box."""
    from PIL import Image

    if row.pixels is None:
        return []
    require_frames(row.pixels, f"row {row.label!r}")
    count, height, width, _ = row.pixels.shape
    chosen = torch.linspace(0, count - 1, min(count, columns)).round().long()
    longer = max(height, width)
    scale = cell // longer if longer <= cell else cell / longer
    resampling = Image.Resampling.NEAREST if longer <= cell else Image.Resampling.LANCZOS
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pictures = row.pixels[chosen.to(row.pixels.device)].cpu().contiguous()
    return [
        Image.frombytes("RGB", (width, height), bytes(bytes_of(picture))).resize(size, resampling)
        for picture in pictures
    ]


def _wrap(text: str, length: Callable[[str], float], width: float, most: int) -> list[str]:
    """Break a text into at most ``most`` lines of ``width`` pixels, the last one cut with an ellipsis if need be."""
    lines: list[str] = []
    while text and len(lines) < most - 1:
        end = max(1, _fitting(text, length, width))
        if end < len(text):  # after a word, or within one that is longer than the line
            end = max(text.rfind(" ", 0, end + 1), 0) or end
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, shorten(text, length, width)] if text else lines


def shorten(text: str, length: Callable[[str], float], width: float) -> str:
    """The text itself, or as much of its start as fits with an ellipsis behind."""
    if length(text) <= width:
        return text
    return text[: _fitting(text, length, width, "…")].rstrip() + "…"


def _fitting(text: str, length: Callable[[str], float], width: float, end: str = "") -> int:
    """How many characters from the start of a text, with ``end`` behind, are no wider than ``width`` pixels."""
    # Thousands of characters of noise: halve, do not step.
    return bisect_right(range(1, len(text) + 1), width, key=lambda n: length(text[:n].rstrip() + end))
