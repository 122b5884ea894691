"""Lists of prompts with choices, and the names that come of them."""

from __future__ import annotations

import pytest

from uvg_core.errors import UniViGUError
from uvg_core.prompts import COUNTLESS, Pattern, expanded, file_name, lines_of, literal


def test_lines() -> None:
    assert lines_of("one\n\n  # not this\n two  words \r\n#nor this\nthree # four") == [
        "one",
        "two words",
        "three # four",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("plain | text", ["plain | text"]),
        ("a {red|blue} circle", ["a red circle", "a blue circle"]),
        ("{a|b} {1|2}", ["a 1", "a 2", "b 1", "b 2"]),
        ("a {red|light {blue|green}} star", ["a red star", "a light blue star", "a light green star"]),
        ("a {|very } big", ["a big", "a very big"]),
        (r"\{a\|b\} {c\|d|e}", ["{a|b} c|d", "{a|b} e"]),
        ("{}{x}", ["x"]),
    ],
)
def test_choices_stand_for_all_their_combinations(text: str, found: list[str]) -> None:
    assert Pattern.of(text).count == len(found)
    assert expanded([text], 10) == found
    assert {expanded([text], 1, seed)[0] for seed in range(40)} == set(found)
    assert expanded([text], 1, 7) == expanded([text], 1, 7)


def test_mistakes_in_braces_are_worded() -> None:
    for text, words in {"a } b": "at character 3 without its {", "a {b": "without its }", "{" * 9: "8 deep"}.items():
        with pytest.raises(UniViGUError, match=words):
            expanded([text], 10)


def test_too_many_are_refused_before_they_are_made() -> None:
    with pytest.raises(UniViGUError, match="expands to 1,024 prompts, and the limit is 1000"):
        expanded(["{a|b}" * 10], 1000)
    with pytest.raises(UniViGUError, match="more than a billion"):
        expanded(["{a|b}" * 3000], 1000)
    assert Pattern.of("{a|b}" * 3000).count == COUNTLESS
    assert len(expanded(["{a|b}" * 3000], 1000, seed=1)[0]) == 3000
    with pytest.raises(UniViGUError, match="expands to 3 prompts"):
        expanded(["a", "b", "c"], 2, seed=1)


def test_names_are_numbers_and_words() -> None:
    assert file_name("A red Circle, moves ../right!", 3) == "003_a-red-circle-moves-right"
    assert (
        file_name("a large red circle moves right quickly on a navy", 12)
        == "012_a-large-red-circle-moves-right-quickly"
    )
    assert file_name("...", 1234) == "1234"
    long = file_name("赤い円" * 30, 1)
    assert long.startswith("001_赤い円")
    assert len(long.encode()) <= 44
    assert file_name("x" * 99, 1) == "001_" + "x" * 40


@pytest.mark.parametrize("text", ["plain", r"a {b|c} \ \{ \\} |", "# {}", "{", "}\\"])
def test_a_literal_text_stands_for_itself(text: str) -> None:
    assert list(Pattern.of(literal(text)).all()) == [text]
