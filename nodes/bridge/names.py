"""Names that several parts of the bridge, and the nodes, agree on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
EMBEDDED = "uvg_tiny.safetensors"
FOLDER = "uni_vigu"
TEXT_STREAM = "uni_vigu_text"  # where transformer_options carry the text of a run
TEXT_TOKENS, TEXT_MASK = "uni_vigu_tokens", "uni_vigu_mask"  # where CONDITIONING carries the held-clean text
TEXT_WEIGHT = "text_head.head.weight"
FROM_CHECKPOINT = "from the checkpoint"
HUB = "https://huggingface.co"
WAN_FILES = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"


@dataclass(frozen=True)
class Download:
    """A file that the released model needs, as users get it; ``folder`` is one of ComfyUI's models."""

    name: str
    size: str
    folder: str
    url: str

    def __str__(self) -> str:
        return f"{self.name} ({self.size}) from {self.url} into models/{self.folder}"


def _of_wan(name: str, size: str, folder: str) -> Download:
    return Download(name, size, folder, f"{WAN_FILES}/{folder}/{name}")


# The hub's name of the release's file is not known here, hence a page as the address.
RELEASED = Download("uni_vigu.pth", "6.1 GB in bf16, 12.2 GB in fp32", FOLDER, f"{HUB}/Fr0zencr4nE/Uni-ViGU/tree/main")
PARTS = {
    "text encoder": _of_wan("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "6.7 GB", "text_encoders"),
    "VAE": _of_wan("wan_2.1_vae.safetensors", "254 MB", "vae"),
}
