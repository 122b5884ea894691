"""The panel of Caption Folder's button, in which captions are reviewed, in a real browser; skipped without one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_comfyui_canvas import SENTENCE, WORKFLOWS, Canvas, send
from in_comfyui_host import Server, slow_graph


def waiting(folder: Path, count: int) -> Path:
    """A folder with clips whose captions wait for review; every second clip has a caption already."""
    folder.mkdir()
    clip = shutil.copy(WORKFLOWS.parent / "samples" / "uvg_sample.mp4", folder / "0000.mp4")
    for number in range(count):
        name = f"{number:04}"
        if number:
            os.link(clip, folder / f"{name}.mp4")
        if number % 2:
            (folder / f"{name}.txt").write_text(f"words of {name}")
        propose(folder, name, f"a grey shape, {name}")
    return folder


def propose(folder: Path, name: str, caption: str) -> None:
    entry = {"clip": f"{name}.mp4", "new": caption, "format": "txt", "file_suffix": "", "backup": False}
    with (folder / "captions.review.jsonl").open("a") as record:
        record.write(json.dumps(entry) + "\n")


WIDGETS = "app.graph._nodes.find(n => n.type === 'UniViGUCaptionFolder').widgets"


class Review:
    """The panel of Caption Folder's button, on a folder in ComfyUI's input folder."""

    def __init__(self, canvas: Canvas, folder: str) -> None:
        self.canvas, self.page = canvas, canvas.page
        file = json.loads((WORKFLOWS / "caption_folder.json").read_text(encoding="utf-8"))
        self.page.evaluate("graph => app.loadGraphData(graph)", file)
        self.page.wait_for_function("count => app.graph._nodes.length === count", arg=len(file["nodes"]))
        self.set("folder", folder)
        self.set("steps", 2)
        self.page.evaluate(f"{WIDGETS}.find(w => w.type === 'button').callback()")
        self.panel = self.page.locator("dialog.uvg-review")
        self.rows = self.panel.locator(".uvg-row")
        self.rows.first.wait_for()

    def set(self, widget: str, value: Any) -> None:
        """The value of a widget of the node."""
        self.page.evaluate(
            f"([name, value]) => {{ {WIDGETS}.find(w => w.name === name).value = value }}", [widget, value]
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def shows(self, words: str) -> None:
        """Wait until the panel shows a text."""
        self.panel.get_by_text(words, exact=False).first.wait_for()

    def load(self, folder: str) -> None:
        self.press("o", "Control+a")
        self.page.keyboard.type(folder)
        with self.page.expect_response(lambda answer: "/review?" in answer.url and f"folder={folder}&" in answer.url):
            self.press("Enter", "Escape")
        self.panel.locator("footer").get_by_text("Loading").wait_for(state="hidden")

    def texts(self) -> list[str]:
        return list(self.rows.locator(".uvg-text").all_inner_texts())

    @property
    def new(self) -> str:
        return str(self.panel.get_by_label("New", exact=True).input_value())

    def picture(self, name: str) -> None:
        if os.environ.get("UVG_SCREENSHOTS"):
            self.page.wait_for_timeout(600)
            self.page.screenshot(path=Path(os.environ["UVG_SCREENSHOTS"]) / f"{name}.png")


def test_captions_are_reviewed_by_the_keyboard(canvas: Callable[..., Canvas], server: Server) -> None:
    folder = waiting(server.base / "input" / "to_review", 6)
    page = canvas()
    review = Review(page, "to_review")
    page.page.set_viewport_size({"width": 1366, "height": 768})
    review.shows("6 to decide, 0 accepted, 0 skipped")
    assert review.new == "a grey shape, 0000"
    review.picture("review_1366")
    review.press("Enter")  # accept: the next one takes its place
    review.shows("5 to decide, 1 accepted")
    assert (folder / "0000.txt").read_text() == "a grey shape, 0000"
    review.press("e", "Control+a")
    page.page.keyboard.type("my own words")
    review.press("Control+Enter")
    review.shows("4 to decide, 2 accepted")
    assert (folder / "0001.txt").read_text() == "my own words"
    review.panel.get_by_label("Show").select_option("accepted")  # what was accepted can be changed again
    review.panel.get_by_role("listbox").focus()
    with page.page.expect_response(lambda answer: answer.request.method == "POST"):
        review.press("End", "e", "End", "2", "Control+Enter")
    assert (folder / "0001.txt").read_text() == "my own words2"
    review.panel.get_by_label("Show").select_option("open")
    review.panel.get_by_role("listbox").focus()
    review.press("Home")
    propose(folder, "0002", "captioned again by somebody else")
    review.press("s")
    review.shows("This clip was captioned again meanwhile")
    assert review.new == "captioned again by somebody else"
    review.panel.get_by_role("button", name="Skip", exact=True).click()  # not before there was time to read it
    review.shows("3 to decide, 2 accepted, 1 skipped")
    assert not (folder / "0002.txt").exists()
    (folder / "0003.txt").write_text("somebody else")  # while the panel shows another text
    review.press("Enter")
    review.shows("Somebody changed this caption meanwhile")
    assert (folder / "0003.txt").read_text() == "somebody else"
    review.picture("review_conflict")
    review.panel.get_by_role("button", name="Accept", exact=True).click()  # not before there was time to read it
    review.shows("2 to decide, 3 accepted")
    assert (folder / "0003.txt").read_text() == "a grey shape, 0003"
    review.press("f")
    page.page.keyboard.type("grey shape")
    review.shows("2 in 2 captions")
    review.press("Tab")
    page.page.keyboard.type("circle")
    review.press("Enter")
    review.shows("Replaced: 2 in 2 captions")
    review.press("Escape")
    assert review.new == "a circle, 0004"
    page.page.once("dialog", lambda dialog: dialog.accept())
    review.panel.get_by_role("button", name="Accept all shown").click()
    review.shows("0 to decide, 5 accepted")
    assert (folder / "0005.txt").read_text() == "a circle, 0005"
    review.press("Escape")
    review.panel.wait_for(state="detached")
    assert page.faults() == []


def test_a_clip_is_captioned_again_with_a_hint(canvas: Callable[..., Canvas], server: Server) -> None:
    folder = waiting(server.base / "input" / "again", 2)
    page = canvas(modern=True)
    review = Review(page, "again")
    review.press("ArrowDown", "h")
    page.page.keyboard.type("a red circle")
    review.press("Enter")
    page.page.wait_for_function(
        "!document.querySelector('.uvg-review label textarea:not([readonly])').value.includes('grey')"
    )
    assert re.search(r"a (large|small) \w+ ", review.new), review.new
    assert (folder / "0001.txt").read_text() == "words of 0001"
    assert not (folder / "0000.txt").exists()
    review.picture("review_1600")
    review.press("z")  # what stood there before
    assert review.new == "a grey shape, 0001"
    review.set("template", "a")
    review.press("h", "Enter")
    review.shows("the template 'a' has no blank")
    assert review.panel.get_by_role("alert").is_visible()
    assert review.rows.nth(1).locator(".uvg-name").inner_text().startswith("⚠ 0001.mp4")
    assert page.complaints == []


def test_of_clips_that_are_captioned_again_one_may_fail(canvas: Callable[..., Canvas], server: Server) -> None:
    folder = waiting(server.base / "input" / "again_in_part", 3)
    review = Review(canvas(), "again_in_part")
    review.rows.nth(1).wait_for()
    (folder / "0001.mp4").unlink()
    (folder / "0001.mp4").write_bytes(b"no video")
    review.press("Control+a", "x", "h", "Enter")  # all but the one that is looked at
    review.rows.nth(1).get_by_text("⚠ 0001.mp4").wait_for()
    review.page.wait_for_function("!document.querySelectorAll('.uvg-row')[2].textContent.includes('grey')")
    review.rows.nth(1).click()
    review.shows("could not be captioned again: 0001.mp4: cannot be opened as a video")
    assert review.texts()[0] == "a grey shape, 0000"


def test_captions_are_replaced_by_patterns_and_not_by_an_input_method(
    canvas: Callable[..., Canvas], server: Server
) -> None:
    waiting(server.base / "input" / "to_replace", 3)
    page = canvas()
    review = Review(page, "to_replace")
    find, put = (review.panel.get_by_label(name, exact=True) for name in ("Find", "Replace with"))
    old = [f"a grey shape, {number:04}" for number in range(3)]

    find.fill("A GREY")
    review.shows("0 in 0 captions")
    review.press("Alt+c")
    review.shows("3 in 3 captions")
    find.fill(r"(GREY) (\w+).*(?<number>[12])$")
    review.shows("0 in 0 captions")  # as plain text
    review.press("Alt+r")
    review.shows("2 in 2 captions")
    put.fill("$2 $<number>")
    review.press("Enter")
    review.shows("Replaced: 2 in 2 captions")
    assert review.texts() == [old[0], "a shape 1", "a shape 2"]
    review.press("Escape", "End", "e", "End", "2", "Escape", "z")  # what was changed again stays
    assert review.texts() == [*old[:2], "a shape 22"]

    find.fill("(")
    review.shows("Not a regular expression: ")
    review.press("Escape", "Home", "e", "Control+a")
    page.page.keyboard.insert_text("a" * 100)
    find.fill("(a+)+b")
    find.press("Enter")
    review.shows("This expression takes too long; nothing was replaced")
    find.fill("a{100}$")
    review.shows("1 in 1 caption")

    # An input method's Enter takes what it has composed, and decides nothing
    keys = page.page.context.new_cdp_session(page.page)
    sent: list[str] = []
    page.page.on("request", lambda request: sent.append(request.url) if "frame" not in request.url else None)
    texts = review.texts()
    for name in ("Find", "Replace with", "Hint", "Folder of clips", "New"):
        review.panel.get_by_label(name, exact=True).focus()
        keys.send("Input.imeSetComposition", {"text": "かに", "selectionStart": 2, "selectionEnd": 2})
        for modifiers in (0, 2):  # Enter, Ctrl+Enter
            enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229, "modifiers": modifiers}
            keys.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
        keys.send("Input.insertText", {"text": "かに"})
    assert review.new == "かに" + texts[0] or review.new == texts[0] + "かに"
    assert review.texts()[1:] == texts[1:]
    assert [url for url in sent if "review" in url or "prompt" in url] == []
    find.fill("かに")
    put.fill("")
    review.press("Enter")  # of no input method
    review.shows("Replaced: 1 in 1 caption")
    page.page.once("dialog", lambda dialog: dialog.accept())
    review.press("Escape", "Control+a", "x", "Enter")  # all but the one that is looked at
    review.shows("1 to decide, 2 accepted")
    assert page.complaints == []


def test_jobs_belong_to_their_folder_and_are_cancelled(
    canvas: Callable[..., Canvas], server: Server, client: Any
) -> None:
    folder = waiting(server.base / "input" / "jobs", 4)
    waiting(server.base / "input" / "elsewhere", 3)
    page = canvas()
    review = Review(page, "jobs")
    old = [f"a grey shape, {number:04}" for number in range(4)]

    client.queue(slow_graph(5, nodes=400))  # it must outlast the panel's part on a busy machine; it is interrupted
    review.press("h", "Enter")
    review.shows("1 / 4 · 0000.mp4 · waiting in the queue")
    send(f"{server.url}/queue", {"clear": True})
    review.shows("1 / 4 · 0000.mp4 · cancelled")

    review.press("Shift+ArrowDown", "Shift+ArrowDown")
    assert review.panel.get_by_role("button", name="Caption again (3)").is_visible()
    review.press("h")
    page.page.keyboard.type("a red circle")
    review.press("Enter")
    review.shows("waiting in the queue 0/3")
    review.load("elsewhere")
    client.interrupt()  # what runs before it
    review.panel.get_by_role("button", name="Cancel").wait_for(state="hidden")
    assert review.texts() == old[:3]
    review.load("jobs")
    assert review.texts()[3] == old[3]
    for text in review.texts()[:3]:
        assert re.match(SENTENCE, text)

    review.set("steps", 200)
    review.press("Control+a", "h", "Enter")
    review.shows("captioning 0/4")
    review.press("c", "End")
    review.shows("4 / 4 · 0003.mp4 · cancelled")
    assert review.texts()[3] == old[3]
    assert not list(folder.glob("0000.txt"))
    assert page.complaints == []


@pytest.mark.slow
def test_a_thousand_captions_do_not_stop_the_panel(canvas: Callable[..., Canvas], server: Server) -> None:
    waiting(server.base / "input" / "thousand", 1000)
    page = canvas()
    review = Review(page, "thousand")
    review.shows("1000 to decide")
    review.press("End")
    review.shows("1000 / 1000")
    assert review.rows.count() < 40
    asked: list[str] = []
    page.page.on("request", lambda request: asked.append(request.url))
    review.press(*["PageUp"] * 20, "f")
    page.page.keyboard.type("grey")
    review.shows("1000 in 1000 captions")
    review.press("Tab", "r", "Enter")
    review.shows("Replaced: 1000 in 1000 captions")
    review.press("Escape", "Home")
    review.shows("1 / 1000")
    assert review.new == "a r shape, 0000"
    assert len([url for url in asked if "/frame" in url]) < 200
    review.panel.get_by_role("searchbox").fill("0999")
    review.shows("1 / 1 · 0999.mp4")
    assert page.complaints == []
