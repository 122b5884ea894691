"""A server that answers byte by byte as a test says, and keeps what it was sent."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Answer = Callable[[socket.socket], object]


class RawServer(socketserver.ThreadingTCPServer):
    """``answer`` is called with the connection once a whole request has come."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.answer, self.heard = answer, list[bytes]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, RawServer)
        with suppress(OSError):
            heard = self.request.recv(65536)
            while b"\r\n\r\n" not in heard and (more := self.request.recv(65536)):
                heard += more
            if not heard:
                return
            head, _, body = heard.partition(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            while len(body) < length and (more := self.request.recv(65536)):
                body += more
            server.heard.append(head + b"\r\n\r\n" + body)
            server.answer(self.request)


@contextmanager
def raw_server(answer: Answer) -> Iterator[RawServer]:
    with RawServer(answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
