"""Run a ComfyUI workflow from the command line or from Python. Needs nothing but Python 3.10 or later.

    python clients/api_client.py text_to_video.json --set Prompt.value="a red circle" --set 5.seed=7 -o out
    python clients/api_client.py caption.json --set "Load Video.file=@my.mp4"

The workflow is in API form (in ComfyUI: File, Export (API)). ``--set NODE.INPUT=VALUE`` changes an input: NODE is an
id, a title or a class that occurs once; VALUE is read as JSON where it is JSON and as plain text otherwise; ``@FILE``
uploads the file and stands for the name that ComfyUI gave it (write ``'"@text"'`` for text that begins with @).

Texts that the workflow shows go to the standard output, progress and notes to the standard error, videos and pictures
into a folder. The exit code is 0 or 1; errors begin with ``error:``. Ctrl-C cancels the run on the server too.

    client = Client("http://127.0.0.1:8188")
    result = client.run(graph, on_event=print, timeout=600)
    print(result.texts, [client.download(file, "out") for file in result.files])
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import struct
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

Graph = dict[str, dict[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}, "_meta": {"title": ...}}

SERVER = "http://127.0.0.1:8188"
HTTP_SECONDS = 60.0  # for one answer; a server that loads a large model can be slow to answer
QUIET_SECONDS = 5.0  # a websocket that says nothing for so long is checked against the history
POLL_SECONDS = 0.5  # between looks at the history when there is no websocket
PATIENCE = 10  # so many unanswered looks (of HTTP_SECONDS each) mean that the server is gone and not just busy
FINAL = ("execution_success", "execution_error", "execution_interrupted")


class ClientError(Exception):
    """What went wrong, what was expected and what to do about it, in words for the person who runs the workflow."""


class _NoAnswerYet(ClientError):
    """The server took longer than HTTP_SECONDS: it may be gone, or busy with the very run that is asked about."""


@dataclass(frozen=True)
class Event:
    """A message of the server during a run.

    ``type`` and ``data`` are ComfyUI's own: ``executing``, ``progress``, ``progress_state``, ``execution_error`` and so
    on. Its two binary messages become ``progress_text`` {"node", "text"} and ``preview`` {"image": bytes}.
    """

    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class FileRecord:
    """A file that a run left on the server: of which node, and where ComfyUI's /view finds it."""

    node: str
    filename: str
    subfolder: str
    type: str  # "output", "temp" for previews, or "input"


@dataclass(frozen=True)
class Result:
    """What a run gave. ``texts``: node id -> what it shows; ``seconds``: from queueing to the end."""

    prompt_id: str
    texts: dict[str, list[str]]
    files: list[FileRecord]
    seconds: float


