# /// script
# requires-python = ">=3.10"
# dependencies = ["httpx>=0.28", "websockets>=15"]
# ///
"""Run a ComfyUI workflow from the command line or from Python.

It needs httpx and websockets: ``pip install httpx websockets``, or start it with ``uv run`` in place of ``python``.

    python clients/api_client.py text_to_video.json --set Prompt.value="a red circle" --set 5.seed=7 -o out
    python clients/api_client.py caption.json --set "Load Video.file=@my.mp4"
    python clients/api_client.py caption.json --list

The workflow is in API form (in ComfyUI: File, Export (API)). ``--set NODE.INPUT=VALUE`` changes an input: NODE is an
id, a title or a class that occurs once; VALUE is read as JSON where it is JSON and as plain text otherwise; ``@FILE``
uploads the file and stands for the name that ComfyUI gave it (write ``'"@text"'`` for text that begins with @).
``--list`` prints what can be set, with the value that it has now and what it may be.

Texts that the workflow shows go to the standard output, progress and notes to the standard error, videos and pictures
into a folder. Errors begin with ``error:``. Ctrl-C cancels the run on the server too. The exit code is 0 when all went
well, 1 when the run failed, 2 when the command, the workflow or an input is wrong, 3 when the server cannot be reached
or is no ComfyUI, 4 when the time was up, and 130 after Ctrl-C.

    client = Client("http://127.0.0.1:8188")
    result = client.run(graph, on_event=print, timeout=600)
    print(result.texts, [client.download(file, "out") for file in result.files])
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import socket
import ssl
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, NoReturn, cast
from urllib.parse import quote, urlsplit

try:
    import httpx
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import ClientConnection, connect
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f'error: {missing.name} is not installed; run: pip install "httpx>=0.28" "websockets>=15"')

Graph = dict[str, dict[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}, "_meta": {"title": ...}}

SERVER = "http://127.0.0.1:8188"
HTTP_SECONDS = 60.0  # for one answer; a server that loads a large model can be slow to answer
QUIET_SECONDS = 5.0  # after so long without a message from the websocket, the history is checked
POLL_SECONDS = 0.5  # between checks of the history when there is no websocket
PATIENCE = 10  # so many unanswered checks (of HTTP_SECONDS each) mean that the server is gone and not just busy
MOST_BYTES = 32 * 2**20  # of one answer or message; a queue holds whole workflows, previews are pictures
# Through no proxy: ComfyUI runs nearby. A busy server answers pings too late; previews can exceed the default limit.
WEBSOCKET: dict[str, Any] = dict.fromkeys(("proxy", "compression", "ping_interval"))
WEBSOCKET |= {"max_size": MOST_BYTES, "max_queue": 2}
ODD = (AttributeError, LookupError, TypeError, ValueError)  # what reading JSON of an unexpected form raises
# What would steer a terminal, reorder or break a line, or cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FAILED, WRONG, NO_SERVER, TOO_LATE = 1, 2, 3, 4  # exit codes, beside 0 and 130
FILE = {"filename": "", "subfolder": "", "type": "output"}  # what the history says of a file, and the usual value
KINDS = {"STRING": "text", "INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false"}
MOST_CHOICES = 12  # of an input that are listed
OnEvent = Callable[["Event"], object]


def printable(text: object) -> str:
    r"""A text that is safe to print, with everything else as escapes such as ``\x1b`` and ``\u202e``."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], str(text))


class ClientError(Exception):
    """What went wrong, what was expected and what to do about it, in words for the person who runs the workflow;
    ``code`` is the exit code that the command line gives it."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(printable(message[:10_000]))
        self.code = code


class Event(NamedTuple):
    """A message of the server during a run, with ComfyUI's own ``type`` (``executing``, ``progress``...) and ``data``.
    Its two binary messages become ``progress_text`` {"node", "text"} and ``preview`` {"image": bytes}."""

    type: str
    data: dict[str, Any]


class FileRecord(NamedTuple):
    """A file that a run left on the server: the node that made it, and where ComfyUI's /view finds it."""

    node: str
    filename: str
    subfolder: str
    type: str  # "output", "temp" for previews, or "input"


