"""The HTTP server behind the stand-ins for ComfyUI and for chat endpoints."""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer
from typing import Any


class StandInServer(ThreadingHTTPServer):
    """A server whose threads say nothing when a client hangs up, as the tests of lost connections make it do.

    Its thread may outlive the test, so what it prints would land in the captured output of the next one.
    """

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)
