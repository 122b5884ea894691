"""The schema that all nodes of the pack share, and its sockets that ComfyUI does not have."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

UvgText = io.Custom("UVG_TEXT")  # a GeneratedText
LoraModel, LossMap = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")  # core's own


def schema(node: type, title: str, description: str, **parts: Any) -> io.Schema:
    """The schema of a node: its id is the name of its class. ``parts``: inputs, outputs, and what else a schema has."""
    return io.Schema(node_id=node.__name__, display_name=title, category="Uni-ViGU", description=description, **parts)


def output(kind: Any, name: str, tooltip: str, **options: Any) -> Any:
    """An output that is not shown under the name of its type."""
    return kind.Output(display_name=name, tooltip=tooltip, **options)