class Result(NamedTuple):
    """What a run gave. ``texts``: node id -> the texts it shows; ``seconds``: from queueing to the end."""

    prompt_id: str
    texts: dict[str, list[str]]
    files: list[FileRecord]
    seconds: float


class Client:
    """A ComfyUI server at an address. Holds no state of a run: one client may serve many runs and threads.
    ``timeout``: seconds from now for all that it does, uploads and downloads included.
    Every method raises ClientError, and nothing else, when the server cannot be reached or refuses."""

    def __init__(self, server: str = SERVER, timeout: float | None = None) -> None:
        self._timeout, self._deadline = timeout, time.monotonic() + (math.inf if timeout is None else timeout)
        try:
            url = urlsplit(server if "://" in server else f"http://{server}")
            usable = (url.hostname or "").encode("idna") and url.port != 0 and url.username is None
        except ValueError:  # a port that is no number, a name that cannot be one
            usable = False
        if not usable or url.scheme not in ("http", "https"):
            found = repr(server) if re.fullmatch(r"[A-Za-z0-9.:/_\[\]-]*", server) else "this"  # it may hold a password
            raise ClientError(f"{found} is no server address; expected one like {SERVER}", WRONG)
        self.server = f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"
        self._address = url.hostname, url.port or (443 if url.scheme == "https" else 80)
        # ComfyUI runs nearby: a proxy for the internet is no help. A connection that is kept open can break unnoticed.
        # Nothing is compressed, so that a small answer cannot become a large one.
        headers = {"Connection": "close", "Accept-Encoding": "identity"}
        self._http = httpx.Client(trust_env=False, verify=ssl.create_default_context(), headers=headers)

    def run(self, graph: Graph, on_event: OnEvent | None = None, timeout: float | None = None) -> Result:
        """Queue a workflow, follow it to its end and return its texts and files.

        Progress comes over the websocket; where there is none, or when it drops, the run is followed by polling the
        server. Whether it succeeded is always read from the history.
        ``on_event`` is called with the events of this run, in this thread. ``timeout`` is in seconds and includes the
        wait in the queue. A run that is given up (timeout, Ctrl-C, an exception in ``on_event``) is cancelled on the
        server. Raises ClientError when the workflow is refused, fails, is interrupted or does not end in time.
        """
        started, name, websocket = time.monotonic(), uuid.uuid4().hex, None
        url = f"ws{self.server.removeprefix('http')}/ws?clientId={name}"
        with ExitStack() as stack:
            # Before queueing, to miss nothing. Where the server cannot be reached at all, queueing reports it.
            with suppress(OSError, ValueError, WebSocketException):
                # With a socket of our own, no version of the library follows redirects to other servers.
                sock = socket.create_connection(self._address, left := self._left())
                sock.settimeout(None)
                opened = connect(url, sock=sock, open_timeout=left, close_timeout=1, **WEBSOCKET)
                websocket = stack.enter_context(opened)
            prompt_id = self.queue(graph, name)
            try:
                whole = self._deadline - time.monotonic()
                seconds = whole if timeout is None else min(timeout, whole)
                entry = self._follow(prompt_id, _checks(websocket, prompt_id, on_event or (lambda _: None), seconds))
            except BaseException:
                with suppress(ClientError):
                    self.interrupt(prompt_id)
                raise
        try:
            return Result(prompt_id, *_read_history(entry, graph), time.monotonic() - started)
        except ODD as error:
            raise ClientError(f"{self.server}: the history of the run is not as ComfyUI writes it ({error})") from error

    def queue(self, graph: Graph, client_id: str | None = None) -> str:
        """Put a workflow in the queue and return its prompt id. Raises ClientError with every node and input that
        ComfyUI refuses. ComfyUI itself would run the valid half of a half-wrong workflow; here it is taken back."""
        response = self._send("/prompt", {"prompt": graph, "client_id": client_id})
        if response.is_success:
            answer = _read(response, "prompt_id")
            if not answer.get("node_errors"):
                return str(answer["prompt_id"])
            self.interrupt(answer["prompt_id"])
        raise ClientError(_refusal(response, graph), WRONG)

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Cancel a prompt, waiting or running; without an id, whatever runs now. No error when there is none."""
        if prompt_id is not None:
            _read(self._send("/queue", {"delete": [prompt_id]}, within=HTTP_SECONDS))
        _read(self._send("/interrupt", {"prompt_id": prompt_id}, within=HTTP_SECONDS))  # also where the time is up

    def upload(self, path: str | Path) -> str:
        """Copy a video or picture into ComfyUI's input folder; returns the name that loading nodes know it by.
        A file of the same name and other contents is not overwritten: the name is then a new one."""
        try:
            with open(path, "rb") as file:
                answer = _read(self._send("/upload/image", files={"image": file}), "name")
        except (OSError, ClientError) as error:
            code = error.code if isinstance(error, ClientError) else WRONG
            raise ClientError(f"{path}: could not be read or uploaded ({error})", code) from error
        return "/".join(map(str, filter(None, (answer.get("subfolder"), answer["name"]))))

    def download(self, file: FileRecord, folder: str | Path) -> Path:
        """Fetch a file into a folder, whole or not at all, and return its path there.
        The folder is made when missing. Nothing is overwritten: a name that is taken gets a number."""
        # Never outside the folder, whatever the server says.
        path = Path(folder, Path(file.filename.replace("\\", "/")).name or "unnamed")
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        request = self._http.stream("GET", f"{self.server}/view", params=query, timeout=self._left())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with request as response, TemporaryDirectory(prefix=".", dir=path.parent) as temporary:
                if not response.is_success:
                    raise ClientError(f"{path}: {response.url} answered {response.status_code}")
                with Path(temporary, "part").open("wb") as target:
                    target.writelines(piece for piece in response.iter_raw() if self._left())
                numbered = (path.with_stem(f"{path.stem} ({number})") for number in count(2))
                free = next(name for name in chain([path], numbered) if not name.exists())
                return Path(target.name).replace(free)
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:  # ValueError: of odd names
            self._left()
            raise ClientError(f"{path}: could not be brought from {self.server} ({error})") from error

    def node_info(self, class_type: str | None = None) -> dict[str, Any]:
        """What ComfyUI says of its node classes, or of one: class -> inputs, outputs, names. Empty for an unknown."""
        return _read(self._send(f"/object_info/{quote(class_type, safe='')}" if class_type else "/object_info"))

    def _left(self) -> float:
        """Seconds that one answer may take. Raises ClientError where the time of the whole is up."""
        if (left := self._deadline - time.monotonic()) <= 0:
            raise _late(self._timeout)
        return min(HTTP_SECONDS, left)

    def _follow(self, prompt_id: str, checks: Iterator[None]) -> dict[str, Any]:
        """The history's entry of a prompt, once it has ended, however it did; read at each of ``checks``."""
        lost = unanswered = 0
        for _ in checks:
            try:
                # In this order: a prompt goes from the queue to the history and never back.
                queue = _read(self._send("/queue"), "queue_running", "queue_pending")
                entry = _read(self._send(f"/history/{prompt_id}")).get(prompt_id)
                waits = any(item[1] == prompt_id for item in queue["queue_running"] + queue["queue_pending"])
            except ClientError as error:
                unanswered += 1
                if unanswered >= PATIENCE or not isinstance(error.__cause__, httpx.TimeoutException):
                    raise
                continue
            except ODD as error:
                raise ClientError(f"{self.server}: its queue is not as ComfyUI writes it ({error})") from error
            if entry is not None:
                return cast("dict[str, Any]", entry)
            # The server can miss a prompt that moves from waiting to running right then, but not twice.
            unanswered, lost = 0, 0 if waits else lost + 1
            if lost > 1:
                break
        reason = f"{self.server} no longer knows prompt {prompt_id}: it was removed, or the server was restarted"
        raise ClientError(f"{reason}; queue the workflow again")

    def _send(self, route: str, request: Any = None, within: float | None = None, **body: Any) -> httpx.Response:
        """GET a route, or POST ``request`` as JSON or another body to it. The answer may be a refusal. ``within``:
        seconds in place of those that are left."""
        if request is not None:  # httpx's own ``json=`` refuses NaN, which a workflow may hold
            body = {"content": json.dumps(request), "headers": {"Content-Type": "application/json"}}
        seconds = within or self._left()
        deadline, content = time.monotonic() + seconds, bytearray()
        method, url = "POST" if body else "GET", self.server + route
        try:
            with self._http.stream(method, url, timeout=seconds, **body) as response:
                for piece in response.iter_raw():
                    content += piece
                    if len(content) > MOST_BYTES or time.monotonic() > deadline:
                        within or self._left()
                        most = f"{MOST_BYTES >> 20} MB or {HTTP_SECONDS:g} s"
                        problem = f"{url}: the answer takes more than {most}; is this a ComfyUI server?"
                        raise ClientError(problem, NO_SERVER)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            within or self._left()
            problem = f"{self.server} does not answer ({error}); start ComfyUI or fix the address"
            raise ClientError(problem, NO_SERVER) from error
        return httpx.Response(response.status_code, content=bytes(content), request=response.request)


