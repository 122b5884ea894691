"""The sockets of the pack that ComfyUI does not have, and the one place for its category."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "Uni-ViGU"
UvgText = io.Custom("UVG_TEXT")  # a GeneratedText
LoraModel, LossMap = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")  # core's own
