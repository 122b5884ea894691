"""A language model for tests: a local server that speaks the protocol of chat completions, and fails as servers do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from stand_in_server import StandInServer

GOOD = "one two three four five six"


def answered(text: Any, ending: str = "stop", **message: Any) -> tuple[int, bytes, dict[str, str]]:
    """A chat completion of a server."""
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": ending}
    return 200, json.dumps({"choices": [choice]}).encode(), {}


def failed(status: int, message: str = "", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """An error of a server, as OpenAI words them."""
    body = json.dumps({"error": {"message": message, "type": "some_error"}}).encode() if message else b""
    return status, body, {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Script:
    """What the stand-in answers, one after the other and then ``usual``, and what it was asked."""

    answers: list[tuple[int, bytes, dict[str, str]] | str] = field(default_factory=list)
    usual: tuple[int, bytes, dict[str, str]] | str = field(default_factory=lambda: answered(GOOD))
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    script: Script

    def do_POST(self) -> None:
        script = self.script
        script.paths.append(self.path)
        script.keys.append(self.headers["Authorization"])
        script.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = script.answers.pop(0) if script.answers else script.usual
        self.close_connection = True
        if answer == "silence":
            script.over.wait(10)
        elif answer != "hang up":
            assert not isinstance(answer, str)
            status, body, headers = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served() -> Iterator[Script]:
    """The stand-in, for the length of a block."""
    script = Script()
    with StandInServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script})) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        script.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield script
        script.over.set()
        server.shutdown()
