"""What a server of ComfyUI answers and sends to ``clients/api_client.py``."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import httpx
from in_comfyui_host import load_client

from mutants import NUMBERS, TEXTS, Parser, wrong, wrong_json
from uvg_core.errors import UniViGUError

api = load_client()
api.POLL_SECONDS = 0.001
ID = "0b0a7e5c-0000-4000-8000-000000000001"
GRAPH = {"1": {"class_type": "PreviewAny", "inputs": {"source": ""}, "_meta": {"title": "Words"}}}
HONEST: dict[str, Any] = {
    "prompt": {"prompt_id": ID, "number": 1, "node_errors": {}},
    "refusal": {
        "error": {"type": "invalid_prompt", "message": "Cannot run", "details": "", "extra_info": {}},
        "node_errors": {"1": {"class_type": "PreviewAny", "errors": [{"message": "Bad", "details": "source"}]}},
    },
    "queue": {"queue_running": [[0, ID, {}, {}, []]], "queue_pending": []},
    "history": {
        ID: {
            "status": {"status_str": "success", "messages": [["execution_start", {"prompt_id": ID}]]},
            "outputs": {
                "1": {"text": ["a caption"], "images": [{"filename": "a.mp4", "subfolder": "b", "type": "output"}]}
            },
        }
    },
    "object_info": {"PreviewAny": {"input": {"required": {"source": ["STRING", {}]}, "optional": {"mode": ["INT"]}}}},
    "upload": {"name": "a.mp4", "subfolder": "b", "type": "input"},
}
EVENTS = [
    {"type": "execution_start", "data": {"prompt_id": ID}},
    {"type": "progress_state", "data": {"prompt_id": ID, "nodes": {"1": {"state": "running", "value": 1, "max": 4}}}},
    {"type": "progress", "data": {"prompt_id": ID, "node": "1", "value": 2, "max": 4}},
    {"type": "execution_error", "data": {"node_id": "1", "exception_type": "ExecutionBlocked"}},
    {"type": "executing", "data": {"prompt_id": ID, "node": None}},
]


class Recorded:
    """A websocket that gives messages from a file, each behind its kind and length, and drops then."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def recv(self, timeout: float) -> str | bytes:
        if len(self.data) < 5:
            raise OSError("dropped")
        kind, length = struct.unpack("<BI", self.data[:5])
        found, self.data = self.data[5 : 5 + length], self.data[5 + length :]
        return found if kind else found.decode("utf-8", "replace")


def _packed(messages: list[str | bytes]) -> bytes:
    texts = [(isinstance(one, bytes), one if isinstance(one, bytes) else one.encode()) for one in messages]
    return b"".join(struct.pack("<BI", kind, len(data)) + data for kind, data in texts)


def _binary(kind: int, size: int, data: bytes) -> bytes:
    return struct.pack(">II", kind % 2**32, size % 2**32) + data


def _make_events(folder: Path) -> Path:
    live = [_binary(3, 1, b"1ein Kreis"), _binary(1, 2, b"a picture")]
    (folder / "events").write_bytes(_packed([json.dumps(EVENTS[0]), *live, *map(json.dumps, EVENTS[1:])]))
    return folder / "events"


def _wrong_events(data: bytes, random: Random) -> bytes:
    messages: list[str | bytes] = [json.dumps(wrong(one, random) if random.randrange(3) else one) for one in EVENTS]
    text = random.choice(TEXTS).encode("utf-8", "surrogatepass")
    messages.insert(1, _binary(random.choice(NUMBERS), random.choice(NUMBERS), text))
    messages.insert(
        2, _binary(random.choice([1, 3]), random.choice(NUMBERS), random.choice([b"", b"1", b"\xff"]) + text)
    )
    return _packed(messages)


def _worded(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """The client has an exception of its own."""

    def reading(path: Path) -> object:
        try:
            return read(path)
        except api.ClientError as error:
            text = str(error)
        if text != api.printable(text):
            raise AssertionError(text)
        raise UniViGUError(text[:3000])

    return reading


def _read_events(path: Path) -> object:
    shown = api.ProgressLine(GRAPH)
    shown._live = True
    return list(islice(api._checks(Recorded(path.read_bytes()), ID, shown, 5), 3))


@cache
def _answering(path: Path, route: str) -> Any:
    """A client whose server is honest but for one route."""
    client = api.Client("http://127.0.0.1:1")

    def answer(request: httpx.Request) -> httpx.Response:
        asked = request.url.path.split("/")[1]
        status = 400 if route == "refusal" and asked == "prompt" else 200
        is_asked = asked == ("prompt" if route == "refusal" else route)
        content = path.read_bytes() if is_asked else json.dumps(HONEST.get(asked, {})).encode()
        return httpx.Response(status, stream=httpx.ByteStream(content))

    client._http = httpx.Client(transport=httpx.MockTransport(answer))
    return client


def _read_run(path: Path) -> object:
    """A workflow is queued and followed to its end, what it made is printed and fetched."""
    client = _answering(path, path.name)
    if path.name == "upload":
        return client.upload(path)
    if path.name == "object_info":
        return api.set_input({"1": {"class_type": "PreviewAny"}}, "1.mode=5", client)
    result = client.run(GRAPH, api.ProgressLine(GRAPH), 0.5)
    for text in (text for texts in result.texts.values() for text in texts):
        api._note(text)
    return [client.download(file, path.parent / "out") for file in result.files[:20]]


def _answer_of(route: str) -> Parser:
    def make(folder: Path) -> Path:
        (folder / route).write_text(json.dumps(HONEST[route]))
        return folder / route

    def read(path: Path) -> object:
        if route != "refusal" or path.read_bytes() != json.dumps(HONEST[route]).encode():
            return _worded(_read_run)(path)
        try:
            return _worded(_read_run)(path)
        except UniViGUError as error:  # the honest one
            return str(error)

    return Parser(make, read, wrong_json, ("socket.connect",))


def _make_workflow(folder: Path) -> Path:
    (folder / "graph.json").write_text(json.dumps(GRAPH))
    return folder / "graph.json"


def _read_workflow(path: Path) -> object:
    graph = api.read_workflow(path)
    return api.set_input(graph, "Words.source=[1]", _answering(path, "none"))


PARSERS = {f"client: {route}": _answer_of(route) for route in HONEST} | {
    "client: events": Parser(_make_events, _worded(_read_events), _wrong_events),
    "client: workflow": Parser(_make_workflow, _worded(_read_workflow), wrong_json),
}
