"""The canvas in a real browser: each shipped template is opened from the Templates dialog, run, and shows its result.

Needs Playwright and a Chromium beside ComfyUI; skipped where one of them is absent. ``UVG_SCREENSHOTS`` names a folder
for a picture of each canvas after its run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from in_comfyui_host import PACK, Server, put_stand_ins, slow_graph

WORKFLOWS = Path(__file__).parents[2] / "workflows"
FROZEN = sorted((Path(__file__).parent / "frozen").glob("*/*.json"))
SAMPLE = "a large red circle moves right quickly on a navy background"
SENTENCE = r"a (small|large) \w+ \w+ (moves|stays|grows)[a-z ]* on a \w+ background"
WIDTH, HEIGHT = 1600, 900
LAPTOP = {"width": 1366, "height": 768}  # the smallest screen that a template must be read on
READABLE = 0.575  # the classic canvas draws no letters when it is scaled down below about 0.572
SECONDS = 90.0  # for whatever is waited for, on a machine that is busy
FADES = 10.0  # for the errors of the graph before, the front end's default one among them, to leave the canvas
LONG = {"train_two_stages": 900.0}  # and for runs that take longer
BAR, SIDE = 100, 60  # pixels that the top bar and the side bar of the front end take from the canvas
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the Templates dialog opens by itself, at a time of its own
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.TextareaWidget.FontSize": 11,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Execution.PreviewMethod": "latent2rgb",
    "LiteGraph.Canvas.MaximumFps": 10,  # drawn 60 times a second without a GPU, a canvas takes a core from the run
}

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs Playwright: pip install playwright"),
    pytest.mark.skipif(CHROMIUM is None, reason=f"needs a browser: none of {', '.join(BROWSERS)} is on the PATH"),
]

# What of a graph cannot be right, in words.
FAULTS = """() => {
  const found = [], graph = app.graph;
  for (const node of graph._nodes) {
    const name = `${node.id} ${node.title}`;
    if (!(node.type in LiteGraph.registered_node_types)) found.push(`${name}: ${node.type} is not registered`);
    if (node.has_errors) found.push(`${name}: is marked as wrong`);
    for (const input of node.inputs ?? []) {
      const optional = input.shape === LiteGraph.GRID_SHAPE || input.shape === 7;
      if (!input.widget && !optional && input.link == null) found.push(`${name}: ${input.name} is not connected`);
      if (input.link != null && !graph.getLink(input.link)) found.push(`${name}: ${input.name} has a broken link`);
    }
    for (const widget of node.widgets ?? []) {
      const values = widget.options?.values;
      if (widget.type === 'combo' && Array.isArray(values) && !values.includes(widget.value))
        found.push(`${name}: ${widget.name} has no choice ${widget.value}`);
    }
  }
  return found;
}"""
# Nodes with their titles, and groups: [name, left, top, right, bottom] in the graph's units.
CLASSIC_BOXES = """() => {
  const box = (name, [x, y], [w, h], title) => [name, x, y - title, x + w, y + h];
  return {
    nodes: app.graph._nodes.map(n => box(`${n.id} ${n.title}`, n.pos, n.size, LiteGraph.NODE_TITLE_HEIGHT)),
    groups: app.graph._groups.map(g => box(g.title, g.pos, g.size, 0)),
  };
}"""
VUE_BOXES = """() => {
  const {scale, offset} = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
  const nodes = [...document.querySelectorAll('.lg-node[data-node-id]')].map(element => {
    const box = element.getBoundingClientRect(), id = element.dataset.nodeId;
    const x = (box.left - canvas.left) / scale - offset[0], y = (box.top - canvas.top) / scale - offset[1];
    return [`${id} ${app.graph.getNodeById(id).title}`, x, y, x + box.width / scale, y + box.height / scale];
  });
  const groups = app.graph._groups.map(g => [g.title, ...g.pos, g.pos[0] + g.size[0], g.pos[1] + g.size[1]]);
  return {nodes, groups};
}"""
# Remembers how a run ends and the live texts on the way.
WATCH = """() => {
  window.uvg = {end: null, live: {}, seen: {}};
  for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
    app.api.addEventListener(kind, event => { window.uvg.end = [kind, event.detail]; });
  app.api.addEventListener('progress_text', event => {
    const {nodeId, text} = event.detail;
    (window.uvg.live[nodeId] ??= []).push(text);
  });
  const look = () => {
    for (const [node, texts] of Object.entries(window.uvg.live))
      for (const widget of document.querySelectorAll('.dom-widget'))
        if (texts.includes(widget.innerText.trim())) (window.uvg.seen[node] ??= []).push(widget.innerText.trim());
    setTimeout(look, 100);
  };
  look();
}"""

# What a node's box shows, what the saved workflow keeps of it, and the saved values of the node's widgets.
BOX = "What the node said"
SAID = """id => {
  const node = app.graph.getNodeById(id), boxes = node.widgets.filter(w => w.element?.ariaLabel);
  if (boxes.length > 1 || node.widgets.some(w => w.name === '$$node-text-preview')) throw new Error('said twice');
  const {properties, widgets_values} = node.serialize();
  return [boxes[0]?.element.value ?? '', properties.uni_vigu_said ?? '', widgets_values];
}"""

# Where a widget lies on the page, and how it shows a number that stands for "auto".
PLACE = """([id, name, share]) => {
  const node = app.graph.getNodeById(id), {scale, offset} = app.canvas.ds;
  const place = [node.pos[0] + share * node.size[0], node.pos[1] + node.widgets.find(w => w.name === name).y + 10];
  const canvas = app.canvas.canvas.getBoundingClientRect();
  return [canvas.left + (place[0] + offset[0]) * scale, canvas.top + (place[1] + offset[1]) * scale];
}"""
SHOWN = """([id, name]) => {
  const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name);
  return [widget.value, widget._displayValue];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def canvas(browser: Any, server: Server) -> Iterator[Callable[..., Canvas]]:
    """Opens ComfyUI in a fresh browser profile; keyword arguments are changed settings."""
    contexts = []

    def open_canvas(**changed: Any) -> Canvas:
        settings = {**SETTINGS, **{f"Comfy.{name.replace('_', '.')}": value for name, value in changed.items()}}
        send(f"{server.url}/api/settings", settings)
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        context.set_default_timeout(SECONDS * 1000)
        # Without a GPU the cards of core's several hundred templates take 10 to 20 s each time that they are shown
        context.route("**/templates/index*.json", lambda route: route.fulfill(json=[]))
        contexts.append(context)
        return Canvas(context.new_page(), server.url)

    yield open_canvas
    for context in contexts:
        context.close()


