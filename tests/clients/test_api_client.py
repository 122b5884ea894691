"""The client where a real server does not bring it: broken websockets, silence, and servers that are something else.

The client against a real ComfyUI is in ``in_comfyui/test_harness.py``.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from in_comfyui_host import load_client
from raw_server import raw_server
from stand_in_server import StandInServer

api = load_client()
ID = "0b0a7e5c-0000-4000-8000-000000000001"
SUCCESS = {"status": {"status_str": "success", "messages": []}, "outputs": {"2": {"text": ["a caption"]}}}
GRAPH = {
    "1": {"class_type": "PrimitiveString", "inputs": {"value": "?"}, "_meta": {"title": "Prompt"}},
    "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}, "_meta": {"title": "v1.5 words"}},
    "3": {"class_type": "LoadVideo", "inputs": {"file": "", "extra.part": 1}},
    "4": {"class_type": "SaveVideo", "inputs": {}},
    "5": {"class_type": "SaveVideo", "inputs": {}},
}


def frame(payload: str | bytes | dict[str, Any], kind: int | None = None, final: bool = True) -> bytes:
    """A server's websocket frame: text, binary, or the JSON of a message of ComfyUI's."""
    data = payload if isinstance(payload, bytes) else payload if isinstance(payload, str) else json.dumps(payload)
    kind = kind if kind is not None else 2 if isinstance(data, bytes) else 1
    data = data if isinstance(data, bytes) else data.encode()
    size = len(data)
    length = (
        bytes([size])
        if size < 126
        else struct.pack(">BH", 126, size)
        if size < 1 << 16
        else struct.pack(">BQ", 127, size)
    )
    return bytes([0x80 * final | kind]) + length + data


def message(kind: str, prompt_id: str = ID, **data: Any) -> bytes:
    return frame({"type": kind, "data": {"prompt_id": prompt_id, **data}})


STARTED, ENDED = message("execution_start"), message("executing", node=None)


@dataclass
class Script:
    """What the stand-in does and what it was asked."""

    frames: list[bytes] = field(default_factory=list)
    websocket: str = "holds"  # or "drops" after the frames, "is missing", "is a page", "is elsewhere"
    history: dict[str, Any] | None = field(default_factory=lambda: SUCCESS)  # of the prompt; None: it never ends
    looks: int = 0  # at the history before it has the prompt
    delay: float = 0  # seconds before each of these
    knows: bool = True  # whether the prompt is in the queue until then
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # path -> status and body, in place of all that
    length: int | None = None  # Content-Length, where it is a lie
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    heard: bytes = b""  # over the websocket


class Handler(BaseHTTPRequestHandler):
    script: Script

    def do_GET(self) -> None:
        path, script = self.path.split("?")[0], self.script
        script.asked.append((self.path, b""))
        if path in script.answers:
            self.say(*script.answers[path])
        elif path == "/ws" and script.websocket == "is elsewhere":
            self.say(302, b"", Location="http://127.0.0.1:1/ws")
        elif path == "/ws" and script.websocket != "is missing":
            self.websocket()
        elif path == "/queue":
            waiting = [[0, ID]] if script.knows else []
            self.say(200, json.dumps({"queue_running": [], "queue_pending": waiting}).encode())
        elif path == f"/history/{ID}":
            found = script.history if script.looks == 0 else None
            if script.looks:
                script.looks -= 1
                time.sleep(script.delay)
            self.say(200, json.dumps({ID: found} if found else {}).encode())
        else:
            self.say(404, b"not here")

    def do_POST(self) -> None:
        self.script.asked.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        status, body = self.script.answers.get(self.path, (200, json.dumps({"prompt_id": ID}).encode()))
        self.say(status, body)

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if self.script.length is None else self.script.length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def websocket(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        proof = base64.b64encode(hashlib.sha1(key.encode()).digest())
        if self.script.websocket == "is a page":
            proof = b"none"
        greeting = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.wfile.write(greeting + b"Sec-WebSocket-Accept: " + proof + b"\r\n\r\n" + b"".join(self.script.frames))
        self.close_connection = True
        if self.script.websocket == "holds":
            while self.script.heard[-8:-6] != b"\x88\x82" and (received := self.connection.recv(1000)):  # its goodbye
                self.script.heard += received

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(api, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(api, "QUIET_SECONDS", 0.02)
    return Script()


@pytest.fixture
def client(script: Script) -> Iterator[Any]:
    with StandInServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script})) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield api.Client(f"127.0.0.1:{server.server_port}")
        server.shutdown()


# The websocket


def test_messages_come_whole_whatever_their_frames(client: Any, script: Script) -> None:
    large = "x" * 70_000
    split = json.dumps({"type": "note", "data": {"text": "größer"}}).encode()
    script.frames = [
        STARTED,
        frame(split[:30], kind=1, final=False),
        frame(b"still there?", kind=9),
        frame(split[30:35], kind=0, final=False),
        frame(split[35:], kind=0),
        message("note", text="y" * 200),
        message("note", text=large),
        frame(struct.pack(">II", 3, 3) + b"4:2" + "ein Kreis…".encode()),
        frame(struct.pack(">II", 1, 2) + b"a picture"),
        frame(struct.pack(">II", 99, 0)),
        frame("[1, 2]"),
        ENDED,
    ]
    events: list[Any] = []
    result = client.run(GRAPH, events.append)
    assert [event.data.get("text") for event in events if event.type == "note"] == ["größer", "y" * 200, large]
    assert api.Event("progress_text", {"node": "4:2", "text": "ein Kreis…"}) in events
    assert api.Event("preview", {"image": b"a picture"}) in events
    assert events[-1].type == "executing"
    assert (result.prompt_id, result.texts) == (ID, {"2": ["a caption"]})
    mask, masked = script.heard[2:6], script.heard[6:18]
    assert script.heard[:2] == bytes([0x8A, 0x80 | 12])
    assert bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked)) == b"still there?"


def test_proxies_are_ignored(client: Any, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    script.frames = [STARTED, ENDED]
    events: list[Any] = []
    assert api.Client(client.server).run(GRAPH, events.append).texts == {"2": ["a caption"]}
    assert [event.type for event in events] == ["execution_start", "executing"]


def test_it_hears_of_its_own_run_only(client: Any, script: Script) -> None:
    live = frame(struct.pack(">II", 3, 1) + b"1not mine")
    other = message("executing", prompt_id="another", node=None)
    script.frames = [live, message("executing", prompt_id="another", node="7"), other, STARTED, ENDED]
    events: list[Any] = []
    client.run(GRAPH, events.append)
    assert [event.type for event in events] == ["execution_start", "executing"]
    (name,) = (path.partition("clientId=")[2] for path, _ in script.asked if path.startswith("/ws"))
    (body,) = (body for path, body in script.asked if path == "/prompt")
    assert json.loads(body) == {"prompt": GRAPH, "client_id": name}


@pytest.mark.parametrize(
    "half",
    [
        message("progress", node="1", value=1, max=2)[:9],
        b"\x81\x85",
        b"\xff\xff",
        frame(b"\xff", kind=1),
        frame("no JSON"),
        frame('{"type": "progress", "data": [1]}'),
        b"",
    ],
)
def test_a_dropped_websocket_is_replaced_by_asking(client: Any, script: Script, half: bytes) -> None:
    script.frames, script.websocket, script.looks = [STARTED, half], "drops", 3
    events: list[Any] = []
    assert client.run(GRAPH, events.append).texts == {"2": ["a caption"]}
    assert [event.type for event in events] == ["execution_start"]
    assert script.looks == 0


def test_a_websocket_that_speaks_nonsense_is_replaced_by_asking(client: Any, script: Script) -> None:
    script.frames, script.looks = [STARTED, b"\xff\xff\xff\xff"], 3
    events: list[Any] = []
    assert client.run(GRAPH, events.append).texts == {"2": ["a caption"]}
    assert [event.type for event in events] == ["execution_start"]


@pytest.mark.parametrize("websocket", ["is missing", "is a page", "is elsewhere", "drops"])
def test_without_a_websocket_the_history_tells(client: Any, script: Script, websocket: str) -> None:
    script.websocket, script.looks = websocket, 2
    assert client.run(GRAPH).texts == {"2": ["a caption"]}


def test_a_silent_websocket_does_not_hold_it_up(client: Any, script: Script) -> None:
    script.looks = 2
    assert client.run(GRAPH).texts == {"2": ["a caption"]}


# Runs that do not end well


def test_a_run_that_does_not_end_is_cancelled(client: Any, script: Script) -> None:
    script.history = None
    with pytest.raises(api.ClientError, match=r"not finished after 0\.1 s and cancelled"):
        client.run(GRAPH, timeout=0.1)
    assert script.asked[-2:] == [
        ("/queue", json.dumps({"delete": [ID]}).encode()),
        ("/interrupt", json.dumps({"prompt_id": ID}).encode()),
    ]


def test_a_flood_of_events_does_not_outlast_the_timeout(client: Any, script: Script) -> None:
    script.frames, script.history = [message("progress", node="1", value=1, max=2)] * 20_000, None
    with pytest.raises(api.ClientError, match="not finished"):
        client.run(GRAPH, lambda event: time.sleep(0.01), timeout=0.1)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_given_up_is_cancelled(client: Any, script: Script, raised: type[BaseException]) -> None:
    def give_up(_: Any) -> None:
        raise raised

    script.frames, script.history = [STARTED], None
    with pytest.raises(raised):
        client.run(GRAPH, give_up)
    assert script.asked[-1][0] == "/interrupt"


def test_a_prompt_that_the_server_forgot(client: Any, script: Script) -> None:
    script.history, script.knows = None, False
    with pytest.raises(api.ClientError, match=f"no longer knows prompt {ID}.*queue the workflow again"):
        client.run(GRAPH)


def test_a_prompt_that_is_missed_once_is_not_given_up(client: Any, script: Script) -> None:
    script.knows, script.looks = False, 1
    assert client.run(GRAPH).texts == {"2": ["a caption"]}


def test_a_busy_server_is_waited_for_and_a_dead_one_is_not(
    client: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "HTTP_SECONDS", 0.3)
    script.websocket, script.looks, script.delay = "is missing", 2, 0.6
    assert client.run(GRAPH).texts == {"2": ["a caption"]}
    monkeypatch.setattr(api, "PATIENCE", 2)
    script.looks = 9
    with pytest.raises(api.ClientError, match=r"does not answer.*timed out"):
        client.run(GRAPH)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {
                "messages": [
                    ["execution_error", {"node_id": "2", "exception_type": "a.b.Oops", "exception_message": "no\n"}]
                ]
            },
            'node 2 "v1.5 words" (PreviewAny) failed with Oops: no',
        ),
        ({"messages": [["execution_interrupted", {"node_id": "9", "node_type": "X"}]]}, "interrupted at node 9 (X);"),
        ({"status_str": "error"}, "does not say why"),
    ],
)
def test_failures_are_read_from_the_history(client: Any, script: Script, status: dict[str, Any], words: str) -> None:
    script.history = {"status": status, "outputs": {}}
    with pytest.raises(api.ClientError) as caught:
        client.run(GRAPH)
    assert words in str(caught.value)


# Servers that are none, or none of ComfyUI's


def test_nobody_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(api.ClientError, match=r"http://127\.0\.0\.1:1 does not answer \(.*refused\); start ComfyUI"):
        api.Client("http://127.0.0.1:1").run(GRAPH)
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    assert api.main([str(tmp_path / "graph.json"), "--server", "http://127.0.0.1:1/"]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: http://127.0.0.1:1 does not answer")


@pytest.mark.parametrize(
    "address", ["", "http://", "ftp://host", "host:port", "host:0", "http://me@host", f"{'x' * 70}"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(api.ClientError, match="is no server address; expected one like http://127"):
        api.Client(address)


@pytest.mark.parametrize(
    ("path", "status", "body", "words"),
    [
        ("/prompt", 200, b"<html>Welcome</html>", "is this a ComfyUI server"),
        ("/prompt", 200, b"{}", "expected JSON with prompt_id"),
        ("/prompt", 500, b"Internal Server Error", "refused the workflow with status 500: Internal Server Error"),
        ("/prompt", 400, b'{"error": "odd"}', "refused the workflow with status 400"),
        ("/prompt", 302, b"", "refused the workflow with status 302"),
        ("/queue", 200, b"[]", "expected JSON with queue_running and queue_pending"),
        (f"/history/{ID}", 503, b"", "answered 503"),
    ],
)
def test_answers_that_are_none(client: Any, script: Script, path: str, status: int, body: bytes, words: str) -> None:
    script.answers[path] = status, body
    script.history = None
    with pytest.raises(api.ClientError) as caught:
        client.run(GRAPH)
    assert words in str(caught.value)


# What a server can send


def test_an_answer_without_end_is_cut_off(client: Any, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MOST_BYTES", 2**20)
    script.answers["/object_info"] = 200, b" " * (2**20 + 1)
    with pytest.raises(api.ClientError, match=r"/object_info: the answer takes more than 1 MB or 60 s"):
        client.node_info()
    script.answers["/object_info"] = 200, b"{}" + b" " * (2**20 - 2)
    assert client.node_info() == {}


def test_an_answer_that_drips_is_given_up(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" ")
            time.sleep(0.02)

    monkeypatch.setattr(api, "HTTP_SECONDS", 0.3)
    with (
        raw_server(drip) as server,
        pytest.raises(api.ClientError, match=r"the answer takes more than 32 MB or 0\.3 s"),
    ):
        api.Client(server.url).node_info()


def test_nothing_compressed_is_asked_for_or_unpacked(client: Any) -> None:
    packed = gzip.compress(b" " * 2**26)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    with raw_server(lambda connection: connection.sendall(head + packed)) as server:
        with pytest.raises(api.ClientError, match="is this a ComfyUI server"):
            api.Client(server.url).node_info()
        assert b"accept-encoding: identity" in server.heard[0].lower()


@pytest.mark.parametrize("levels", [900, 100_000])
@pytest.mark.parametrize("path", ["/prompt", "/queue", f"/history/{ID}"])
def test_deep_answers_are_worded(client: Any, script: Script, path: str, levels: int) -> None:
    script.answers[path] = 200, b"[" * levels + b"]" * levels
    script.history = None
    with pytest.raises(api.ClientError, match="is this a ComfyUI server") as caught:
        client.run(GRAPH)
    assert len(str(caught.value)) < 1000
    script.answers["/prompt"] = 400, b"[" * levels
    with pytest.raises(api.ClientError, match="refused the workflow with status 400"):
        client.run(GRAPH)


def test_a_message_beyond_the_bound_ends_the_websocket(
    client: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.WEBSOCKET["max_size"] == api.MOST_BYTES
    monkeypatch.setitem(api.WEBSOCKET, "max_size", 70_000)
    for large in ("x" * 71_000, "[" * 60_000):
        script.frames, script.looks = [STARTED, frame(large), message("note"), ENDED], 3
        events: list[Any] = []
        assert client.run(GRAPH, events.append).texts == {"2": ["a caption"]}
        assert [event.type for event in events] == ["execution_start"]
        script.heard = b""


@pytest.mark.parametrize(
    "history",
    [
        {"status": "odd"},
        {"status": {"messages": [1]}},
        {"status": {"messages": [["execution_error", 1]]}},
        {"outputs": [1]},
        {"outputs": {"2": "text"}},
        [1],
        7,
    ],
)
def test_a_history_of_another_form_is_worded(client: Any, script: Script, history: Any) -> None:
    script.history = history
    with pytest.raises(api.ClientError, match="is not as ComfyUI writes it"):
        client.run(GRAPH)


def test_a_queue_of_another_form_is_worded(client: Any, script: Script) -> None:
    script.answers["/queue"] = 200, b'{"queue_running": [1], "queue_pending": 2}'
    script.history = None
    with pytest.raises(api.ClientError, match="queue is not as ComfyUI writes it"):
        client.run(GRAPH)


HOSTILE = "a\x1b]0;title\x07 \u202egnp.exe\u2028b\udcff"
SAFE = r"a\x1b]0;title\x07 \u202egnp.exe\u2028b\udcff"


def test_what_is_printed_is_printable(
    client: Any, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    command = [str(tmp_path / "graph.json"), "--server", client.server, "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    script.answers["/view"] = 200, b"pixels"
    files = [{"filename": f"{HOSTILE[:-1]}.mp4"}, {"filename": 5}, {"filename": "..", "subfolder": []}]
    script.history = {"outputs": {"2": {"text": [f"{HOSTILE}\nand more"], "files": files}}}
    blocked = message("execution_error", exception_type="ExecutionBlocked", exception_message=HOSTILE, node_id=HOSTILE)
    odd = [message("progress_state", nodes=[1]), message("progress", node="1", value="x", max="y")]
    live = frame(struct.pack(">II", 3, 1) + b"1" + HOSTILE.encode(errors="surrogatepass"))
    script.frames = [STARTED, *odd, live, blocked, ENDED]
    assert api.main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{SAFE}\nand more\n"
    shown = printed.err.replace("\r", "").replace("\x1b[K", "")
    assert f"saved {tmp_path / 'out'}/{SAFE[:-6]}.mp4\n" in shown
    assert SAFE in shown
    assert api.printable(shown) == shown
    script.history = {"status": {"messages": [["execution_error", {"exception_message": HOSTILE * 10_000}]]}}
    assert api.main(command) == 1
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert SAFE in error
    assert api.printable(error) == error
    assert len(error) < 70_000


@pytest.mark.parametrize(
    "address", ["ftp://me:hunter2@host", "me:hunter2@host", "http://me:hunter2@host:x?key=hunter2"]
)
def test_secrets_of_an_address_are_not_shown(address: str) -> None:
    with pytest.raises(api.ClientError, match="is no server address") as caught:
        api.Client(address)
    assert "hunter2" not in str(caught.value)


# Files


def record(filename: str) -> Any:
    return api.FileRecord("4", filename, "a folder", "output")


def test_files_never_leave_the_folder_and_never_overwrite(client: Any, script: Script, tmp_path: Path) -> None:
    script.answers["/view"] = 200, b"pixels"
    folder = tmp_path / "new" / "folder"
    names = [client.download(record(name), folder).name for name in ("../../a.mp4", "..\\a.mp4", "/etc/a.mp4")]
    assert names == ["a.mp4", "a (2).mp4", "a (3).mp4"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(names)
    assert "/view?filename=..%2F..%2Fa.mp4&subfolder=a+folder&type=output" in [path for path, _ in script.asked]


def test_a_file_that_breaks_off_is_not_kept(client: Any, script: Script, tmp_path: Path) -> None:
    script.answers["/view"], script.length = (200, b"half"), 8
    with pytest.raises(api.ClientError, match=r"a\.mp4"):
        client.download(record("a.mp4"), tmp_path)
    script.length = None
    script.answers["/view"] = 404, b""
    with pytest.raises(api.ClientError, match="answered 404"):
        client.download(record("a.mp4"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(
    client: Any, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.answers["/view"] = 200, b"pixels"
    (tmp_path / "file").write_text("")
    with pytest.raises(api.ClientError, match="could not be brought from"):
        client.download(record("a.mp4"), tmp_path / "file")
    assert api.main(["graph.json", "-o", str(tmp_path / "file")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_uploads(client: Any, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / 'my "clip".mp4'
    clip.write_bytes(b"\x00frames\r\n")
    script.answers["/upload/image"] = 200, b'{"name": "clip (1).mp4", "subfolder": "some", "type": "input"}'
    assert client.upload(clip) == "some/clip (1).mp4"
    body = script.asked[-1][1]
    assert b'name="image"; filename="my %22clip%22.mp4"\r\n' in body
    assert b"\r\n\r\n\x00frames\r\n\r\n--" in body
    assert api.main(["--server", client.server, "--upload", str(clip), "--upload", str(clip)]) == 0
    assert capsys.readouterr().out == "some/clip (1).mp4\n" * 2
    script.answers["/upload/image"] = 413, b""
    with pytest.raises(api.ClientError, match="--max-upload-size"):
        client.upload(clip)
    with pytest.raises(api.ClientError, match=r"nothing\.mp4: could not be read"):
        client.upload(tmp_path / "nothing.mp4")


# Workflows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"nodes": [], "links": []}', "form of the canvas; export it"),
        ("[1]", "is no workflow"),
        ('{"1": {"inputs": {}}}', "is no workflow"),
        ("not JSON", "is not JSON"),
        (None, "could not be read"),
    ],
)
def test_files_that_are_no_workflow(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "graph.json").write_text(text)
    with pytest.raises(api.ClientError, match=words):
        api.read_workflow(tmp_path / "graph.json")


@pytest.mark.parametrize(
    ("assignment", "node", "name", "value"),
    [
        ("1.value=a red circle", "1", "value", "a red circle"),
        ("Prompt.value=7", "1", "value", 7),
        ("PrimitiveString.value=a=b.c", "1", "value", "a=b.c"),
        ('1.value="7"', "1", "value", "7"),
        ('1.value="@home"', "1", "value", "@home"),
        ("1.value=", "1", "value", ""),
        ("1.value=true", "1", "value", True),
        ("v1.5 words.source=x", "2", "source", "x"),
        ("3.extra.part=2", "3", "extra.part", 2),
    ],
)
def test_an_input_is_set(client: Any, assignment: str, node: str, name: str, value: object) -> None:
    graph = json.loads(json.dumps(GRAPH))
    api.set_input(graph, assignment, client)
    assert graph[node]["inputs"][name] == value
    graph[node]["inputs"][name] = GRAPH[node]["inputs"][name]
    assert graph == GRAPH


def test_an_input_that_the_workflow_leaves_out_is_asked_for(client: Any, script: Script) -> None:
    inputs = {"required": {"video": ["VIDEO"]}, "optional": {"codec": [["auto"]]}}
    script.answers["/object_info/SaveVideo"] = 200, json.dumps({"SaveVideo": {"input": inputs}}).encode()
    graph = json.loads(json.dumps(GRAPH))
    api.set_input(graph, "4.codec.encoding=auto", client)
    assert graph["4"]["inputs"] == {"codec.encoding": "auto"}
    with pytest.raises(api.ClientError, match=r"node 4 \(SaveVideo\) has no such input; it has: .*video, codec"):
        api.set_input(graph, "4.vidoe=1", client)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("6.value=1", 'node 1 "Prompt" (PrimitiveString)'),
        ("value=1", "expected NODE.INPUT=VALUE"),
        ("1.value", "expected NODE.INPUT=VALUE"),
        ("1.=3", "expected NODE.INPUT=VALUE"),
        ("SaveVideo.x=1", "'SaveVideo' are 2 nodes; name one by its id: 4, 5"),
        ("1.value=@nowhere.mp4", "nowhere.mp4: could not be read"),
    ],
)
def test_settings_that_fit_nothing(client: Any, assignment: str, words: str) -> None:
    with pytest.raises(api.ClientError) as caught:
        api.set_input(json.loads(json.dumps(GRAPH)), assignment, client)
    assert words in str(caught.value)


# The command line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


EVENTS = [
    api.Event("executing", {"node": "1"}),
    api.Event("progress_state", {"nodes": {"1": {"state": "running", "value": 3.0, "max": 20.0}}}),
    api.Event("progress_text", {"node": "1", "text": "a red\ncircle"}),
    api.Event("progress", {"node": "1", "value": 4, "max": 20}),
    api.Event("executing", {"node": "2"}),
    api.Event(
        "execution_error", {"node_id": "2", "exception_type": "ExecutionBlocked", "exception_message": "Blocked"}
    ),
    api.Event("executing", {"node": None}),
]


def test_progress_is_one_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    progress = api.ProgressLine(GRAPH)
    for event in EVENTS:
        progress(event)
    progress.close()
    lines = [line.removesuffix("\x1b[K") for line in shown.getvalue().split("\r")]
    assert 'node 1 "Prompt" (PrimitiveString)  3/20  a red circle' in lines
    assert 'node 1 "Prompt" (PrimitiveString)  4/20  a red circle' in lines
    assert 'node 2 "v1.5 words" (PreviewAny)' in lines
    assert shown.getvalue().count("\n") == 1
    assert shown.getvalue().endswith("\r\x1b[K")


def test_progress_is_a_line_for_each_node_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    progress = api.ProgressLine(GRAPH)
    for event in EVENTS:
        progress(event)
    progress.close()
    node = 'node 2 "v1.5 words" (PreviewAny)'
    assert shown.getvalue() == f'node 1 "Prompt" (PrimitiveString)\n{node}\n{node}: Blocked\n'


def test_a_missing_package_is_named() -> None:
    command = [sys.executable, "-I", "-S", api.__file__, "graph.json"]  # without the installed packages
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"error: httpx is not installed; run: pip install .*httpx.*websockets.*\n", ended.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to do"),
        (["a.json", "--no-such-option"], "unrecognized arguments"),
        (["a.json", "--timeout", "nan"], "'nan' is no number of seconds above 0"),
        (["a.json", "--server", "host:port"], "is no server address"),
    ],
)
def test_wrong_commands(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert api.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert words in printed.err


INFO = {
    "PrimitiveString": {"input": {"required": {"value": ["STRING", {}]}}},
    "PreviewAny": {"input": {"required": {"source": ["*", {}]}, "optional": {"note": ["STRING", {}]}}},
    "LoadVideo": {"input": {"required": {"file": ["COMBO", {"options": [f"{n}.mp4" for n in range(14)]}]}}},
    "SaveVideo": {"input": {"required": {"video": ["VIDEO"], "fps": ["INT", {"min": 1, "max": 60}]}}},
}


def test_what_can_be_set_is_listed_as_it_is_set(client: Any, script: Script) -> None:
    script.answers["/object_info"] = 200, json.dumps(INFO).encode()
    lines = list(api.settable(GRAPH, client))
    some = ", ".join(f"{n}.mp4" for n in range(12))
    assert lines == [
        'Prompt.value="?"   # text',
        "PreviewAny.note=   # text",  # its title holds a dot; "source" is a link
        f'LoadVideo.file=""   # one of: {some} and 2 more',
        "LoadVideo.extra.part=1",
        "4.fps=   # a whole number from 1 to 60",
        "5.fps=   # a whole number from 1 to 60",
    ]
    graph = json.loads(json.dumps(GRAPH))
    for name in INFO:
        script.answers[f"/object_info/{name}"] = 200, json.dumps(INFO).encode()
    for line in lines:
        name, _, value = line.partition("   #")[0].partition("=")
        api.set_input(graph, f"{name}={value or 24}", client)
    assert graph["4"]["inputs"] == {"fps": 24}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--set", "1.no=1"], 2), (["--timeout", "0.05"], 4), (["--server", "http://127.0.0.1:1"], 3), ([], 1)],
)
def test_exit_codes(client: Any, script: Script, tmp_path: Path, arguments: list[str], code: int) -> None:
    workflow = tmp_path / "graph.json"
    workflow.write_text(json.dumps(GRAPH), encoding="utf-8")
    script.answers["/object_info/PrimitiveString"] = 200, json.dumps(INFO).encode()
    script.history = None if code == 4 else {"status": {"status_str": "error", "messages": []}}
    assert api.main([str(workflow), "--server", client.server, "-o", str(tmp_path / "out"), *arguments]) == code


def test_the_timeout_covers_transfers_too(client: Any, script: Script, tmp_path: Path) -> None:
    hasty = api.Client(client.server, timeout=0.2)
    record = api.FileRecord("1", "clip.mp4", "", "output")
    time.sleep(0.2)
    for call in (lambda: hasty.download(record, tmp_path), lambda: hasty.upload(__file__), hasty.node_info):
        with pytest.raises(api.ClientError, match=r"not finished after 0\.2 s") as late:
            call()
        assert late.value.code == 4
    assert not list(tmp_path.glob("*.mp4"))
