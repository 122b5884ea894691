"""The canvas in a real browser: each shipped template is opened from the Templates dialog, run, and shows its result.

Skipped without a browser. ``UVG_SCREENSHOTS`` names a folder for a picture of each canvas after its run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from in_comfyui_canvas import CLASSIC_BOXES, HEIGHT, SECONDS, SENTENCE, SHOWN, VUE_BOXES, WIDTH, WORKFLOWS, Canvas, Run
from in_comfyui_host import PACK, Server, put_stand_ins

FROZEN = sorted((Path(__file__).parent / "frozen").glob("*/*.json"))
SAMPLE = "a large red circle moves right quickly on a navy background"
LAPTOP = {"width": 1366, "height": 768}  # the smallest screen that a template must be read on
READABLE = 0.575  # the classic canvas draws no letters when it is scaled down below about 0.572
LONG = {"train_two_stages": 900.0}  # and for runs that take longer


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


def few_words(run: Run) -> None:
    changed = run.text("The caption, changed", SENTENCE)
    assert changed in run.canvas.said(run.canvas.node("Joint Sampler")).replace("slowly", "quickly")
    run.image("The draft", 48)
    run.video(width=256)


def image_to_video(run: Run) -> None:
    run.said("Joint Sampler", run.text("The caption", ".* background"), live=2)
    run.video()


def story(run: Run) -> None:
    run.video()


def caption_folder(run: Run) -> None:
    run.text("The captions", rf"{SENTENCE}\n\n{SENTENCE}\n\n{SENTENCE}")
    run.said("Caption Folder", run.text("Report", "3 clips: 3 captioned, .*"), live=2)


def find_clips(run: Run) -> None:
    caption = run.text("Their captions", "a large blue star .*")
    run.said("Find Clips", f"0.00 nats  blue_star.mp4: {caption}")
    run.image("The clips found", 96)


def rank_captions(run: Run) -> None:
    run.text("The best", SAMPLE)
    run.said("Rank Captions", scores := run.text("All scores", ".*%.*"))
    assert SAMPLE in scores.splitlines()[0]
    run.image("Plot", 900)
    run.video()


def best_of(run: Run) -> None:
    run.said("Rank Clips", scores := run.text("Scores", r"(.*nats  batch index \d\n?)+"))
    assert sorted(line[-1] for line in scores.splitlines()) == list("0123")
    run.video()


def edit_by_words(run: Run) -> None:
    run.said("Edit by Words", f"from: {SAMPLE}\nto: {SAMPLE.replace('red', 'blue')}", live=2)
    run.image("Edit by Words", 16)  # the last live preview
    run.video()

    node, page = run.canvas.node("Edit by Words"), run.page
    boxes = "id => app.graph.getNodeById(id).widgets.slice(0, 3).map(w => w.value)"
    assert page.evaluate(boxes, node) == ["", "red=blue", ""]
    run.canvas.click(node, "edit the caption", 0.5)
    assert page.evaluate(boxes, node) == ["", "", SAMPLE.replace("red", "blue")]


def train_two_stages(run: Run) -> None:
    assert run.text("Before training", ".*") == SAMPLE
    run.text("After both stages", ".+")
    for stage in ("recall", "refine"):
        run.image(f"Train: {stage}", 500)  # the last sample
        run.image(f"Loss of {stage}", 500)
    run.video()


SHOWS: dict[str, Callable[[Run], None]] = {
    function.__name__: function
    for function in (
        text_to_video,
        video_to_text,
        joint,
        few_words,
        image_to_video,
        story,
        caption_folder,
        find_clips,
        rank_captions,
        best_of,
        edit_by_words,
        train_two_stages,
    )
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
    """The files under the names of the first try are stand-ins; shots need PySceneDetect; a training takes minutes."""
    put_stand_ins(server.base / "models")
    page = canvas()
    page.look_for_files()
    for name in ("first_try", "caption_shots", *LONG):
        opened(page, name)
        picture_of(page, name)


def picture_of(page: Canvas, name: str) -> None:
    if os.environ.get("UVG_SCREENSHOTS"):
        page.picture(Path(os.environ["UVG_SCREENSHOTS"]) / f"{name}.jpg")
        page.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


def test_templates_fit_the_modern_node_design_too(canvas: Callable[..., Canvas], server: Server) -> None:
    """Nodes 2.0 draws the same nodes with other sizes; what they say stays until a run fails."""
    put_stand_ins(server.base / "models")
    page = canvas(modern=True)
    page.look_for_files()
    for name in (*(SHOWS.keys() - {"video_to_text"}), "first_try", "caption_shots", "video_to_text"):
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
