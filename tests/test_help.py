"""Help pages and translations keep up with the nodes, whose schemas are read without ComfyUI."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from stand_in_comfyui import schemas

ROOT = Path(__file__).resolve().parent.parent
DOCS, LOCALES = ROOT / "web" / "docs", ROOT / "locales"
TRANSLATIONS = ("ko", "zh", "ja")
MOST_USED = ("UniViGULoader", "UniViGUTextEncode", "UniFlowSampler", "VideoToTextDenoise", "JointSampler")
SEED_CONTROL = "control_after_generate"  # the widget that ComfyUI puts under every seed
KEEPS_ITS_SEED = ("UniViGUTrain",)  # but not here


@dataclass(frozen=True)
class Node:
    """What a node's schema says. ``labels``: of inputs that are not shown under their names."""

    id: str
    title: str
    description: str
    inputs: dict[str, str | None]
    outputs: dict[str, str | None]
    labels: dict[str, str]


@cache
def nodes() -> dict[str, Node]:
    return {node.id: node for node in map(read_schema, schemas())}


def read_schema(schema: dict[str, Any]) -> Node:
    inputs = {socket.args[0]: socket.kwargs for socket in schema["inputs"]}
    outputs = {socket.kwargs.get("display_name", socket.owner.upper()): socket.kwargs for socket in schema["outputs"]}
    return Node(
        schema["node_id"],
        schema["display_name"],
        schema["description"],
        {name: given.get("tooltip") for name, given in inputs.items()},
        {name: given.get("tooltip") for name, given in outputs.items()},
        {name: given["display_name"] for name, given in inputs.items() if "display_name" in given},
    )


def test_the_schemas_are_understood() -> None:
    assert len(nodes()) == 24
    assert list(nodes()["UniViGUTextEncode"].inputs) == ["clip", "text", "stream_text", "null_embedding"]
    assert {"width", "seed", "text_update", "folder"} <= set(nodes()["UniViGUCaptionFolder"].inputs)
    assert list(nodes()["JointSampler"].outputs) == ["LATENT", "text", "captions"]


def test_every_input_and_output_has_a_tooltip() -> None:
    """In English; ``test_english_is_what_the_nodes_say`` and ``test_a_locale_is_complete`` hold the locales to it."""
    sockets = {
        (node.id, name): text for node in nodes().values() for name, text in (node.inputs | node.outputs).items()
    }
    assert [socket for socket, text in sockets.items() if not (text or "").strip()] == []


# ------------------------------------------------------------------------------------------------------- help pages


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def node_of(page: Path) -> str:
    """``docs/<NodeId>.md`` is English, ``docs/<NodeId>/<locale>.md`` a translation."""
    return page.stem if page.parent == DOCS else page.parent.name


