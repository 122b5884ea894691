"""What ``test_inside`` asks of the process inside ComfyUI."""

from __future__ import annotations

import asyncio
from typing import Any

import comfy.model_management
import folder_paths
import torch
from worker import load_pack, node_class


def surroundings(**arguments: Any) -> dict[str, Any]:
    print("this belongs to the log")
    return {
        "arguments": arguments,
        "device": comfy.model_management.get_torch_device().type,
        "inference": torch.is_inference_mode_enabled(),
        "input": folder_paths.get_input_directory(),
    }


async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value


def picture() -> list[int]:
    (image,) = node_class("EmptyImage")().generate(width=8, height=4, batch_size=2, color=0)
    return list(image.shape)


def fails() -> None:
    raise ValueError("this was to be expected")


def leaves() -> None:
    raise SystemExit(3)


def no_json() -> object:
    return object()


async def problem_of(folder: str) -> str | None:
    return await load_pack(folder)
