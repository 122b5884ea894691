"""Charts: a ranking as a picture, one bar per text, the best one marked; and curves with their intervals, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
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


# Curves

_COLOURS = ("#0b62a4", "#d9730d", "#2e8b57", "#a23b72", "#6b6b6b", "#8a6d00")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
_PANEL, _LEFT, _TOP, _GAP = (350, 210), 54, 106, (64, 76)  # width and height, what lies before and between panels


@dataclass(frozen=True)
class Curve:
    """Points from left to right: (x, share, lowest and highest share that it may be)."""

    name: str
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Panel:
    """Curves over one axis. Curves of a name look alike in all panels of a chart."""

    title: str
    along: str
    curves: Sequence[Curve]


def draw_curves(panels: Sequence[Panel], title: str, note: str = "", columns: int = 2) -> str:
    """Shares in percent against positive numbers on a logarithmic axis, each with its interval; an SVG file's text.

    Panels in one row share the axis of shares. Raises UniViGUError where no panel has a point."""
    if not any(curve.points for panel in panels for curve in panel.curves):
        raise UniViGUError("there is nothing to draw; expected at least one curve with a point")
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    styles = {name: (_COLOURS[at % len(_COLOURS)], _DASHES[at % len(_DASHES)]) for at, name in enumerate(names)}
    rows = math.ceil(len(panels) / columns)
    width = _LEFT + columns * _PANEL[0] + (columns - 1) * _GAP[0] + 24
    height = _TOP + rows * (_PANEL[1] + _GAP[1])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _words(16, 26, title, 'font-size="17" font-weight="600"'),
        _words(16, 45, note, 'fill="#666"'),
        *_legend(styles),
    ]
    for row in range(rows):
        beside = panels[row * columns : (row + 1) * columns]
        floor = _floor(beside)
        for column, panel in enumerate(beside):
            at = _LEFT + column * (_PANEL[0] + _GAP[0]), _TOP + row * (_PANEL[1] + _GAP[1])
            lines += _drawn(panel, at, floor, styles)
    return "\n".join([*lines, "</svg>", ""])


def _words(x: float, y: float, text: str, look: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'


def _legend(styles: dict[str, tuple[str, str]]) -> Iterator[str]:
    x = 16.0
    for name, (colour, dash) in styles.items():
        yield f'<path d="M{x} 62h26" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        yield f'<circle cx="{x + 13}" cy="62" r="3" fill="{colour}"/>'
        yield _words(x + 32, 66, name)
        x += 50 + 6.6 * len(name)


def _floor(panels: Sequence[Panel]) -> float:
    """Where the axis of shares begins: a round number below all intervals."""
    lows = [low for panel in panels for curve in panel.curves for _, _, low, _ in curve.points]
    return math.floor(min(lows, default=0) * 20) / 20


def _drawn(panel: Panel, at: tuple[float, float], floor: float, styles: dict[str, tuple[str, str]]) -> Iterator[str]:
    (left, top), (width, height) = at, _PANEL
    xs = [x for curve in panel.curves for x, *_ in curve.points]
    if not xs:
        return
    low, high = math.log(min(xs) / 1.15), math.log(max(xs) * 1.15)

    def place(x: float, share: float) -> tuple[float, float]:
        return (
            left + width * (math.log(x) - low) / (high - low),
            top + height * (1 - (share - floor) / (1 - floor)),
        )

    yield _words(left, top - 8, panel.title, 'font-weight="600"')
    for tick in _shares(floor):
        y = place(xs[0], tick)[1]
        yield f'<path d="M{left} {y:.1f}h{width}" stroke="#e4e4e4"/>'
        yield _words(left - 6, y + 4, f"{100 * tick:g}", 'text-anchor="end" fill="#666"')
    for tick in _ticks(math.exp(low), math.exp(high)):
        x = place(tick, floor)[0]
        yield f'<path d="M{x:.1f} {top}v{height}" stroke="#f0f0f0"/>'
        yield _words(x, top + height + 16, f"{tick:g}", 'text-anchor="middle" fill="#666"')
    yield _words(left + width / 2, top + height + 34, panel.along, 'text-anchor="middle" fill="#444"')
    for curve in panel.curves:
        colour, dash = styles[curve.name]
        spots = [(place(x, share), place(x, least)[1], place(x, most)[1]) for x, share, least, most in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for (x, y), *_ in spots)
        yield (f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        for (x, y), least, most in spots:
            yield f'<path d="M{x:.1f} {least:.1f}V{most:.1f}" stroke="{colour}" stroke-opacity="0.45"/>'
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def _shares(floor: float) -> list[float]:
    """Five to ten round shares from ``floor`` to 1."""
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (1 - floor) / step <= 10 or step == 0.2)
    return [round(place * step, 2) for place in range(math.ceil(floor / step - 1e-9), round(1 / step) + 1)]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high`` on a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in found if low <= tick <= high]
