"""Contact sheets: that everything asked for is in the picture, and that no text breaks it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_worlds import one_world

from uvg_core.errors import UniViGUError
from uvg_core.media import fonts
from uvg_core.media.fonts import DOT, written
from uvg_core.media.sheet import SheetRow, contact_sheet

Image = pytest.importorskip("PIL.Image")

CLIP = one_world(size="small", side=24, frames=5)
GARBAGE = "</s>\x00\x07 本日 \n\t🙂 \u202e" + "\ud800" + "▁the" + "x" * 3000 + " ñ" * 500


def drawn(path: Path) -> torch.Tensor:
    image = Image.open(path).convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def flat(colour: tuple[int, int, int], *, count: int = 3, height: int = 4, width: int = 4) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).expand(count, height, width, 3)


def area(sheet: torch.Tensor, colour: tuple[int, int, int]) -> int:
    return int((sheet == torch.tensor(colour, dtype=torch.uint8)).all(-1).sum())


def test_tiny_frames_are_enlarged_by_whole_factors(tmp_path: Path) -> None:
    contact_sheet([SheetRow("step 1/1", flat((255, 0, 0), count=3, height=20, width=10), "")], tmp_path / "a.png")
    assert area(drawn(tmp_path / "a.png"), (255, 0, 0)) == 3 * 80 * 40  # 96 // 20 = 4 times


def test_large_frames_are_reduced_into_their_box(tmp_path: Path) -> None:
    contact_sheet(
        [SheetRow("step 1/1", flat((255, 0, 0), count=2, height=90, width=160), "")], tmp_path / "a.png", cell=32
    )
    assert area(drawn(tmp_path / "a.png"), (255, 0, 0)) == 2 * 32 * 18


def test_of_too_many_frames_evenly_spread_ones_are_shown(tmp_path: Path) -> None:
    clip = torch.cat([flat((10 * n, 255, 0), count=1) for n in range(9)])
    contact_sheet([SheetRow("step", clip, "")], tmp_path / "a.png", columns=3)
    sheet = drawn(tmp_path / "a.png")
    assert [n for n in range(9) if area(sheet, (10 * n, 255, 0))] == [0, 4, 8]


def test_rows_lie_below_one_another(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    contact_sheet([SheetRow(f"step {n}", flat(c), "text") for n, c in enumerate(colours)], tmp_path / "a.png")
    sheet = drawn(tmp_path / "a.png")
    tops = [int((sheet == torch.tensor(c)).all(-1).nonzero()[:, 0].min()) for c in colours]
    assert tops == sorted(tops)
    assert tops[1] - tops[0] == tops[2] - tops[1] > 96


@pytest.mark.parametrize("cell", [16, 96, 150])
def test_any_text_fits(tmp_path: Path, cell: int) -> None:
    rows = [
        SheetRow("step 0/2 · t 1.00", CLIP, GARBAGE),
        SheetRow(GARBAGE, CLIP[:1], "a small red circle moves left on a navy background"),
        SheetRow("", None, ""),
        SheetRow("step 2/2 · t 0.00", None, GARBAGE),
    ]
    contact_sheet(rows, tmp_path / "a.png", title=GARBAGE, subtitle=GARBAGE, cell=cell)
    sheet = drawn(tmp_path / "a.png")
    margin = cell // 4
    ground = sheet[0, 0]
    for edge in (sheet[:margin], sheet[-margin:], sheet[:, :margin], sheet[:, -margin:]):
        assert bool((edge == ground).all())  # nothing runs over the margins


def test_text_and_title_take_room_only_when_given(tmp_path: Path) -> None:
    contact_sheet([SheetRow("s", CLIP, "")], tmp_path / "bare.png")
    contact_sheet([SheetRow("s", CLIP, "words")], tmp_path / "text.png")
    contact_sheet([SheetRow("s", CLIP, "words")], tmp_path / "title.png", title="a red circle", subtitle="seed 7")
    heights = [len(drawn(tmp_path / f"{name}.png")) for name in ("bare", "text", "title")]
    assert heights == sorted(set(heights))


@pytest.mark.parametrize(
    ("rows", "name", "keywords", "says"),
    [
        ([], "a.png", {}, "no rows"),
        ([SheetRow("s", CLIP.float(), "")], "a.png", {}, "expected uint8"),
        ([SheetRow("s", CLIP[:0], "")], "a.png", {}, "expected uint8"),
        ([SheetRow("s", CLIP, "")], "a.xyz", {}, "does not support the format"),
        ([SheetRow("s", CLIP, "")], "a.png", {"columns": 0}, "columns is 0"),
        ([SheetRow("s", CLIP, "")], "no/such/a.png", {}, "does not exist"),
    ],
)
def test_what_cannot_be_drawn(tmp_path: Path, rows: list[SheetRow], name: str, keywords: dict, says: str) -> None:
    with pytest.raises(UniViGUError, match=says) as caught:
        contact_sheet(rows, tmp_path / name, **keywords)
    assert Path(name).name in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UniViGUError, match="pip install pillow"):
        contact_sheet([SheetRow("s", CLIP, "")], tmp_path / "a.png")


SCRIPTS = {
    "Japanese": "濃紺の背景を赤い丸が動く",
    "Korean": "빨간 원이 오른쪽으로 이동",
    "Chinese": "红色圆圈向右移动",
    "French": "façade et forêt",
}


def ink(text: str, size: int = 20) -> list[bytes]:
    """The shape of each letter of a text, as it is drawn."""
    shown, font = written(text, size)
    return [bytes(font.getmask(letter)) for letter in shown]


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_letters_of_other_languages_are_drawn_with_a_font_that_has_them(text: str) -> None:
    shown, font = written(text, 20)
    if DOT in shown:
        pytest.skip("no font of this system has these letters: install fonts-noto-cjk or another")
    assert shown == text
    boxes = bytes(font.getmask("\U0010ffff"))
    assert boxes not in ink(text)
    assert len(set(ink(text))) == len(set(text))


def test_an_accent_that_stands_apart_is_drawn_on_its_letter() -> None:
    apart, whole = written("fac\u0327ade et fore\u0302t.mp4", 20), written("façade et forêt.mp4", 20)
    assert apart == whole


def test_right_to_left_text_is_joined_and_ordered() -> None:
    """A letter's shape depends on its neighbours, and the first letter stands at the right."""
    from PIL import Image, ImageDraw

    shown, font = written("دائرة حمراء", 20)
    if DOT in shown:
        pytest.skip("no font of this system has Arabic letters, or Pillow finds no fribidi")

    def columns(text: str) -> list[bool]:
        picture = Image.new("L", (200, 40))
        ImageDraw.Draw(picture).text((0, 30), text, font=font, fill=255, anchor="ls")
        return [any(picture.getpixel((x, y)) for y in range(40)) for x in range(200)]

    assert bytes(font.getmask("مم")) != bytes(font.getmask("م\u200cم"))  # the sign between them keeps them apart
    long_first, long_last = columns("مممممم ا"), columns("ا مممممم")
    first_gap = [drawn.index(False, drawn.index(True)) for drawn in (long_first, long_last)]
    assert first_gap[0] < first_gap[1]  # the last word, short in the first case, is drawn first from the left


def test_without_a_font_dots_stand_for_letters_and_the_sheet_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "system_fonts", tuple)
    assert written("赤い circle é", 20)[0] == f"{DOT}{DOT} circle e"
    assert written("cafe\u0301.mp4", 20)[0] == "cafe.mp4"  # an accent apart, as in names of files on macOS
    contact_sheet([SheetRow("s", CLIP, "a circle")], tmp_path / "latin.png")
    contact_sheet([SheetRow("s", CLIP, "赤い circle")], tmp_path / "lacking.png")
    latin, lacking = drawn(tmp_path / "latin.png"), drawn(tmp_path / "lacking.png")
    assert lacking.shape[0] > latin.shape[0]