def send(url: str, content: Any) -> None:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SECONDS).close()


class Canvas:
    """A page with ComfyUI's front end. ``complaints``: what went wrong in it that is not the front end's own affair."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        page.on("console", self._hear)
        page.on("response", self._check)
        page.goto(url)
        page.wait_for_function("window.app?.graph && window.app.canvas && app.extensionManager")
        page.locator(".templates-tab-button").wait_for()

    def _hear(self, message: Any) -> None:
        words = f"{message.text} {message.location.get('url', '')}"
        if message.type == "error" and re.search(rf"{PACK}|uvg|UniViGU|MarkdownNote", words, re.IGNORECASE):
            self.complaints.append(f"console: {words}")

    def _check(self, response: Any) -> None:
        if response.status >= 400 and PACK in response.url:
            self.complaints.append(f"{response.status}: {response.url}")

    def open_template(self, name: str) -> dict[str, Any]:
        """Open a template as a user does: Templates, this pack's category, the template's card. Returns its file."""
        expected = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        self.page.locator(".templates-tab-button").click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(PACK, exact=True).click()
        cards = dialog.locator("[data-testid^=template-workflow-]")
        cards.first.wait_for()
        assert cards.first.get_attribute("data-testid") == "template-workflow-text_to_video"  # the main job first
        card = dialog.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()  # its picture is loaded when it is seen
        thumbnail = card.locator("img").first
        thumbnail.wait_for()
        self.page.wait_for_function("image => image.complete && image.naturalWidth > 1", arg=thumbnail.element_handle())
        card.click()
        self.page.wait_for_function("id => app.graph.id === id", arg=expected["id"])
        dialog.wait_for(state="hidden")
        return expected

    def faults(self) -> list[str]:
        from playwright.sync_api import TimeoutError

        found = [*self.complaints, *self.page.evaluate(FAULTS)]
        dialogs = self.page.get_by_role("dialog").all_inner_texts()
        found += [f"a dialog is open: {text}" for text in dialogs if text.strip()]
        errors = self.page.get_by_test_id("error-overlay")
        try:
            errors.wait_for(state="hidden", timeout=FADES * 1000)
        except TimeoutError:
            found.append(f"errors are shown: {errors.inner_text()}")
        return found

    def run(self, seconds: float = SECONDS) -> Run:
        """Press Run and wait for the end."""
        kind, detail = self.end_of_run(seconds)
        if "training needs the package" in str(detail):
            pytest.skip(detail["exception_message"])
        assert kind == "execution_success", detail
        return Run(self)

    def end_of_run(self, seconds: float = SECONDS) -> tuple[str, Any]:
        self.page.evaluate(WATCH)
        self.page.get_by_test_id("queue-button").click()
        self.page.wait_for_function("window.uvg.end", timeout=seconds * 1000)
        kind, detail = self.page.evaluate("window.uvg.end")
        return kind, detail

    def reload(self) -> None:
        """As a user does; the front end brings the workflow back."""
        count = self.page.evaluate("app.graph._nodes.length")
        self.page.reload()
        self.page.wait_for_function("count => window.app?.canvas && app.graph?._nodes.length === count", arg=count)

    def click(self, node: str, widget: str, share: float) -> None:
        """Click on a widget on the classic canvas, at a share of the node's width."""
        self.page.mouse.click(*self.page.evaluate(PLACE, [node, widget, share]))

    def node(self, title: str) -> str:
        """The id of the node of that title."""
        ids = self.page.evaluate("t => app.graph._nodes.filter(n => n.title === t).map(n => n.id)", title)
        assert len(ids) == 1, f"{title}: {ids}"
        return str(ids[0])

    def said(self, node: str) -> str:
        """The text of a node's box on the canvas, which is its only one and changes nothing that a run reads; empty
        where it has none."""
        text, in_workflow, values = self.page.evaluate(SAID, node)
        shown = [area.input_value() for area in self.page.get_by_label(BOX).all() if area.is_visible()]
        assert not text or shown.count(text) == 1, shown
        assert in_workflow == text
        assert text not in [value for value in values if value]
        return str(text)

    def picture(self, path: Path) -> None:
        """A JPEG of the whole graph, as large as it goes at this width."""
        page = self.page
        boxes = page.evaluate(CLASSIC_BOXES)["groups"]
        left, top = min(box[1] for box in boxes), min(box[2] for box in boxes)
        wide, high = max(box[3] for box in boxes) - left, max(box[4] for box in boxes) - top
        scale = (WIDTH - SIDE - 40) / wide
        page.set_viewport_size({"width": WIDTH, "height": round(high * scale) + BAR + 30})
        page.mouse.move(WIDTH - 60, 5)  # over no tab
        page.get_by_text(re.compile("Job (queued|completed)")).first.wait_for(state="hidden")
        page.evaluate(
            """async ([scale, x, y]) => {
              for (const video of document.querySelectorAll('video')) {
                if (!video.duration) continue;
                await new Promise(done => { video.onseeked = done; video.currentTime = video.duration / 2; });
              }
              app.canvas.ds.scale = scale;
              app.canvas.ds.offset[0] = x;
              app.canvas.ds.offset[1] = y;
              app.canvas.setDirty(true, true);
              for (let frame = 0; frame < 10; frame++) await new Promise(requestAnimationFrame);
            }""",
            [scale, (SIDE + 20) / scale - left, BAR / scale - top],
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path, type="jpeg", quality=80)


