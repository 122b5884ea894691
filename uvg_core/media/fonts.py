"""Fonts for pictures with text in any language: Pillow's own, and where it lacks letters, one of this computer.

Pillow's own font knows English letters and signs. Chinese, Japanese, Korean, Arabic and the rest need a font of the
system, of which the usual ones are known by name. Where none has a letter, a dot stands for it, never a box.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

DOT = "·"  # for what no font has
# Fonts that cover many scripts or one that others lack, as Linux distributions, macOS and Windows name their files.
_NAMES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "segoeui.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKjp-Regular.otf",
    "SourceHanSans-Regular.ttc",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "NanumGothic.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "Nirmala.ttf",
    "Nirmala.ttc",
    "FreeSans.ttf",
)
_RIGHT_TO_LEFT = ("R", "AL")


def _folders() -> Iterator[Path]:
    """Where the systems keep fonts."""
    home = Path.home()
    if os.name == "nt":
        yield Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")
        yield Path(os.environ.get("LOCALAPPDATA", home), "Microsoft", "Windows", "Fonts")
    else:
        yield from map(Path, ("/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "/Library/Fonts"))
        yield from (home / ".local/share/fonts", home / ".fonts", home / "Library/Fonts")


@cache
def system_fonts() -> tuple[Path, ...]:
    """The known fonts that are on this computer, in the order in which they are tried."""
    found = {name: Path(place, name) for folder in _folders() for place, _, names in os.walk(folder) for name in names}
    return tuple(found[name] for name in _NAMES if name in found)


@cache
def _font(path: Path | None, size: int) -> Any:
    from PIL import ImageFont

    if path is None:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(str(path), size)
    except OSError:  # damaged, or of a kind that Pillow does not read
        return _font(None, size)


@cache
def _has(path: Path | None, character: str) -> bool:
    """Whether a font has a glyph for a character, and Pillow can set it."""
    from PIL import features

    kind = unicodedata.category(character)[0]
    if kind == "C":
        return False
    if (kind == "M" or unicodedata.bidirectional(character) in _RIGHT_TO_LEFT) and not features.check("fribidi"):
        return False  # without it, letters would stand apart and in the wrong order
    font = _font(path, 16)
    return bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))  # what it draws for what it lacks


def written(text: str, size: int) -> tuple[str, Any]:
    """A text as one printable line, and the font of ``size`` pixels to draw it in: Pillow's own where it has all of its
    letters, else the first of those of this computer that lack the fewest. A letter whose accent is missing is shown
    bare, any other that no font has as ``DOT``."""
    text = unicodedata.normalize("NFC", text)  # macOS writes accents of file names apart
    letters = {character for character in text if unicodedata.category(character)[0] == "L"}
    path = None
    is_torn = "\ufffd" in text  # bytes of a text that is still noise: what they happen to spell is nobody's language
    if not (is_torn or all(map(partial(_has, None), letters))):
        path = min((None, *system_fonts()), key=lambda path: sum(not _has(path, letter) for letter in letters))
    return " ".join("".join(map(_glyph(path), text)).split()), _font(path, size)


def ascent(size: int) -> int:
    """Pixels from the top of a line to the base of its letters, whatever its font: they differ in the room above."""
    return int(_font(None, size).getmetrics()[0])


def _glyph(path: Path | None) -> Callable[[str], str]:
    @cache
    def glyph(character: str) -> str:
        if character.isspace() or character == "▁":  # the tokenizer's own sign for a space
            return " "
        if unicodedata.category(character) == "Cf":  # joiners and marks of direction, which have no shape
            return ""
        base = unicodedata.normalize("NFKD", character)[0]
        return next((shown for shown in (character, base) if _has(path, shown)), DOT)

    return glyph