def _late(seconds: float | None) -> ClientError:
    problem = f"not finished after {seconds:.3g} s and cancelled; allow more time or look at the server's log"
    return ClientError(problem, TOO_LATE)


def _json(text: str | bytes) -> Any:
    """What is written in JSON. Raises ValueError for what is none, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read(response: httpx.Response, *keys: str) -> dict[str, Any]:
    """The JSON object with these keys in an answer. Raises ClientError for a refusal or anything else."""
    if not response.is_success:
        hint = "; start ComfyUI with a larger --max-upload-size" if response.status_code == 413 else ""
        raise ClientError(f"{response.url} answered {response.status_code} {response.reason_phrase}{hint}")
    with suppress(ValueError):
        answer = _json(response.content) if response.content else {}
        if isinstance(answer, dict) and answer.keys() >= {*keys}:
            return answer
    wanted = f"JSON with {' and '.join(keys) or 'keys'}"
    problem = f"{response.url}: expected {wanted}, not {response.text[:200]!r}; is this a ComfyUI server?"
    raise ClientError(problem, NO_SERVER)


def _checks(ws: ClientConnection | None, run: str, on_event: OnEvent, seconds: float) -> Iterator[None]:
    """Hand out a run's events; yield when it may have ended. Raises ClientError after so many seconds."""
    deadline = time.monotonic() + seconds
    running = False
    while (left := deadline - time.monotonic()) > 0:
        if ws is None:
            time.sleep(min(POLL_SECONDS, left))
            yield
            continue
        try:
            event = _read_event(ws.recv(min(QUIET_SECONDS, left)))
        except TimeoutError:
            yield
        except (OSError, TypeError, ValueError, WebSocketException):  # it dropped, or sends no messages of ComfyUI's
            ws = None
        else:
            if event is not None and event.data.get("prompt_id", run) == run:
                # Live texts and previews do not say which prompt they belong to: they are ours while ours runs.
                running = running or event.type == "execution_start"
                if running or event.type not in ("progress_text", "preview"):
                    on_event(event)
                if event.type == "executing" and event.data.get("node") is None:
                    yield  # the server's last event of a run is that it executes no node
    raise _late(seconds)


