"""ComfyUI's canvas in a real browser: one page, opened once and made fresh for each test (the fixture ``canvas``).

Needs Playwright and a Chromium beside ComfyUI. ``UVG_SCREENSHOTS`` names a folder for pictures of what tests see.
"""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from in_comfyui_host import PACK, ROOT

WORKFLOWS = ROOT / "workflows"
SENTENCE = r"a (small|large) \w+ \w+ (moves|stays|grows)[a-z ]* on a \w+ background"
WIDTH, HEIGHT = 1600, 900
SECONDS = 90.0  # for whatever is waited for, on a machine that is busy
FADES = 10.0  # for the errors of the graph before, the front end's default one among them, to leave the canvas
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


def missing_browser() -> str:
    """Why there is no browser to test in; empty where there is one."""
    if find_spec("playwright") is None:
        return "needs Playwright: pip install playwright"
    return "" if CHROMIUM else f"needs a browser: none of {', '.join(BROWSERS)} is on the PATH"


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
    nodes: app.graph._nodes.map(n => box(
      `${n.id} ${n.title}`, n.pos, n.flags.collapsed ? [n._collapsed_width ?? n.size[0], 0] : n.size,
      LiteGraph.NODE_TITLE_HEIGHT)),
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
  const begun = window.uvg;
  window.uvg = {end: null, live: {}, seen: {}};
  if (begun) return;
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

# An empty workflow of its own, the classic canvas or Nodes 2.0, and no draft of what other tests had open.
FRESH = """async modern => {
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
  const {setting, command} = app.extensionManager;
  await setting.set('Comfy.VueNodes.Enabled', modern);
  await command.execute('Comfy.NewBlankWorkflow');
  localStorage.clear();
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 0;
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


def send(url: str, content: Any) -> None:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SECONDS).close()


class Browser:
    """A browser and its page, which opening takes 7 s of work; ``canvas`` makes it fresh, or opens another after
    ``forget``."""

    def __init__(self, chromium: Any, url: str) -> None:
        self._chromium, self._url = chromium, url
        self._canvas: Canvas | None = None

    def canvas(self, modern: bool = False) -> Canvas:
        if self._canvas is None:
            send(f"{self._url}/api/settings", SETTINGS)
            context = self._chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT})
            context.set_default_timeout(SECONDS * 1000)
            # Without a GPU the cards of core's several hundred templates take 10 to 20 s each time that they are shown
            context.route("**/templates/index*.json", lambda route: route.fulfill(json=[]))
            self._canvas = Canvas(context.new_page(), self._url)
        self._canvas.refresh(modern)
        return self._canvas

    def forget(self) -> None:
        if self._canvas is not None:
            self._canvas.page.context.close()
        self._canvas = None


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

    def refresh(self, modern: bool) -> None:
        """The page as it is when it is opened, but for what it has loaded. modern: Nodes 2.0."""
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        self.page.mouse.move(WIDTH / 2, HEIGHT / 2)
        self.page.evaluate(FRESH, modern)
        self.page.wait_for_function("app.graph._nodes.length === 0 && !document.querySelector('dialog[open]')")
        self.complaints.clear()

    def look_for_files(self) -> None:
        """As the key R does: files that came since the page was opened become choices."""
        self.page.evaluate("app.refreshComboInNodes()")

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

    def video(self, count: int = 1, width: int = 288) -> None:
        """Videos that play in the canvas, of 48 pixels enlarged 6 times unless another width is named."""
        self.page.wait_for_function(
            """([count, width]) => [...document.querySelectorAll('.dom-widget video')]
              .filter(v => v.readyState >= 2 && v.duration > 0 && v.videoWidth === width && v.offsetWidth > 50)
              .length >= count""",
            arg=[count, width],
        )

    def image(self, title: str, width: int) -> None:
        self.page.wait_for_function(
            "([id, width]) => app.graph.getNodeById(id).imgs?.some(i => i.complete && i.naturalWidth >= width)",
            arg=[self.canvas.node(title), width],
        )
