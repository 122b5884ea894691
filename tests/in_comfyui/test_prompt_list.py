"""Prompt List in a running ComfyUI: several prompts in one run, each clip saved before the next one begins."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from in_comfyui_host import OPTIONS, ROOT, ComfyUI, Server, load_client

ROWS = """a large red circle moves right on a navy background
# not this one
a small {blue|green} square moves up on a gray background"""


def graph(steps: int, **changes: Any) -> dict[str, Any]:
    """Text to video with its prompt, seed and name from a list, and the seed as text beside the clip."""
    made = json.loads((ROOT / "workflows" / "api" / "text_to_video.json").read_text(encoding="utf-8"))
    own = {"prompts": ROWS, "file": "", "wildcards": "all combinations", "seed": 5, "seeds": "one for each prompt"}
    made["list"] = {"class_type": "UniViGUPromptList", "inputs": {**own, "prefix": "listed/clip", **changes}}
    made["seed"] = {"class_type": "PreviewAny", "inputs": {"source": ["list", 1]}}
    for node in made.values():
        if node["class_type"] == "UniViGUTextEncode" and node["inputs"]["text"]:
            node["inputs"]["text"] = ["list", 0]
        if node["class_type"] == "UniFlowSampler":
            node["inputs"].update(seed=["list", 1], steps=steps)
        if node["class_type"] == "UniViGUEmptyLatent":
            node["inputs"].update(width=32, height=32, frames=1)
        if node["class_type"] == "SaveVideo":
            node["inputs"]["filename_prefix"] = ["list", 2]
    return made


def saved(server: Server, folder: str) -> list[str]:
    return sorted(path.name for path in (server.base / "output" / folder).glob("*.mp4"))


def said_by_the_list(event: Any) -> bool:
    return bool(event.type == "executed" and event.data["display_node"] == "list")


NAMES = [
    "clip_001_a-large-red-circle-moves-right-on-a-navy_00001_.mp4",
    "clip_002_a-small-blue-square-moves-up-on-a-gray_00001_.mp4",
    "clip_003_a-small-green-square-moves-up-on-a-gray_00001_.mp4",
]


def test_each_prompt_gives_a_clip_of_its_own_and_they_come_in_turn(server: Server, client: Any) -> None:
    events: list[Any] = []
    result = client.run(graph(1), on_event=events.append)
    assert saved(server, "listed") == NAMES
    for _ in range(2):  # again, since something behind the list may have changed
        assert client.run(graph(1, prompts="a {red|blue} star")).files
    assert len(saved(server, "listed")) == 3 + 2 * 2
    assert [file.filename for file in result.files] == NAMES
    said = ["1 of 3", "2 of 3", "3 of 3"]  # in the list itself
    assert [texts for texts in result.texts.values() if texts[0][:6] not in said] == [["5"], ["6"], ["7"]]
    clips = [(server.base / "output" / "listed" / name).read_bytes() for name in NAMES]
    assert len(set(clips)) == 3

    shown = [event.data for event in events if event.type == "executing" and event.data["node"]]
    assert {data["display_node"] for data in shown} <= set(graph(1))
    order = [data["display_node"] for data in shown if data["display_node"] in ("5", "9")]
    assert order == ["5", "9"] * 3  # sampled and saved, three times
    words = [event.data["output"]["text"][0] for event in events if said_by_the_list(event)]
    assert [text[:6] for text in words] == said


def test_cancel_keeps_what_is_done(server: Server, client: Any) -> None:
    def watch(event: Any) -> None:
        if said_by_the_list(event) and event.data["output"]["text"][0].startswith("3 of 4"):
            client.interrupt()

    with pytest.raises(Exception, match="interrupted at"):
        client.run(graph(5, prompts=f"{ROWS}\nanother one", prefix="cancelled/clip"), on_event=watch)
    assert saved(server, "cancelled") == NAMES[:2]


def preview(output: int, **changes: Any) -> dict[str, Any]:
    """A list alone, with a preview of one of its outputs."""
    return {
        "list": graph(1, **changes)["list"],
        "preview": {"class_type": "PreviewAny", "inputs": {"source": ["list", output]}},
    }


def previewed(client: Any, graph: dict[str, Any]) -> list[str]:
    """What the previews show."""
    shown = [text for node, texts in client.run(graph).texts.items() if node != "clips" for text in texts]
    others = [text for text in shown if not re.match(r"\d+ of \d+: ", text)]  # which the list says of itself
    assert len(shown) == 2 * len(others)
    return others


def test_a_list_comes_from_a_file_of_the_input_folder_and_from_nowhere_else(
    server: Server, client: Any, tmp_path: Path
) -> None:
    (server.base / "input" / "list of prompts.txt").write_text("# mine\none {a|b|c}\n", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("hidden words", encoding="utf-8")
    only = preview(0)

    def texts(**inputs: Any) -> list[str]:
        only["list"]["inputs"].update(inputs)
        try:
            return previewed(client, only)
        except Exception as error:
            return [str(error).partition("UniViGUError: ")[2]]

    assert texts(prompts="", file="list of prompts.txt") == ["one a", "one b", "one c"]
    assert texts(prompts="first", limit=4) == ["first", "one a", "one b", "one c"]
    assert "expands to 4 prompts, and the limit is 3" in texts(limit=3)[0]
    [drawn] = texts(prompts="", wildcards="one drawn by seed")
    assert drawn in ("one a", "one b", "one c")
    refused = [texts(file=name) for name in (str(tmp_path / "secret.txt"), "../secret.txt", "nothing.txt")]
    assert refused[0][0].startswith("the file in the widget file cannot be read")
    assert refused == [refused[0]] * 3
    assert "there is no prompt" in texts(file="", prompts="# none")[0]


def test_a_connected_list_is_taken_as_it_is_and_one_connected_text_as_typed(server: Server, client: Any) -> None:
    words = {"a": "# a {red}\nstar | \\\\{", "b": "one {x|y"}
    for name, text in words.items():
        clip = server.base / "input" / "captions" / f"{name}.mp4"
        clip.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "samples" / "uvg_sample.mp4", clip)
        clip.with_suffix(".txt").write_text(text, encoding="utf-8")
    made = preview(0, prompts=["clips", 1])
    made["load"] = graph(1)["1"]
    inputs = {"model": ["load", 0], "clip": ["load", 1], "folder": "captions", "subfolders": False, "frames": 1}
    made["clips"] = {"class_type": "UniViGULoadClips", "inputs": {**inputs, "need_details": False}}
    plain = ["# a {red} star | \\\\{", "one {x|y"]

    assert previewed(client, made) == plain
    (server.base / "input" / "captions" / "b.mp4").unlink()
    assert previewed(client, made) == plain[:1]
    made["clips"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "# no\none {a|b}\n\ntwo"}}
    made["list"]["inputs"]["prompts"] = ["clips", 0]
    assert previewed(client, made) == ["one a", "one b", "two"]


def test_seeds_are_exact_and_after_the_last_one_comes_0(client: Any) -> None:
    made = preview(1, prompts="{a|b|c}", seed=2**64 - 2)
    assert previewed(client, made) == ["18446744073709551614", "18446744073709551615", "0"]


def joint_graph(**changes: Any) -> dict[str, Any]:
    """A joint run without ``clip``, so that the preview of its captions is blocked, from a list of two prompts."""
    made = json.loads((ROOT / "workflows" / "api" / "joint.json").read_text(encoding="utf-8"))
    own = {"prompts": "a red star\na blue star", "file": "", "wildcards": "all combinations", "seed": 0}
    made["list"] = {"class_type": "UniViGUPromptList", "inputs": {**own, "seeds": "one for each prompt", **changes}}
    made["2"]["inputs"]["text"] = ["list", 0]
    made["4"]["inputs"].update(width=32, height=32, frames=1)
    made["5"]["inputs"].update(seed=["list", 1], steps=1)
    del made["5"]["inputs"]["clip"]
    made["10"]["inputs"]["source"] = ["5", 2]
    made["11"]["inputs"]["filename_prefix"] = ["list", 2]
    return {name: made[name] for name in made if name not in ("6", "12", "13")}


def test_a_preview_that_is_blocked_does_not_keep_the_other_prompts_from_running(server: Server, client: Any) -> None:
    events: list[Any] = []
    client.run(joint_graph(prefix="blocked/clip"), on_event=events.append)
    assert saved(server, "blocked") == ["clip_001_a-red-star_00001_.mp4", "clip_002_a-blue-star_00001_.mp4"]
    told = [event.data["exception_message"] for event in events if event.type == "execution_error"]
    assert len(told) == 2  # by ComfyUI itself, once for each
    assert all("connect CLIP of Load Uni-ViGU" in words for words in told)
    order = [event.data["display_node"] for event in events if event.type == "executing" and event.data["node"]]
    assert [name for name in order if name in ("5", "11")] == ["5", "11"] * 2


def test_only_the_chosen_outputs_run_for_the_other_prompts(server: Server) -> None:
    class Chosen(load_client().Client):
        def queue(self, graph: Any, client_id: str | None = None) -> str:
            request = {"prompt": graph, "client_id": client_id, "partial_execution_targets": ["seed"]}
            return str(self._send("/prompt", request).json()["prompt_id"])

    events: list[Any] = []
    result = Chosen(server.url).run(graph(1, prefix="chosen/clip"), on_event=events.append)
    shown = [texts for texts in result.texts.values() if not re.match(r"\d of 3", texts[0])]
    assert shown == [["5"], ["6"], ["7"]]
    assert not saved(server, "chosen")
    ran = {event.data["display_node"] for event in events if event.type == "executing" and event.data["node"]}
    assert ran == {"list", "seed"}


@pytest.mark.slow
def test_nothing_runs_twice_where_comfyui_keeps_nothing(comfyui: ComfyUI, tmp_path: Path) -> None:
    with Server(comfyui, tmp_path, (*OPTIONS, "--cache-none")) as server:
        for made, asked in ((graph(1), ["seed", "5", "9"] * 3), (joint_graph(prefix="joint/clip"), ["5", "11"] * 2)):
            ran: list[str] = []
            load_client().Client(server.url).run(made, on_event=lambda event, ran=ran: ran.extend(run_of(event)))
            assert [name for name in ran if name in asked] == asked
        assert saved(server, "listed") == NAMES


def run_of(event: Any) -> list[str]:
    """The node that an event begins."""
    return [event.data["display_node"]] if event.type == "executing" and event.data["node"] else []
