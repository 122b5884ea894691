"""Prompt List in a running ComfyUI: several prompts in one run, each clip saved before the next one begins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from in_comfyui_host import ROOT, Server

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


def test_a_list_comes_from_a_file_of_the_input_folder_and_from_nowhere_else(
    server: Server, client: Any, tmp_path: Path
) -> None:
    (server.base / "input" / "list of prompts.txt").write_text("# mine\none {a|b|c}\n", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("hidden words", encoding="utf-8")
    only = {"list": graph(1)["list"], "prompt": {"class_type": "PreviewAny", "inputs": {"source": ["list", 0]}}}

    def texts(**inputs: Any) -> list[str]:
        only["list"]["inputs"].update(inputs)
        try:
            shown = [text for texts in client.run(only).texts.values() for text in texts]
        except Exception as error:
            return [str(error).partition("UniViGUError: ")[2]]
        runs = [text for text in shown if re.match(r"\d+ of \d+: ", text)]  # what the list says of itself
        assert len(runs) == len(shown) // 2
        return [text for text in shown if text not in runs]

    assert texts(prompts="", file="list of prompts.txt") == ["one a", "one b", "one c"]
    assert texts(prompts="first", limit=4) == ["first", "one a", "one b", "one c"]
    assert "stands for 4 prompts, and the limit is 3" in texts(limit=3)[0]
    [drawn] = texts(prompts="", wildcards="one drawn by seed")
    assert drawn in ("one a", "one b", "one c")
    refused = [texts(file=name) for name in (str(tmp_path / "secret.txt"), "../secret.txt", "nothing.txt")]
    assert refused[0][0].startswith("the file in the widget file cannot be read")
    assert refused == [refused[0]] * 3
    assert "there is no prompt" in texts(file="", prompts="# none")[0]
