"""What is shown while a node works, and in the end."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
from comfy_execution.graph_utils import ExecutionBlocker
from server import PromptServer
from torch import Tensor

from .network import latent_format_of
from .paths import shown

log = logging.getLogger(__name__)

SAID = "uni_vigu.said"  # the event of words that come without outputs; web/words.js listens to it


def preview_of(model: Any, steps: int) -> Any:
    """Core's callback with a live preview, in the latent space that MODEL will run in: what Check Uni-ViGU has found is
    put on the model only as it is loaded."""
    if "latent_format" in model.object_patches:
        inner = SimpleNamespace(latent_format=latent_format_of(model))
        model = SimpleNamespace(load_device=model.load_device, model=inner)
    return latent_preview.prepare_callback(model, steps)


class Progress:
    """The bar, the preview and the live text of one node while it works. Raises where the user has cancelled."""

    def __init__(self, node_id: str | None, model: Any | None = None, steps: int = 1) -> None:
        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(steps)
        self._preview = None if model is None else preview_of(model, steps)
        self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Moves the bar: a ``Report`` of uvg_core's."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(done, total)

    def video(self, done: int, total: int, estimate: Tensor, latent: Tensor) -> None:
        """A step of a run that forms video: the stock preview of where it points."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        assert self._preview is not None
        self._preview(done - 1, estimate, latent, total)

    def picture(self, done: int, total: int, picture: Any) -> None:
        """A step with a Pillow picture to show for it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(done, total, ("JPEG", picture, None))

    def text(self, text: str, *, last: bool = False) -> None:
        """Show text in the node while it works, at most ten times a second but for a ``last`` one, to the client that
        queued the prompt. What is to stay goes out with the outputs: ``said``."""
        now = time.monotonic()
        if not last and now - self._last <= 0.1:
            return
        self._last = now
        server, client, node = self._reader()
        if client is not None and node is not None:
            server.send_progress_text(shown(text), node, client)

    def leave(self, text: str) -> None:
        """Text that stays in the node of a run that ends without outputs, for the client that queued it."""
        self.text(text, last=True)
        server, client, node = self._reader()
        if client is not None and node is not None:
            server.send_sync(SAID, {"node": node, **said(text)}, client)

    def _reader(self) -> tuple[Any, str | None, str | None]:
        """The server, None where nodes run without one; who waits for the prompt: None is nobody, and to core all; and
        the node on the canvas. A copy of a node, which runs for another prompt of a list, is not there."""
        server: Any = getattr(PromptServer, "instance", None)
        is_copy = server is not None and self._node_id is not None and "." in self._node_id
        return server, getattr(server, "client_id", None), server.last_node_id if is_copy else self._node_id


def blocked(message: str | None) -> Any:
    """An output that there is nothing for: what is connected to it does not run; None does not even say so."""
    return ExecutionBlocker(message)


def said(*texts: str) -> dict[str, list[str]]:
    """What a node has to say in the end, as the ``ui`` of its outputs: it reaches the history and the page that queued
    the prompt, where web/words.js keeps it in the node. Core sends it for cached nodes too."""
    return {"text": [shown(text) for text in texts]}
