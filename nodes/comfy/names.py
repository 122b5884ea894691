"""Names that several parts of the bridge, and the nodes, agree on."""

from __future__ import annotations

EMBEDDED = "uvg_tiny.safetensors"
FOLDER = "uni_vigu"
TEXT_TOKENS, TEXT_MASK = "uni_vigu_tokens", "uni_vigu_mask"  # where CONDITIONING carries the held-clean text
TEXT_WEIGHT = "text_head.head.weight"
FROM_CHECKPOINT = "from the checkpoint"