def _read_event(message: str | bytes) -> Event | None:
    """Read one message of ComfyUI's websocket; None for kinds that are unknown here. Raises ValueError for no JSON."""
    if isinstance(message, str):
        found = _json(message)
        return Event(str(found.get("type")), dict(found.get("data") or {})) if isinstance(found, dict) else None
    kind, size = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
    if kind == 1:  # a preview: its format (JPEG or PNG), which the picture itself tells too, and the picture
        return Event("preview", {"image": message[8:]})
    if kind == 3:  # live text: the length of the node's id, the id, the text
        node, text = message[8 : 8 + size].decode(), message[8 + size :].decode(errors="replace")
        return Event("progress_text", {"node": node, "text": text})
    return None


def _node(graph: Graph, node_id: Any, class_type: str | None = None) -> str:
    """A node in words: node 3 "Prompt" (PrimitiveString)."""
    node = graph.get(str(node_id), {})
    title, class_type = node.get("_meta", {}).get("title"), class_type or node.get("class_type")
    return f"node {node_id}" + (f' "{title}"' if title else "") + (f" ({class_type})" if class_type else "")


def _refusal(response: httpx.Response, graph: Graph) -> str:
    """ComfyUI's reasons for refusing a workflow: one line for each node and input."""
    lines = ["the server refused the workflow:"]
    try:
        answer = _json(response.content)
        refused = (answer.get("node_errors") or {}).items()
        reasons = [(_node(graph, key, node.get("class_type")), one) for key, node in refused for one in node["errors"]]
        for where, error in reasons or [("", answer["error"])]:
            name, details = (error.get("extra_info") or {}).get("input_name"), error.get("details")
            where += (f', input "{name}"' if name else "") + (": " if where else "")
            lines.append(where + error["message"] + (f" ({details})" if details and details != name else ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        start = " ".join(response.text[:200].split())
        return f"the server refused the workflow with status {response.status_code}: {start}"
    return "\n  ".join(lines)


def _read_history(entry: dict[str, Any], graph: Graph) -> tuple[dict[str, list[str]], list[FileRecord]]:
    """Texts and files of a run. Raises ClientError when it failed or was interrupted."""
    status = entry.get("status") or {}
    for kind, data in status.get("messages", []):
        where = _node(graph, data.get("node_id"), data.get("node_type"))
        if kind == "execution_interrupted":
            raise ClientError(f"interrupted at {where}; queue the workflow again to run it")
        if kind == "execution_error":
            reason = str(data.get("exception_type", "")).rpartition(".")[2]
            raise ClientError(f"{where} failed with {reason}: {str(data.get('exception_message', '')).strip()}")
    if status.get("status_str") == "error":
        raise ClientError("the run failed and the server does not say why; look at its log")
    texts: dict[str, list[str]] = {}
    files: list[FileRecord] = []
    for node, output in (entry.get("outputs") or {}).items():
        items = [(key, item) for key, values in output.items() if isinstance(values, list) for item in values]
        found = [item for _, item in items if isinstance(item, dict) and item.get("filename")]
        places = [[str(f.get(key) or usual) for key, usual in FILE.items()] for f in found]
        files += [FileRecord(node, *place) for place in places]
        if shown := [item for key, item in items if key == "text" and isinstance(item, str)]:
            texts[node] = shown
    return texts, files


def read_workflow(path: str | Path) -> Graph:
    """Read a workflow in API form. Raises ClientError with the file and what it is instead."""
    export = "export it from ComfyUI with File, Export (API)"
    try:
        graph = _json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClientError(f"{path}: could not be read or is not JSON ({error}); {export}", WRONG) from error
    if not isinstance(graph, dict) or not all(map(_is_node, graph.values())):
        raise ClientError(f"{path}: is no workflow in API form, perhaps one in the form of the canvas; {export}", WRONG)
    return graph


def _is_node(node: Any) -> bool:
    """Whether this is a node of a workflow in API form."""
    sections = isinstance(node, dict) and (node.get("inputs", {}), node.get("_meta", {}))
    return bool(sections) and "class_type" in node and all(isinstance(section, dict) for section in sections)


def set_input(graph: Graph, assignment: str, client: Client) -> None:
    """Change one input of ``graph`` as ``NODE.INPUT=VALUE`` says (see the top of this file).

    NODE is an id, else a title, else a class. Titles and inputs may both contain dots: the shortest NODE that fits is
    meant. Raises ClientError when no node or several answer to NODE, and when the node has no such input: ComfyUI
    itself would ignore a misspelt one without a word.
    """
    target, equals, text = assignment.partition("=")
    found: dict[tuple[int, int], list[str]] = {(len(target), 0): []}  # length of NODE, what NODE is -> ids
    for node_id, node in graph.items():
        for kind, key in enumerate((node_id, node.get("_meta", {}).get("title"), node["class_type"])):
            if key is not None and target.startswith(f"{key}."):
                found.setdefault((len(key), kind), []).append(node_id)
    (length, _), ids = min(found.items())
    name = target[length + 1 :]
    if not (equals and name):
        nodes = "\n  ".join(_node(graph, node_id) for node_id in graph)
        raise ClientError(f"--set {assignment}: expected NODE.INPUT=VALUE, where NODE is one of\n  {nodes}", WRONG)
    if len(ids) > 1:
        raise ClientError(f"{target[:length]!r} are {len(ids)} nodes; name one by its id: {', '.join(ids)}", WRONG)
    class_type, inputs = graph[ids[0]]["class_type"], graph[ids[0]].setdefault("inputs", {})
    if name not in inputs:
        known = {**inputs, **_inputs_of(client.node_info(class_type), class_type)}
        if name.split(".")[0] not in known:  # what belongs to a choice of an input follows after a dot
            reason = f"has no such input; it has: {', '.join(known) or 'none'}"
            raise ClientError(f"--set {assignment}: {_node(graph, ids[0])} {reason}", WRONG)
    inputs[name] = client.upload(text[1:]) if text.startswith("@") else text
    with suppress(ValueError):
        inputs[name] = _json(text)


def _inputs_of(info: dict[str, Any], class_type: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The inputs of a class, as the server describes them: name -> type or choices, and options."""
    try:
        sections = info.get(class_type, {}).get("input", {})
        known = {**sections.get("required", {}), **sections.get("optional", {})}
        return {name: (spec[0], dict(spec[1]) if len(spec) > 1 else {}) for name, spec in known.items()}
    except ODD as error:
        raise ClientError(f"what the server says of {class_type} is unclear ({error})", NO_SERVER) from error


def settable(graph: Graph, client: Client) -> Iterator[str]:
    """What ``--set`` can change, a line each: NODE.INPUT=VALUE with the value of now, and what it may be."""
    names = Counter(key for node in graph.values() for key in {node.get("_meta", {}).get("title"), node["class_type"]})
    info = client.node_info()
    for node_id, node in graph.items():
        title, class_type = node.get("_meta", {}).get("title"), node["class_type"]
        plain = [name for name in (title, class_type) if name and names[name] == 1 and not set(".=\n") & set(name)]
        inputs, known = node.get("inputs", {}), _inputs_of(info, class_type)
        for name in {**inputs, **known}:
            kind, options = known.get(name, ("", {}))
            may_be = _kind(kind, options)
            is_link = isinstance(inputs.get(name), list)
            if is_link or (name in known and not may_be):  # what comes from another node
                continue
            value = json.dumps(inputs[name], ensure_ascii=False) if name in inputs else ""
            yield f"{(plain or [node_id])[0]}.{name}={value}" + (f"   # {may_be}" if may_be else "")


def _kind(kind: Any, options: dict[str, Any]) -> str:
    """What an input may be, in words; empty for one that only another node can give."""
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    if isinstance(choices, list):
        shown = [str(choice) for choice in choices[:MOST_CHOICES]]
        more = f" and {len(choices) - len(shown)} more" if len(choices) > len(shown) else ""
        return f"one of: {', '.join(shown)}{more}"
    words = KINDS.get(kind, "") if isinstance(kind, str) else ""
    low, high = options.get("min"), options.get("max")
    return words + (f" from {low} to {high}" if words and None not in (low, high) else "")


class ProgressLine:
    """Shows events as one line on the standard error that renews itself; in a log, as one line for each node."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._live = graph, sys.stderr.isatty()
        self._node = self._count = self._text = ""

    def __call__(self, event: Event) -> None:
        with suppress(*ODD):  # an event that is not as ComfyUI sends it
            self._take(event.type, event.data)

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        for node_id, state in data["nodes"].items() if kind == "progress_state" else ():
            if state.get("state") == "running":
                self._show(_node(self._graph, node_id), state)
        if kind in ("executing", "progress", "progress_text") and data.get("node") is not None:
            self._show(_node(self._graph, data["node"]), data)
        if data.get("exception_type") == "ExecutionBlocked":
            # Not a failure of the run, and said nowhere else: what depends on this node is left out.
            self.close()
            _note(f"{_node(self._graph, data.get('node_id'), data.get('node_type'))}: {data.get('exception_message')}")

    def close(self) -> None:
        """Clear the line."""
        if self._live:
            _live("")

    def _show(self, node: str, state: dict[str, Any]) -> None:
        if node != self._node:
            self._node, self._count, self._text = node, "", ""
            if not self._live:
                _note(node)
        if state.get("max", 0) > 1:  # more than one step
            self._count = f"{state.get('value', 0):g}/{state['max']:g}"
        self._text = " ".join(state.get("text", self._text).split())
        if self._live:
            line = "  ".join(filter(None, (node, self._count, self._text)))
            _live(printable(line)[: shutil.get_terminal_size().columns - 1])


def _live(line: str) -> None:
    print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)


def _note(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ClientError(f"{message}; see --help", WRONG)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a caption may hold letters that an old console lacks
    parser = _Parser(description=__doc__, usage="%(prog)s [WORKFLOW] [options]")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("workflow", nargs="?", type=Path, help="a workflow in API form")
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="change an input; may be repeated")
    upload = "copy FILE to ComfyUI's input folder and print its name there; may be repeated"
    add("--upload", action="append", default=[], metavar="FILE", help=upload)
    add("-o", "--out", type=Path, default=Path("out"), help="folder for the files (default: out)")
    add("--server", default=SERVER, help=f"address of ComfyUI (default: {SERVER})")
    add("--list", action="store_true", help="print what --set can change, and run nothing")
    add("--timeout", type=float, metavar="SECONDS", help="give up and cancel after so long, transfers included")
    try:
        _run_command(parser.parse_args(arguments))
    except ClientError as error:
        _note(f"error: {error}")
        return error.code
    except KeyboardInterrupt:
        _note("error: cancelled")
        return 130
    return 0


def _require_sensible(args: argparse.Namespace) -> None:
    """Raise ClientError for a command that cannot be carried out."""
    if args.workflow is None and not args.upload:
        raise ClientError("nothing to do: name a workflow or --upload FILE; see --help", WRONG)
    if args.out.exists() and not args.out.is_dir():
        raise ClientError(f"{args.out}: is a file; name a folder for -o", WRONG)
    if args.timeout is not None and not 0 < args.timeout < math.inf:
        raise ClientError(f"--timeout: '{args.timeout:g}' is no number of seconds above 0", WRONG)


def _run_command(args: argparse.Namespace) -> None:
    _require_sensible(args)
    client = Client(args.server, args.timeout)
    for path in args.upload:
        print(printable(client.upload(path)), flush=True)
    if args.workflow is None:
        return
    graph = read_workflow(args.workflow)
    for assignment in args.set:
        set_input(graph, assignment, client)
    if args.list:
        for line in settable(graph, client):
            print(printable(line), flush=True)
        return
    with closing(ProgressLine(graph)) as progress:
        result = client.run(graph, progress)
    for text in dict.fromkeys(chain.from_iterable(result.texts.values())):  # once, though several nodes show it
        print(printable(text), flush=True)
    for file in result.files:
        _note(f"saved {client.download(file, args.out)}")
    _note(f"done in {result.seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
