"""The harness itself: the client drives a real server through its own nodes (test_inside.py has the process inside)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from in_comfyui_host import PACK, NoComfyUI, Server, find_comfyui, load_client, make_base, slow_graph
from PIL import Image

from uvg_core.media.video import write_video

api = load_client()
RED = 0xC02010
AS_IT_IS = {"format": "auto", "format.codec": "auto", "codec": "auto"}  # of Save Video, before 0.33 and since


def text_graph(text: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "PrimitiveString", "inputs": {"value": text}, "_meta": {"title": "Prompt"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def clip(path: Path, frames: int = 6) -> Path:
    pixels = torch.full((frames, 32, 48, 3), 128, dtype=torch.uint8)
    write_video(path, pixels, 12)
    return path


def wait_for_idle(server: Server) -> None:
    """Until nothing waits or runs; cancelling takes effect between two nodes."""
    client, deadline = api.Client(server.url), time.monotonic() + 30
    while any(api._read(client._send("/queue")).values()):
        assert time.monotonic() < deadline, server.last_words()
        time.sleep(0.1)


# The client


def test_texts_come_with_their_node(client: Any) -> None:
    result = client.run(text_graph("ein größerer Kreis 圆"))
    assert result.texts == {"2": ["ein größerer Kreis 圆"]}
    assert result.files == []


def test_a_picture_comes_whole(client: Any, tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 40, "height": 24, "batch_size": 2, "color": RED}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "some/picture"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    result = client.run(graph)
    assert [(file.node, file.type) for file in result.files].count(("2", "output")) == 2
    assert [(file.node, file.type) for file in result.files].count(("3", "temp")) == 2
    for file in result.files:
        with Image.open(client.download(file, tmp_path)) as picture:
            assert (picture.size, picture.getpixel((5, 5))) == ((40, 24), (0xC0, 0x20, 0x10))
    assert len(list(tmp_path.iterdir())) == 4


def test_live_events_reach_the_caller(client: Any) -> None:
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 40, "height": 24, "batch_size": 1, "color": 77}},
        "2": {"class_type": "GetImageSize", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    events: list[Any] = []
    assert client.run(graph, events.append).texts == {"3": ["40"]}
    assert [event.data["node"] for event in events if event.type == "executing" and event.data["node"]] == list("123")
    (words,) = (event.data for event in events if event.type == "progress_text")
    assert words["node"] == "2"
    assert "40" in words["text"]
    states = [state for event in events if event.type == "progress_state" for state in event.data["nodes"].values()]
    assert {"running", "finished"} <= {state["state"] for state in states}
    assert "execution_success" in [event.type for event in events]


def test_an_uploaded_clip_is_loaded_and_saved(client: Any, tmp_path: Path) -> None:
    name = client.upload(clip(tmp_path / "a clip.mp4"))
    assert name == "a clip.mp4"
    assert client.upload(tmp_path / "a clip.mp4") == name
    (tmp_path / "other").mkdir()
    assert client.upload(clip(tmp_path / "other" / "a clip.mp4", frames=3)) != name
    graph = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": name}},
        "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
        "4": {"class_type": "SaveVideo", "inputs": {"video": ["1", 0], "filename_prefix": "a/back", **AS_IT_IS}},
    }
    result = client.run(graph)
    assert result.texts == {"3": ["12.0"]}
    (saved,) = result.files
    assert saved.subfolder == "a"
    with av.open(str(client.download(saved, tmp_path / "back"))) as file:
        assert sum(1 for _ in file.decode(video=0)) == 6


def test_a_second_run_from_the_cache_gives_the_same(client: Any) -> None:
    graph = text_graph("from the cache")
    assert client.run(graph).texts == client.run(graph).texts == {"2": ["from the cache"]}


WRONG: list[tuple[str, Callable[[dict[str, Any]], Any], list[str]]] = [
    ("a value", lambda g: g["1"]["inputs"].update(width="wide"), ['node 1 "Canvas" (EmptyImage)', '"width"', "wide"]),
    ("a missing input", lambda g: g["2"]["inputs"].clear(), ["node 2 (PreviewImage)", '"images"', "missing"]),
    ("a class", lambda g: g["2"].update(class_type="NoSuchNode"), ["NoSuchNode", "#2", "not be installed"]),
    ("no output", lambda g: g.pop("2"), ["no outputs"]),
]


@pytest.mark.parametrize(("spoil", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_workflow_is_refused_in_words(client: Any, spoil: Callable[..., Any], words: list[str]) -> None:
    inputs = {"width": 40, "height": 24, "batch_size": 1, "color": 0}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": inputs, "_meta": {"title": "Canvas"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    spoil(graph)
    with pytest.raises(api.ClientError) as caught:
        client.run(graph)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_a_half_wrong_workflow_is_taken_back(client: Any, server: Server) -> None:
    graph = {**slow_graph(1), "x": {"class_type": "PreviewImage", "inputs": {}}}
    with pytest.raises(api.ClientError, match=r"node x \(PreviewImage\), input \"images\""):
        client.run(graph)
    wait_for_idle(server)


def test_a_failing_node_is_named(client: Any, tmp_path: Path) -> None:
    (tmp_path / "no_clip.mp4").write_bytes(b"this is no video")
    graph = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": client.upload(tmp_path / "no_clip.mp4")}},
        "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}, "_meta": {"title": "Frames"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    with pytest.raises(api.ClientError, match=r'node 2 "Frames" \(GetVideoComponents\) failed with \w+: .*Invalid'):
        client.run(graph)


def test_an_interrupted_run_raises(client: Any, server: Server) -> None:
    def interrupt(event: Any) -> None:
        if event.type == "executing" and event.data["node"] == "1":
            client.interrupt()

    with pytest.raises(api.ClientError, match=r"interrupted at node \d+ \(ImageBlur\)"):
        client.run(slow_graph(2), interrupt)
    wait_for_idle(server)


def test_a_run_that_takes_too_long_is_cancelled(client: Any, server: Server) -> None:
    with pytest.raises(api.ClientError, match=r"not finished after 0\.5 s and cancelled"):
        client.run(slow_graph(3), timeout=0.5)
    wait_for_idle(server)


def test_a_waiting_run_is_cancelled_and_the_running_one_is_not(client: Any, server: Server) -> None:
    first = client.queue(slow_graph(4))
    second = client.queue(text_graph("never shown"))
    client.interrupt(second)
    queued = [item[1] for items in api._read(client._send("/queue")).values() for item in items]
    assert first in queued
    assert second not in queued
    client.interrupt(first)
    wait_for_idle(server)


def test_node_info(client: Any) -> None:
    assert "LoadVideo" in client.node_info()
    assert "file" in client.node_info("LoadVideo")["LoadVideo"]["input"]["required"]
    assert client.node_info("No Such/Node") == {}


def test_the_command_line(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = {
        **text_graph("to be replaced"),
        "3": {"class_type": "LoadVideo", "inputs": {"file": ""}, "_meta": {"title": "The clip."}},
        "4": {"class_type": "SaveVideo", "inputs": {"video": ["3", 0], "filename_prefix": "x", **AS_IT_IS}},
    }
    (tmp_path / "graph.json").write_text(json.dumps(graph), encoding="utf-8")
    clip(tmp_path / "mine.mp4")
    command = [str(tmp_path / "graph.json"), "--server", server.url, "--out", str(tmp_path / "out")]
    setting = ["--set", "Prompt.value=a red circle", "--set", f"The clip..file=@{tmp_path / 'mine.mp4'}"]
    assert api.main([*command, *setting, "--set", "4.codec=h264"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "a red circle\n"
    (saved,) = (tmp_path / "out").iterdir()
    assert f"saved {saved}" in printed.err
    assert 'node 3 "The clip." (LoadVideo)' in printed.err

    assert api.main([*command, "--set", "SaveVideo.fromat=mp4"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: --set SaveVideo.fromat=mp4: node 4 (SaveVideo) has no such input; it has: ")
    assert "filename_prefix" in printed.err


# The server


def test_the_server_has_nothing_but_this_pack(server: Server) -> None:
    assert f"custom_nodes/{PACK}" in server.log_text().replace("\\", "/")
    assert "websocket_image_save" not in server.log_text()
    assert {path.name for path in (server.base / "custom_nodes").iterdir()} == {PACK}


def test_a_server_that_does_not_start_says_why(tmp_path: Path, server: Server) -> None:
    broken = Server(server.comfyui, tmp_path / "base", ("--no-such-option",))
    with pytest.raises(RuntimeError, match=r"(?s)ended at its start.*unrecognized arguments: --no-such-option"):
        broken.__enter__()


def test_a_wrong_path_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(NoComfyUI, match=f"COMFYUI_PATH={tmp_path} is no ComfyUI"):
        find_comfyui()


def test_the_pack_is_copied_where_links_are_not_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    pack = make_base(tmp_path) / "custom_nodes" / PACK
    assert (pack / "__init__.py").is_file()
    assert (pack / "models" / "uvg_tiny.safetensors").is_file()
    assert not (pack / "tests").exists()