class Run:
    """What the canvas shows after a run."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas, self.page = canvas, canvas.page

    def text(self, title: str, pattern: str) -> str:
        """What a Preview as Text node shows, which must match."""
        get = """id => app.graph.getNodeById(id).widgets.find(w => w.name === 'preview_text').value"""
        node = self.canvas.node(title)
        self.page.wait_for_function(f"id => ({get})(id)", arg=node)
        found = str(self.page.evaluate(get, node))
        assert re.fullmatch(pattern, found, re.DOTALL), found
        shown = [area.input_value() for area in self.page.get_by_label("preview_text").all() if area.is_visible()]
        assert found in shown
        return found

    def said(self, title: str, final: str, live: int = 0) -> None:
        """What the node says in the end, once; ``live``: so many texts were seen on the canvas on the way to it."""
        node = self.canvas.node(title)
        assert self.canvas.said(node) == final
        if live:
            texts = self.page.evaluate("id => window.uvg.live[id] ?? []", node)
            assert len(set(texts)) >= live, texts
            assert self.page.evaluate("id => window.uvg.seen[id] ?? []", node)

    def video(self, count: int = 1) -> None:
        """Videos that play in the canvas, of 48 pixels enlarged 6 times."""
        self.page.wait_for_function(
            """count => [...document.querySelectorAll('.dom-widget video')]
              .filter(v => v.readyState >= 2 && v.duration > 0 && v.videoWidth === 288 && v.offsetWidth > 50)
              .length >= count""",
            arg=count,
        )

    def image(self, title: str, width: int) -> None:
        self.page.wait_for_function(
            "([id, width]) => app.graph.getNodeById(id).imgs?.some(i => i.complete && i.naturalWidth >= width)",
            arg=[self.canvas.node(title), width],
        )


def text_to_video(run: Run) -> None:
    run.video()
    run.image("Uni-Flow Sampler", 16)  # the last live preview


def video_to_text(run: Run) -> None:
    run.said("Video-to-Text Denoise", run.text("The caption", SAMPLE), live=2)
    run.said("Encode Video for Uni-ViGU", run.text("What was read of the clip", r"uvg_sample\.mp4: 9 of .*"))
    run.video()

    words_stay(run.canvas)
    auto_is_a_word(run.canvas)


def words_stay(canvas: Canvas) -> None:
    """After a reload, and when all of a run comes from the cache; and not when a run fails: for the template of
    video-to-text that has run."""
    nodes = [canvas.node(title) for title in ("Video-to-Text Denoise", "Encode Video for Uni-ViGU")]
    words = [canvas.said(node) for node in nodes]
    assert words[0] == SAMPLE
    canvas.page.wait_for_function("Object.values(localStorage).some(draft => draft.includes('uni_vigu_said'))")
    canvas.reload()
    assert [canvas.said(node) for node in nodes] == words
    canvas.run()
    assert [canvas.said(node) for node in nodes] == words


def auto_is_a_word(canvas: Canvas) -> None:
    """A number that stands for "auto" is shown and taken as the word; the value stays the number."""
    node, page = canvas.node("Video-to-Text Denoise"), canvas.page

    def after(widget: str, share: float, typed: str = "") -> Any:
        canvas.click(node, widget, share)
        if typed:
            page.locator(".graphdialog input").fill(typed)
            page.keyboard.press("Enter")
            page.locator(".graphdialog").wait_for(state="detached")
        return page.evaluate(SHOWN, [node, widget])

    assert page.evaluate(SHOWN, [node, "steps"]) == [0, "auto"]
    assert after("steps", 0.95) == [1, "1"]
    assert after("steps", 0.5, "12") == [12, "12"]
    assert after("steps", 0.5, "auto") == [0, "auto"]
    assert after("temperature", 0.95) == [0, "0.00"]
    assert after("temperature", 0.05) == [-1, "auto"]


def joint(run: Run) -> None:
    run.said("Joint Sampler", run.text("The caption", SENTENCE), live=2)
    run.video()
    run.image("How both took shape", 500)


def caption_folder(run: Run) -> None:
    run.text("The captions", rf"{SENTENCE}\n\n{SENTENCE}\n\n{SENTENCE}")
    run.said("Caption Folder", run.text("Report", "3 clips: 3 captioned, .*"), live=2)


def rank_captions(run: Run) -> None:
    run.text("The best", SAMPLE)
    run.said("Rank Captions", scores := run.text("All scores", ".*%.*"))
    assert SAMPLE in scores.splitlines()[0]
    run.image("Plot", 900)
    run.video()


def train_two_stages(run: Run) -> None:
    assert run.text("Before training", ".*") == SAMPLE
    run.text("After both stages", ".+")
    for stage in ("recall", "refine"):
        run.image(f"Train: {stage}", 500)  # the last sample
        run.image(f"Loss of {stage}", 500)
    run.video()


SHOWS: dict[str, Callable[[Run], None]] = {
    function.__name__: function
    for function in (text_to_video, video_to_text, joint, caption_folder, rank_captions, train_two_stages)
}


def misplaced(boxes: dict[str, list[list[Any]]]) -> list[str]:
    """Nodes and notes that overlap, and those that lie in no group."""
    found = []
    for (one, *a), (other, *b) in combinations(boxes["nodes"], 2):
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]:
            found.append(f"{one} overlaps {other}")
    for name, *n in boxes["nodes"]:
        if not any(g[0] <= n[0] and g[1] <= n[1] and n[2] <= g[2] and n[3] <= g[3] for _, *g in boxes["groups"]):
            found.append(f"{name} lies in no group")
    return found


def differences(exported: dict[str, Any], shipped: dict[str, Any]) -> list[str]:
    """Where an export of the canvas is another graph than the shipped one. Of core's nodes, whose widgets come and go
    between versions, only what both have is compared; ``_meta`` is for readers."""
    found = [f"only one has {node}" for node in exported.keys() ^ shipped.keys()]
    for node in exported.keys() & shipped.keys():
        one, other = exported[node], shipped[node]
        a, b = one["inputs"], other["inputs"]
        names = a.keys() | b.keys() if re.match("Uni|Joint|VideoToText", one["class_type"]) else a.keys() & b.keys()
        found += [f"{node} {name}: {a.get(name)} != {b.get(name)}" for name in names if a.get(name) != b.get(name)]
        if one["class_type"] != other["class_type"]:
            found.append(f"{node}: {one['class_type']} != {other['class_type']}")
    return found


def forget_captions(server: Server) -> None:
    for text in (server.base / "input" / "uvg_sample_clips").glob("*.txt"):
        text.unlink()


def opened(page: Canvas, name: str) -> None:
    """A template as a user opens it: whole, laid out, large enough to read, and the same graph as its API form."""
    full = {"width": WIDTH, "height": HEIGHT}
    page.page.set_viewport_size(LAPTOP)
    file = page.open_template(name)
    page.page.wait_for_function("app.canvas.ds.scale !== 1")  # fitted to the view
    assert page.faults() == []
    assert page.page.evaluate("app.canvas.ds.scale") >= READABLE, "too large to be read on a small screen"
    page.page.set_viewport_size(full)
    assert page.page.evaluate("app.graph._nodes.length") == len(file["nodes"])
    assert not page.page.evaluate("app.canvas.low_quality"), "too large: its words are not drawn on a screen this small"
    assert misplaced(page.page.evaluate(CLASSIC_BOXES)) == []
    api_form = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert differences(page.page.evaluate("app.graphToPrompt().then(both => both.output)"), api_form) == []


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in SHOWS])
def test_a_template_opens_runs_and_shows_its_result(name: str, canvas: Callable[..., Canvas], server: Server) -> None:
    forget_captions(server)
    page = canvas()
    opened(page, name)
    SHOWS[name](page.run(LONG.get(name, SECONDS)))
    assert page.faults() == []
    assert misplaced(page.page.evaluate(CLASSIC_BOXES)) == []
    picture_of(page, name)


def test_what_does_not_run_here_opens_whole(canvas: Callable[..., Canvas], server: Server) -> None:
    """The files under the names of the first try are stand-ins; a training takes minutes."""
    put_stand_ins(server.base / "models")
    page = canvas()
    for name in ("first_try", *LONG):
        opened(page, name)
        picture_of(page, name)


def picture_of(page: Canvas, name: str) -> None:
    if os.environ.get("UVG_SCREENSHOTS"):
        page.picture(Path(os.environ["UVG_SCREENSHOTS"]) / f"{name}.jpg")
        page.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


def test_templates_fit_the_modern_node_design_too(canvas: Callable[..., Canvas], server: Server) -> None:
    """Nodes 2.0 draws the same nodes with other sizes; what they say stays until a run fails."""
    put_stand_ins(server.base / "models")
    page = canvas(VueNodes_Enabled=True)
    for name in (*(SHOWS.keys() - {"video_to_text"}), "first_try", "video_to_text"):
        file = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        page.page.evaluate("graph => app.loadGraphData(graph)", file)
        page.page.wait_for_function(
            "n => document.querySelectorAll('.lg-node[data-node-id]').length === n", arg=len(file["nodes"])
        )
        assert page.faults() == []
        assert misplaced(page.page.evaluate(VUE_BOXES)) == [], name
        picture_of(page, f"{name}_nodes_2")
    page.run()
    words_stay(page)
    assert misplaced(page.page.evaluate(VUE_BOXES)) == []
    node = page.node("Video-to-Text Denoise")
    page.page.evaluate("id => { app.graph.getNodeById(id).widgets.find(w => w.name === 'template').value = 'a' }", node)
    assert page.end_of_run()[0] == "execution_error"
    assert page.said(node) == ""
    assert page.said(page.node("Encode Video for Uni-ViGU")) != ""


def test_canvases_of_older_versions_load_as_they_were(canvas: Callable[..., Canvas], server: Server) -> None:
    """What people saved with an older version of the pack; each in its API form is run by test_workflows.py."""
    forget_captions(server)
    page = canvas()
    assert FROZEN
    assert {path.stem for path in FROZEN} <= set(SHOWS)
    for path in FROZEN:
        file = json.loads(path.read_text(encoding="utf-8"))
        page.page.evaluate("graph => app.loadGraphData(graph)", file)
        page.page.wait_for_function("count => app.graph._nodes.length === count", arg=len(file["nodes"]))
        assert page.faults() == [], path
        saved = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
        sent = page.page.evaluate("app.graphToPrompt().then(both => both.output)")
        for node, entry in sent.items():  # inputs that came later stand at the end, at their defaults
            known = saved.get(node, entry)["inputs"]
            entry["inputs"] = {name: value for name, value in entry["inputs"].items() if name in known}
        assert differences(sent, saved) == [], path
    page.run()
    assert page.faults() == []


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
    page = canvas(VueNodes_Enabled=True)
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

    client.queue(slow_graph(5))
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


def test_the_blueprint_is_found_placed_and_run(canvas: Callable[..., Canvas]) -> None:
    title = "Caption this video"
    page = canvas()
    page.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.page.wait_for_function("app.graph._nodes.length === 0")
    page.page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    dialog = page.page.get_by_role("dialog")
    dialog.locator("input").first.fill(title)
    result = page.page.get_by_test_id("result-item").filter(has_text=title)
    result.wait_for()
    assert PACK in result.inner_text()
    result.click()
    dialog.wait_for(state="hidden")
    page.page.mouse.click(WIDTH / 2, HEIGHT / 2)  # where the new node hangs at the pointer, this puts it down
    page.page.wait_for_function("app.graph._nodes.length === 1")
    node = page.page.evaluate(
        """() => { const n = app.graph._nodes[0], names = list => list.map(each => each.name);
          return [n.title, names(n.inputs.filter(i => !i.widget)), names(n.widgets), n.outputs.map(o => o.type)]; }"""
    )
    widgets = ["checkpoint", "text_encoder", "vae", "width", "height", "frames", "fps", "template", "seed"]
    assert node == [title, ["video"], widgets, ["STRING"]]
    page.page.evaluate(
        """() => {
          const caption = app.graph._nodes[0], [x, y] = caption.pos;
          const add = (type, dx) => {
            const node = LiteGraph.createNode(type);
            app.graph.add(node);
            node.pos = [x + dx, y];
            return node;
          };
          const load = add('LoadVideo', -400), show = add('PreviewAny', 400);
          load.widgets[0].value = 'uvg_sample.mp4';
          load.connect(0, caption, 0);
          caption.connect(0, show, 0);
          show.title = 'Shown';
        }"""
    )
    assert page.faults() == []
    page.run().text("Shown", SAMPLE)
    inside = """() => app.graph._nodes.find(n => n.subgraph).subgraph._nodes
      .map(n => [n.properties.uni_vigu_said, n.widgets?.at(-1)?.element?.value])"""
    assert [SAMPLE, SAMPLE] in page.page.evaluate(inside)
    assert page.faults() == []
