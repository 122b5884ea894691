"""The shipped workflows give what they gave when ``record.json`` was written, on a real ComfyUI on the CPU.

Each workflow runs once, as it is in its file; only ``first_try``, made for the large released model, runs at 64 x 48
on the embedded one. Compared are texts (exactly; the scores of the ranking to 1e-3 relative), the shape of every video
and picture, and the mean colours of a grid of blocks (to 2 of 255, because an mp4 is encoded) in pictures and in the
first, middle and last frame of videos. On the kind of machine that the record was made on, all pixels before they are
encoded, and those of pictures, must be the same to the last bit. A change that is meant to change results writes the
record anew:

    UVG_WRITE_RECORD=1 OMP_NUM_THREADS=1 python -m pytest tests/in_comfyui/test_record.py
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from in_comfyui_host import Server
from records import WRITE, machine, read_record, write_record
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

RECORD = Path(__file__).with_name("record.json")
NAMES = ("first_try", "text_to_video", "video_to_text", "joint", "caption_folder", "rank_captions", "edit_by_words")
GRID = 8  # blocks along either side
SCORES = r"-?\d+\.\d+(?=[ %])"  # in what the ranking shows


@pytest.fixture(scope="module")
def here(server: Server) -> dict[str, Any]:
    """The kind of machine, with the versions that the server runs on."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server.url}/system_stats", timeout=60) as response:
        system = json.load(response)["system"]
    return machine(system["pytorch_version"])


def pixels_of(path: Path) -> Tensor:
    """All frames of a video, or a picture as one frame: uint8 ``[T,H,W,3]``."""
    with av.open(str(path)) as file:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    return torch.stack(frames)


def blocks_of(pixels: Tensor) -> list[str]:
    """The mean colours of the blocks of the first, middle and last frame, two hexadecimal digits for each number."""
    chosen = pixels[sorted({0, len(pixels) // 2, len(pixels) - 1})]
    means = adaptive_avg_pool2d(chosen.permute(0, 3, 1, 2).double(), GRID).round()
    return [bytes(frame.flatten().byte().tolist()).hex() for frame in means]


def seen(run: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """What a run left: texts, shapes and blocks of files by node; and the hashes of what was not encoded."""
    shown: dict[str, Any] = {}
    hashes: dict[str, Any] = {}
    for node, path in run.files:
        pixels = pixels_of(path)
        if path.suffix == ".png":
            hashes.setdefault(node, hashlib.sha256()).update(pixels.numpy().tobytes())
        if node != "pixels":
            shown.setdefault(node, []).append({"shape": list(pixels.shape), "blocks": blocks_of(pixels)})
    found = {"texts": dict(sorted(run.result.texts.items())), "files": dict(sorted(shown.items()))}
    return found, {node: sha.hexdigest() for node, sha in sorted(hashes.items())}


def compare(found: dict[str, Any], expected: dict[str, Any], scores: bool) -> None:
    assert found["texts"].keys() == expected["texts"].keys()
    for node, texts in expected["texts"].items():
        for text, wanted in zip(found["texts"][node], texts, strict=True):
            if not scores:
                assert text == wanted
                continue
            assert re.sub(rf" *{SCORES}", "_", text) == re.sub(rf" *{SCORES}", "_", wanted)
            numbers, others = (list(map(float, re.findall(SCORES, shown))) for shown in (text, wanted))
            assert numbers == pytest.approx(others, rel=1e-3, abs=2e-3)  # they are rounded to 3 digits
    assert found["files"].keys() == expected["files"].keys()
    for node, files in expected["files"].items():
        for file, like in zip(found["files"][node], files, strict=True):
            assert file["shape"] == like["shape"]
            for frame, other in zip(file["blocks"], like["blocks"], strict=True):
                assert list(bytes.fromhex(frame)) == pytest.approx(list(bytes.fromhex(other)), rel=0, abs=2)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_gives_what_it_gave(shipped: Callable[[str], Any], here: dict[str, Any], name: str) -> None:
    found, pixels = seen(shipped(name))
    if WRITE:
        write_record(RECORD, name, here, found | {"pixels": pixels})
    record = read_record(RECORD)
    expected = record[name]
    compare(found, expected, scores=name == "rank_captions")
    if here == record["machine"]:
        assert pixels == expected.get("pixels", pixels)  # an entry that was added elsewhere has none