def label(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def test_every_node_has_its_pages_and_every_page_its_node() -> None:
    assert {node_of(page) for page in pages() if page.parent == DOCS} == set(nodes())
    translated = {(node_of(page), page.stem) for page in pages() if page.parent != DOCS}
    assert {node for node, _ in translated} <= set(nodes())
    assert {locale for _, locale in translated} == set(TRANSLATIONS)
    assert {(node, locale) for node in MOST_USED for locale in TRANSLATIONS} <= translated


def rows(page: Path) -> list[str]:
    """The inputs and outputs that a page's tables explain. Those whose tooltip says enough have no row."""
    return [
        name
        for name in re.findall(r"^\| ?`?([A-Za-z_]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        if name not in ("Input", "Output")
    ]


def headings(page: Path) -> list[str]:
    return re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def problems(page: Path) -> list[str]:
    """The bullets of a page's last section."""
    return re.findall(r"^- (.+)$", page.read_text(encoding="utf-8").rpartition("\n## ")[2], re.MULTILINE)


@pytest.mark.parametrize("page", pages(), ids=label)
def test_rows_are_inputs_and_outputs_of_the_node_in_their_order(page: Path) -> None:
    remaining = iter([*nodes()[node_of(page)].inputs, *nodes()[node_of(page)].outputs])
    assert [name for name in rows(page) if name not in remaining] == []


@pytest.mark.parametrize("page", [page for page in pages() if page.parent == DOCS], ids=label)
def test_a_page_has_an_example_and_tells_what_goes_wrong(page: Path) -> None:
    assert page.read_text(encoding="utf-8").startswith("# ")
    assert headings(page) == [name for name in ("Inputs", "Outputs") if name in headings(page)] + [
        "Example",
        "Problems",
    ]
    assert len(problems(page)) >= 3


@pytest.mark.parametrize("page", [page for page in pages() if page.parent != DOCS], ids=label)
def test_a_translation_has_what_the_english_page_has(page: Path) -> None:
    english = DOCS / f"{node_of(page)}.md"
    assert page.read_text(encoding="utf-8").startswith("# ")
    assert rows(page) == rows(english)
    assert len(headings(page)) == len(headings(english))
    assert [quotes(bullet) for bullet in problems(page)] == [quotes(bullet) for bullet in problems(english)]


@pytest.mark.parametrize("page", pages(), ids=label)
def test_a_page_shows_its_picture(page: Path) -> None:
    """The help panel resolves every page's pictures from docs/, translations' too."""
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert pictures == [f"img/{node_of(page)}.jpg"]
    data = (DOCS / pictures[0]).read_bytes()
    assert data.startswith(b"\xff\xd8\xff")
    assert len(data) <= 60_000


def test_every_picture_belongs_to_a_page() -> None:
    assert {file.stem for file in (DOCS / "img").iterdir()} == set(nodes())


@cache
def messages() -> list[str]:
    """Every text in the pack's source, with … where a value is filled in."""
    found: list[str] = []
    for file in sorted([*(ROOT / "nodes").rglob("*.py"), *(ROOT / "uvg_core").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quotes(bullet: str) -> list[str]:
    """The messages that a bullet of the problems quotes; one that begins in bold describes what is seen instead."""
    return [] if bullet.startswith("**") else re.findall(r"`([^`]+)`", bullet)


@pytest.mark.parametrize("page", pages(), ids=label)
def test_quoted_messages_are_those_of_the_code(page: Path) -> None:
    for quoted in chain.from_iterable(map(quotes, problems(page))):
        pattern = re.compile(".*".join(re.escape(part.strip(" ")) for part in quoted.split("…")), re.DOTALL)
        assert any(pattern.search(message) for message in messages()), quoted


# ----------------------------------------------------------------------------------------------------- translations


@cache
def texts(locale: str) -> dict[str, str]:
    """All texts of a locale by their path, e.g. ``JointSampler.inputs.seed.tooltip``."""

    def flat(value: object, path: str) -> list[tuple[str, str]]:
        if isinstance(value, dict):
            return [found for key, inner in value.items() for found in flat(inner, f"{path}.{key}" if path else key)]
        assert isinstance(value, str), path
        return [(path, value)]

    return dict(flat(json.loads((LOCALES / locale / "nodeDefs.json").read_text(encoding="utf-8")), ""))


def test_english_is_what_the_nodes_say() -> None:
    wanted: dict[str, str | None] = {}
    for node in nodes().values():
        wanted |= {f"{node.id}.display_name": node.title, f"{node.id}.description": node.description}
        controlled = "seed" in node.inputs and node.id not in KEEPS_ITS_SEED
        for name, tooltip in (node.inputs | ({SEED_CONTROL: None} if controlled else {})).items():
            shown = name.replace("_", " ") if name == SEED_CONTROL else node.labels.get(name, name)
            wanted |= {f"{node.id}.inputs.{name}.name": shown, f"{node.id}.inputs.{name}.tooltip": tooltip}
        for number, (name, tooltip) in enumerate(node.outputs.items()):
            wanted |= {f"{node.id}.outputs.{number}.name": name, f"{node.id}.outputs.{number}.tooltip": tooltip}
    english = texts("en")
    assert english.keys() == wanted.keys()
    assert {path: english[path] for path, text in wanted.items() if text is not None} == {
        path: text for path, text in wanted.items() if text is not None
    }


@pytest.mark.parametrize("locale", ["en", *TRANSLATIONS])
def test_a_locale_is_complete(locale: str) -> None:
    assert texts(locale).keys() == texts("en").keys()
    assert not [path for path, text in texts(locale).items() if not text.strip()]


@pytest.mark.parametrize("locale", ["en", *TRANSLATIONS])
def test_inputs_that_can_be_left_to_the_checkpoint_say_so(locale: str) -> None:
    """In the label, as a number widget cannot show a word."""
    marked = {
        path for path, text in texts(locale).items() if path.endswith(".name") and re.search("= ?(auto|자동|自)", text)
    }
    assert marked == {f"{node.id}.inputs.{name}.name" for node in nodes().values() for name in node.labels}


@pytest.mark.parametrize("locale", TRANSLATIONS)
def test_sentences_are_translated(locale: str) -> None:
    english = texts("en")
    sentences = [path for path in english if path.endswith(("description", "tooltip", "display_name"))]
    assert not [path for path in sentences if texts(locale)[path] == english[path]]


@pytest.mark.parametrize("locale", TRANSLATIONS)
def test_translations_keep_the_numbers(locale: str) -> None:
    """They may have more of them: Japanese counts in figures where English has words."""

    def numbers(text: str) -> set[str]:
        return set(re.findall(r"\d+(?:\.\d+)*", text))

    english = texts("en")
    assert not {path: text for path, text in texts(locale).items() if not numbers(english[path]) <= numbers(text)}


@pytest.mark.parametrize("locale", ["en", *TRANSLATIONS])
def test_nothing_reads_as_the_front_end_s_syntax(locale: str) -> None:
    """vue-i18n compiles titles, labels and descriptions: these characters mean something to it."""
    assert not [path for path, text in texts(locale).items() if set(text) & set("{}@|")]