class Client:
    """A ComfyUI server, by its address. Holds no state of a run: one client may serve many runs and threads.

    Every method raises ClientError, and nothing else, when the server cannot be reached or refuses.
    """

    def __init__(self, server: str = SERVER) -> None:
        address = urlsplit(server if "://" in server else f"http://{server}")
        try:
            usable = address.scheme in ("http", "https") and address.port != 0 and address.hostname
            (address.hostname or "").encode("idna")
        except ValueError:  # a port that is no number, a name that cannot be one
            usable = None
        if not usable or address.username is not None:
            raise ClientError(f"{server!r} is no server address; expected one like {SERVER}")
        self.server = f"{address.scheme}://{address.netloc}{address.path.rstrip('/')}"
        # ComfyUI runs on this machine or beside it: a proxy for the internet would only be in the way.
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def run(
        self, graph: Graph, on_event: Callable[[Event], None] | None = None, timeout: float | None = None
    ) -> Result:
        """Queue a workflow, follow it to its end and say what it left.

        Progress comes over the websocket; where there is none, or when it drops, the run is followed by asking again
        and again. Whether it succeeded is always read from the history.

        ``on_event`` is called with the events of this run, in this thread. ``timeout`` is in seconds and includes the
        wait in the queue. A run that is given up (timeout, Ctrl-C, an exception in ``on_event``) is cancelled on the
        server. Raises ClientError when the workflow is refused, fails, is interrupted or does not end in time.
        """
        started = time.monotonic()
        name = uuid.uuid4().hex
        websocket = self._listen(name)  # before queueing, to miss nothing
        try:
            prompt_id = self.queue(graph, name)
            try:
                entry = self._follow(prompt_id, websocket, on_event, timeout)
            except BaseException:
                with suppress(ClientError):
                    self.interrupt(prompt_id)
                raise
        finally:
            if websocket is not None:
                websocket.close()
        _raise_failure(entry, graph)
        texts, files = _outputs(entry)
        return Result(prompt_id, texts, files, time.monotonic() - started)

    def queue(self, graph: Graph, client_id: str | None = None) -> str:
        """Put a workflow in the queue and return its prompt id.

        Raises ClientError with every node and input that ComfyUI refuses. ComfyUI itself would run the healthy half
        of a half-wrong workflow; here such a workflow is taken back.
        """

        def explain(status: int, body: bytes) -> str:
            try:
                found = json.loads(body)
                return _refusal(found, graph)
            except (ValueError, KeyError, TypeError, AttributeError):
                return f"{self.server} refused the workflow with status {status}: {_glimpse(body)}"

        request: dict[str, Any] = {"prompt": graph}
        if client_id is not None:
            request["client_id"] = client_id
        answer = self._json("/prompt", request, explain, needs=("prompt_id",))
        prompt_id = str(answer["prompt_id"])
        if answer.get("node_errors"):
            self.interrupt(prompt_id)
            raise ClientError(_refusal(answer, graph))
        return prompt_id

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Cancel a prompt, waiting or running; without an id, whatever runs now. No error when there is none."""
        if prompt_id is None:
            self._fetch("/interrupt", b"{}")
        else:
            self._fetch("/queue", json.dumps({"delete": [prompt_id]}).encode())
            self._fetch("/interrupt", json.dumps({"prompt_id": prompt_id}).encode())

    def upload(self, path: str | Path) -> str:
        """Copy a video or picture into ComfyUI's input folder; returns the name that loading nodes know it by.

        A file of the same name and other contents is not overwritten: the name is then a new one.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ClientError(f"{path}: could not be read ({error.strerror}); name a file that exists") from error
        boundary = uuid.uuid4().hex
        filename = path.name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()

        def explain(status: int, _: bytes) -> str:
            if status == http.client.REQUEST_ENTITY_TOO_LARGE:
                size = f"{path}: {len(content) / 2**20:.0f} MB are more than the server takes"
                return f"{size}; start ComfyUI with a larger --max-upload-size or put the file in its input folder"
            return f"{path}: the server refused the upload with status {status}"

        found = self._fetch("/upload/image", body, f"multipart/form-data; boundary={boundary}", explain)
        answer = self._parsed("/upload/image", found, needs=("name",))
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    def download(self, file: FileRecord, folder: str | Path) -> Path:
        """Fetch a file into a folder, whole or not at all, and return where it lies.

        The folder is made when missing. Nothing is overwritten: a name that is taken gets a number.
        """
        name = Path(file.filename.replace("\\", "/")).name  # never outside the folder, whatever the server says
        if not name:
            raise ClientError(f"the server offers a file without a name: {file}")
        folder = Path(folder)
        temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}.part"
        query = urlencode({"filename": file.filename, "subfolder": file.subfolder, "type": file.type})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._open(f"/view?{query}") as response, temporary.open("wb") as target:
                shutil.copyfileobj(response, target)
                expected = response.headers.get("Content-Length")
            size = temporary.stat().st_size
            # A connection that breaks in the middle can look like the end of the file.
            if expected is not None and size != int(expected):
                raise ClientError(f"{name}: {size} of {expected} bytes came from {self.server}; try again")
            final = _free_name(folder / name)
            os.replace(temporary, final)
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(
                f"{name}: could not be brought from {self.server} to {folder} ({error}); nothing was left there"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink()
        return final

    def node_info(self, class_type: str | None = None) -> dict[str, Any]:
        """What ComfyUI says of its node classes, or of one: class -> inputs, outputs, names. Empty for an unknown."""
        info = self._json("/object_info" if class_type is None else f"/object_info/{quote(class_type, safe='')}")
        return dict(info)

    def _listen(self, name: str) -> WebSocket | None:
        """A websocket that hears of the runs queued under ``name``; None where the server or a proxy has none."""
        try:
            return WebSocket(f"{self.server}/ws?clientId={name}", HTTP_SECONDS)
        except OSError:
            return None  # if the server is gone altogether, queueing says so in words

    def _follow(
        self,
        prompt_id: str,
        websocket: WebSocket | None,
        on_event: Callable[[Event], None] | None,
        timeout: float | None,
    ) -> dict[str, Any]:
        """The history's entry of a prompt, once it has ended, however it did."""
        deadline = None if timeout is None else time.monotonic() + timeout
        running = False
        lost = unanswered = 0
        while True:
            left = float("inf") if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise ClientError(
                    f"not finished after {timeout:g} s and cancelled; allow more time or look at the server's log"
                )
            if websocket is None:
                time.sleep(min(POLL_SECONDS, left))
            else:
                try:
                    message = websocket.receive(min(QUIET_SECONDS, left))
                    event = None if message is None else _event(message)
                except (OSError, ValueError):  # it dropped, or speaks what is no websocket
                    websocket = None
                    continue
                if message is not None:
                    if event is None or event.data.get("prompt_id", prompt_id) != prompt_id:
                        continue
                    running = running or event.type == "execution_start"
                    # Live texts and previews do not say which prompt they belong to: they are ours while ours runs.
                    if on_event is not None and (running or event.type not in ("progress_text", "preview")):
                        on_event(event)
                    if event.type not in FINAL and not (event.type == "executing" and event.data.get("node") is None):
                        continue
            try:
                # In this order: a prompt goes from the queue to the history and never back.
                waits = self._is_queued(prompt_id)
                entry = self._json(f"/history/{prompt_id}").get(prompt_id)
            except _NoAnswerYet:
                unanswered += 1
                if unanswered >= PATIENCE:
                    raise
                continue
            unanswered = 0
            if entry is not None:
                return dict(entry)
            # The server looks at running and waiting prompts one after the other, so that it can miss a prompt that
            # starts right then; but not twice.
            lost = 0 if waits else lost + 1
            if lost > 1:
                raise ClientError(
                    f"{self.server} no longer knows prompt {prompt_id}: it was taken from the queue, or the server "
                    "was restarted; queue the workflow again"
                )

    def _is_queued(self, prompt_id: str) -> bool:
        kinds = ("queue_running", "queue_pending")
        queue = self._json("/queue", needs=kinds)
        return any(item[1] == prompt_id for kind in kinds for item in queue[kind])

    def _json(
        self,
        route: str,
        request: dict[str, Any] | None = None,
        explain: Callable[[int, bytes], str] | None = None,
        needs: Sequence[str] = (),
    ) -> dict[str, Any]:
        """GET a route, or POST ``request`` to it; the answer is a JSON object with the keys ``needs``."""
        body = None if request is None else json.dumps(request).encode()
        return self._parsed(route, self._fetch(route, body, explain=explain), needs)

    def _parsed(self, route: str, body: bytes, needs: Sequence[str] = ()) -> dict[str, Any]:
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not all(key in answer for key in needs):
            wanted = " with " + " and ".join(needs) if needs else ""
            raise ClientError(
                f"{self.server}{route} answered {_glimpse(body)!r}; expected JSON{wanted}; is this a ComfyUI server?"
            )
        return answer

    def _fetch(
        self,
        route: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        explain: Callable[[int, bytes], str] | None = None,
    ) -> bytes:
        """The whole answer to a GET, or to a POST of ``body``."""
        with self._open(route, body, content_type, explain) as response:
            try:
                return bytes(response.read())
            except (OSError, http.client.HTTPException) as error:
                raise self._silence(error) from error

    def _open(
        self,
        route: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        explain: Callable[[int, bytes], str] | None = None,
    ) -> http.client.HTTPResponse:
        """The open answer to a GET, or to a POST of ``body``. ``explain`` words a refusal: (status, its body)."""
        headers = {} if body is None else {"Content-Type": content_type}
        request = urllib.request.Request(self.server + route, body, headers)
        try:
            response: http.client.HTTPResponse = self._http.open(request, timeout=HTTP_SECONDS)
            return response
        except urllib.error.HTTPError as error:
            with error, suppress(OSError, http.client.HTTPException):
                found = error.read()
                if explain is not None:
                    raise ClientError(explain(error.code, found)) from None
            raise ClientError(f"{self.server}{route} answered {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._silence(error) from error

    def _silence(self, error: Exception) -> ClientError:
        """What to raise when no answer came."""
        reason = getattr(error, "reason", None) or error
        kind = _NoAnswerYet if isinstance(reason, TimeoutError) else ClientError
        return kind(
            f"{self.server} does not answer ({reason}); start ComfyUI there, or give the address that it prints at "
            "its start"
        )


class WebSocket:
    """The listening side of a websocket (RFC 6455): messages come whole, pings are answered, nothing else is sent.

    All failures are OSError: no connection, no websocket there, closed by the server.
    """

    CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

    def __init__(self, url: str, timeout: float) -> None:
        address = urlsplit(url)
        secure = address.scheme == "https"
        assert address.hostname is not None
        self._socket = socket.create_connection((address.hostname, address.port or (443 if secure else 80)), timeout)
        self._received = bytearray()
        self._message = bytearray()
        self._kind = self.TEXT
        try:
            if secure:
                self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=address.hostname)
            self._greet(address.netloc, f"{address.path}?{address.query}", time.monotonic() + timeout)
        except BaseException:
            self._socket.close()
            raise

    def receive(self, timeout: float) -> str | bytes | None:
        """The next message, or None when none is complete within ``timeout`` seconds (it is then kept for later)."""
        deadline = time.monotonic() + timeout
        while True:
            frame = self._frame()
            if frame is None:
                if not self._read(deadline):
                    return None
                continue
            final, kind, payload = frame
            if kind == self.CLOSE:
                raise ConnectionError("the server closed the websocket")
            if kind == self.PING:
                self._send(self.PONG, payload)
            elif kind in (self.CONTINUATION, self.TEXT, self.BINARY):
                self._kind = kind or self._kind
                self._message += payload
                if final:
                    message, self._message = bytes(self._message), bytearray()
                    return message.decode() if self._kind == self.TEXT else message

    def close(self) -> None:
        """Say goodbye and hang up; never fails."""
        with suppress(OSError):
            self._send(self.CLOSE, struct.pack(">H", 1000))
        self._socket.close()

    def _greet(self, host: str, path: str, deadline: float) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._received:
            if not self._read(deadline):
                raise ConnectionError("the server does not answer the websocket's greeting")
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        self._received = bytearray(rest)
        # The proof that a websocket answers and not a cache or a page: RFC 6455, section 4.2.2.
        proof = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
        if b" 101 " not in head.split(b"\r\n")[0] or proof not in head:
            raise ConnectionError(f"no websocket: {_glimpse(head)}")

    def _read(self, deadline: float) -> bool:
        """Wait for more bytes; False when none came in time."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        self._socket.settimeout(left)
        try:
            received = self._socket.recv(1 << 16)
        except TimeoutError:
            return False
        if not received:
            raise ConnectionError("the server hung up")
        self._received += received
        return True

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """Take one frame from what was received: (last of its message, kind, payload); None when it is incomplete."""
        data = self._received
        if len(data) < 2:
            return None
        size, start = data[1] & 0x7F, 2
        if data[1] & 0x80:
            raise ConnectionError("a server must not mask what it sends")
        if size > 125:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start + size:
            return None
        frame = bool(data[0] & 0x80), data[0] & 0x0F, bytes(data[start : start + size])
        del data[: start + size]
        return frame

    def _send(self, kind: int, payload: bytes) -> None:
        """Send a control frame (at most 125 bytes), masked as a client must."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self._socket.settimeout(HTTP_SECONDS)
        self._socket.sendall(bytes((0x80 | kind, 0x80 | len(payload))) + mask + masked)


def _event(message: str | bytes) -> Event | None:
    """Read one message of ComfyUI's websocket; None for kinds that are unknown here. Raises ValueError for no JSON."""
    if isinstance(message, str):
        found = json.loads(message)
        return Event(str(found.get("type")), found.get("data") or {}) if isinstance(found, dict) else None
    kind, count = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
    if kind == 1:  # a preview: its format (JPEG or PNG), which the picture itself tells too, and the picture
        return Event("preview", {"image": message[8:]})
    if kind == 3:  # live text: the length of the node's id, the id, the text
        node, text = message[8 : 8 + count], message[8 + count :]
        return Event("progress_text", {"node": node.decode(), "text": text.decode(errors="replace")})
    return None


def _glimpse(body: bytes) -> str:
    """The beginning of an answer, for an error message."""
    return " ".join(body[:200].decode(errors="replace").split())


def _called(graph: Graph, node_id: str, class_type: str = "") -> str:
    """A node in words: node 3 "Prompt" (PrimitiveString)."""
    node = graph.get(node_id, {})
    title = node.get("_meta", {}).get("title", "")
    class_type = class_type or node.get("class_type", "")
    return " ".join(
        part for part in (f"node {node_id}", title and f'"{title}"', class_type and f"({class_type})") if part
    )


def _refusal(answer: Mapping[str, Any], graph: Graph) -> str:
    """ComfyUI's reasons for refusing a workflow: one line for each node and input."""
    lines = []
    for node_id, node in (answer.get("node_errors") or {}).items():
        for error in node["errors"]:
            name = (error.get("extra_info") or {}).get("input_name")
            details = error.get("details")
            where = _called(graph, node_id, node.get("class_type", "")) + (f', input "{name}"' if name else "")
            lines.append(f"{where}: {error['message']}" + (f" ({details})" if details and details != name else ""))
    if not lines:
        error = answer["error"]
        details = error.get("details")
        lines.append(error["message"] + (f" ({details})" if details else ""))
    return "\n  ".join(("the server refused the workflow:", *lines))


def _raise_failure(entry: Mapping[str, Any], graph: Graph) -> None:
    """Raise ClientError when the history says that a run failed or was interrupted."""
    status = entry.get("status") or {}
    for kind, data in status.get("messages") or []:
        if kind not in FINAL or kind == "execution_success":
            continue
        where = _called(graph, str(data.get("node_id")), data.get("node_type") or "")
        if kind == "execution_interrupted":
            raise ClientError(f"interrupted at {where}; queue the workflow again to run it")
        reason = str(data.get("exception_type", "")).rpartition(".")[2]
        message = str(data.get("exception_message", "")).strip()
        raise ClientError(f"{where} failed with {reason}: {message}")
    if status.get("status_str") == "error":
        raise ClientError("the run failed and the server does not say why; look at its log")


def _outputs(entry: Mapping[str, Any]) -> tuple[dict[str, list[str]], list[FileRecord]]:
    """Texts and files that the history lists for a run."""
    texts: dict[str, list[str]] = {}
    files = []
    for node, output in (entry.get("outputs") or {}).items():
        for key, items in (output or {}).items():
            if not isinstance(items, list):
                continue
            if key == "text":
                texts[node] = [item for item in items if isinstance(item, str)]
            files += [
                FileRecord(node, item["filename"], item.get("subfolder") or "", item.get("type") or "output")
                for item in items
                if isinstance(item, dict) and isinstance(item.get("filename"), str)
            ]
    return texts, files


def _free_name(path: Path) -> Path:
    """``path``, or the first of its name with a number that no file has yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem} ({number}){path.suffix}")
    return free


def read_workflow(path: str | Path) -> Graph:
    """Read a workflow in API form. Raises ClientError with the file and what it is instead."""
    try:
        graph = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ClientError(f"{path}: could not be read ({error.strerror}); name a workflow in API form") from error
    except ValueError as error:
        raise ClientError(f"{path}: is not JSON ({error}); export it from ComfyUI with File, Export (API)") from error
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise ClientError(f"{path}: is in the form of the canvas; export it from ComfyUI with File, Export (API)")
    if not isinstance(graph, dict) or not all(isinstance(n, dict) and "class_type" in n for n in graph.values()):
        raise ClientError(f"{path}: is no workflow; expected node ids with class_type and inputs, the API form")
    return graph


def set_input(graph: Graph, assignment: str, client: Client) -> None:
    """Change one input of ``graph`` as ``NODE.INPUT=VALUE`` says (see the top of this file).

    Raises ClientError when no node or several answer to NODE, and when the node has no such input: ComfyUI itself
    would pass over a misspelt one in silence.
    """
    target, equals, text = assignment.partition("=")
    node_id, name = _split_target(graph, target)
    if not (equals and node_id and name):
        known = "\n  ".join(_called(graph, node_id) for node_id in graph)
        raise ClientError(f"--set {assignment}: expected NODE.INPUT=VALUE, where NODE is one of\n  {known}")
    node = graph[node_id]
    inputs = node.setdefault("inputs", {})
    if name not in inputs:
        info = client.node_info(node["class_type"]).get(node["class_type"], {}).get("input", {})
        optional = [key for group in ("required", "optional") for key in info.get(group, {})]
        if name.split(".")[0] not in optional:  # what belongs to a choice of an input follows after a dot
            expected = ", ".join(dict.fromkeys([*inputs, *optional])) or "none"
            raise ClientError(f"--set {assignment}: {_called(graph, node_id)} has no such input; it has: {expected}")
    if text.startswith("@"):
        inputs[name] = client.upload(text[1:])
        return
    try:
        inputs[name] = json.loads(text)
    except ValueError:
        inputs[name] = text


def _split_target(graph: Graph, target: str) -> tuple[str | None, str]:
    """``NODE.INPUT`` as the node's id, None where there is no such node, and the input's name.

    Titles and inputs may both have dots in them: the first dot with a node before it parts them.
    """
    node, dot, name = target.partition(".")
    while dot:
        node_id = _find_node(graph, node)
        if node_id is not None:
            return node_id, name
        more, dot, name = name.partition(".")
        node = f"{node}.{more}"
    return None, ""


def _find_node(graph: Graph, key: str) -> str | None:
    """The id of the node that has ``key`` as its id, else as its title, else as its class; None where there is none."""
    if key in graph:
        return key
    titled = [node_id for node_id, node in graph.items() if node.get("_meta", {}).get("title") == key]
    found = titled or [node_id for node_id, node in graph.items() if node["class_type"] == key]
    if len(found) > 1:
        raise ClientError(f"{key!r} are {len(found)} nodes; name one by its id: {', '.join(found)}")
    return found[0] if found else None


class ProgressLine:
    """Shows events as one line on the standard error that renews itself; in a log, as one line for each node."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._live = sys.stderr.isatty()
        self._node = self._count = self._text = ""

    def __call__(self, event: Event) -> None:
        data = event.data
        if event.type == "executing" and data.get("node") is not None:
            self._show(str(data["node"]))
        elif event.type == "progress":
            self._show(str(data.get("node")), _count(data))
        elif event.type == "progress_state":
            for node, state in data.get("nodes", {}).items():
                if state.get("state") == "running":
                    self._show(node, _count(state))
        elif event.type == "progress_text":
            self._show(data["node"], text=" ".join(data["text"].split()))
        elif event.type == "execution_error" and data.get("exception_type") == "ExecutionBlocked":
            # Not a failure of the run, and said nowhere else: what depends on this node is left out.
            self.close()
            where = _called(self._graph, str(data.get("node_id")), data.get("node_type") or "")
            print(f"{where}: {data.get('exception_message')}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _show(self, node: str, count: str | None = None, text: str | None = None) -> None:
        """Show a node, with the count and the text that it has now; what is None stays as it was."""
        if node != self._node:
            self._node, self._count, self._text = node, "", ""
            if not self._live:
                print(_called(self._graph, node), file=sys.stderr, flush=True)
        self._count = self._count if count is None else count
        self._text = self._text if text is None else text
        if self._live:
            line = "  ".join(part for part in (_called(self._graph, node), self._count, self._text) if part)
            print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", file=sys.stderr, flush=True)


def _count(state: Mapping[str, Any]) -> str:
    """``12/50``; nothing for a node that has one step."""
    total = state.get("max", 0)
    return f"{state.get('value', 0):g}/{total:g}" if total > 1 else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ClientError(f"{message}; see --help")


def _seconds(text: str) -> float:
    """An argparse type: a time span."""
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [WORKFLOW] [options]"
    )
    parser.add_argument("workflow", nargs="?", type=Path, help="a workflow in API form")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="change an input; may be repeated"
    )
    parser.add_argument(
        "--upload",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="copy a file to ComfyUI's input folder and print its name there; may be repeated",
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder for the files (default: out)")
    parser.add_argument("--server", default=SERVER, help=f"address of ComfyUI (default: {SERVER})")
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up and cancel after so long")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a caption may hold letters that an old console lacks
    try:
        args = _parser().parse_args(arguments)
        if args.workflow is None and not args.upload:
            raise ClientError("nothing to do: name a workflow or --upload FILE; see --help")
        if args.out.exists() and not args.out.is_dir():
            raise ClientError(f"{args.out}: is a file; name a folder for -o")
        client = Client(args.server)
        for path in args.upload:
            print(client.upload(path), flush=True)
        if args.workflow is not None:
            graph = read_workflow(args.workflow)
            for assignment in args.set:
                set_input(graph, assignment, client)
            with closing(ProgressLine(graph)) as progress:
                result = client.run(graph, progress, args.timeout)
            for text in (text for texts in result.texts.values() for text in texts):
                print(text, flush=True)
            for file in result.files:
                print(f"saved {client.download(file, args.out)}", file=sys.stderr)
            print(f"done in {result.seconds:.1f} s", file=sys.stderr)
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: cancelled", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
